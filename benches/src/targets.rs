//! The performance targets of the service, and whether a run met them.

use serde::{Deserialize, Serialize};

use crate::{
    keys::Operation::{self, BatchGet, Get, Mark},
    measure::MEBIBYTE,
    plan::{FEW_CONNECTIONS, MANY_CONNECTIONS, SINGLE, TARGET_SHAPE},
    results::{Cell, Generator, Purpose, Results, Select, Spread},
    subjects::Kind,
};

/// One row of the table.
#[derive(Serialize, Deserialize)]
pub struct Target {
    pub name: String,
    /// The limit that must be met. `None` for the row that shows the noise.
    pub must: Option<f64>,
    /// The limit that is aimed at.
    pub aim: Option<f64>,
    /// True if the figure must be at least the limit, not at most.
    pub at_least: bool,
    /// The measured figure, whose median counts.
    pub reached: Option<Spread>,
    /// The figure by our own generator, where `reached` is h2load's.
    pub own: Option<Spread>,
}

impl Target {
    pub fn verdict(&self) -> &'static str {
        let Some(must) = self.must else {
            return "the noise";
        };
        let Some(reached) = self.reached else {
            return "not measured";
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
}

/// All targets. The last row is the noise.
pub fn targets(results: &Results) -> Vec<Target> {
    let mut targets = Vec::new();
    let against = [
        (Kind::Quickstart, 0.65, 0.50),
        (Kind::Manager, 0.35, 0.25),
        (Kind::Deadpool, 0.18, 0.12),
    ];
    for (peer, must, aim) in against {
        for operation in [Get, Mark] {
            targets.push(cpu_ratio(results, operation, peer, must, aim));
        }
    }
    targets.push(cpu_ratio(results, BatchGet(100), Kind::Manager, 0.45, 0.30));
    targets.push(cpu_ratio(
        results,
        BatchGet(1000),
        Kind::Manager,
        0.55,
        0.35,
    ));

    let rate = |generator| {
        let cells = results.select(select(Get, generator));
        Spread::of(cells.filter_map(|cell| {
            let benchmark = results.redis_benchmark.get(cell.round)?;
            Some(cell.calls_per_second / benchmark)
        }))
    };
    targets.push(Target {
        own: rate(Generator::Own),
        at_least: true,
        ..target(
            "Get RPS / redis-benchmark -P 1 -c 50",
            rate(Generator::H2load),
            1.2,
            Some(1.5),
        )
    });

    let single = Select {
        shape: SINGLE,
        ..select(Get, Generator::Own)
    };
    let limit = |cell: &Cell| {
        let quickstart = results.select(single.of(Kind::Quickstart));
        let quickstart = quickstart
            .into_iter()
            .find(|other| other.round == cell.round)?;
        Some(quickstart.p50_us? + results.redis_round_trip_us.get(cell.round)?)
    };
    let latency = results
        .select(single)
        .filter_map(|cell| Some(cell.p50_us? / limit(cell)?));
    targets.push(target(
        "Get p50 1x1 / (tonic, no store + Redis round trip)",
        Spread::of(latency),
        1.15,
        None,
    ));

    let many = Select {
        shape: MANY_CONNECTIONS,
        ..select(Get, Generator::Own)
    };
    let few = Select {
        shape: FEW_CONNECTIONS,
        ..many
    };
    targets.push(target(
        "CPU per Get, 1000x1 / 10x100",
        results.ratio(many, few, cpu),
        1.3,
        Some(1.1),
    ));
    let memory = results.memory.iter();
    let idle = memory
        .clone()
        .map(|memory| memory.idle_bytes as f64 / MEBIBYTE);
    targets.push(target(
        "resident memory idle, MiB",
        Spread::of(idle),
        20.0,
        Some(12.0),
    ));
    let connection = memory.map(|memory| memory.bytes_per_connection / 1024.0);
    targets.push(target(
        "resident memory per idle connection, KiB",
        Spread::of(connection),
        24.0,
        Some(12.0),
    ));
    targets.push(Target {
        must: None,
        own: noise(results, Generator::Own),
        ..target(
            "A/A: CPU per Get / a second dyndata process",
            noise(results, Generator::H2load),
            0.0,
            None,
        )
    });
    targets
}

/// The CPU of the service over that of a second process of it, so the noise of the run.
fn noise(results: &Results, generator: Generator) -> Option<Spread> {
    let again = select(Get, generator).of(Kind::Again);
    results.ratio(select(Get, generator), again, cpu)
}

fn cpu_ratio(results: &Results, operation: Operation, peer: Kind, must: f64, aim: f64) -> Target {
    let ratio = |generator| {
        let service = select(operation, generator);
        results.ratio(service, service.of(peer), cpu)
    };
    let name = format!("CPU per {operation} / {}", peer.name());
    Target {
        own: ratio(Generator::Own),
        ..target(&name, ratio(Generator::H2load), must, Some(aim))
    }
}

fn target(name: &str, reached: Option<Spread>, must: f64, aim: Option<f64>) -> Target {
    Target {
        name: name.to_owned(),
        must: Some(must),
        aim,
        at_least: false,
        reached,
        own: None,
    }
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
