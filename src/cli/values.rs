//! The commands that call `dyndata.v1.DynData`: one for each RPC.

use std::{ffi::OsString, time::Duration};

use clap::{Args, Subcommand};

use super::{
    batches::{BatchMark, BatchUnmark, Touch},
    conditional::{Incr, MarkIf, Unmark},
    error::CliError,
    render::{ValueType, time, typed, value_text, wire_duration},
    target::Target,
};
use crate::proto::{BatchGetRequest, Entry, GetRequest, MarkRequest};

/// One command for each RPC.
#[derive(Debug, Subcommand)]
pub enum ValuesCommand {
    /// Write a value with a time to live
    Mark(Mark),
    /// Read a value
    Get(Get),
    /// Read many values
    BatchGet(BatchGet),
    /// Remove a value, or remove it only if it is equal to another
    Unmark(Unmark),
    /// Remove many values
    BatchUnmark(BatchUnmark),
    /// Write many values, from arguments or from JSON lines on standard input
    BatchMark(BatchMark),
    /// Write a value if a condition holds, and see what was marked before
    MarkIf(MarkIf),
    /// Restart the time to live of values
    Touch(Touch),
    /// Add to a number
    Incr(Incr),
}

impl ValuesCommand {
    pub(super) async fn run(self) -> Result<(), CliError> {
        match self {
            Self::Mark(mark) => mark.run().await,
            Self::Get(get) => get.run().await,
            Self::BatchGet(batch_get) => batch_get.run().await,
            Self::Unmark(unmark) => unmark.run().await,
            Self::BatchUnmark(batch_unmark) => batch_unmark.run().await,
            Self::BatchMark(batch_mark) => batch_mark.run().await,
            Self::MarkIf(mark_if) => mark_if.run().await,
            Self::Touch(touch) => touch.run().await,
            Self::Incr(incr) => incr.run().await,
        }
    }
}

/// The arguments of `mark`.
#[derive(Debug, Args)]
pub struct Mark {
    /// What the value is about
    id: String,
    /// The value; an integer is stored as an int unless --type says otherwise
    #[arg(allow_negative_numbers = true)]
    value: OsString,
    /// How long the value lives, such as 30s or 500ms [default: the server's --default-ttl]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// The type to store
    #[arg(long = "type", value_name = "TYPE")]
    value_type: Option<ValueType>,
    #[command(flatten)]
    target: Box<Target>,
}

impl Mark {
    async fn run(self) -> Result<(), CliError> {
        let Self {
            id,
            value,
            ttl,
            value_type,
            target,
        } = self;
        let request = MarkRequest {
            namespace: target.namespace.clone(),
            id,
            value: Some(typed(value, value_type)?.into()),
            ttl: ttl.map(wire_duration).transpose()?,
        };
        let mut client = target.client().await?;
        let request = target.request(request)?;
        let reply = client.mark(request).await?.into_inner();
        let expires = format!("expires {}", time(reply.expire_time.as_ref()));
        target.print("MarkResponse", &reply, &expires)
    }
}

/// The arguments of `get`.
#[derive(Debug, Args)]
pub struct Get {
    /// The id to read
    id: String,
    /// Also print when the value expires
    #[arg(long)]
    expire_time: bool,
    #[command(flatten)]
    target: Box<Target>,
}

impl Get {
    async fn run(self) -> Result<(), CliError> {
        let Self {
            id,
            expire_time,
            target,
        } = self;
        let request = GetRequest {
            namespace: target.namespace.clone(),
            id,
            include_expire_time: expire_time,
        };
        let mut client = target.client().await?;
        let request = target.request(request)?;
        let reply = client.get(request).await?.into_inner();
        let text = reply.entry.as_ref().map(value_text).unwrap_or_default();
        target.print("GetResponse", &reply, &text)
    }
}

/// The arguments of `batch-get`.
#[derive(Debug, Args)]
pub struct BatchGet {
    /// The ids to read
    #[arg(required = true)]
    ids: Vec<String>,
    /// Also print when the values expire
    #[arg(long)]
    expire_time: bool,
    #[command(flatten)]
    target: Box<Target>,
}

impl BatchGet {
    async fn run(self) -> Result<(), CliError> {
        let Self {
            ids,
            expire_time,
            target,
        } = self;
        let request = BatchGetRequest {
            namespace: target.namespace.clone(),
            ids,
            include_expire_time: expire_time,
        };
        let mut client = target.client().await?;
        let request = target.request(request)?;
        let reply = client.batch_get(request).await?.into_inner();
        let line = |entry: &Entry| format!("{}\t{}", entry.id, value_text(entry));
        let lines: Vec<String> = reply.entries.iter().map(line).collect();
        target.print("BatchGetResponse", &reply, &lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: ValuesCommand,
    }

    #[test]
    fn a_negative_number_is_a_value_and_not_a_flag() {
        let line = Line::try_parse_from(["dyndata", "mark", "42", "-5", "--ttl", "3s"]);
        let Ok(Line {
            command: ValuesCommand::Mark(Mark { value, ttl, .. }),
        }) = line
        else {
            panic!("not a mark: {line:?}");
        };
        assert_eq!((value, ttl), ("-5".into(), Some(Duration::from_secs(3))));
    }
}
