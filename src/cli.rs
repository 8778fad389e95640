//! The commands: what the binary does besides serving. The only module that prints.
//!
//! Results go to standard output, errors as one line to standard error. Exit codes: 0, 1 for a
//! call that failed, and of sysexits 64 for wrong usage and 78 for settings that cannot be served.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "see above")]

use std::{
    ffi::OsString,
    fmt::Write as _,
    io::{self, Write as _},
    os::unix::ffi::OsStringExt as _,
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use thiserror::Error;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::{
    Config,
    config::{ConfigError, ServeArgs},
    proto::{
        self, BatchGetRequest, Entry, GetRequest, MarkRequest, dyn_data_client::DynDataClient,
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
        target: Target,
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
        target: Target,
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
        target: Target,
    },
    /// Ask whether the server serves; exit code 1 if it does not
    Health {
        /// Where and how to call
        #[command(flatten)]
        target: Target,
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
    /// Print the man page
    Man,
}

/// What to do with settings.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the settings of serve, and print those in force with secrets redacted
    Check(Box<ServeArgs>),
}

/// Where and how a client command calls.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// The server
    #[arg(
        long,
        env = "DYNDATA_ADDR",
        value_name = "URL",
        default_value = "http://127.0.0.1:50051"
    )]
    addr: String,
    /// The namespace of the ids
    #[arg(long, env = "DYNDATA_NAMESPACE", default_value = "")]
    namespace: String,
    /// How to print the result
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    /// How long the call may take
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// How to print a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// The protobuf JSON mapping, as grpcurl prints it
    Json,
}

/// The types of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ValueType {
    /// A signed 64-bit number
    Int,
    /// UTF-8 text
    String,
    /// Opaque bytes, as they are on the command line
    Bytes,
}

#[derive(Debug, Error)]
enum CliError {
    #[error("{}", describe(.0))]
    Call(#[from] Box<Status>),
    #[error("cannot reach {addr}: {reason}")]
    Connect { addr: String, reason: String },
    #[error("{0}")]
    Usage(String),
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
                let reply = target.client().await?.mark(request).await?.into_inner();
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
                let reply = target.client().await?.get(request).await?.into_inner();
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
                let reply = target
                    .client()
                    .await?
                    .batch_get(request)
                    .await?
                    .into_inner();
                let lines: Vec<String> = reply
                    .entries
                    .iter()
                    .map(|entry| format!("{}\t{}", entry.id, value_text(entry)))
                    .collect();
                target.print("BatchGetResponse", &reply, &lines.join("\n"))
            }
            Self::Health { target } => {
                let mut client = HealthClient::new(target.channel().await?);
                let reply = client
                    .check(target.request(HealthCheckRequest::default()))
                    .await?;
                match reply.into_inner().status() {
                    ServingStatus::Serving => print_line(match target.output {
                        Output::Text => "SERVING",
                        Output::Json => "{\n  \"status\": \"SERVING\"\n}",
                    }),
                    status => Err(CliError::NotServing(status.as_str_name())),
                }
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
            Self::Man => {
                let mut page = Vec::new();
                clap_mangen::Man::new(Cli::command()).render(&mut page)?;
                Ok(io::stdout().write_all(&page)?)
            }
        }
    }
}

impl Target {
    async fn channel(&self) -> Result<Channel, CliError> {
        let failed = |reason: String| CliError::Connect {
            addr: self.addr.clone(),
            reason,
        };
        Endpoint::from_shared(self.addr.clone())
            .map_err(|error| failed(chain(&error)))?
            .connect_timeout(self.timeout)
            .connect()
            .await
            .map_err(|error| failed(chain(&error)))
    }

    async fn client(&self) -> Result<Client<'_>, CliError> {
        Ok(Client {
            // A batch of large values is larger than the usual 4 MiB.
            inner: DynDataClient::new(self.channel().await?).max_decoding_message_size(usize::MAX),
            target: self,
        })
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    fn print(
        &self,
        message: &str,
        reply: &impl prost::Message,
        text: &str,
    ) -> Result<(), CliError> {
        match self.output {
            Output::Text => print_line(text),
            Output::Json => print_line(&json(message, reply)?),
        }
    }
}

/// The generated client, with the deadline on every call.
struct Client<'a> {
    inner: DynDataClient<Channel>,
    target: &'a Target,
}

impl Client<'_> {
    async fn mark(
        &mut self,
        request: MarkRequest,
    ) -> Result<tonic::Response<proto::MarkResponse>, Status> {
        self.inner.mark(self.target.request(request)).await
    }

    async fn get(
        &mut self,
        request: GetRequest,
    ) -> Result<tonic::Response<proto::GetResponse>, Status> {
        self.inner.get(self.target.request(request)).await
    }

    async fn batch_get(
        &mut self,
        request: BatchGetRequest,
    ) -> Result<tonic::Response<proto::BatchGetResponse>, Status> {
        self.inner.batch_get(self.target.request(request)).await
    }
}

fn typed(
    value: OsString,
    value_type: Option<ValueType>,
) -> Result<proto::mark_request::Value, CliError> {
    use proto::mark_request::Value;
    let not_utf8 = |_| CliError::Usage("the value is not UTF-8; use --type bytes".to_owned());
    match value_type {
        Some(ValueType::Bytes) => Ok(Value::BytesValue(value.into_vec())),
        Some(ValueType::String) => Ok(Value::StringValue(value.into_string().map_err(not_utf8)?)),
        Some(ValueType::Int) => {
            let text = value.into_string().map_err(not_utf8)?;
            let int = text.parse().map_err(|_| {
                CliError::Usage("the value is not a signed 64-bit integer".to_owned())
            })?;
            Ok(Value::IntValue(int))
        }
        None => {
            let text = value.into_string().map_err(not_utf8)?;
            // Only what is written exactly as the number would be: 007 is a string.
            Ok(match text.parse::<i64>() {
                Ok(int) if int.to_string() == text => Value::IntValue(int),
                _ => Value::StringValue(text),
            })
        }
    }
}

fn wire_duration(duration: Duration) -> Result<prost_types::Duration, CliError> {
    prost_types::Duration::try_from(duration)
        .map_err(|_| CliError::Usage("--ttl is too long".to_owned()))
}

/// The value for people: bytes are escaped.
fn value_text(entry: &Entry) -> String {
    use proto::entry::Value;
    let mut text = match &entry.value {
        None => return "(not marked)".to_owned(),
        Some(Value::IntValue(int)) => int.to_string(),
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::BytesValue(bytes)) => bytes.escape_ascii().to_string(),
    };
    if entry.expire_time.is_some() {
        // Writing to a String cannot fail.
        _ = write!(text, "\t(expires {})", time(entry.expire_time.as_ref()));
    }
    text
}

fn time(time: Option<&prost_types::Timestamp>) -> String {
    time.map_or_else(|| "never".to_owned(), ToString::to_string)
}

/// The protobuf JSON mapping with an indent of two, which is what grpcurl prints.
fn json(message: &str, reply: &impl prost::Message) -> Result<String, CliError> {
    let failed = |error: &dyn std::error::Error| CliError::Json(chain(error));
    let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).map_err(|e| failed(&e))?;
    let descriptor = pool
        .get_message_by_name(&format!("dyndata.v1.{message}"))
        .ok_or_else(|| CliError::Json("unknown message".to_owned()))?;
    let mut dynamic = DynamicMessage::new(descriptor);
    dynamic.transcode_from(reply).map_err(|e| failed(&e))?;
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::pretty(&mut text);
    dynamic
        .serialize_with_options(&mut serializer, &SerializeOptions::new())
        .map_err(|e| failed(&e))?;
    let text = String::from_utf8(text).map_err(|e| failed(&e))?;
    // As Go's encoder does, so that the output can stand in HTML and JavaScript. These characters
    // occur in JSON strings only.
    Ok(text
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029"))
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !line.ends_with(&cause_text) {
            // Writing to a String cannot fail.
            _ = write!(line, ": {cause_text}");
        }
        source = cause.source();
    }
    line
}

fn print_line(text: &str) -> Result<(), CliError> {
    Ok(writeln!(io::stdout(), "{text}")?)
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
