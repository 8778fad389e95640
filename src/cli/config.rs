//! `dyndata config`.

use clap::Subcommand;

use super::{error::CliError, render::print_line};
use crate::config::{Config, ServeArgs};

/// What to do with settings.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the settings of serve, and print those in force with secrets redacted
    Check(Box<ServeArgs>),
}

impl ConfigCommand {
    pub(super) fn run(self) -> Result<(), CliError> {
        let Self::Check(args) = self;
        let config = Config::try_from(*args)?;
        print_line(config.summary().trim_end())
    }
}
