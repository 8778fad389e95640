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
    render::{ValueType, from_json, typed, value_text, wire_duration},
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
        // All of them are read before the first is sent: a wrong one at the end leaves nothing half done.
        let marks: Vec<Item> = marks
            .iter()
            .map(|mark| on_command_line(mark, value_type, ttl))
            .collect::<Result<_, _>>()?;
        let mut sender = Sender {
            client: target.client().await?,
            target: &target,
            batch_size: batch_size as usize,
            items: Vec::new(),
            marked: 0,
            calls: 0,
            progress: progress(),
        };
        let result = match marks.is_empty() {
            true => sender.send_lines(io::stdin().lock(), ttl).await,
            false => sender.send(marks).await,
        };
        sender.progress.finish_and_clear();
        let Sender { marked, calls, .. } = sender;
        result.map_err(|error| CliError::BatchMark {
            marked,
            source: Box::new(error),
        })?;
        let plural = if calls == 1 { "" } else { "s" };
        let text = format!("marked {marked}, in {calls} call{plural}");
        target.print("BatchMarkResponse", &BatchMarkResponse {}, &text)
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

/// An item from a line of JSON.
fn from_line(line: &str) -> Result<Item, CliError> {
    from_json("BatchMarkRequest.Item", line).map_err(|error| match error {
        // The parser counts lines too, and for it each of ours is the first.
        CliError::Usage(text) => CliError::Usage(text.replace(" at line 1 column ", " at column ")),
        other => other,
    })
}

fn in_line(error: CliError, number: u64) -> CliError {
    CliError::Line {
        number,
        source: Box::new(error),
    }
}

/// The error of a line that cannot be read.
fn unreadable(error: io::Error, number: u64) -> CliError {
    if error.kind() == io::ErrorKind::InvalidData {
        return in_line(CliError::Usage("not UTF-8".to_owned()), number);
    }
    CliError::File {
        file: "standard input".into(),
        source: error,
    }
}

/// Sends items in batches.
struct Sender<'a> {
    client: DynDataClient<Channel>,
    target: &'a Target,
    batch_size: usize,
    items: Vec<Item>,
    marked: u64,
    calls: u64,
    progress: ProgressBar,
}

impl Sender<'_> {
    async fn send(&mut self, items: Vec<Item>) -> Result<(), CliError> {
        for item in items {
            self.add(item).await?;
        }
        self.flush().await
    }

    /// Sends one item for each line of JSON. Nothing of the batch with a bad line is sent.
    async fn send_lines(
        &mut self,
        lines: impl BufRead,
        ttl: Option<prost_types::Duration>,
    ) -> Result<(), CliError> {
        for (number, line) in (1..).zip(lines.lines()) {
            let line = line.map_err(|error| unreadable(error, number))?;
            if line.trim().is_empty() {
                continue;
            }
            let mut item = from_line(&line).map_err(|error| in_line(error, number))?;
            item.ttl = item.ttl.or(ttl);
            self.add(item).await?;
        }
        self.flush().await
    }

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
        self.client.batch_mark(request).await?;
        self.marked += count;
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
