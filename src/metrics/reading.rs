//! Metrics that are read from elsewhere when a scrape asks for them.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// A metric that is read when a scrape asks for it.
pub(crate) struct Reading {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) kind: ReadingKind,
}

/// How to read the number, and whether it may fall.
pub(crate) enum ReadingKind {
    Gauge(Box<dyn Fn() -> i64 + Send + Sync>),
    Counter(Box<dyn Fn() -> u64 + Send + Sync>),
    Seconds(Box<dyn Fn() -> f64 + Send + Sync>),
    GaugeSeconds(Box<dyn Fn() -> Option<f64> + Send + Sync>),
    Gauges {
        label: &'static str,
        read: Box<dyn Fn() -> Vec<(String, u64)> + Send + Sync>,
    },
}

impl Reading {
    /// A number that may fall.
    pub(crate) fn gauge(
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Self {
        let kind = ReadingKind::Gauge(Box::new(read));
        Self { name, help, kind }
    }

    /// A number that only grows; the exporter adds `_total` to its name.
    pub(crate) fn counter(
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        let kind = ReadingKind::Counter(Box::new(read));
        Self { name, help, kind }
    }

    /// A time that only grows, in seconds; the exporter adds `_total` to its name.
    pub(crate) fn seconds(
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) -> Self {
        let kind = ReadingKind::Seconds(Box::new(read));
        Self { name, help, kind }
    }

    /// A time that may fall, in seconds.
    pub(crate) fn gauge_seconds(
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) -> Self {
        Self::gauge_seconds_if_known(name, help, move || Some(read()))
    }

    /// A time that may fall, in seconds. It is absent while it is not known.
    pub(crate) fn gauge_seconds_if_known(
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) -> Self {
        let kind = ReadingKind::GaugeSeconds(Box::new(read));
        Self { name, help, kind }
    }

    /// Numbers that may fall, each with its own value of one label. There must be few such values, and
    /// callers must not choose them.
    pub(crate) fn gauges(
        name: &'static str,
        help: &'static str,
        label: &'static str,
        read: impl Fn() -> Vec<(String, u64)> + Send + Sync + 'static,
    ) -> Self {
        let read = Box::new(read);
        let kind = ReadingKind::Gauges { label, read };
        Self { name, help, kind }
    }
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Collector for Reading {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self { name, help, kind } = self;
        let metric_type = match kind {
            ReadingKind::Gauge(_) | ReadingKind::GaugeSeconds(_) | ReadingKind::Gauges { .. } => {
                MetricType::Gauge
            }
            ReadingKind::Counter(_) | ReadingKind::Seconds(_) => MetricType::Counter,
        };
        let mut metric = encoder.encode_descriptor(name, help, None, metric_type)?;
        match kind {
            ReadingKind::Gauge(read) => ConstGauge::new(read()).encode(metric),
            ReadingKind::Counter(read) => ConstCounter::new(read()).encode(metric),
            ReadingKind::Seconds(read) => ConstCounter::new(read()).encode(metric),
            ReadingKind::GaugeSeconds(read) => match read() {
                Some(seconds) => ConstGauge::new(seconds).encode(metric),
                None => Ok(()),
            },
            ReadingKind::Gauges { label, read } => {
                for (value, number) in read() {
                    let number = i64::try_from(number).unwrap_or(i64::MAX);
                    let labels = [(*label, value.as_str())];
                    ConstGauge::new(number).encode(metric.encode_family(&labels)?)?;
                }
                Ok(())
            }
        }
    }
}
