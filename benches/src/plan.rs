//! The steps of a run, in order, with the expected duration of each.

use std::time::Duration;

use crate::{
    keys::Operation::{self, BatchGet, Get, Mark},
    load::Shape,
    results::{Generator, Purpose},
    subjects::Kind,
};

/// The shape of the targets.
pub const TARGET_SHAPE: Shape = shape(10, 20);
/// One call at a time.
pub const SINGLE: Shape = shape(1, 1);
/// The same number of calls at the same time, over few and over many connections.
pub const FEW_CONNECTIONS: Shape = shape(10, 100);
pub const MANY_CONNECTIONS: Shape = shape(1000, 1);

const SHAPES: [Shape; 4] = [SINGLE, shape(8, 1), TARGET_SHAPE, shape(100, 10)];
const OPERATIONS: [Operation; 4] = [Get, Mark, BatchGet(100), BatchGet(1000)];

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
    /// True if the calls ask for a million keys at the same time. That is more than Redis can read
    /// within its timeout of half a second.
    pub fn overloads(&self) -> bool {
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
}

impl Step {
    /// The expected duration, with start and stop.
    pub fn estimate(self) -> Duration {
        match self {
            Self::Cell(plan) => {
                // Time to open and close connections.
                let connections = plan.shape.connections as u64;
                plan.duration.mul_f64(1.2) + Duration::from_micros(120_000 + 250 * connections)
            }
            Self::Latency { duration, .. } => duration + Duration::from_millis(200),
            Self::Workers(_) => Duration::from_millis(1_500),
            Self::RedisBenchmark => Duration::from_millis(1_000),
            Self::RedisRoundTrip => Duration::from_millis(150),
            Self::IdleMemory => Duration::from_secs(2),
            Self::EntriesMemory => Duration::from_secs(4),
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
pub fn subjects(quick: bool) -> &'static [Kind] {
    // No target mentions Python or webdis.
    if quick { &Kind::ALL[..5] } else { &Kind::ALL }
}

fn full_steps(rounds: usize) -> Vec<(usize, Step)> {
    let mut steps = Vec::new();
    for round in 0..rounds {
        for operation in OPERATIONS {
            for shape in SHAPES {
                let plan = own(operation, shape);
                if plan.overloads() {
                    // A short cell would get no reply, and Python none at all.
                    let long = CellPlan {
                        duration: Duration::from_secs(3),
                        ..plan
                    };
                    let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Python);
                    let kinds: Vec<Kind> = kinds.collect();
                    compare(&mut steps, round, &kinds, long);
                } else {
                    compare(&mut steps, round, &Kind::ALL, plan);
                }
            }
            // h2load sends one path only, so webdis is left out.
            compare(&mut steps, round, &Kind::ALL[..6], h2load(operation));
        }
        few_and_many_connections(&mut steps, round);
        steps.push((round, Step::RedisBenchmark));
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
    steps
}

/// Only what the targets need.
fn quick_steps(rounds: usize) -> Vec<(usize, Step)> {
    let mut steps = Vec::new();
    for round in 0..rounds {
        for operation in OPERATIONS {
            let kinds = match operation {
                Get => subjects(true),
                Mark => &[
                    Kind::Dyndata,
                    Kind::Quickstart,
                    Kind::Manager,
                    Kind::Deadpool,
                ],
                BatchGet(_) => &GROWTH_SUBJECTS,
            };
            compare(
                &mut steps,
                round,
                kinds,
                short(own(operation, TARGET_SHAPE)),
            );
            compare(&mut steps, round, kinds, h2load(operation));
        }
        let kinds = [Kind::Dyndata, Kind::Quickstart];
        compare(&mut steps, round, &kinds, short(own(Get, SINGLE)));
        few_and_many_connections(&mut steps, round);
        steps.push((round, Step::RedisBenchmark));
        steps.push((round, Step::RedisRoundTrip));
    }
    steps.push((0, Step::IdleMemory));
    steps
}

/// Adds one cell for each subject, right after one another and in a random order, so that other work
/// of the machine affects all of them.
fn compare(steps: &mut Vec<(usize, Step)>, round: usize, subjects: &[Kind], plan: CellPlan) {
    let mut subjects = subjects.to_vec();
    fastrand::shuffle(&mut subjects);
    let cells = subjects
        .into_iter()
        .map(|subject| Step::Cell(CellPlan { subject, ..plan }));
    steps.extend(cells.map(|cell| (round, cell)));
}

fn few_and_many_connections(steps: &mut Vec<(usize, Step)>, round: usize) {
    let mut shapes = [FEW_CONNECTIONS, MANY_CONNECTIONS];
    fastrand::shuffle(&mut shapes);
    // The peer shows how much of the difference is kernel time: a read and a write for each call.
    let kinds = [Kind::Dyndata, Kind::Quickstart];
    for shape in shapes {
        compare(steps, round, &kinds, own(Get, shape));
    }
}

fn own(operation: Operation, shape: Shape) -> CellPlan {
    CellPlan {
        purpose: Purpose::Comparison,
        subject: Kind::Dyndata,
        operation,
        shape,
        generator: Generator::Own,
        duration: Duration::from_millis(800),
    }
}

fn h2load(operation: Operation) -> CellPlan {
    CellPlan {
        generator: Generator::H2load,
        ..own(operation, TARGET_SHAPE)
    }
}

fn short(plan: CellPlan) -> CellPlan {
    CellPlan {
        duration: Duration::from_millis(500),
        ..plan
    }
}
