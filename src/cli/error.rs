//! Why a command failed, in one line for people.

use std::{fmt::Write as _, io, path::PathBuf};

use thiserror::Error;
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::config::ConfigError;

/// Why a command failed.
#[derive(Debug, Error)]
pub(super) enum CliError {
    #[error("{}", describe(.0))]
    Call(#[from] Box<Status>),
    #[error("{source} (the {sent} items before this call are marked)")]
    Batch { sent: u64, source: Box<Self> },
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
    // A status with a cause was made by the client, not sent by a server.
    if let Some(cause) = std::error::Error::source(status) {
        return format!("no answer: {}", chain(cause));
    }
    let mut line = format!("{:?}: {}", status.code(), status.message());
    if let Some(info) = status.get_details_error_info() {
        // Writing to a String cannot fail.
        _ = write!(line, " ({})", info.reason);
    }
    line
}

/// An error and its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
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
