//! The measurement of one cell: one subject, one kind of call, one shape, one generator.

use std::time::Duration;

use anyhow::{Result, anyhow};

use crate::{
    h2load,
    keys::KeySet,
    load::{self, closed_loop},
    operation::{INDEXED, Operation},
    plan::CellPlan,
    results::{Cell, Generator},
    servers::Servers,
};

/// The warm-up of our generator, as a share of the measured time.
const WARM_UP: f64 = 0.2;
/// The share of calls that a server may refuse without overload, because of the machine.
const REFUSED_LIMIT: f64 = 0.001;

/// Measures a cell, and checks that Redis ran the commands of its calls.
pub fn measure(servers: &mut Servers, round: usize, plan: CellPlan) -> Result<Cell> {
    let operation = plan.operation;
    let own_keys = match operation {
        Operation::Get | Operation::BatchGet(_) => None,
        Operation::Mark | Operation::BatchMark(_) => Some(servers.marks.resalted()),
        _ => Some(KeySet::random(operation.ids())),
    };
    if let (Some(keys), true) = (&own_keys, operation.needs_values()) {
        servers.redis.fill(keys)?;
    }
    if let (Some(keys), Operation::Count | Operation::List) = (&own_keys, operation) {
        servers.redis.remove_index(INDEXED)?;
        let subject = servers.subject(plan.subject)?;
        let workload = subject.kind.workload(Operation::MarkIndexed, keys)?;
        load::call_all(
            subject.address,
            workload,
            plan.shape,
            keys.ids().len() as u64,
        )?;
    }
    let cell = measure_with(servers, round, plan, own_keys.as_ref());
    if let (Some(keys), true) = (&own_keys, operation.removes()) {
        // More than the other cells store. They should not pay for a large table of Redis.
        servers.redis.remove(keys)?;
    }
    cell
}

/// The server refused calls, perhaps because of other work of the machine. A second attempt may
/// succeed.
#[derive(Debug)]
pub struct TooBusy(String);

impl std::fmt::Display for TooBusy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TooBusy {}

fn measure_with(
    servers: &mut Servers,
    round: usize,
    plan: CellPlan,
    own_keys: Option<&KeySet>,
) -> Result<Cell> {
    let CellPlan {
        purpose,
        subject: kind,
        operation,
        shape,
        generator,
        duration,
    } = plan;
    let workload = kind.workload(operation, own_keys.unwrap_or(&servers.keys))?;
    servers.redis.reset_statistics()?;
    let redis = servers.redis.clock;
    let subject = servers.subject(kind)?;
    let (server, address) = (subject.process.clock, subject.address);
    let probe = || Ok((server.now()?, redis.now()?));
    let measured = match generator {
        Generator::Own => {
            let times = (duration.mul_f64(WARM_UP), duration);
            closed_loop(address, kind.protocol(), workload, shape, times, probe)?
        }
        Generator::H2load => {
            let directory = &servers.scratch;
            h2load::run(address, &workload, shape, duration, directory, probe)?
        }
    };

    let (answered, refused) = (measured.all_calls, measured.refused);
    if !plan.overloads() && refused as f64 > answered as f64 * REFUSED_LIMIT {
        let text = format!("{refused} calls were refused, {answered} answered");
        return Err(TooBusy(text).into());
    }
    if refused > 0 || generator == Generator::H2load {
        // Calls without an answer may still have commands on the way to Redis. They must not be
        // counted for the next cell.
        servers.redis.settle()?;
    }
    let (command, per_call) = operation.redis_commands();
    let ran = servers.redis.command_calls()?;
    let ran = |command: &str| ran.get(command).copied().unwrap_or(0);
    // A sweep of an index counts ids, too. Nothing else runs ZRANGEBYSCORE.
    let of_sweeps = match operation {
        Operation::Count => ran("zrangebyscore"),
        _ => 0,
    };
    let commands = ran(command) - of_sweeps;
    // h2load closes its connections during calls. Redis ran their commands, but h2load does not
    // count the calls.
    let uncounted = match generator {
        Generator::Own => 0,
        Generator::H2load => 2 * (shape.connections * shape.streams) as u64,
    };
    let expected = if kind.has_store() {
        answered * per_call..=(answered + refused + uncounted) * per_call
    } else {
        0..=0
    };
    if !expected.contains(&commands) {
        let text = format!("{answered} calls were answered, but Redis ran {commands} {command}");
        return Err(match generator {
            Generator::Own => anyhow!(text),
            // h2load counts refused calls as answered.
            Generator::H2load => TooBusy(text).into(),
        });
    }
    let marks = matches!(operation, Operation::Mark | Operation::BatchMark(_));
    if let (Some(keys), true, true, Generator::Own) = (own_keys, marks, kind.has_store(), generator)
    {
        let marked = (answered * per_call).min(200);
        servers.redis.check_marked(keys, marked as usize)?;
    }

    let per_call = |before: Duration, after: Duration| {
        (after - before).as_nanos() as f64 / 1e3 / measured.calls as f64
    };
    let quantile = |quantile| {
        let latencies = measured.latencies.as_ref()?;
        Some(latencies.value_at_quantile(quantile) as f64 / 1e3)
    };
    Ok(Cell {
        purpose,
        round,
        subject: kind,
        operation,
        shape,
        generator,
        refused,
        calls_per_second: measured.calls as f64 / measured.elapsed.as_secs_f64(),
        server_us_per_call: per_call(measured.before.0, measured.after.0),
        redis_us_per_call: per_call(measured.before.1, measured.after.1),
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
    })
}
