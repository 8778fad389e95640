//! The commands: what the binary does besides serving. The only module that prints.
//!
//! Results go to standard output, errors as one line to standard error. Exit codes: 0, 1 for a
//! call that failed, and of sysexits 64 for wrong usage and 78 for settings that cannot be served.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "see above")]

mod render;
mod target;

use std::{
    ffi::OsString,
    fmt::Write as _,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory as _, Parser, Subcommand};
use thiserror::Error;
use tonic::Status;
use tonic_types::StatusExt as _;

use self::{
    render::{Output, ValueType, print_line, time, typed, value_text, wire_duration},
    target::Target,
};
use crate::{
    Config,
    auth::{NewToken, Right},
    config::{ConfigError, ServeArgs},
    proto::{
        BatchGetRequest, GetRequest, MarkRequest,
        health::{
            HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
        },
    },
};

/// sysexits: wrong usage.
const EX_USAGE: u8 = 64;
/// sysexits: settings that cannot be served.
const EX_CONFIG: u8 = 78;

/// A gRPC service for dynamic data: small values with a time to live, kept in Redis.
#[derive(Debug, Parser)]
#[command(name = "dyndata", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve gRPC, from Redis or from the embedded store
    Serve(Box<ServeArgs>),
    /// Everything else.
    #[command(flatten)]
    Client(ClientCommand),
}

/// Commands that serve nothing.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Write a value with a time to live
    Mark {
        /// What the value is about
        id: String,
        /// The value; an integer is an int unless --type says otherwise
        #[arg(allow_negative_numbers = true)]
        value: OsString,
        /// How long the value lives, such as 30s or 500ms [default: the server's]
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        ttl: Option<Duration>,
        /// The type to store
        #[arg(long = "type", value_name = "TYPE")]
        value_type: Option<ValueType>,
        /// Where and how to call
        #[command(flatten)]
        target: Box<Target>,
    },
    /// Read a value
    Get {
        /// The id to read
        id: String,
        /// Also say when the value expires
        #[arg(long)]
        expire_time: bool,
        /// Where and how to call
        #[command(flatten)]
        target: Box<Target>,
    },
    /// Read many values
    BatchGet {
        /// The ids to read
        #[arg(required = true)]
        ids: Vec<String>,
        /// Also say when the values expire
        #[arg(long)]
        expire_time: bool,
        /// Where and how to call
        #[command(flatten)]
        target: Box<Target>,
    },
    /// Ask whether the server serves; exit code 1 if it does not
    Health {
        /// Where and how to call
        #[command(flatten)]
        target: Box<Target>,
    },
    /// Make credentials for callers
    Token {
        /// What to do
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Look at settings without serving
    Config {
        /// What to do with them
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print a man page
    Man {
        /// Of a command, such as `serve` or `token new`, instead of all of them
        command: Vec<String>,
    },
}

/// What to do about tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Print a new token, once, and the entry for the access file that lets its bearer in
    New {
        /// Who gets it; in the log, never in a metric
        #[arg(long)]
        name: String,
        /// What it may do
        #[arg(long, value_name = "RIGHTS", value_delimiter = ',', required = true)]
        allow: Vec<Right>,
        /// Where: a namespace, the start of one and a *, or * for all; the empty one unless given
        #[arg(
            long = "namespace",
            value_name = "NAMESPACE",
            value_delimiter = ',',
            default_value = ""
        )]
        namespaces: Vec<String>,
    },
}

/// What to do with settings.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the settings of serve, and print those in force with secrets redacted
    Check(Box<ServeArgs>),
}

#[derive(Debug, Error)]
enum CliError {
    #[error("{}", describe(.0))]
    Call(#[from] Box<Status>),
    #[error("cannot reach {addr}: {reason}")]
    Connect { addr: String, reason: String },
    #[error("{0}")]
    Usage(String),
    #[error("cannot read {}: {source}", file.display())]
    File { file: PathBuf, source: io::Error },
    #[error("the server is {0}")]
    NotServing(&'static str),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("cannot print the reply as JSON: {0}")]
    Json(String),
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

/// `CODE: message (REASON)`.
fn describe(status: &Status) -> String {
    // A status with a cause is one that no server sent.
    if let Some(cause) = std::error::Error::source(status) {
        return format!("no answer: {}", render::chain(cause));
    }
    let mut line = format!("{:?}: {}", status.code(), status.message());
    if let Some(info) = status.get_details_error_info() {
        // Writing to a String cannot fail.
        _ = write!(line, " ({})", info.reason);
    }
    line
}

/// Prints what clap has to say: help and version to standard output, complaints to standard error.
pub fn usage(error: &clap::Error) -> ExitCode {
    // A closed pipe is no reason to fail differently.
    _ = error.print();
    if error.use_stderr() {
        ExitCode::from(EX_USAGE)
    } else {
        ExitCode::SUCCESS
    }
}

/// Prints why the settings cannot be served.
pub fn bad_config(error: &ConfigError) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(EX_CONFIG)
}

/// Prints why the process cannot go on.
pub fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {}", render::chain(error));
    ExitCode::FAILURE
}

impl ClientCommand {
    /// Runs the command to its end, on a runtime of its own.
    pub fn run(self) -> ExitCode {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let result = match runtime {
            Ok(runtime) => runtime.block_on(self.execute()),
            Err(error) => Err(error.into()),
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(CliError::Config(error)) => bad_config(&error),
            // Whoever reads has seen enough.
            Err(CliError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("error: {error}");
                match error {
                    CliError::Usage(_) => ExitCode::from(EX_USAGE),
                    _ => ExitCode::FAILURE,
                }
            }
        }
    }

    async fn execute(self) -> Result<(), CliError> {
        match self {
            Self::Mark {
                id,
                value,
                ttl,
                value_type,
                target,
            } => {
                let request = MarkRequest {
                    namespace: target.namespace.clone(),
                    id,
                    value: Some(typed(value, value_type)?),
                    ttl: ttl.map(wire_duration).transpose()?,
                };
                let reply = target.client().await?.mark(request).await?;
                let expires = format!("expires {}", time(reply.expire_time.as_ref()));
                target.print("MarkResponse", &reply, &expires)
            }
            Self::Get {
                id,
                expire_time,
                target,
            } => {
                let request = GetRequest {
                    namespace: target.namespace.clone(),
                    id,
                    include_expire_time: expire_time,
                };
                let reply = target.client().await?.get(request).await?;
                let text = reply.entry.as_ref().map(value_text).unwrap_or_default();
                target.print("GetResponse", &reply, &text)
            }
            Self::BatchGet {
                ids,
                expire_time,
                target,
            } => {
                let request = BatchGetRequest {
                    namespace: target.namespace.clone(),
                    ids,
                    include_expire_time: expire_time,
                };
                let reply = target.client().await?.batch_get(request).await?;
                let lines: Vec<String> = reply
                    .entries
                    .iter()
                    .map(|entry| format!("{}\t{}", entry.id, value_text(entry)))
                    .collect();
                target.print("BatchGetResponse", &reply, &lines.join("\n"))
            }
            Self::Health { target } => {
                let mut client = HealthClient::new(target.channel().await?);
                let request = target.request(HealthCheckRequest::default())?;
                let reply = client.check(request).await?;
                match reply.into_inner().status() {
                    ServingStatus::Serving => print_line(match target.output {
                        Output::Text => "SERVING",
                        Output::Json => "{\n  \"status\": \"SERVING\"\n}",
                    }),
                    status => Err(CliError::NotServing(status.as_str_name())),
                }
            }
            Self::Token {
                command:
                    TokenCommand::New {
                        name,
                        allow,
                        namespaces,
                    },
            } => {
                let NewToken { token, entry } =
                    NewToken::generate(&name, &allow, &namespaces).map_err(CliError::Usage)?;
                print_line(&format!(
                    "# The token, shown this once; the caller sends it as: authorization: Bearer TOKEN\n\
                     {token}\n\n# For the access file:\n{}",
                    entry.trim_end()
                ))
            }
            Self::Config {
                command: ConfigCommand::Check(args),
            } => {
                let config = Config::try_from(*args)?;
                print_line(config.summary().trim_end())
            }
            Self::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "dyndata", &mut script);
                Ok(io::stdout().write_all(&script)?)
            }
            Self::Man { command } => {
                let mut page = Vec::new();
                clap_mangen::Man::new(described(&command)?).render(&mut page)?;
                Ok(io::stdout().write_all(&page)?)
            }
        }
    }
}

/// The definition of the command with these words.
fn described(words: &[String]) -> Result<clap::Command, CliError> {
    let mut command = Cli::command();
    command.build();
    for word in words {
        let found = command.find_subcommand(word).cloned();
        command = found.ok_or_else(|| CliError::Usage(format!("there is no command {word:?}")))?;
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_negative_number_is_a_value_and_not_a_flag() {
        let cli = Cli::try_parse_from(["dyndata", "mark", "42", "-5", "--ttl", "3s"]);
        let Ok(Cli {
            command: Command::Client(ClientCommand::Mark { value, ttl, .. }),
        }) = cli
        else {
            panic!("not a mark: {cli:?}");
        };
        assert_eq!((value, ttl), ("-5".into(), Some(Duration::from_secs(3))));
    }
}
