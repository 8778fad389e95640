//! Why there is no connection, and what Redis's error replies mean for a call.

use std::io;

use thiserror::Error;

use super::{
    resp::{ProtocolError, Replies, Reply},
    tls::RedisTlsError,
};
use crate::{
    log_limit::LogLimit,
    store::failure::{StoreError, WriteError},
};

static LOG: LogLimit = LogLimit::new();

/// Why there is no connection. The messages are for the log and `/readyz`, not for callers.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    /// The error reply to a command of the handshake.
    #[error("{0}")]
    Refused(String),
    /// Redis says so instead of the reply to the first command, and closes the connection.
    #[error("ERR max number of clients reached")]
    TooManyClients,
    /// The code of the error reply to AUTH.
    #[error("authentication failed: {0}")]
    Authentication(String),
    #[error("cannot read the password file: {0}")]
    PasswordFile(#[source] io::Error),
    #[error("{0}")]
    Tls(#[from] RedisTlsError),
    #[error("the server name is not valid for TLS")]
    ServerName,
    #[error("connection closed")]
    Closed,
    #[error("a reply is too large")]
    ReplyTooLarge,
    #[error("its replies do not belong to its commands")]
    OutOfStep,
    #[error("no node of the cluster answers")]
    NoNode,
    #[error("no node of the cluster that answers knows who has its slots")]
    NoSlots,
    #[error("no sentinel answers")]
    NoSentinel,
    #[error("the sentinels know no master of this name")]
    UnknownMaster,
    #[error("the sentinels disagree about who the master is")]
    Disagreement,
    #[error("{0} is not a master")]
    NotMaster(String),
}

impl ConnectError {
    /// Fails if a reply is an error.
    pub(crate) fn check(reply: &[u8]) -> Result<(), Self> {
        match Replies::new(reply).next() {
            Some(Reply::Error(line)) => Err(Self::refused(line)),
            _ => Ok(()),
        }
    }

    /// The error reply to a command of the handshake, or of a connection that tracks changes.
    pub(crate) fn refused(line: &[u8]) -> Self {
        let line = String::from_utf8_lossy(line);
        if is_about_clients(&line) {
            return Self::TooManyClients;
        }
        Self::Refused(loggable(&line).to_owned())
    }

    /// The error reply to AUTH. Only its code is kept, because Redis may quote what it was sent:
    /// the password.
    pub(super) fn authentication(line: &[u8]) -> Self {
        let line = String::from_utf8_lossy(line);
        if is_about_clients(&line) {
            return Self::TooManyClients;
        }
        Self::Authentication(split(&line).0.to_owned())
    }

    /// The error for calls that arrive while there is no connection.
    pub(crate) fn for_calls(&self) -> StoreError {
        match self {
            Self::Authentication(_) => StoreError::Auth,
            Self::TooManyClients => StoreError::Busy,
            Self::Refused(line) if is_about_credentials(split(line).0) => StoreError::Auth,
            _ => StoreError::Unavailable,
        }
    }
}

/// Classifies an error reply by its code, the first word. The text of the reply goes to the log, at
/// most once a second, and never to a caller.
pub(crate) fn classify(line: &[u8]) -> StoreError {
    let text = String::from_utf8_lossy(line);
    let (code, _) = split(cause(&text));
    let error = match code {
        "LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "NOREPLICAS" => {
            StoreError::Busy
        }
        "ERR" if is_about_clients(&text) => StoreError::Busy,
        // The server is a node of a cluster, but --redis-mode is not cluster.
        "MOVED" | "ASK" | "CROSSSLOT" => StoreError::Misconfigured,
        "READONLY" => StoreError::ReadOnly,
        "OOM" => StoreError::OutOfMemory,
        "MISCONF" => StoreError::Misconfigured,
        _ if is_about_credentials(code) || is_about_rights_in_script(&text) => StoreError::Auth,
        "WRONGTYPE" => StoreError::WrongType,
        _ => StoreError::Unexpected,
    };
    // A key of another type is a caller's mistake. It is no news for those who run the service.
    if error != StoreError::WrongType && LOG.admit().is_some() {
        tracing::warn!(error = loggable(&text), "redis answered with an error");
    }
    error
}

/// An error reply without what Redis quotes of the command: a key, with its namespace and id, and the
/// value. Redis quotes the arguments of a command that it does not have.
fn loggable(text: &str) -> &str {
    let quote = text.find(", with args beginning with");
    quote.map_or(text, |start| &text[..start])
}

/// Whether an error reply says that Redis has as many clients as it may have.
fn is_about_clients(text: &str) -> bool {
    text.starts_with("ERR max number of clients")
}

/// Whether an error code says that the server does not accept our credentials. DENIED is protected
/// mode: the server lets nobody in from outside, because it has no password.
pub(crate) fn is_about_credentials(code: &str) -> bool {
    matches!(code, "NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED")
}

/// The error behind an error reply. Redis puts words of its own before the reason where it refuses
/// EXEC itself, and, up to version 6.2, where a command of a script fails.
pub(crate) fn cause(text: &str) -> &str {
    if let Some(cause) = text.strip_prefix("EXECABORT Transaction discarded because of: ") {
        return cause;
    }
    let script = text.strip_prefix("ERR Error running script");
    let place = script.and_then(|script| script.rsplit_once("@user_script:"));
    let cause = place.and_then(|(_, line_and_cause)| line_and_cause.split_once(": "));
    cause.map_or(text, |(_, cause)| cause.trim_start_matches('-'))
}

/// Whether a script failed because the Redis user may not run one of its commands. The commands
/// before may have written.
fn is_about_rights_in_script(text: &str) -> bool {
    text.contains("The user executing the script can't") || text.contains("ACL failure in script")
}

/// The first word of an error reply, and the rest.
pub(crate) fn split(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

/// The error of a read that got this reply, which is not one that the command should get.
pub(crate) fn unexpected(command: &'static str, reply: Option<Reply<'_>>) -> StoreError {
    // Only the kind of reply is logged: the reply may have a value.
    let kind = match reply {
        Some(Reply::Error(line)) => return classify(line),
        Some(Reply::Status(_)) => "status",
        Some(Reply::Int(_)) => "integer",
        Some(Reply::Nil) => "nil",
        Some(Reply::Bulk(_)) => "bulk string",
        Some(Reply::Array(_)) => "array",
        Some(Reply::Push(_)) => "push",
        None => "nothing",
    };
    tracing::error!(command, kind, "redis gave an unexpected kind of reply");
    StoreError::Unexpected
}

/// The error of a write that got this reply. An error reply that we know says that Redis refused
/// the write. Any other reply may come from a proxy, which need not know what became of the write.
pub(crate) fn refused(command: &'static str, reply: Option<Reply<'_>>) -> WriteError {
    let may_have_written = match &reply {
        Some(Reply::Error(line)) => is_about_rights_in_script(&String::from_utf8_lossy(line)),
        _ => false,
    };
    match unexpected(command, reply) {
        error if may_have_written || error == StoreError::Unexpected => WriteError::unknown(error),
        error => WriteError::not_executed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_quotes_of_a_command_is_not_logged() {
        for (line, logged) in [
            (
                "ERR unknown command 'SET', with args beginning with: 'dyn_data:n/42' 's:c4n4ry' ",
                "ERR unknown command 'SET'",
            ),
            (
                "ERR unknown command `SET`, with args beginning with: `dyn_data:n/42`, `s:c4n4ry`, ",
                "ERR unknown command `SET`",
            ),
            ("ERR syntax error", "ERR syntax error"),
        ] {
            assert_eq!(loggable(line), logged);
            assert_eq!(ConnectError::refused(line.as_bytes()).to_string(), logged);
        }
    }

    #[test]
    fn every_error_code_has_its_meaning() {
        for (line, error) in [
            (
                "LOADING Redis is loading the dataset in memory",
                StoreError::Busy,
            ),
            ("BUSY Redis is busy running a script.", StoreError::Busy),
            ("MASTERDOWN Link with MASTER is down", StoreError::Busy),
            ("CLUSTERDOWN The cluster is down", StoreError::Busy),
            (
                "TRYAGAIN Multiple keys request during rehashing of slot",
                StoreError::Busy,
            ),
            (
                "NOREPLICAS Not enough good replicas to write.",
                StoreError::Busy,
            ),
            ("ERR max number of clients reached", StoreError::Busy),
            (
                "READONLY You can't write against a read only replica.",
                StoreError::ReadOnly,
            ),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                StoreError::OutOfMemory,
            ),
            (
                "MISCONF Redis is configured to save RDB snapshots",
                StoreError::Misconfigured,
            ),
            ("NOAUTH Authentication required.", StoreError::Auth),
            ("WRONGPASS invalid username-password pair", StoreError::Auth),
            ("NOPERM this user has no permissions", StoreError::Auth),
            (
                "DENIED Redis is running in protected mode",
                StoreError::Auth,
            ),
            ("MOVED 3999 127.0.0.1:6381", StoreError::Misconfigured),
            ("ASK 3999 127.0.0.1:6381", StoreError::Misconfigured),
            (
                "CROSSSLOT Keys in request don't hash to the same slot",
                StoreError::Misconfigured,
            ),
            ("WRONGTYPE Operation against a key", StoreError::WrongType),
            (
                "EXECABORT Transaction discarded because of previous errors.",
                StoreError::Unexpected,
            ),
            (
                "EXECABORT Transaction discarded because of: BUSY Redis is busy running a script.",
                StoreError::Busy,
            ),
            (
                "EXECABORT Transaction discarded because of: READONLY You can't write",
                StoreError::ReadOnly,
            ),
            ("NOSCRIPT No matching script.", StoreError::Unexpected),
            ("READONLYX is another code", StoreError::Unexpected),
            (" OOM after a space", StoreError::Unexpected),
            ("ERR syntax error", StoreError::Unexpected),
            ("SOMETHINGNEW of a later version", StoreError::Unexpected),
            ("", StoreError::Unexpected),
        ] {
            assert_eq!(classify(line.as_bytes()), error, "{line}");
        }
        assert_eq!(classify(b"\xff\xfe"), StoreError::Unexpected);
    }
}
