//! What is counted and timed; [`super::exposition`] has how it is shown at `/metrics`.
//!
//! Each worker has a [`Recorder`] of its own, so that recording touches no shared cache line and
//! takes no lock; a scrape sums over the workers. Labels come from fixed sets only: a method that
//! does not exist is `other`.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use tonic::Code;

use crate::store::{StoreError, failure::StoreReason};

/// The methods that are told apart: type, service and method, as go-grpc-prometheus names them.
pub(super) const METHODS: [Labels; 9] = [
    ("unary", "dyndata.v1.DynData", "Mark"),
    ("unary", "dyndata.v1.DynData", "Get"),
    ("unary", "dyndata.v1.DynData", "BatchGet"),
    ("unary", "grpc.health.v1.Health", "Check"),
    ("unary", "grpc.health.v1.Health", "List"),
    ("server_stream", "grpc.health.v1.Health", "Watch"),
    (
        "bidi_stream",
        "grpc.reflection.v1.ServerReflection",
        "ServerReflectionInfo",
    ),
    (
        "bidi_stream",
        "grpc.reflection.v1alpha.ServerReflection",
        "ServerReflectionInfo",
    ),
    ("unary", "other", "other"),
];

pub(super) type Labels = (&'static str, &'static str, &'static str);

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

/// What the store is asked to do, as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Mark,
    Get,
    BatchGet,
}

impl Operation {
    pub(super) const ALL: [Self; 3] = [Self::Mark, Self::Get, Self::BatchGet];

    /// Its name in labels and spans.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mark => "mark",
            Self::Get => "get",
            Self::BatchGet => "batch_get",
        }
    }
}

/// A method, as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Method(usize);

impl Method {
    pub(crate) const MARK: Self = Self(0);
    pub(crate) const GET: Self = Self(1);
    pub(crate) const BATCH_GET: Self = Self(2);

    /// Its service and its own name; `other` for what does not exist.
    pub(crate) fn service_and_name(self) -> (&'static str, &'static str) {
        let (_, service, name) = METHODS[self.0];
        (service, name)
    }

    /// The method behind a request path.
    pub(crate) fn from_path(path: &str) -> Self {
        let known = path
            .strip_prefix('/')
            .and_then(|path| path.split_once('/'))
            .and_then(|(service, method)| {
                METHODS
                    .iter()
                    .position(|&(_, s, m)| s == service && m == method)
            });
        Self(known.unwrap_or(METHODS.len() - 1))
    }
}

/// One worker's counts, written by its thread alone.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub(super) methods: [MethodCounts; METHODS.len()],
    pub(super) operations: [Durations; Operation::ALL.len()],
    pub(super) store_errors: [AtomicU64; StoreReason::ALL.len()],
    pub(super) shed: AtomicU64,
    pub(super) in_flight: AtomicUsize,
    pub(super) connections_opened: AtomicU64,
    pub(super) connections_closed: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct MethodCounts {
    pub(super) started: AtomicU64,
    pub(super) handled: [AtomicU64; CODES.len()],
    pub(super) durations: Durations,
}

/// How long things took.
#[derive(Debug, Default)]
pub(super) struct Durations {
    /// Not cumulative; what is longer than the last bound is in the last place.
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
    /// A call began.
    pub(crate) fn started(&self, method: Method) {
        increment(&self.methods[method.0].started);
    }

    /// A call ended, after `elapsed`, with `code`.
    pub(crate) fn handled(&self, method: Method, code: Code, elapsed: Duration) {
        let counts = &self.methods[method.0];
        increment(&counts.handled[code as usize]);
        counts.durations.record(elapsed);
    }

    /// The store has done what it was asked, or failed, or its caller went away first.
    pub(crate) fn stored(&self, operation: Operation, elapsed: Duration) {
        self.operations[operation as usize].record(elapsed);
    }

    /// The store could not do what it was asked.
    pub(crate) fn store_failed(&self, error: StoreError) {
        increment(&self.store_errors[error.reason() as usize]);
    }

    /// A call was refused because there are too many, or hold too much.
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

/// Only the worker's own thread writes, so that a load and a store are as good as one step, and
/// cost a tenth of it.
fn add(counter: &AtomicU64, more: u64) {
    let count = counter.load(Ordering::Relaxed);
    counter.store(count.wrapping_add(more), Ordering::Relaxed);
}
