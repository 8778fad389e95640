//! The steps of a run, in order, with the expected duration of each.

use std::{fmt::Display, time::Duration};

use crate::{
    load::Shape,
    operation::Operation::{
        self, BatchGet, BatchMark, BatchUnmark, Count, Get, Increment, Limit, List, Mark, MarkIf,
        MarkIndexed, Touch, Unmark,
    },
    presence::{self, Size},
    results::{Generator, Purpose, Select},
    subjects::Kind,
};

/// The shape of the targets.
pub const TARGET_SHAPE: Shape = shape(10, 20);
/// One call at a time.
pub const SINGLE: Shape = shape(1, 1);
/// Every connection has one call at a time.
pub const MANY_CONNECTIONS: Shape = shape(1000, 1);

/// The calls that all peers with a store have are measured in all of these shapes.
const SHAPES: [Shape; 4] = [SINGLE, shape(8, 1), TARGET_SHAPE, shape(100, 10)];
const COMMON: [Operation; 4] = [Get, Mark, BatchGet(100), BatchGet(1000)];
/// The calls that hardly any peer has. The shape is that of the targets.
const FURTHER: [Operation; 10] = [
    BatchMark(100),
    MarkIf,
    Touch(100),
    Increment,
    Limit,
    Unmark,
    BatchUnmark(100),
    MarkIndexed,
    Count,
    List,
];
/// The calls of the targets.
const QUICK: [Operation; 6] = [
    Get,
    Mark,
    BatchMark(100),
    BatchGet(100),
    BatchGet(1000),
    Limit,
];

/// Shapes for CPU by connections: 200 calls at the same time, or one on each of more connections.
pub const CONNECTION_GROWTH: [Shape; 5] = [
    shape(1, 200),
    shape(10, 20),
    shape(100, 2),
    shape(1000, 1),
    shape(5000, 1),
];
/// Numbers of ids for CPU by ids in a batch.
pub const BATCH_GROWTH: [usize; 4] = [1, 10, 100, 1000];
/// Growth and latency are measured for the service and for the simplest peer.
pub const GROWTH_SUBJECTS: [Kind; 2] = [Kind::Dyndata, Kind::Manager];
/// The fixed rates, in percent of the capacity.
const LOADS: [u32; 3] = [25, 50, 75];

const fn shape(connections: usize, streams: usize) -> Shape {
    Shape {
        connections,
        streams,
    }
}

/// The plan of one cell.
#[derive(Clone, Copy, Debug)]
pub struct CellPlan {
    pub purpose: Purpose,
    pub subject: Kind,
    pub operation: Operation,
    pub shape: Shape,
    pub generator: Generator,
    pub duration: Duration,
}

impl CellPlan {
    pub fn select(self) -> Select {
        Select {
            purpose: self.purpose,
            subject: self.subject,
            operation: self.operation,
            shape: self.shape,
            generator: self.generator,
        }
    }

    /// True if the subject has the call, and the generator can make it in this shape.
    pub fn is_possible(self) -> bool {
        let Self {
            subject,
            operation,
            shape,
            generator,
            ..
        } = self;
        let fits = match subject {
            // Their figures are so far from the others' that two shapes are enough.
            Kind::Python => matches!(shape, SINGLE | TARGET_SHAPE),
            // h2load sends one path only.
            Kind::Webdis => matches!(shape, SINGLE | TARGET_SHAPE) && generator == Generator::Own,
            _ => true,
        };
        fits && subject.serves(operation)
    }

    /// True if the calls ask for a million keys at the same time. That is more than Redis can read
    /// within its timeout of half a second.
    pub fn overloads(self) -> bool {
        let calls = self.shape.connections * self.shape.streams;
        matches!(self.operation, BatchGet(size) if size * calls >= 1_000_000)
    }
}

/// One step of a run.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Cell(CellPlan),
    Workers(usize),
    RedisBenchmark,
    RedisRoundTrip,
    Latency {
        subject: Kind,
        percent: u32,
        duration: Duration,
    },
    IdleMemory,
    EntriesMemory,
    Watch,
    Presence(Size),
}

impl Step {
    /// The expected duration, with start and stop.
    pub fn estimate(self) -> Duration {
        match self {
            Self::Cell(plan) => {
                // Time to open and close connections.
                let connections = plan.shape.connections as u64;
                let storing = if plan.operation.removes() { 900_000 } else { 0 };
                plan.duration.mul_f64(1.2)
                    + Duration::from_micros(120_000 + storing + 250 * connections)
            }
            Self::Latency { duration, .. } => duration + Duration::from_millis(200),
            Self::Workers(_) => Duration::from_millis(1_500),
            Self::RedisBenchmark => Duration::from_millis(1_500),
            Self::RedisRoundTrip => Duration::from_millis(150),
            Self::IdleMemory => Duration::from_secs(2),
            Self::EntriesMemory => Duration::from_secs(4),
            Self::Watch => Duration::from_secs(210),
            // To mark the ids, and for Count and List.
            Self::Presence(size) => Duration::from_secs(5 + size.ids as u64 / 30_000),
        }
    }

    /// True if the step measures calls whose name starts with this.
    pub fn calls(self, name: &str) -> bool {
        match self {
            Self::Cell(plan) => plan.operation.to_string().starts_with(name),
            Self::Watch | Self::Presence(_) => self.to_string().starts_with(name),
            _ => false,
        }
    }

    /// The subject that the step measures. Steps about Redis alone belong to dyndata, whose figures
    /// need them.
    pub fn subject(self) -> Kind {
        match self {
            Self::Cell(CellPlan { subject, .. }) | Self::Latency { subject, .. } => subject,
            _ => Kind::Dyndata,
        }
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cell(plan) => write!(f, "{} {}", plan.operation, plan.shape),
            Self::Workers(workers) => write!(f, "Get with --workers {workers}"),
            Self::RedisBenchmark => f.write_str("redis-benchmark"),
            Self::RedisRoundTrip => f.write_str("Redis round trip"),
            Self::Latency { percent, .. } => write!(f, "latency at {percent} %"),
            Self::IdleMemory => f.write_str("idle memory"),
            Self::EntriesMemory => f.write_str("memory with entries"),
            Self::Watch => f.write_str("Watch"),
            Self::Presence(size) => write!(f, "Presence of {} ids", size.ids),
        }
    }
}

/// The steps of one run, each with its round. By default, a full run has five rounds and a quick one
/// four.
pub fn steps(quick: bool, rounds: Option<usize>) -> Vec<(usize, Step)> {
    if quick {
        quick_steps(rounds.unwrap_or(4))
    } else {
        full_steps(rounds.unwrap_or(5))
    }
}

/// The subjects that a run needs.
pub fn subjects(quick: bool) -> Vec<Kind> {
    let is_needed =
        |kind: &Kind| !quick || !matches!(kind, Kind::Deadpool | Kind::Python | Kind::Webdis);
    Kind::ALL.into_iter().filter(is_needed).collect()
}

fn full_steps(rounds: usize) -> Vec<(usize, Step)> {
    let mut steps = Vec::new();
    for round in 0..rounds {
        for operation in COMMON {
            for shape in SHAPES {
                compare(&mut steps, round, &Kind::ALL, own(operation, shape));
            }
            compare(&mut steps, round, &Kind::ALL, h2load(operation));
        }
        for operation in FURTHER {
            let plan = own(operation, shape_of(operation));
            compare(&mut steps, round, &Kind::ALL, plan);
            if !operation.removes() && plan.shape == TARGET_SHAPE {
                compare(&mut steps, round, &Kind::ALL, h2load(operation));
            }
            if operation == BatchMark(100) {
                steps.push((round, Step::RedisBenchmark));
            }
        }
        many_connections(&mut steps, round);
        steps.push((round, Step::RedisRoundTrip));
        steps.push((round, Step::IdleMemory));
    }
    for round in 0..rounds.min(3) {
        for shape in CONNECTION_GROWTH {
            let plan = CellPlan {
                purpose: Purpose::Connections,
                ..own(Get, shape)
            };
            compare(&mut steps, round, &GROWTH_SUBJECTS, plan);
        }
        for size in BATCH_GROWTH {
            let plan = CellPlan {
                purpose: Purpose::Batch,
                ..own(BatchGet(size), TARGET_SHAPE)
            };
            compare(&mut steps, round, &GROWTH_SUBJECTS, plan);
        }
        for workers in [1, 2] {
            steps.push((round, Step::Workers(workers)));
        }
    }
    for percent in LOADS {
        for subject in GROWTH_SUBJECTS {
            let latency = Step::Latency {
                subject,
                percent,
                duration: Duration::from_secs(8),
            };
            steps.push((0, latency));
        }
    }
    steps.push((0, Step::EntriesMemory));
    steps.push((0, Step::Watch));
    steps.extend(presence::SIZES.map(|size| (0, Step::Presence(size))));
    steps
}

/// Only what the targets need. Our own generator checks all replies in the first round.
fn quick_steps(rounds: usize) -> Vec<(usize, Step)> {
    let mut steps = Vec::new();
    let kinds = subjects(true);
    let no_again: Vec<Kind> = kinds
        .iter()
        .copied()
        .filter(|kind| *kind != Kind::Again)
        .collect();
    for round in 0..rounds {
        for operation in QUICK {
            // The noise of the whole run shows in the Gets.
            let kinds = if operation == Get { &kinds } else { &no_again };
            if round == 0 {
                compare(&mut steps, round, kinds, own(operation, TARGET_SHAPE));
            }
            let plan = CellPlan {
                duration: Duration::from_millis(600),
                ..h2load(operation)
            };
            compare(&mut steps, round, kinds, plan);
            if operation == BatchMark(100) {
                steps.push((round, Step::RedisBenchmark));
            }
        }
        let kinds = [Kind::Dyndata, Kind::Quickstart];
        compare(&mut steps, round, &kinds, own(Get, SINGLE));
        many_connections(&mut steps, round);
        steps.push((round, Step::RedisRoundTrip));
    }
    steps.push((0, Step::IdleMemory));
    steps
}

/// The shape in which a further call is measured.
pub fn shape_of(operation: Operation) -> Shape {
    match operation {
        // Redis could not make 200 pages within its timeout of half a second.
        List => shape(10, 1),
        _ => TARGET_SHAPE,
    }
}

/// Adds one cell for each subject that can take part, right after one another and in a random order,
/// so that other work of the machine affects all of them.
fn compare(steps: &mut Vec<(usize, Step)>, round: usize, subjects: &[Kind], plan: CellPlan) {
    let cells = subjects.iter().map(|&subject| CellPlan { subject, ..plan });
    let mut cells: Vec<CellPlan> = cells.filter(|cell| cell.is_possible()).collect();
    fastrand::shuffle(&mut cells);
    steps.extend(cells.into_iter().map(|cell| (round, Step::Cell(cell))));
}

fn many_connections(steps: &mut Vec<(usize, Step)>, round: usize) {
    // The peers show how much of it is kernel time: a read and a write for each call.
    let kinds = [Kind::Dyndata, Kind::Again, Kind::Quickstart, Kind::Manager];
    compare(steps, round, &kinds, own(Get, MANY_CONNECTIONS));
}

fn own(operation: Operation, shape: Shape) -> CellPlan {
    let plan = CellPlan {
        purpose: Purpose::Comparison,
        subject: Kind::Dyndata,
        operation,
        shape,
        generator: Generator::Own,
        duration: operation.duration(),
    };
    if plan.overloads() {
        // A short cell would get no reply.
        let duration = Duration::from_secs(3);
        return CellPlan { duration, ..plan };
    }
    plan
}

fn h2load(operation: Operation) -> CellPlan {
    CellPlan {
        generator: Generator::H2load,
        ..own(operation, TARGET_SHAPE)
    }
}
