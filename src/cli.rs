//! The command line, and every command but `serve`. Only this module prints.
//!
//! A command prints its result to standard output. An error is one line on standard error. The exit
//! code is 0 for success and 1 for a call that failed. From sysexits come 64 for wrong usage and 78
//! for settings that cannot be served.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "see above")]

mod batches;
mod conditional;
mod config;
mod error;
mod health;
mod manual;
mod presence;
mod render;
mod target;
mod token;
mod values;
mod watch;

use std::{io, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};

use self::{
    config::ConfigCommand,
    error::{CliError, chain},
    health::HealthArgs,
    manual::{Completions, Man},
    presence::PresenceCommand,
    token::TokenCommand,
    values::ValuesCommand,
};
use crate::config::{ConfigError, ServeArgs};

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

/// The commands of the binary.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve gRPC, from Redis or from the embedded store
    Serve(Box<ServeArgs>),
    /// All other commands.
    #[command(flatten)]
    Client(ClientCommand),
}

/// The commands that do not serve.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// The calls of the service.
    #[command(flatten)]
    Values(ValuesCommand),
    /// Who is there.
    #[command(flatten)]
    Presence(PresenceCommand),
    /// Ask whether the server serves; exit code 1 if it does not
    Health(HealthArgs),
    /// Make credentials for callers
    #[command(subcommand)]
    Token(TokenCommand),
    /// Look at settings without serving
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Print a man page
    Man(Man),
}

/// Prints help and version to standard output, and errors of usage to standard error.
pub fn usage(error: &clap::Error) -> ExitCode {
    // An error here, such as a closed pipe, does not change the exit code.
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

/// Prints the error that ends the process.
pub fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {}", chain(error));
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
            // The reader, such as `head`, has read enough.
            Err(CliError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("error: {error}");
                match error.is_usage() {
                    true => ExitCode::from(EX_USAGE),
                    false => ExitCode::FAILURE,
                }
            }
        }
    }

    async fn execute(self) -> Result<(), CliError> {
        match self {
            Self::Values(command) => command.run().await,
            Self::Presence(command) => command.run().await,
            Self::Health(args) => args.run().await,
            Self::Token(command) => command.run(),
            Self::Config(command) => command.run(),
            Self::Completions(args) => args.run(Cli::command()),
            Self::Man(args) => args.run(Cli::command()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
