//! Counts and times what happens on one worker.
//!
//! Each worker has a [`Recorder`] of its own, so that recording touches no shared cache line and
//! takes no lock. A scrape sums over the workers.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use tonic::Code;

use crate::{
    rpc::Rpc,
    store::{StoreError, failure::StoreReason},
};

/// The gRPC codes, OK (0) to UNAUTHENTICATED (16), as their canonical names.
pub(super) const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The upper bounds of the latency buckets, in microseconds.
pub(super) const BUCKETS_MICROS: [u64; 15] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000,
];

/// The counts of one worker. Only the worker's own thread writes them.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    /// For each RPC, and in the last place for paths that the server does not have.
    rpcs: [RpcCounts; Rpc::ALL.len() + 1],
    /// How long the store took, for each RPC.
    operations: [Durations; Rpc::ALL.len()],
    pub(super) store_errors: [AtomicU64; StoreReason::ALL.len()],
    pub(super) shed: AtomicU64,
    pub(super) in_flight: AtomicUsize,
    pub(super) connections_opened: AtomicU64,
    pub(super) connections_closed: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct RpcCounts {
    pub(super) started: AtomicU64,
    pub(super) handled: [AtomicU64; CODES.len()],
    pub(super) durations: Durations,
}

/// A histogram of times.
#[derive(Debug, Default)]
pub(super) struct Durations {
    /// Not cumulative. The last place is for what took longer than the last bound.
    pub(super) buckets: [AtomicU64; BUCKETS_MICROS.len() + 1],
    pub(super) nanos: AtomicU64,
}

impl Durations {
    fn record(&self, elapsed: Duration) {
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_MICROS
            .iter()
            .position(|bound| micros <= *bound)
            .unwrap_or(BUCKETS_MICROS.len());
        increment(&self.buckets[bucket]);
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        add(&self.nanos, nanos);
    }
}

impl Recorder {
    /// What is counted about an RPC, or about paths that the server does not have.
    pub(super) fn rpc(&self, rpc: Option<Rpc>) -> &RpcCounts {
        &self.rpcs[rpc.map_or(Rpc::ALL.len(), |rpc| rpc as usize)]
    }

    /// How long the store took for the calls of an RPC.
    pub(super) fn operation(&self, rpc: Rpc) -> &Durations {
        &self.operations[rpc as usize]
    }

    /// A call began.
    pub(crate) fn started(&self, rpc: Option<Rpc>) {
        increment(&self.rpc(rpc).started);
    }

    /// A call ended, after `elapsed`, with `code`.
    pub(crate) fn handled(&self, rpc: Option<Rpc>, code: Code, elapsed: Duration) {
        let counts = self.rpc(rpc);
        increment(&counts.handled[code as usize]);
        counts.durations.record(elapsed);
    }

    /// An operation of the store has ended, or its call was dropped first.
    pub(crate) fn stored(&self, rpc: Rpc, elapsed: Duration) {
        self.operation(rpc).record(elapsed);
    }

    /// The store has failed.
    pub(crate) fn store_failed(&self, error: StoreError) {
        increment(&self.store_errors[error.reason() as usize]);
    }

    /// A call was refused because there are too many calls, or because they hold too much memory.
    pub(crate) fn shed(&self) {
        increment(&self.shed);
    }

    /// The calls in flight; the worker counts them up and down.
    pub(crate) fn in_flight(&self) -> &AtomicUsize {
        &self.in_flight
    }

    /// A connection was accepted.
    pub(crate) fn connection_opened(&self) {
        increment(&self.connections_opened);
    }

    /// A connection ended.
    pub(crate) fn connection_closed(&self) {
        increment(&self.connections_closed);
    }
}

fn increment(counter: &AtomicU64) {
    add(counter, 1);
}

/// Adds with a load and a store, which costs a tenth of one atomic step. Only the worker's own
/// thread writes, so nothing can come between the two.
fn add(counter: &AtomicU64, more: u64) {
    let count = counter.load(Ordering::Relaxed);
    counter.store(count.wrapping_add(more), Ordering::Relaxed);
}
