//! What a run found, as `results.json` has it, and how it is summed up.

use serde::Serialize;

use crate::{keys::Operation, load::Shape, subjects::Kind};

/// Everything that one run found.
#[derive(Default, Serialize)]
pub struct Results {
    pub quick: bool,
    pub machine: Machine,
    pub cells: Vec<Cell>,
    pub workers: Vec<Workers>,
    /// `redis-benchmark -t get -P 1 -c 50`, by round, in requests per second.
    pub redis_benchmark: Vec<f64>,
    /// The median of a Redis GET on an idle connection, by round, in microseconds.
    pub redis_round_trip_us: Vec<f64>,
    pub latency: Vec<Latency>,
    pub memory: Vec<Memory>,
    pub entries: Vec<Entries>,
}

/// Where a run was made, and with what.
#[derive(Default, Serialize)]
pub struct Machine {
    pub unix_time: u64,
    pub cores: usize,
    pub processor: String,
    pub kernel: String,
    pub redis: String,
    pub h2load: String,
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Generator {
    /// Ours, which checks every answer.
    Own,
    /// nghttp2's.
    H2load,
}

/// What a cell was measured for. Cells are compared only within one purpose, for they were
/// interleaved only there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    Comparison,
    Connections,
    Batch,
}

/// One measurement: one subject, one kind of call, one shape, one round.
#[derive(Serialize)]
pub struct Cell {
    pub purpose: Purpose,
    pub round: usize,
    pub subject: Kind,
    #[serde(serialize_with = "display")]
    pub operation: Operation,
    #[serde(serialize_with = "display")]
    pub shape: Shape,
    pub generator: Generator,
    pub calls: u64,
    /// Calls that were told to come back later: 0, except where more is asked for than Redis can
    /// do within its time.
    pub refused: u64,
    pub calls_per_second: f64,
    pub server_us_per_call: f64,
    pub redis_us_per_call: f64,
    pub redis_commands_per_call: f64,
    /// Only our generator knows these.
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
}

/// Gets at 10x20 against a server with so many event loops.
#[derive(Serialize)]
pub struct Workers {
    pub round: usize,
    pub workers: usize,
    pub server_us_per_call: f64,
    pub calls_per_second: f64,
}

/// Gets at a fixed rate, in microseconds from when each should have been sent.
#[derive(Serialize)]
pub struct Latency {
    pub subject: Kind,
    pub percent_of_capacity: u32,
    pub calls_per_second: f64,
    pub answered_per_second: f64,
    pub refused: u64,
    /// Calls that the generator gave up because 50,000 were waiting.
    pub unsent: usize,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    /// How late the generator itself sent, which the latencies include.
    pub sent_late_p50_us: f64,
    pub sent_late_p99_us: f64,
}

/// Resident memory of a fresh server on the embedded store.
#[derive(Serialize)]
pub struct Memory {
    pub idle_bytes: u64,
    pub bytes_per_connection: f64,
}

/// Resident memory of a server with entries in the embedded store.
#[derive(Serialize)]
pub struct Entries {
    pub entries: usize,
    pub resident_bytes: u64,
    pub bytes_per_entry: f64,
}

/// The middle of several rounds, and how far they lie apart.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` without values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Some(Self { median, min, max })
    }
}

/// Which cells.
#[derive(Clone, Copy)]
pub struct Select {
    pub purpose: Purpose,
    pub subject: Kind,
    pub operation: Operation,
    pub shape: Shape,
    pub generator: Generator,
}

impl Select {
    pub fn of(self, subject: Kind) -> Self {
        Self { subject, ..self }
    }
}

impl Results {
    /// The cells selected, one for each round.
    pub fn select(&self, select: Select) -> impl Iterator<Item = &Cell> {
        let Select {
            purpose,
            subject,
            operation,
            shape,
            generator,
        } = select;
        self.cells.iter().filter(move |cell| {
            cell.purpose == purpose
                && cell.subject == subject
                && cell.operation == operation
                && cell.shape == shape
                && cell.generator == generator
        })
    }

    pub fn spread(&self, select: Select, value: impl Fn(&Cell) -> f64) -> Option<Spread> {
        Spread::of(self.select(select).map(value))
    }

    /// `value` of the cells of one selection over that of another, round by round.
    pub fn ratio(
        &self,
        numerator: Select,
        denominator: Select,
        value: impl Fn(&Cell) -> f64,
    ) -> Option<Spread> {
        let ratios = self.select(numerator).filter_map(|cell| {
            let other = self
                .select(denominator)
                .find(|other| other.round == cell.round)?;
            Some(value(cell) / value(other))
        });
        Spread::of(ratios)
    }
}

fn display<S: serde::Serializer>(
    value: &impl std::fmt::Display,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
