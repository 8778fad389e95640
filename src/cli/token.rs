//! `dyndata token`.

use clap::Subcommand;

use super::{error::CliError, render::print_line};
use crate::auth::{NewToken, Right};

/// What to do about tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token; print it, this once, with its entry for the access file
    New {
        /// The name of the caller; it is in the log, but never in a metric
        #[arg(long)]
        name: String,
        /// What it may do
        #[arg(long, value_name = "RIGHTS", value_delimiter = ',', required = true)]
        allow: Vec<Right>,
        /// In which namespaces: a name, the start of a name and *, or * for all. Unless given: only in
        /// the namespace with the empty name
        #[arg(
            long = "namespace",
            value_name = "NAMESPACE",
            value_delimiter = ',',
            default_value = ""
        )]
        namespaces: Vec<String>,
    },
}

impl TokenCommand {
    pub(super) fn run(self) -> Result<(), CliError> {
        let Self::New {
            name,
            allow,
            namespaces,
        } = self;
        let NewToken { token, entry } =
            NewToken::generate(&name, &allow, &namespaces).map_err(CliError::Usage)?;
        print_line(&format!(
            "# The token, shown this once; the caller sends it as: authorization: Bearer TOKEN\n\
             {token}\n\n# For the access file:\n{}",
            entry.trim_end()
        ))
    }
}
