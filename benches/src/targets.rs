//! The performance targets of the service, and whether a run met them.

use serde::{Deserialize, Serialize};

use crate::{
    measure::MEBIBYTE,
    operation::Operation::{self, BatchGet, BatchMark, Get, Limit, Mark},
    plan::{MANY_CONNECTIONS, SINGLE, TARGET_SHAPE},
    results::{
        Cell,
        Generator::{self, H2load, Own},
        Purpose, Results, Select, Spread,
    },
    subjects::Kind,
};

/// One row of the table.
#[derive(Serialize, Deserialize)]
pub struct Target {
    pub name: String,
    /// The limit that must be met. `None` for a row that only informs.
    pub must: Option<f64>,
    /// The limit that is aimed at.
    pub aim: Option<f64>,
    /// True if the figure must be at least the limit, not at most.
    pub at_least: bool,
    /// The measured figure, whose median counts.
    pub reached: Option<Spread>,
    /// The figure by our own generator, where `reached` is h2load's.
    pub own: Option<Spread>,
    /// The same figure of dyndata over that of a second process of dyndata, so the noise.
    pub noise: Option<Spread>,
}

impl Target {
    pub fn verdict(&self) -> &'static str {
        let Some(reached) = self.reached else {
            return "not measured";
        };
        let Some(must) = self.must else {
            return "";
        };
        let meets = |limit: f64| {
            if self.at_least {
                reached.median >= limit
            } else {
                reached.median <= limit
            }
        };
        match self.aim {
            Some(aim) if meets(aim) => "aim",
            _ if meets(must) => "must",
            _ => "**missed**",
        }
    }

    fn limits(name: impl Into<String>, must: f64, aim: f64) -> Self {
        Self {
            name: name.into(),
            must: Some(must),
            aim: Some(aim),
            at_least: false,
            reached: None,
            own: None,
            noise: None,
        }
    }

    fn reached(self, reached: Option<Spread>) -> Self {
        Self { reached, ..self }
    }
}

/// All targets, in the order of the table.
pub fn targets(results: &Results) -> Vec<Target> {
    let mut targets = Vec::new();
    let peers = [
        (Kind::Quickstart, 0.52, 0.42),
        (Kind::Manager, 0.35, 0.27),
        (Kind::Go, 0.17, 0.13),
    ];
    for (peer, must, aim) in peers {
        for operation in [Get, Mark] {
            targets.push(cpu_ratio(results, operation, peer, (must, aim)));
        }
    }
    let batches = [
        (BatchGet(100), Kind::Quickstart, (0.85, 0.70)),
        (BatchGet(1000), Kind::Quickstart, (1.00, 0.80)),
        (BatchGet(100), Kind::Manager, (0.28, 0.22)),
        (BatchGet(1000), Kind::Manager, (0.28, 0.22)),
        (BatchMark(100), Kind::Manager, (0.45, 0.30)),
    ];
    for (operation, peer, limits) in batches {
        targets.push(cpu_ratio(results, operation, peer, limits));
    }
    targets.push(batch_of_marks(results));
    targets.push(marks_per_second(results));
    targets.push(cpu_ratio(results, Limit, Kind::Ratelimit, (0.15, 0.10)));
    targets.push(Target {
        name: format!("{Limit} / ShouldRateLimit, with the CPU of Redis"),
        ..ratio(results, Limit, Kind::Ratelimit, (0.35, 0.20), |cell| {
            cell.server_us_per_call + cell.redis_us_per_call
        })
    });
    targets.extend(many_connections(results));
    targets.push(single_call(results));

    let idle = results.memory.iter();
    let idle = idle.map(|memory| memory.idle_bytes as f64 / MEBIBYTE);
    targets.push(Target::limits("resident memory idle, MiB", 12.0, 8.0).reached(Spread::of(idle)));
    let connection = results.memory.iter();
    let connection = connection.map(|memory| memory.bytes_per_connection / 1024.0);
    targets.push(
        Target::limits("resident memory per idle connection, KiB", 20.0, 14.0)
            .reached(Spread::of(connection)),
    );
    targets
}

fn cpu_ratio(results: &Results, operation: Operation, peer: Kind, limits: (f64, f64)) -> Target {
    ratio(results, operation, peer, limits, cpu)
}

/// `value` of dyndata over that of a peer, at the shape of the targets.
fn ratio(
    results: &Results,
    operation: Operation,
    peer: Kind,
    (must, aim): (f64, f64),
    value: impl Fn(&Cell) -> f64 + Copy,
) -> Target {
    let to = |kind: Kind, generator| {
        let service = select(operation, generator);
        results.ratio(service, service.of(kind), value)
    };
    let name = match peer {
        Kind::Ratelimit => format!("{operation} / ShouldRateLimit"),
        _ => format!("{operation} / {}", peer.name()),
    };
    Target {
        reached: to(peer, H2load),
        own: to(peer, Own),
        noise: to(Kind::Again, H2load),
        ..Target::limits(name, must, aim)
    }
}

/// The CPU of a BatchMark in units of a Mark's.
fn batch_of_marks(results: &Results) -> Target {
    let marks = |kind: Kind, generator| {
        let batch = select(BatchMark(100), generator).of(kind);
        results.ratio(batch, select(Mark, generator).of(kind), cpu)
    };
    Target {
        reached: marks(Kind::Dyndata, H2load),
        own: marks(Kind::Dyndata, Own),
        ..Target::limits("BatchMark(100) / one Mark", 8.0, 6.0)
    }
}

fn marks_per_second(results: &Results) -> Target {
    let rate = |generator| {
        let cells = results.select(select(BatchMark(100), generator));
        Spread::of(cells.filter_map(|cell| {
            let benchmark = of_round(&results.redis_benchmark, cell.round)?;
            Some(100.0 * cell.calls_per_second / benchmark)
        }))
    };
    Target {
        at_least: true,
        reached: rate(H2load),
        own: rate(Own),
        ..Target::limits(
            "marks/s by BatchMark(100) / redis-benchmark -P 100 -t set",
            0.4,
            0.6,
        )
    }
}

/// Get on 1,000 connections, beside two peers. Only the first has limits.
fn many_connections(results: &Results) -> [Target; 2] {
    let service = Select {
        shape: MANY_CONNECTIONS,
        ..select(Get, Own)
    };
    let beside = |peer: Kind| {
        let name = format!("Get {MANY_CONNECTIONS} / {}", peer.name());
        Target {
            noise: results.ratio(service, service.of(Kind::Again), cpu),
            ..Target::limits(name, 1.0, 0.8)
        }
        .reached(results.ratio(service, service.of(peer), cpu))
    };
    let manager = Target {
        must: None,
        aim: None,
        ..beside(Kind::Manager)
    };
    [beside(Kind::Quickstart), manager]
}

/// The latency of one call at a time.
fn single_call(results: &Results) -> Target {
    let single = Select {
        shape: SINGLE,
        ..select(Get, Own)
    };
    let limit = |cell: &Cell| {
        let mut quickstart = results.select(single.of(Kind::Quickstart));
        let quickstart = quickstart.find(|other| other.round == cell.round)?;
        Some(quickstart.p50_us? + of_round(&results.redis_round_trip_us, cell.round)?)
    };
    let latency = results
        .select(single)
        .filter_map(|cell| Some(cell.p50_us? / limit(cell)?));
    let name = format!("Get p50 {SINGLE} / (tonic, no store + Redis round trip)");
    Target::limits(name, 1.15, 1.0).reached(Spread::of(latency))
}

fn of_round(figures: &[(usize, f64)], round: usize) -> Option<f64> {
    let found = figures.iter().find(|(of, _)| *of == round);
    found.map(|(_, figure)| *figure)
}

fn select(operation: Operation, generator: Generator) -> Select {
    Select {
        purpose: Purpose::Comparison,
        subject: Kind::Dyndata,
        operation,
        shape: TARGET_SHAPE,
        generator,
    }
}

fn cpu(cell: &Cell) -> f64 {
    cell.server_us_per_call
}
