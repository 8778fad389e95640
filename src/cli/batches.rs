//! The commands that write for many ids: `batch-mark`, `batch-unmark` and `touch`.

use std::{
    ffi::OsString,
    io::{self, BufRead, IsTerminal as _},
    time::Duration,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tonic::transport::Channel;

use super::{
    error::CliError,
    render::{Output, ValueType, from_json, print_line, typed, value_text, wire_duration},
    target::Target,
};
use crate::proto::{
    BatchMarkRequest, BatchMarkResponse, BatchUnmarkRequest, Entry, TouchRequest,
    batch_mark_request::Item, dyn_data_client::DynDataClient,
};

/// The arguments of `batch-mark`.
#[derive(Debug, Args)]
pub struct BatchMark {
    /// ID=VALUE; an integer is stored as an int unless --type says otherwise. Without any, the items
    /// are read from standard input, one JSON object a line: {"id":"42","intValue":"100","ttl":"30s"},
    /// with intValue, stringValue or bytesValue (base64)
    #[arg(value_name = "ID=VALUE")]
    marks: Vec<String>,
    /// How long a value lives that names no ttl, such as 30s or 500ms [default: the server's
    /// --default-ttl]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// The type to store, for values on the command line
    #[arg(long = "type", value_name = "TYPE")]
    value_type: Option<ValueType>,
    /// The most items in one call
    #[arg(long, value_name = "COUNT", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    #[command(flatten)]
    target: Box<Target>,
}

impl BatchMark {
    pub(super) async fn run(self) -> Result<(), CliError> {
        let Self {
            marks,
            ttl,
            value_type,
            batch_size,
            target,
        } = self;
        let ttl = ttl.map(wire_duration).transpose()?;
        let mut sender = Sender {
            client: target.client().await?,
            target: &target,
            batch_size: batch_size as usize,
            items: Vec::new(),
            sent: 0,
            calls: 0,
            progress: progress(),
        };
        if marks.is_empty() {
            for (number, line) in io::stdin().lock().lines().enumerate() {
                let line = line?;
                if line.trim().is_empty() {
                    continue;
                }
                let mut item: Item = from_json("BatchMarkRequest.Item", &line)
                    .map_err(|error| CliError::Usage(format!("line {}: {error}", number + 1)))?;
                item.ttl = item.ttl.or(ttl);
                sender.add(item).await?;
            }
        } else {
            for mark in marks {
                sender.add(on_command_line(&mark, value_type, ttl)?).await?;
            }
        }
        sender.flush().await?;
        sender.progress.finish_and_clear();
        match target.output {
            Output::Text => print_line(&format!(
                "marked {}, in {} calls",
                sender.sent, sender.calls
            )),
            Output::Json => target.print("BatchMarkResponse", &BatchMarkResponse {}, ""),
        }
    }
}

fn on_command_line(
    mark: &str,
    value_type: Option<ValueType>,
    ttl: Option<prost_types::Duration>,
) -> Result<Item, CliError> {
    let (id, value) = mark
        .split_once('=')
        .ok_or_else(|| CliError::Usage(format!("{mark}: not of the form ID=VALUE")))?;
    let value = typed(OsString::from(value), value_type)?;
    Ok(Item {
        id: id.to_owned(),
        value: Some(value.into()),
        ttl,
    })
}

/// Sends items in batches.
struct Sender<'a> {
    client: DynDataClient<Channel>,
    target: &'a Target,
    batch_size: usize,
    items: Vec<Item>,
    sent: u64,
    calls: u64,
    progress: ProgressBar,
}

impl Sender<'_> {
    async fn add(&mut self, item: Item) -> Result<(), CliError> {
        self.items.push(item);
        if self.items.len() >= self.batch_size {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), CliError> {
        if self.items.is_empty() {
            return Ok(());
        }
        let marks = std::mem::take(&mut self.items);
        let count = marks.len() as u64;
        let request = self.target.request(BatchMarkRequest {
            namespace: self.target.namespace.clone(),
            marks,
        })?;
        self.client.batch_mark(request).await.map_err(|status| {
            self.progress.abandon();
            CliError::Batch {
                sent: self.sent,
                source: Box::new(status.into()),
            }
        })?;
        self.sent += count;
        self.calls += 1;
        self.progress.inc(count);
        Ok(())
    }
}

/// A line that shows how far it is, on a terminal only.
fn progress() -> ProgressBar {
    let target = match io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(None, target);
    match ProgressStyle::with_template("{spinner} {human_pos} marked, {per_sec}, {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The arguments of `batch-unmark`.
#[derive(Debug, Args)]
pub struct BatchUnmark {
    /// The ids to remove
    #[arg(required = true)]
    ids: Vec<String>,
    #[command(flatten)]
    target: Box<Target>,
}

impl BatchUnmark {
    pub(super) async fn run(self) -> Result<(), CliError> {
        let Self { ids, target } = self;
        let request = BatchUnmarkRequest {
            namespace: target.namespace.clone(),
            ids,
        };
        let mut client = target.client().await?;
        let request = target.request(request)?;
        let reply = client.batch_unmark(request).await?.into_inner();
        let text = format!("removed {}", reply.removed_count);
        target.print("BatchUnmarkResponse", &reply, &text)
    }
}

/// The arguments of `touch`.
#[derive(Debug, Args)]
pub struct Touch {
    /// The ids to touch
    #[arg(required = true)]
    ids: Vec<String>,
    /// How long the values live from now on, such as 30s or 500ms [default: the server's
    /// --default-ttl]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    #[command(flatten)]
    target: Box<Target>,
}

impl Touch {
    pub(super) async fn run(self) -> Result<(), CliError> {
        let Self { ids, ttl, target } = self;
        let request = TouchRequest {
            namespace: target.namespace.clone(),
            ids,
            ttl: ttl.map(wire_duration).transpose()?,
        };
        let mut client = target.client().await?;
        let request = target.request(request)?;
        let reply = client.touch(request).await?.into_inner();
        let line = |entry: &Entry| format!("{}\t{}", entry.id, value_text(entry));
        let lines: Vec<String> = reply.entries.iter().map(line).collect();
        target.print("TouchResponse", &reply, &lines.join("\n"))
    }
}
