//! Runs the steps of a plan against running servers.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    h2load,
    keys::{IDS, KeySet, Operation},
    load::{self, Protocol, closed_loop},
    memory, open_loop,
    plan::{CellPlan, Step, TARGET_SHAPE},
    redis::Redis,
    redis_server::Directory,
    results::{
        Cell, Entries, Generator, Latency, Machine, Memory, Purpose, Results, Select, Workers,
        rounded,
    },
    subjects::{Kind, Programs, Subject},
};

/// The warm-up of our generator, as a share of the measured time.
const WARM_UP: f64 = 0.2;
/// The share of calls that a server may refuse without overload, because of the machine.
const REFUSED_LIMIT: f64 = 0.001;
/// Pause between two steps, so that the next subject does not pay for closing connections.
const REST: Duration = Duration::from_millis(50);
/// Number of connections whose resident memory is measured.
const IDLE_CONNECTIONS: usize = 1_000;
/// Number of entries whose resident memory is measured.
const STORED_ENTRIES: usize = 100_000;

/// The servers, the keys and the results so far.
pub struct Bench {
    programs: Programs,
    subjects: Vec<Subject>,
    redis: Redis,
    /// Stored once and then only read.
    keys: KeySet,
    /// Written by Mark, with other values each time.
    marks: KeySet,
    pub results: Results,
    // Dropped last, because the servers write into it.
    scratch: Directory,
}

impl Bench {
    /// Starts Redis and every subject.
    pub fn start(programs: Programs, kinds: &[Kind]) -> Result<Self> {
        programs.check(kinds)?;
        let scratch = Directory::new();
        let mut redis = Redis::start()?;
        let keys = KeySet::random(IDS);
        redis.fill(&keys)?;
        let subjects = kinds
            .iter()
            .map(|&kind| {
                Subject::start(kind, &programs, redis.address, &keys, &scratch)
                    .with_context(|| format!("cannot start {}", kind.name()))
            })
            .collect::<Result<_>>()?;
        let results = Results {
            machine: machine(&mut redis)?,
            ..Results::default()
        };
        Ok(Self {
            programs,
            subjects,
            redis,
            keys,
            marks: KeySet::random(IDS),
            results,
            scratch,
        })
    }

    /// Runs one step. Returns a line with the result.
    pub fn run(&mut self, round: usize, step: Step) -> Result<String> {
        let line = match step {
            Step::Cell(plan) => {
                let (name, operation, shape) = (plan.subject.name(), plan.operation, plan.shape);
                let generator = match plan.generator {
                    Generator::Own => "own",
                    Generator::H2load => "h2load",
                };
                let cell = self
                    .cell(round, plan)
                    .with_context(|| format!("{operation} {shape}, {generator}, {name}"))?;
                let (us, rate) = (cell.server_us_per_call, cell.calls_per_second);
                self.results.cells.push(cell);
                format!("{operation:14} {shape:7} {generator:6} {name:18} {us:8.2} us {rate:8.0}/s")
            }
            Step::Workers(workers) => self.workers(workers)?,
            Step::RedisBenchmark => {
                let rate = self.redis.benchmark(60_000)?;
                self.results.redis_benchmark.push(rate);
                format!("redis-benchmark {rate:.0}/s")
            }
            Step::RedisRoundTrip => {
                let us = self.redis.round_trip(&self.keys)?.as_nanos() as f64 / 1e3;
                self.results.redis_round_trip_us.push(us);
                format!("Redis round trip {us:.1} us")
            }
            Step::Latency {
                subject,
                percent,
                duration,
            } => self
                .latency(subject, percent, duration)
                .with_context(|| format!("{} at {percent} %", subject.name()))?,
            Step::IdleMemory => self.idle_memory()?,
            Step::EntriesMemory => self.entries_memory()?,
        };
        for subject in &mut self.subjects {
            subject.process.check()?;
        }
        thread::sleep(REST);
        Ok(line)
    }

    fn cell(&mut self, round: usize, plan: CellPlan) -> Result<Cell> {
        let CellPlan {
            purpose,
            subject: kind,
            operation,
            shape,
            generator,
            duration,
        } = plan;
        let marks = (operation == Operation::Mark).then(|| self.marks.resalted());
        let workload = kind.workload(operation, marks.as_ref().unwrap_or(&self.keys));
        let subject = find(&self.subjects, kind)?;
        self.redis.reset_statistics()?;

        let (server, redis) = (subject.process.clock, self.redis.clock);
        let probe = || Ok((server.now()?, redis.now()?));
        let measured = match generator {
            Generator::Own => {
                let times = (duration.mul_f64(WARM_UP), duration);
                let protocol = kind.protocol();
                closed_loop(subject.address, protocol, workload, shape, times, probe)?
            }
            Generator::H2load => {
                let directory = &self.scratch;
                h2load::run(
                    subject.address,
                    &workload,
                    shape,
                    duration,
                    directory,
                    probe,
                )?
            }
        };

        let calls = self.redis.command_calls()?;
        let commands = calls.get(operation.redis_command()).copied().unwrap_or(0);
        // h2load closes its connections during calls. Redis ran their commands, but h2load does not
        // count the calls.
        let uncounted = match generator {
            Generator::Own => 0,
            Generator::H2load => 2 * (shape.connections * shape.streams) as u64,
        };
        let (answered, refused) = (measured.all_calls, measured.refused);
        ensure!(
            plan.overloads() || refused as f64 <= answered as f64 * REFUSED_LIMIT,
            "{refused} calls were refused, {answered} answered"
        );
        if refused > 0 {
            // Refused calls may still have commands on the way to Redis. They must not be counted
            // for the next cell.
            self.redis.settle()?;
        }
        let expected = if kind.has_store() {
            answered..=answered + refused + uncounted
        } else {
            0..=0
        };
        ensure!(
            expected.contains(&commands),
            "{answered} calls were answered, but Redis ran {commands} {}",
            operation.redis_command()
        );
        if let (Some(marks), true, Generator::Own) = (&marks, kind.has_store(), generator) {
            self.redis.check_marked(marks, answered.min(200) as usize)?;
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

    fn workers(&mut self, workers: usize) -> Result<String> {
        let subject = Subject::start_dyndata(
            &self.programs,
            Some(self.redis.address),
            &["--workers", &workers.to_string()],
            &self.keys,
            &self.scratch,
        )?;
        let workload = subject.kind.workload(Operation::Get, &self.keys);
        let times = (Duration::from_millis(160), Duration::from_millis(800));
        let probe = || subject.process.clock.now();
        let measured = closed_loop(
            subject.address,
            Protocol::Grpc,
            workload,
            TARGET_SHAPE,
            times,
            probe,
        )?;
        let cpu = (measured.after - measured.before).as_nanos() as f64 / 1e3;
        let found = Workers {
            workers,
            server_us_per_call: cpu / measured.calls as f64,
            calls_per_second: measured.calls as f64 / measured.elapsed.as_secs_f64(),
        };
        let (us, rate) = (found.server_us_per_call, found.calls_per_second);
        self.results.workers.push(found);
        Ok(format!(
            "Get {TARGET_SHAPE}, --workers {workers}: {us:.2} us {rate:.0}/s"
        ))
    }

    fn latency(&mut self, kind: Kind, percent: u32, duration: Duration) -> Result<String> {
        let capacity = Select {
            purpose: Purpose::Comparison,
            subject: kind,
            operation: Operation::Get,
            shape: TARGET_SHAPE,
            generator: Generator::Own,
        };
        let capacity = self.results.spread(capacity, |cell| cell.calls_per_second);
        let capacity = capacity.context("the capacity was not measured")?.median;
        let rate = capacity * f64::from(percent) / 100.0;
        let subject = find(&self.subjects, kind)?;
        let workload = kind.workload(Operation::Get, &self.keys);
        let outcome = open_loop::run(
            subject.address,
            workload,
            TARGET_SHAPE.connections,
            rate,
            duration,
        )?;
        let (latencies, lateness) = (&outcome.latencies, &outcome.lateness);
        let us = |nanoseconds: u64| nanoseconds as f64 / 1e3;
        let found = Latency {
            subject: kind,
            percent_of_capacity: percent,
            calls_per_second: rounded(rate),
            answered_per_second: rounded(outcome.answered_per_second),
            refused: outcome.refused,
            unsent: outcome.unsent,
            p50_us: us(latencies.value_at_quantile(0.5)),
            p99_us: us(latencies.value_at_quantile(0.99)),
            p999_us: us(latencies.value_at_quantile(0.999)),
            max_us: us(latencies.max()),
            sent_late_p50_us: us(lateness.value_at_quantile(0.5)),
            sent_late_p99_us: us(lateness.value_at_quantile(0.99)),
        };
        let line = format!(
            "{} at {rate:.0}/s: p50 {:.0} us, p99 {:.0} us",
            kind.name(),
            found.p50_us,
            found.p99_us
        );
        self.results.latency.push(found);
        Ok(line)
    }

    fn idle_memory(&mut self) -> Result<String> {
        let subject = self.fresh_dyndata()?;
        let idle_bytes = subject.process.resident()?;
        let connections = memory::idle_connections(subject.address, IDLE_CONNECTIONS)?;
        thread::sleep(Duration::from_millis(300));
        let more = subject.process.resident()?.saturating_sub(idle_bytes);
        let bytes_per_connection = more as f64 / connections.len() as f64;
        self.results.memory.push(Memory {
            idle_bytes,
            bytes_per_connection,
        });
        Ok(format!(
            "idle {:.1} MiB, per idle connection {:.1} KiB",
            idle_bytes as f64 / MEBIBYTE,
            bytes_per_connection / 1024.0
        ))
    }

    fn entries_memory(&mut self) -> Result<String> {
        let subject = self.fresh_dyndata()?;
        let before = subject.process.resident()?;
        let keys = KeySet::random(STORED_ENTRIES);
        let workload = subject.kind.workload(Operation::Mark, &keys);
        load::call_all(
            subject.address,
            workload,
            TARGET_SHAPE,
            STORED_ENTRIES as u64,
        )?;
        let resident_bytes = subject.process.resident()?;
        let bytes_per_entry = resident_bytes.saturating_sub(before) as f64 / STORED_ENTRIES as f64;
        self.results.entries.push(Entries {
            entries: STORED_ENTRIES,
            resident_bytes,
            bytes_per_entry: rounded(bytes_per_entry),
        });
        Ok(format!(
            "{STORED_ENTRIES} entries: {:.1} MiB, {bytes_per_entry:.0} bytes each",
            resident_bytes as f64 / MEBIBYTE
        ))
    }

    /// A server with default settings on the embedded store, after its start.
    fn fresh_dyndata(&self) -> Result<Subject> {
        let directory = &self.scratch;
        let subject = Subject::start_dyndata(&self.programs, None, &[], &self.keys, directory)?;
        thread::sleep(Duration::from_millis(500));
        Ok(subject)
    }
}

pub const MEBIBYTE: f64 = 1_048_576.0;

fn find(subjects: &[Subject], kind: Kind) -> Result<&Subject> {
    let subject = subjects.iter().find(|subject| subject.kind == kind);
    subject.with_context(|| format!("{} is not running", kind.name()))
}

fn machine(redis: &mut Redis) -> Result<Machine> {
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let processor = processors.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == "model name").then(|| value.trim().to_owned())
    });
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let h2load = Command::new("h2load").arg("--version").output();
    let h2load = h2load.context("cannot run h2load; make bench installs it")?;
    Ok(Machine {
        unix_time: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)?
            .as_secs(),
        cores: thread::available_parallelism()?.get(),
        processor: processor.unwrap_or_default(),
        kernel: kernel.trim().to_owned(),
        redis: redis.version()?,
        h2load: String::from_utf8_lossy(&h2load.stdout).trim().to_owned(),
    })
}
