//! What Redis's error replies mean for a call.

use crate::{store::failure::StoreError, telemetry::OncePerSecond};

static LOG: OncePerSecond = OncePerSecond::new();

/// Classifies an error reply by its code, the first word. Redis's own text goes to the log, at
/// most once a second, and never to a caller.
pub(crate) fn classify(line: &[u8]) -> StoreError {
    let text = String::from_utf8_lossy(line);
    let (code, detail) = split(cause(&text));
    let error = match code {
        "LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "NOREPLICAS" => {
            StoreError::Busy
        }
        "ERR" if detail.contains("max number of clients") => StoreError::Busy,
        // One of a cluster's nodes, and no --redis-mode cluster.
        "MOVED" | "ASK" | "CROSSSLOT" => StoreError::Misconfigured,
        "READONLY" => StoreError::ReadOnly,
        "OOM" => StoreError::OutOfMemory,
        "MISCONF" => StoreError::Misconfigured,
        _ if is_about_credentials(code) => StoreError::Auth,
        "WRONGTYPE" => StoreError::WrongType,
        _ => StoreError::Unexpected,
    };
    // Another type under a key is a caller's doing, and no news for those who run the service.
    if error != StoreError::WrongType && LOG.take() {
        tracing::warn!(error = %text, "redis answered with an error");
    }
    error
}

/// Whether an error code says that the server does not accept who we are. DENIED is protected
/// mode: a password is wanted that neither side has.
pub(crate) fn is_about_credentials(code: &str) -> bool {
    matches!(code, "NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED")
}

/// What an error in answer to a PING says about the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PingFailure {
    /// It will not serve us.
    Refused,
    /// It will not serve anybody at the moment, but says so to each call by itself.
    Unwell,
    /// It serves: it only may not be asked, or refuses writes alone.
    Harmless,
}

/// Judges the code of an error that a PING got.
pub(crate) fn of_ping(code: &str) -> PingFailure {
    match code {
        "LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" => PingFailure::Unwell,
        "NOPERM" | "MISCONF" | "NOREPLICAS" | "READONLY" | "OOM" => PingFailure::Harmless,
        _ => PingFailure::Refused,
    }
}

/// What an error reply is about: where Redis refuses EXEC itself, it puts the reason behind words of
/// its own.
pub(crate) fn cause(text: &str) -> &str {
    let cause = text.strip_prefix("EXECABORT Transaction discarded because of: ");
    cause.unwrap_or(text)
}

/// The first word of an error reply, and the rest.
pub(crate) fn split(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_ping_tells_who_serves_from_who_does_not() {
        for (code, failure) in [
            ("LOADING", PingFailure::Unwell),
            ("BUSY", PingFailure::Unwell),
            ("MASTERDOWN", PingFailure::Unwell),
            ("MISCONF", PingFailure::Harmless),
            ("NOPERM", PingFailure::Harmless),
            ("NOAUTH", PingFailure::Refused),
            ("ERR", PingFailure::Refused),
        ] {
            assert_eq!(of_ping(code), failure, "{code}");
        }
    }
}
