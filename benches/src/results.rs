//! The measurements of a run, and the rows that sum them up in `benches/results.jsonl`.

use std::fmt::Display;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::{
    load::Shape,
    operation::Operation,
    subjects::Kind,
    targets::{self, Target},
};

/// All measurements of one run.
#[derive(Default)]
pub struct Results {
    pub machine: Machine,
    pub cells: Vec<Cell>,
    pub workers: Vec<Workers>,
    /// The round, and SETs per second of `redis-benchmark -P 100 -t set`.
    pub redis_benchmark: Vec<(usize, f64)>,
    /// The round, and the median time of a Redis GET on an idle connection, in microseconds.
    pub redis_round_trip_us: Vec<(usize, f64)>,
    pub latency: Vec<Latency>,
    pub memory: Vec<Memory>,
    pub entries: Vec<Entries>,
    pub watch: Vec<Watch>,
    pub presence: Vec<Presence>,
    pub lost: Vec<Lost>,
}

/// The machine and the programs of a run.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Machine {
    pub unix_time: u64,
    pub cores: usize,
    pub processor: String,
    pub kernel: String,
    pub redis: String,
    pub h2load: String,
}

/// The program that made the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Generator {
    /// Our own, which checks every reply.
    Own,
    /// nghttp2's.
    H2load,
}

impl Display for Generator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Own => "own",
            Self::H2load => "h2load",
        })
    }
}

/// The part of the run that a cell belongs to. Only cells of one part are compared, because only
/// they were measured right after one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    Comparison,
    Connections,
    Batch,
}

/// One measurement: one subject, one kind of call, one shape, one round.
pub struct Cell {
    pub purpose: Purpose,
    pub round: usize,
    pub subject: Kind,
    pub operation: Operation,
    pub shape: Shape,
    pub generator: Generator,
    /// Calls that the server refused because it was too busy. 0, except where the calls ask for
    /// more keys than Redis can read within its timeout.
    pub refused: u64,
    pub calls_per_second: f64,
    pub server_us_per_call: f64,
    pub redis_us_per_call: f64,
    /// Measured by our own generator only.
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
}

/// Gets at 10x20 on a server with this many event loops.
pub struct Workers {
    pub workers: usize,
    pub server_us_per_call: f64,
    pub calls_per_second: f64,
}

/// Gets at a fixed rate. Each latency, in microseconds, counts from when the call was due.
#[derive(Clone, Serialize, Deserialize)]
pub struct Latency {
    pub subject: Kind,
    pub percent_of_capacity: u32,
    pub calls_per_second: f64,
    pub answered_per_second: f64,
    pub refused: u64,
    /// Calls that were never sent, because 50,000 others were waiting.
    pub unsent: usize,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    /// How late the generator itself sent. The latencies include this.
    pub sent_late_p50_us: f64,
    pub sent_late_p99_us: f64,
}

/// Resident memory of a fresh server on the embedded store.
pub struct Memory {
    pub idle_bytes: u64,
    pub bytes_per_connection: f64,
}

/// Resident memory of a server with entries in the embedded store.
#[derive(Clone, Serialize, Deserialize)]
pub struct Entries {
    pub entries: usize,
    pub resident_bytes: u64,
    pub bytes_per_entry: f64,
}

/// Changes that processes tell their watchers, while another process makes them.
#[derive(Clone, Serialize, Deserialize)]
pub struct Watch {
    /// How many processes watch. The watchers are spread over them.
    pub processes: usize,
    pub watchers: usize,
    pub events_per_second: f64,
    /// Of the processes that watch.
    pub server_us_per_event: Option<f64>,
    pub redis_us_per_mark: f64,
    /// How much of one core Redis used.
    pub redis_cpu_share: f64,
    /// From the acknowledgement of a Mark to its event.
    pub change_p50_us: Option<f64>,
    pub change_p99_us: Option<f64>,
    /// From the expiry of a value to its event.
    pub expiry_p50_us: Option<f64>,
    pub expiry_p99_us: Option<f64>,
}

/// Count and List of many ids, while some of them are marked again.
#[derive(Clone, Serialize, Deserialize)]
pub struct Presence {
    pub ids: usize,
    pub marks_per_second: usize,
    pub count_p50_us: f64,
    pub count_p99_us: f64,
    /// A PING of Redis after each Count.
    pub ping_p50_us: f64,
    pub ping_p99_us: f64,
    /// Until all pages of a List had come, one after the other.
    pub list_seconds: f64,
    pub page_p50_us: f64,
    pub page_p99_us: f64,
}

/// A row that could not be measured.
#[derive(Clone, Serialize, Deserialize)]
pub struct Lost {
    pub subject: Kind,
    pub row: String,
    pub reason: String,
}

/// One line of `benches/results.jsonl`.
#[derive(Serialize, Deserialize)]
#[serde(tag = "table", rename_all = "lowercase")]
pub enum Row {
    Machine(Machine),
    Target(Target),
    Cell(CellRow),
    Workers(WorkersRow),
    Latency(Latency),
    Entries(Entries),
    Watch(Watch),
    Presence(Presence),
    Lost(Lost),
}

/// All rounds of one cell.
#[derive(Serialize, Deserialize)]
pub struct CellRow {
    pub purpose: Purpose,
    pub operation: String,
    pub shape: String,
    pub generator: Generator,
    pub subject: Kind,
    pub server_us_per_call: Spread,
    /// The CPU per call of dyndata divided by that of this subject, round by round.
    pub ratio: Option<Spread>,
    /// Medians.
    pub calls_per_second: f64,
    pub redis_us_per_call: f64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    /// The sum over all rounds.
    pub refused: u64,
}

/// All rounds with this many event loops.
#[derive(Serialize, Deserialize)]
pub struct WorkersRow {
    pub workers: usize,
    pub server_us_per_call: Spread,
    pub calls_per_second: f64,
}

/// The median of several rounds, with the least and the greatest value. In the file an array of
/// the three, with six significant digits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(from = "[f64; 3]", into = "[f64; 3]")]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl From<[f64; 3]> for Spread {
    fn from([median, min, max]: [f64; 3]) -> Self {
        Self { median, min, max }
    }
}

impl From<Spread> for [f64; 3] {
    fn from(Spread { median, min, max }: Spread) -> Self {
        [median, min, max].map(rounded)
    }
}

/// To six significant digits.
pub fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

impl Spread {
    /// `None` if there are no values.
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

/// Selects the cells of one subject, kind of call, shape and generator.
#[derive(Clone, Copy, PartialEq, Eq)]
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
    /// Removes the measurements of a row that has failed in a later round.
    pub fn remove(&mut self, select: Select) {
        self.cells.retain(|cell| cell.select() != select);
    }

    pub fn lose(&mut self, subject: Kind, row: String, reason: String) {
        self.lost.push(Lost {
            subject,
            row,
            reason,
        });
    }

    /// The selected cells, one for each round.
    pub fn select(&self, select: Select) -> impl Iterator<Item = &Cell> {
        self.cells
            .iter()
            .filter(move |cell| cell.select() == select)
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

impl Results {
    /// The lines of the file, the targets first.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = vec![Row::Machine(self.machine.clone())];
        rows.extend(targets::targets(self).into_iter().map(Row::Target));
        rows.extend(self.cell_rows().into_iter().map(Row::Cell));
        rows.extend([1, 2].into_iter().filter_map(|workers| {
            let rounds = self.workers.iter().filter(|found| found.workers == workers);
            let rate = Spread::of(rounds.clone().map(|found| found.calls_per_second))?;
            Some(Row::Workers(WorkersRow {
                workers,
                server_us_per_call: Spread::of(rounds.map(|found| found.server_us_per_call))?,
                calls_per_second: rounded(rate.median),
            }))
        }));
        rows.extend(self.latency.iter().cloned().map(Row::Latency));
        rows.extend(self.entries.iter().cloned().map(Row::Entries));
        rows.extend(self.watch.iter().cloned().map(Row::Watch));
        rows.extend(self.presence.iter().cloned().map(Row::Presence));
        rows.extend(self.lost.iter().cloned().map(Row::Lost));
        rows
    }

    /// One row for each cell, in the order of the run. The subjects of a cell are sorted.
    fn cell_rows(&self) -> Vec<CellRow> {
        let mut groups: Vec<Select> = Vec::new();
        for cell in &self.cells {
            let group = cell.select().of(Kind::Dyndata);
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        let subjects = groups
            .into_iter()
            .flat_map(|group| Kind::ALL.map(|subject| group.of(subject)));
        subjects
            .filter_map(|select| self.cell_row(select))
            .collect()
    }

    fn cell_row(&self, select: Select) -> Option<CellRow> {
        let cpu = |cell: &Cell| cell.server_us_per_call;
        let median = |value: &dyn Fn(&Cell) -> Option<f64>| {
            let spread = Spread::of(self.select(select).filter_map(value));
            spread.map(|spread| rounded(spread.median))
        };
        let ratio = (select.subject != Kind::Dyndata)
            .then(|| self.ratio(select.of(Kind::Dyndata), select, cpu));
        Some(CellRow {
            purpose: select.purpose,
            operation: select.operation.to_string(),
            shape: select.shape.to_string(),
            generator: select.generator,
            subject: select.subject,
            server_us_per_call: self.spread(select, cpu)?,
            ratio: ratio.flatten(),
            calls_per_second: median(&|cell| Some(cell.calls_per_second))?,
            redis_us_per_call: median(&|cell| Some(cell.redis_us_per_call))?,
            p50_us: median(&|cell| cell.p50_us),
            p99_us: median(&|cell| cell.p99_us),
            refused: self.select(select).map(|cell| cell.refused).sum(),
        })
    }
}

impl Cell {
    fn select(&self) -> Select {
        Select {
            purpose: self.purpose,
            subject: self.subject,
            operation: self.operation,
            shape: self.shape,
            generator: self.generator,
        }
    }
}

/// The file's text: one JSON object a line.
pub fn to_lines(rows: &[Row]) -> Result<String> {
    let mut text = String::new();
    for row in rows {
        text += &serde_json::to_string(row)?;
        text.push('\n');
    }
    Ok(text)
}

pub fn from_lines(text: &str) -> Result<Vec<Row>> {
    let row = |line: &str| serde_json::from_str(line).with_context(|| line.to_owned());
    text.lines().map(row).collect()
}

/// The CPU per call of our own generator's cell for this subject.
pub fn cpu(
    rows: &[Row],
    purpose: Purpose,
    operation: Operation,
    shape: Shape,
    subject: Kind,
) -> Option<Spread> {
    let is = |text: &str, value: &dyn Display| text == value.to_string();
    rows.iter().find_map(|row| match row {
        Row::Cell(cell)
            if cell.purpose == purpose
                && cell.generator == Generator::Own
                && cell.subject == subject
                && is(&cell.operation, &operation)
                && is(&cell.shape, &shape) =>
        {
            Some(cell.server_us_per_call)
        }
        _ => None,
    })
}
