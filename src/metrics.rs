//! What is counted and timed, and its text form at `/metrics`.
//!
//! Each worker has a [`Recorder`] of its own, so that recording touches no shared cache line and
//! takes no lock; a scrape sums over the workers. Labels come from fixed sets only: a method that
//! does not exist is `other`.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};
use tonic::Code;

/// The methods that are told apart: type, service and method, as go-grpc-prometheus names them.
const METHODS: [Labels; 8] = [
    ("unary", "dyndata.v1.DynData", "Mark"),
    ("unary", "dyndata.v1.DynData", "Get"),
    ("unary", "dyndata.v1.DynData", "BatchGet"),
    ("unary", "grpc.health.v1.Health", "Check"),
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

type Labels = (&'static str, &'static str, &'static str);

/// The gRPC codes, OK (0) to UNAUTHENTICATED (16), as their canonical names.
const CODES: [&str; 17] = [
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
const BUCKETS_MICROS: [u64; 15] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000,
];

/// A method, as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Method(usize);

impl Method {
    pub(crate) const MARK: Self = Self(0);
    pub(crate) const GET: Self = Self(1);
    pub(crate) const BATCH_GET: Self = Self(2);

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

/// One worker's counts.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    methods: [MethodCounts; METHODS.len()],
    connections_opened: AtomicU64,
    connections_closed: AtomicU64,
}

#[derive(Debug, Default)]
struct MethodCounts {
    started: AtomicU64,
    handled: [AtomicU64; CODES.len()],
    /// Not cumulative; what is longer than the last bound is in the last place.
    buckets: [AtomicU64; BUCKETS_MICROS.len() + 1],
    nanos: AtomicU64,
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
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_MICROS
            .iter()
            .position(|bound| micros <= *bound)
            .unwrap_or(BUCKETS_MICROS.len());
        increment(&counts.buckets[bucket]);
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        counts.nanos.fetch_add(nanos, Ordering::Relaxed);
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
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A number that is read when a scrape asks for it.
pub(crate) type GaugeFn = Box<dyn Fn() -> i64 + Send + Sync>;

/// Everything that `/metrics` shows.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// Shows the sum of `recorders`, and each gauge by its name and help text.
    pub(crate) fn new(
        recorders: Vec<Arc<Recorder>>,
        gauges: Vec<(&'static str, &'static str, GaugeFn)>,
    ) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Calls { recorders }));
        for (name, help, read) in gauges {
            registry.register_collector(Box::new(Gauge { name, help, read }));
        }
        let build =
            prometheus_client::metrics::info::Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("dyndata_build", "The version that runs", build);
        Self { registry }
    }

    /// The Content-Type of [`Metrics::encode`].
    pub(crate) const CONTENT_TYPE: &str =
        "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// The text that Prometheus reads.
    pub(crate) fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

struct Gauge {
    name: &'static str,
    help: &'static str,
    read: GaugeFn,
}

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gauge")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Collector for Gauge {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let metric = encoder.encode_descriptor(self.name, self.help, None, MetricType::Gauge)?;
        ConstGauge::new((self.read)()).encode(metric)
    }
}

#[derive(Debug)]
struct Calls {
    recorders: Vec<Arc<Recorder>>,
}

impl Calls {
    fn sum(&self, read: impl Fn(&Recorder) -> &AtomicU64) -> u64 {
        self.recorders
            .iter()
            .map(|recorder| read(recorder).load(Ordering::Relaxed))
            .sum()
    }
}

impl Collector for Calls {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "grpc_server_started",
            "Calls that began",
            None,
            MetricType::Counter,
        )?;
        for (at, labels) in METHODS.iter().enumerate() {
            let value = self.sum(|recorder| &recorder.methods[at].started);
            ConstCounter::new(value).encode(family.encode_family(&method_labels(labels))?)?;
        }

        let mut family = encoder.encode_descriptor(
            "grpc_server_handled",
            "Calls that ended, by code; Canceled if the caller went away first",
            None,
            MetricType::Counter,
        )?;
        for (at, labels) in METHODS.iter().enumerate() {
            for (code, name) in CODES.iter().enumerate() {
                let value = self.sum(|recorder| &recorder.methods[at].handled[code]);
                // OK is always there, so that a rate over it exists before the first call.
                if value == 0 && code != 0 {
                    continue;
                }
                let [a, b, c] = method_labels(labels);
                ConstCounter::new(value).encode(family.encode_family(&[
                    a,
                    b,
                    c,
                    ("grpc_code", *name),
                ])?)?;
            }
        }

        let mut family = encoder.encode_descriptor(
            "grpc_server_handling",
            "How long calls took, from their headers to their status",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for (at, labels) in METHODS.iter().enumerate() {
            let bounds = BUCKETS_MICROS
                .iter()
                .map(|micros| Duration::from_micros(*micros).as_secs_f64())
                .chain([f64::MAX]);
            let buckets: Vec<(f64, u64)> = bounds
                .enumerate()
                .map(|(bucket, bound)| {
                    let count = self.sum(|recorder| &recorder.methods[at].buckets[bucket]);
                    (bound, count)
                })
                .collect();
            let count = buckets.iter().map(|(_, count)| count).sum();
            let nanos = self.sum(|recorder| &recorder.methods[at].nanos);
            family
                .encode_family(&method_labels(labels))?
                .encode_histogram::<NoLabelSet>(
                    Duration::from_nanos(nanos).as_secs_f64(),
                    count,
                    &buckets,
                    None,
                )?;
        }

        let opened = self.sum(|recorder| &recorder.connections_opened);
        let closed = self.sum(|recorder| &recorder.connections_closed);
        let metric = encoder.encode_descriptor(
            "dyndata_connections_accepted",
            "Connections accepted on the gRPC listener",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(opened).encode(metric)?;
        let metric = encoder.encode_descriptor(
            "dyndata_connections",
            "Connections open on the gRPC listener",
            None,
            MetricType::Gauge,
        )?;
        let open = i64::try_from(opened.saturating_sub(closed)).unwrap_or(i64::MAX);
        ConstGauge::new(open).encode(metric)
    }
}

fn method_labels((kind, service, method): &Labels) -> [(&'static str, &'static str); 3] {
    [
        ("grpc_type", kind),
        ("grpc_service", service),
        ("grpc_method", method),
    ]
}
