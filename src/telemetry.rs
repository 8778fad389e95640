//! The log: to standard error, as text for people or JSON for machines, filtered by `RUST_LOG`.

use std::{
    io::IsTerminal as _,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// h2 warns of every connection that it ends for what its peer does, which a peer can do many
/// times a second.
const DEFAULT_FILTER: &str = "info,h2=error";

/// Starts the log for this process. A second call changes nothing.
pub fn init(format: LogFormat) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // An error means that a log was started before, which then stays.
    _ = match format {
        LogFormat::Text => subscriber
            .with_ansi(std::io::stderr().is_terminal())
            .try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
}

/// Lets one line a second into the log, for what may happen many thousand times a second.
#[derive(Debug)]
pub(crate) struct OncePerSecond(AtomicU64);

impl OncePerSecond {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Whether this second's line is still to be had; it is taken then.
    pub(crate) fn take(&self) -> bool {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        self.0.swap(now, Ordering::Relaxed) != now
    }
}
