//! Writes the metrics for `/metrics`: as OpenMetrics, or in the older text format.

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};
use tonic::Code;

use super::{
    reading::Reading,
    recorder::{BUCKETS_MICROS, CODES, Durations, Recorder},
};
use crate::{
    rpc::{Labels, Rpc},
    store::failure::StoreReason,
};

/// Everything that `/metrics` shows.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// Shows the sum of `recorders`, and each of the readings.
    pub(crate) fn new(recorders: Vec<Arc<Recorder>>, readings: Vec<Reading>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(RecorderCollector { recorders }));
        for reading in readings {
            registry.register_collector(Box::new(reading));
        }
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("dyndata_build", "The version that runs", build);
        Self { registry }
    }

    /// All metrics in this format.
    pub(crate) fn encode(&self, format: TextFormat) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(match format {
            TextFormat::OpenMetrics => text,
            TextFormat::Prometheus => plain_text(&text),
        })
    }
}

/// The format of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextFormat {
    /// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
    OpenMetrics,
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>
    Prometheus,
}

impl TextFormat {
    /// The format for a request with this `accept` header: OpenMetrics for clients that ask for it.
    pub(crate) fn accepted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            Some(_) | None => Self::Prometheus,
        }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Converts OpenMetrics into the older text format. There, HELP and TYPE have the same names as the
/// samples of counters and infos, an info is a gauge, and there are no UNIT and EOF lines.
fn plain_text(open_metrics: &str) -> String {
    let kinds: HashMap<&str, &str> = open_metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        let Some((keyword, rest)) = line
            .strip_prefix("# ")
            .map(|line| line.split_once(' ').unwrap_or((line, "")))
        else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        if keyword != "HELP" && keyword != "TYPE" {
            continue;
        }
        let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let (suffix, rest) = match (kinds.get(name), keyword) {
            (Some(&"counter"), _) => ("_total", rest),
            (Some(&"info"), "TYPE") => ("_info", "gauge"),
            (Some(&"info"), _) => ("_info", rest),
            _ => ("", rest),
        };
        // Writing to a String cannot fail.
        _ = writeln!(text, "# {keyword} {name}{suffix} {rest}");
    }
    text
}

#[derive(Debug)]
struct RecorderCollector {
    recorders: Vec<Arc<Recorder>>,
}

impl RecorderCollector {
    fn sum(&self, read: impl Fn(&Recorder) -> &AtomicU64) -> u64 {
        self.recorders
            .iter()
            .map(|recorder| read(recorder).load(Ordering::Relaxed))
            .sum()
    }

    fn histogram(
        &self,
        mut metric: MetricEncoder<'_>,
        read: impl Fn(&Recorder) -> &Durations,
    ) -> fmt::Result {
        let bounds = BUCKETS_MICROS
            .iter()
            .map(|micros| Duration::from_micros(*micros).as_secs_f64())
            .chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds
            .enumerate()
            .map(|(at, bound)| (bound, self.sum(|recorder| &read(recorder).buckets[at])))
            .collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let nanos = self.sum(|recorder| &read(recorder).nanos);
        let seconds = Duration::from_nanos(nanos).as_secs_f64();
        metric.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)
    }

    /// The metrics of calls, as go-grpc-prometheus has them.
    fn calls(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "grpc_server_started",
            "Calls that started",
            None,
            MetricType::Counter,
        )?;
        for rpc in rpcs() {
            let value = self.sum(|recorder| &recorder.rpc(rpc).started);
            ConstCounter::new(value).encode(family.encode_family(&rpc_labels(rpc))?)?;
        }

        let mut family = encoder.encode_descriptor(
            "grpc_server_handled",
            "Calls that ended, by code; the code is Canceled if the client left before the end",
            None,
            MetricType::Counter,
        )?;
        for rpc in rpcs() {
            for (code, name) in CODES.iter().enumerate() {
                let value = self.sum(|recorder| &recorder.rpc(rpc).handled[code]);
                // These two are always shown, so that a rate over them exists before the first call.
                if value == 0 && ![Code::Ok as usize, Code::Internal as usize].contains(&code) {
                    continue;
                }
                let [a, b, c] = rpc_labels(rpc);
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
            "Duration of calls, from the request headers to the status",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for rpc in rpcs() {
            let labels = rpc_labels(rpc);
            let metric = family.encode_family(&labels)?;
            self.histogram(metric, |recorder| &recorder.rpc(rpc).durations)?;
        }
        Ok(())
    }

    /// The metrics of the store's operations.
    fn operations(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "dyndata_store_operation",
            "Duration of store operations, including retries",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for rpc in Rpc::ALL {
            let Some(operation) = rpc.operation() else {
                continue;
            };
            let labels = [("operation", operation)];
            let metric = family.encode_family(&labels)?;
            self.histogram(metric, |recorder| recorder.operation(*rpc))?;
        }

        let mut family = encoder.encode_descriptor(
            "dyndata_store_errors",
            "Store operations that failed, by the reason in the error",
            None,
            MetricType::Counter,
        )?;
        for reason in StoreReason::ALL {
            let value = self.sum(|recorder| &recorder.store_errors[*reason as usize]);
            let labels = [("reason", reason.name())];
            let metric = family.encode_family(&labels)?;
            ConstCounter::new(value).encode(metric)?;
        }
        Ok(())
    }

    /// The metrics without labels.
    fn totals(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let opened = self.sum(|recorder| &recorder.connections_opened);
        let closed = self.sum(|recorder| &recorder.connections_closed);
        let in_flight = self.recorders.iter();
        let in_flight: usize = in_flight
            .map(|recorder| recorder.in_flight.load(Ordering::Relaxed))
            .sum();
        for (name, help, value) in [
            (
                "dyndata_calls_shed",
                "Calls refused as OVERLOADED",
                self.sum(|recorder| &recorder.shed),
            ),
            (
                "dyndata_connections_accepted",
                "Connections accepted on the gRPC listener",
                opened,
            ),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)?;
        }
        for (name, help, value) in [
            (
                "dyndata_calls_in_flight",
                "Calls of dyndata.v1.DynData that are in flight",
                i64::try_from(in_flight),
            ),
            (
                "dyndata_connections",
                "Connections open on the gRPC listener",
                i64::try_from(opened.saturating_sub(closed)),
            ),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value.unwrap_or(i64::MAX)).encode(metric)?;
        }
        Ok(())
    }
}

impl Collector for RecorderCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.calls(&mut encoder)?;
        self.operations(&mut encoder)?;
        self.totals(&mut encoder)
    }
}

/// All RPCs, and `None` for paths that the server does not have.
fn rpcs() -> impl Iterator<Item = Option<Rpc>> {
    Rpc::ALL.iter().copied().map(Some).chain([None])
}

fn rpc_labels(rpc: Option<Rpc>) -> [(&'static str, &'static str); 3] {
    let Labels {
        kind,
        service,
        method,
    } = Rpc::labels(rpc);
    [
        ("grpc_type", kind),
        ("grpc_service", service),
        ("grpc_method", method),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_is_what_the_newer_one_says() {
        let open_metrics = "# HELP calls Calls.\n# TYPE calls counter\ncalls_total{a=\"b\"} 1\n\
             # HELP wait_seconds Wait.\n# TYPE wait_seconds histogram\n# UNIT wait_seconds seconds\n\
             wait_seconds_sum 0.5\n# HELP build Build.\n# TYPE build info\n\
             build_info{version=\"1\"} 1\n# EOF\n";
        let text = "# HELP calls_total Calls.\n# TYPE calls_total counter\ncalls_total{a=\"b\"} 1\n\
             # HELP wait_seconds Wait.\n# TYPE wait_seconds histogram\nwait_seconds_sum 0.5\n\
             # HELP build_info Build.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n";
        assert_eq!(plain_text(open_metrics), text);
    }

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        for (accept, format) in [
            (None, TextFormat::Prometheus),
            (Some("*/*"), TextFormat::Prometheus),
            (Some("text/plain;version=0.0.4"), TextFormat::Prometheus),
            (
                Some("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3"),
                TextFormat::OpenMetrics,
            ),
        ] {
            assert_eq!(TextFormat::accepted(accept), format, "{accept:?}");
        }
    }
}
