//! Runs the steps of a plan. A step that fails loses its row, with the reason, and nothing else.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Error, Result};
use hdrhistogram::Histogram;

use crate::{
    cell::{self, TooBusy},
    keys::{IDS, KeySet},
    load::{self, Protocol, closed_loop},
    memory, open_loop,
    operation::{INDEXED, Operation},
    plan::{CellPlan, Step, TARGET_SHAPE},
    presence,
    redis::Redis,
    results::{
        Entries, Generator, Latency, Machine, Memory, Presence, Purpose, Results, Select, Watch,
        Workers, rounded,
    },
    servers::Servers,
    subjects::{Kind, Programs, Subject},
    watch,
};

/// Pause between two steps, so that the next subject does not pay for closing connections.
const REST: Duration = Duration::from_millis(50);
/// Number of connections whose resident memory is measured.
const IDLE_CONNECTIONS: usize = 1_000;
/// Number of entries whose resident memory is measured.
const STORED_ENTRIES: usize = 100_000;
/// How long Marks are made for watchers.
const WATCH_TIME: Duration = Duration::from_secs(60);
/// How many processes watch.
const WATCHING: [usize; 3] = [0, 1, 4];
/// A peer that has lost this many rows is left out. Each of them may take until its deadline.
const LOST_ROWS: usize = 3;

/// The servers and the results so far.
pub struct Bench {
    servers: Servers,
    pub results: Results,
    /// The rows that failed.
    lost: Vec<Select>,
    /// The peers that do not start, or have lost too many rows.
    left_out: Vec<Kind>,
}

impl Bench {
    /// Starts Redis and the subjects. A peer that does not start is left out.
    pub fn start(programs: Programs, kinds: &[Kind]) -> Result<Self> {
        let mut servers = Servers::start(programs)?;
        let results = Results {
            machine: machine(&mut servers.redis)?,
            ..Results::default()
        };
        let mut bench = Self {
            servers,
            results,
            lost: Vec::new(),
            left_out: Vec::new(),
        };
        for &kind in kinds {
            bench.start_subject(kind)?;
        }
        Ok(bench)
    }

    /// Runs one step. Returns a line with the result. An error means that no step can run any more.
    pub fn run(&mut self, round: usize, step: Step) -> Result<String> {
        if let Step::Cell(plan) = step
            && self.is_lost(plan)
        {
            return Ok(format!("{} lost", label(plan)));
        }
        let line = match self.try_step(round, step) {
            Ok(line) => line,
            Err(error) => self.lose(step, &error)?,
        };
        thread::sleep(REST);
        Ok(line)
    }

    fn try_step(&mut self, round: usize, step: Step) -> Result<String> {
        match step {
            Step::Cell(plan) => {
                let servers = &mut self.servers;
                let cell = match cell::measure(servers, round, plan) {
                    Err(error) if error.is::<TooBusy>() => {
                        eprintln!("{} again: {error:#}", label(plan));
                        servers.redis.settle()?;
                        cell::measure(servers, round, plan)?
                    }
                    measured => measured?,
                };
                let (us, rate) = (cell.server_us_per_call, cell.calls_per_second);
                let redis = cell.redis_us_per_call;
                self.results.cells.push(cell);
                Ok(format!(
                    "{} {us:8.2} us, Redis {redis:7.2} us, {rate:8.0}/s",
                    label(plan)
                ))
            }
            Step::Workers(workers) => self.workers(workers),
            Step::RedisBenchmark => {
                let rate = self.servers.redis.benchmark(1_000_000)?;
                self.results.redis_benchmark.push((round, rate));
                Ok(format!("redis-benchmark {rate:.0}/s"))
            }
            Step::RedisRoundTrip => {
                let round_trip = self.servers.redis.round_trip(&self.servers.keys)?;
                let us = round_trip.as_nanos() as f64 / 1e3;
                self.results.redis_round_trip_us.push((round, us));
                Ok(format!("Redis round trip {us:.1} us"))
            }
            Step::Latency {
                subject,
                percent,
                duration,
            } => self.latency(subject, percent, duration),
            Step::IdleMemory => self.idle_memory(),
            Step::EntriesMemory => self.entries_memory(),
            Step::Watch => self.watch(),
            Step::Presence(size) => self.presence(size),
        }
    }

    fn is_lost(&self, plan: CellPlan) -> bool {
        self.lost.contains(&plan.select()) || self.left_out.contains(&plan.subject)
    }

    /// Records the row of a step as lost. Starts its subject anew, so that its other rows do not
    /// suffer.
    fn lose(&mut self, step: Step, error: &Error) -> Result<String> {
        let reason = format!("{error:#}");
        let Step::Cell(plan) = step else {
            let line = format!("{step} lost: {reason}");
            self.results.lose(step.subject(), step.to_string(), reason);
            return Ok(line);
        };
        let kind = plan.subject;
        let row = format!("{} {}, {}", plan.operation, plan.shape, plan.generator);
        let line = format!("{} lost: {reason}", label(plan));
        self.results.remove(plan.select());
        self.results.lose(kind, row, reason);
        self.lost.push(plan.select());
        let lost = self.lost.iter().filter(|select| select.subject == kind);
        if lost.count() >= LOST_ROWS && kind.is_peer() {
            self.leave_out(kind, format!("it has lost {LOST_ROWS} rows"));
        } else {
            self.start_subject(kind)?;
        }
        // Redis may still run what the old process sent. If that takes long, the next row suffers.
        if self.servers.redis.settle().is_err() {
            // Nothing can be measured without Redis.
            self.servers.redis.version().context(line.clone())?;
        }
        Ok(line)
    }

    fn start_subject(&mut self, kind: Kind) -> Result<()> {
        match self.servers.start_subject(kind) {
            Err(error) if kind.is_peer() => self.leave_out(kind, format!("{error:#}")),
            started => started?,
        }
        Ok(())
    }

    fn leave_out(&mut self, kind: Kind, reason: String) {
        eprintln!("{} is left out: {reason}", kind.name());
        self.servers.stop_subject(kind);
        self.left_out.push(kind);
        self.results
            .lose(kind, "all rows from here on".to_owned(), reason);
    }

    fn workers(&mut self, workers: usize) -> Result<String> {
        let servers = &self.servers;
        let subject = Subject::start_dyndata(
            &servers.programs,
            Some(servers.redis.address),
            &["--workers", &workers.to_string()],
            &servers.keys,
            &servers.scratch,
        )?;
        let workload = subject.kind.workload(Operation::Get, &servers.keys)?;
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
        let workload = kind.workload(Operation::Get, &self.servers.keys)?;
        let outcome = open_loop::run(
            self.servers.subject(kind)?.address,
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
        let workload = subject.kind.workload(Operation::Mark, &keys)?;
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

    /// Without watchers, and with watchers of one process and of several.
    fn watch(&mut self) -> Result<String> {
        let mut lines = Vec::new();
        for processes in WATCHING {
            let line = self.watch_on(processes)?;
            eprintln!("{line}");
            lines.push(line);
        }
        Ok(lines.join("; "))
    }

    fn watch_on(&mut self, processes: usize) -> Result<String> {
        let marking = self.servers.subject(Kind::Again)?.address;
        let Servers {
            programs,
            redis,
            keys,
            scratch,
            ..
        } = &self.servers;
        let start = || Subject::start_dyndata(programs, Some(redis.address), &[], keys, scratch);
        let subjects: Vec<_> = (0..processes).map(|_| start()).collect::<Result<_>>()?;
        let addresses: Vec<_> = subjects.iter().map(|subject| subject.address).collect();
        let probe = || {
            let used = subjects.iter().map(|subject| subject.process.clock.now());
            let used = used.sum::<Result<Duration>>()?;
            anyhow::Ok((Instant::now(), used, redis.clock.now()?))
        };
        let keys = KeySet::random(IDS);
        let found = watch::run(marking, &addresses, &keys, WATCH_TIME, probe)?;
        self.servers.redis.check_known(&keys, &found.known)?;
        let (before, after) = (found.before, found.after);
        let elapsed = after.0 - before.0;
        let of_redis = after.2 - before.2;
        let us = |duration: Duration| duration.as_nanos() as f64 / 1e3;
        let quantile = |times: &Histogram<u64>, quantile| {
            (!times.is_empty()).then(|| rounded(times.value_at_quantile(quantile) as f64 / 1e3))
        };
        let row = Watch {
            processes,
            watchers: found.known.len(),
            events_per_second: rounded(found.events as f64 / elapsed.as_secs_f64()),
            server_us_per_event: (found.events > 0)
                .then(|| rounded(us(after.1 - before.1) / found.events as f64)),
            redis_us_per_mark: rounded(us(of_redis) / found.marks as f64),
            redis_cpu_share: rounded(of_redis.as_secs_f64() / elapsed.as_secs_f64()),
            change_p50_us: quantile(&found.changes, 0.5),
            change_p99_us: quantile(&found.changes, 0.99),
            expiry_p50_us: quantile(&found.expiries, 0.5),
            expiry_p99_us: quantile(&found.expiries, 0.99),
        };
        let line = format!(
            "{processes} processes watch: {:.0} events/s, Redis {:.2} us a Mark",
            row.events_per_second, row.redis_us_per_mark
        );
        self.results.watch.push(row);
        Ok(line)
    }

    fn presence(&mut self, size: presence::Size) -> Result<String> {
        let server = self.servers.subject(Kind::Dyndata)?.address;
        let redis = &mut self.servers.redis;
        redis.remove_index(INDEXED)?;
        let found = presence::run(server, redis.address, size);
        redis.remove_index(INDEXED)?;
        let found = found?;
        let us = |times: &Histogram<u64>, quantile| {
            rounded(times.value_at_quantile(quantile) as f64 / 1e3)
        };
        let row = Presence {
            ids: size.ids,
            marks_per_second: size.rate,
            count_p50_us: us(&found.counts, 0.5),
            count_p99_us: us(&found.counts, 0.99),
            ping_p50_us: us(&found.pings, 0.5),
            ping_p99_us: us(&found.pings, 0.99),
            list_seconds: rounded(found.listed_in.as_secs_f64()),
            page_p50_us: us(&found.pages, 0.5),
            page_p99_us: us(&found.pages, 0.99),
        };
        let line = format!(
            "{} ids: Count p50 {:.0} us, p99 {:.0} us, List {:.2} s",
            row.ids, row.count_p50_us, row.count_p99_us, row.list_seconds
        );
        self.results.presence.push(row);
        Ok(line)
    }

    /// A server with default settings on the embedded store, after its start.
    fn fresh_dyndata(&self) -> Result<Subject> {
        let Servers {
            programs,
            keys,
            scratch,
            ..
        } = &self.servers;
        let subject = Subject::start_dyndata(programs, None, &[], keys, scratch)?;
        thread::sleep(Duration::from_millis(500));
        Ok(subject)
    }
}

pub const MEBIBYTE: f64 = 1_048_576.0;

fn label(plan: CellPlan) -> String {
    format!(
        "{:16} {:7} {:6} {:20}",
        plan.operation,
        plan.shape,
        plan.generator,
        plan.subject.name()
    )
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
