//! The commands about who is there: `count`, `list` and `watch`.

use clap::{Args, Subcommand};

use super::{
    error::CliError,
    render::{Output, json_line, print_lines, time},
    target::Target,
    watch::Watch,
};
use crate::proto::{CountRequest, Entry, ListRequest, ListResponse};

/// The commands about all ids of a namespace, and about changes.
#[derive(Debug, Subcommand)]
pub enum PresenceCommand {
    /// Count the ids that are marked in an indexed namespace
    Count(Count),
    /// List the ids that are marked in an indexed namespace
    ///
    /// Each line is an id and its expiry. With --output json, each line is an entry. The command
    /// asks for page after page, and prints each page when it arrives. It prints an id twice if the
    /// server lists it twice.
    List(List),
    /// Print values, and then each change of them, until Ctrl-C
    ///
    /// Each line is an id and its value. The snapshot comes first, and then the changes. With
    /// --output json, each line is a message of the stream. After a lost connection, the command
    /// connects again. Before a new snapshot it says so on standard error. --timeout is the time to
    /// connect, and does not limit the watch.
    Watch(Watch),
}

impl PresenceCommand {
    pub(super) async fn run(self) -> Result<(), CliError> {
        match self {
            Self::Count(count) => count.run().await,
            Self::List(list) => list.run().await,
            Self::Watch(watch) => watch.run().await,
        }
    }
}

/// The arguments of `count`.
#[derive(Debug, Args)]
pub struct Count {
    #[command(flatten)]
    target: Box<Target>,
}

impl Count {
    async fn run(self) -> Result<(), CliError> {
        let Self { target } = self;
        let request = CountRequest {
            namespace: target.namespace.clone(),
        };
        let mut client = target.client().await?;
        let request = target.request(request)?;
        let reply = client.count(request).await?.into_inner();
        target.print("CountResponse", &reply, &reply.count.to_string())
    }
}

/// The arguments of `list`.
#[derive(Debug, Args)]
pub struct List {
    /// About how many ids to ask for in one call. Each call has the deadline of --timeout
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 1000,
        value_parser = clap::value_parser!(i32).range(1..=1000)
    )]
    page_size: i32,
    #[command(flatten)]
    target: Box<Target>,
}

impl List {
    async fn run(self) -> Result<(), CliError> {
        let Self { page_size, target } = self;
        let mut client = target.client().await?;
        let mut page_token = String::new();
        loop {
            let request = target.request(ListRequest {
                namespace: target.namespace.clone(),
                page_size,
                page_token,
            })?;
            let ListResponse {
                entries,
                next_page_token,
            } = client.list(request).await?.into_inner();
            let line = |entry: &Entry| match target.output {
                Output::Text => {
                    let expires = time(entry.expire_time.as_ref());
                    Ok(format!("{}\texpires {expires}", entry.id))
                }
                Output::Json => json_line("Entry", entry),
            };
            let lines: Vec<String> = entries.iter().map(line).collect::<Result<_, _>>()?;
            print_lines(&lines)?;
            if next_page_token.is_empty() {
                return Ok(());
            }
            page_token = next_page_token;
        }
    }
}
