//! The metrics of watches.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    metrics::Reading,
    watch::{WatchCounts, WatchHub},
};

/// The metrics of watches.
pub(super) fn readings(watches: &WatchHub) -> Vec<Reading> {
    type Count = fn(&WatchCounts) -> &AtomicU64;
    let gauge = |name, help, count: Count| {
        let counts = Arc::clone(&watches.counts);
        Reading::gauge(name, help, move || {
            i64::try_from(count(&counts).load(Ordering::Relaxed)).unwrap_or(i64::MAX)
        })
    };
    let counter = |name, help, count: Count| {
        let counts = Arc::clone(&watches.counts);
        Reading::counter(name, help, move || count(&counts).load(Ordering::Relaxed))
    };
    let seconds = |name, help, nanos: Count| {
        let counts = Arc::clone(&watches.counts);
        Reading::seconds(name, help, move || {
            Duration::from_nanos(nanos(&counts).load(Ordering::Relaxed)).as_secs_f64()
        })
    };
    let counts = Arc::clone(&watches.counts);
    let oldest_wait = move || {
        let millis = counts.oldest_wait_millis.load(Ordering::Relaxed);
        Duration::from_millis(millis).as_secs_f64()
    };
    vec![
        gauge("dyndata_watches", "Open watches", |counts| &counts.watches),
        gauge(
            "dyndata_watched_ids",
            "Distinct ids that are watched",
            |counts| &counts.ids,
        ),
        counter(
            "dyndata_watch_pushes",
            "Keys of watched namespaces that the store said may have changed",
            |counts| &counts.pushes,
        ),
        counter(
            "dyndata_watch_reads",
            "Reads of watched ids, after a change, at an expiry or once a minute",
            |counts| &counts.reads,
        ),
        counter(
            "dyndata_watch_changes",
            "Changes of watched ids that were found",
            |counts| &counts.changes,
        ),
        counter(
            "dyndata_watch_events",
            "Changes of watched ids, each counted once for each of its watchers",
            |counts| &counts.events,
        ),
        counter(
            "dyndata_watch_resyncs",
            "Watches that needed a new snapshot because changes may have been missed",
            |counts| &counts.resyncs,
        ),
        counter(
            "dyndata_watch_lags",
            "Changes that the store announced and whose lag is known",
            |counts| &counts.lags,
        ),
        seconds(
            "dyndata_watch_lag_seconds",
            "Time from the first announcement of a change to the read that found it, summed up",
            |counts| &counts.lag_nanos,
        ),
        Reading::gauge_seconds(
            "dyndata_watch_oldest_read_wait_seconds",
            "How long the first id that has to be read has waited; also while changes are not noticed",
            oldest_wait,
        ),
    ]
}
