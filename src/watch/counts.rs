//! What the metrics show of watches. Only the task of the table writes these counts.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Counts of one process.
#[derive(Debug, Default)]
pub(crate) struct WatchCounts {
    /// Open watches that have been taken up by the table.
    pub(crate) watches: AtomicU64,
    /// Distinct ids that are watched.
    pub(crate) ids: AtomicU64,
    /// Keys that the store said may have changed.
    pub(crate) pushes: AtomicU64,
    /// Keys that were read.
    pub(crate) reads: AtomicU64,
    /// Changes of watched ids.
    pub(crate) changes: AtomicU64,
    /// Changes, counted once for each watcher.
    pub(crate) events: AtomicU64,
    /// Watches that got a new snapshot because changes may have been missed.
    pub(crate) resyncs: AtomicU64,
    /// The time from the first push about an id to the change that it led to, added up.
    pub(crate) lag_nanos: AtomicU64,
    /// Changes with such a time.
    pub(crate) lags: AtomicU64,
    /// How long the first id of those that have to be read has waited, or how long changes have not
    /// been noticed.
    pub(crate) oldest_wait_millis: AtomicU64,
}

impl WatchCounts {
    pub(super) fn add(count: &AtomicU64, more: usize) {
        count.fetch_add(more as u64, Ordering::Relaxed);
    }

    pub(super) fn set(count: &AtomicU64, number: usize) {
        count.store(number as u64, Ordering::Relaxed);
    }

    pub(super) fn lag(&self, lag: Duration) {
        self.lag_nanos.fetch_add(nanos(lag), Ordering::Relaxed);
        self.lags.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn waiting(&self, oldest: Duration) {
        let millis = u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX);
        self.oldest_wait_millis.store(millis, Ordering::Relaxed);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
