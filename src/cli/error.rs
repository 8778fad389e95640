//! Why a command failed, in one line for people.

use std::{fmt::Write as _, io, path::PathBuf};

use thiserror::Error;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::config::ConfigError;

/// Why a command failed.
#[derive(Debug, Error)]
pub(super) enum CliError {
    #[error("{}", describe(.0))]
    Call(#[from] Box<Status>),
    #[error("{source}{}", already_marked(*.marked, .source))]
    BatchMark { marked: u64, source: Box<Self> },
    #[error("line {number}: {source}")]
    Line { number: u64, source: Box<Self> },
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

impl CliError {
    /// Returns true if the caller gave us something wrong, so that nothing of it was sent.
    pub(super) fn is_usage(&self) -> bool {
        match self {
            Self::Usage(_) => true,
            Self::BatchMark { source, .. } | Self::Line { source, .. } => source.is_usage(),
            _ => false,
        }
    }
}

/// What the batches before the error have written. A call that failed may have written a part of
/// its batch too, so "nothing" is certain only if none was sent.
fn already_marked(marked: u64, error: &CliError) -> String {
    match marked {
        0 if error.is_usage() => " (nothing was marked)".to_owned(),
        0 => String::new(),
        1 => " (1 item before was marked)".to_owned(),
        _ => format!(" ({marked} items before were marked)"),
    }
}

/// `CODE: message (REASON)`.
fn describe(status: &Status) -> String {
    // A status with a cause was made by the client, not sent by a server.
    if let Some(cause) = std::error::Error::source(status) {
        return format!("no answer: {}", chain(cause));
    }
    let mut line = format!("{:?}: {}", status.code(), status.message());
    let reason = status.get_details_error_info().map(|info| info.reason);
    if let Some(reason) = &reason {
        // Writing to a String cannot fail.
        _ = write!(line, " ({reason})");
    }
    let unknown_call = reason.is_none_or(|reason| reason == "UNIMPLEMENTED");
    if status.code() == Code::Unimplemented && unknown_call {
        line += "; the server does not know this call, so it is probably older than this client";
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

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn text(code: Code, reason: Option<&str>) -> String {
        let status = match reason {
            Some(reason) => {
                let details = ErrorDetails::with_error_info(reason, "dyndata", []);
                Status::with_error_details(code, "no", details)
            }
            None => Status::new(code, "no"),
        };
        CliError::from(status).to_string()
    }

    #[test]
    fn a_server_that_does_not_know_a_call_is_said_to_be_older() {
        let hint = "; the server does not know this call, so it is probably older than this client";
        assert_eq!(
            text(Code::Unimplemented, Some("UNIMPLEMENTED")),
            format!("Unimplemented: no (UNIMPLEMENTED){hint}")
        );
        assert_eq!(
            text(Code::Unimplemented, None),
            format!("Unimplemented: no{hint}")
        );
        for (code, reason) in [
            (Code::Unimplemented, "COMPRESSION_UNSUPPORTED"),
            (Code::Unavailable, "BACKEND_BUSY"),
        ] {
            assert_eq!(text(code, Some(reason)), format!("{code:?}: no ({reason})"));
        }
    }

    #[test]
    fn an_error_of_a_batch_says_what_is_marked_already() {
        for (marked, suffix) in [
            (0, " (nothing was marked)"),
            (1, " (1 item before was marked)"),
            (2, " (2 items before were marked)"),
        ] {
            let source = Box::new(CliError::Usage("bad".to_owned()));
            let line = Box::new(CliError::Line { number: 7, source });
            let error = CliError::BatchMark {
                marked,
                source: line,
            };
            assert_eq!(error.to_string(), format!("line 7: bad{suffix}"));
            assert!(error.is_usage());
        }
        // The call may have written a part.
        let source = Box::new(Status::unavailable("gone").into());
        let error = CliError::BatchMark { marked: 0, source };
        assert_eq!(error.to_string(), "Unavailable: gone");
        assert!(!error.is_usage());
    }
}
