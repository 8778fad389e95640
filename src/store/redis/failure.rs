//! What Redis's error replies mean for a call.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::store::StoreError;

/// Classifies an error reply by its code, the first word. Redis's own text goes to the log, at
/// most once a second, and never to a caller.
pub(super) fn classify(line: &[u8]) -> StoreError {
    let text = String::from_utf8_lossy(line);
    let (code, detail) = text.split_once(' ').unwrap_or((&text, ""));
    let error = match code {
        "LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "NOREPLICAS" => {
            StoreError::Busy
        }
        "ERR" if detail.contains("max number of clients") => StoreError::Busy,
        "READONLY" => StoreError::ReadOnly,
        "OOM" => StoreError::OutOfMemory,
        "MISCONF" => StoreError::Misconfigured,
        "NOAUTH" | "WRONGPASS" | "NOPERM" => StoreError::Auth,
        "WRONGTYPE" => StoreError::WrongType,
        _ => StoreError::Unexpected,
    };
    // Another type under a key is a caller's doing, and no news for those who run the service.
    if error != StoreError::WrongType && may_log() {
        tracing::warn!(error = %text, "redis answered with an error");
    }
    error
}

/// Whether this second's line is still to be had.
fn may_log() -> bool {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    LAST.swap(now, Ordering::Relaxed) != now
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
            ("WRONGTYPE Operation against a key", StoreError::WrongType),
            ("ERR syntax error", StoreError::Unexpected),
            ("SOMETHINGNEW of a later version", StoreError::Unexpected),
            ("", StoreError::Unexpected),
        ] {
            assert_eq!(classify(line.as_bytes()), error, "{line}");
        }
        assert_eq!(classify(b"\xff\xfe"), StoreError::Unexpected);
    }
}
