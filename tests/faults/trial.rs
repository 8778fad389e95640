//! One run of a case: it puts load on a service, injects faults, and checks the history at the end.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    checker::{self, Allowances},
    counters::Counters,
    history::{Moment, Operation},
    load::{Load, Rate, endings},
    register::Span,
    report::Report,
    support::{Dyndata, redis_server::is_redis_6},
    writers::{Pressure, Writers},
};

/// The service has recovered after this many successful calls in a row ...
const RECOVERED: usize = 50;
/// ... and after this time without a failed call. No call may take longer.
const QUIET: Duration = Duration::from_millis(1_200);
/// How long beyond its limit to wait for a recovery, to report how long it took.
const PATIENCE: Duration = Duration::from_secs(8);
/// Time without faults before the first fault.
const CALM: Duration = Duration::from_millis(700);
/// A failover may lose Marks that were acknowledged this long before it.
const REPLICATION_LAG: Duration = Duration::from_millis(500);
/// Least number of calls a second, on average. With fewer, a case proves too little.
const LEAST_RATE: f64 = 200.0;
/// The longest time that a call may last beyond its deadline. Callers, services and servers share the
/// processors. A wait of less than 20 ms is not counted as a stall, and a few of them in a row look
/// like lateness. A service that ignores deadlines exceeds this: its calls last until the timeout of
/// Redis, 500 ms.
const OVERRUN: Duration = Duration::from_millis(250);

/// The moments of one fault and of the recovery from it.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub begin: Moment,
    /// When the repair began.
    pub repair_began: Option<Moment>,
    /// When the repair was complete.
    pub end: Moment,
    /// When the service was seen to use the new master, if its calls alone do not show it.
    pub followed: Option<Moment>,
    /// When the next fault began, or the trial ended.
    pub calm_until: Moment,
}

/// Whether faults may lose Marks that were acknowledged just before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Losses {
    None,
    Failover,
}

pub struct Trial {
    pub load: Load,
    writers: Option<Writers>,
    counters: Option<Counters>,
    limit: Duration,
    losses: Losses,
    /// True if the service may close connections.
    closes_connections: bool,
    late_expiry: Duration,
    faults: Vec<Fault>,
    /// The spans in which a failover may lose acknowledged writes.
    lossy: Vec<Span>,
    /// The beginning of such a span that has not ended.
    lossy_from: Option<Moment>,
    failures: Vec<String>,
}

impl Trial {
    /// Puts load on a service that is ready, and lets it run for a while.
    pub fn start(server: &Dyndata, limit: Duration, losses: Losses) -> Self {
        let trial = Self::start_unready(server, limit, losses);
        trial.calm();
        trial
    }

    /// Puts load on a service that has no Redis yet.
    pub fn start_unready(server: &Dyndata, limit: Duration, losses: Losses) -> Self {
        Self::with_rate(server, limit, losses, Rate::default())
    }

    pub fn with_rate(server: &Dyndata, limit: Duration, losses: Losses, rate: Rate) -> Self {
        Self {
            load: Load::start(&server.addr, rate),
            writers: None,
            counters: None,
            limit,
            losses,
            closes_connections: false,
            late_expiry: match losses {
                Losses::None => Duration::ZERO,
                Losses::Failover => late_replicas(),
            },
            faults: Vec::new(),
            lossy: Vec::new(),
            lossy_from: None,
            failures: Vec::new(),
        }
    }

    /// Adds a load with several writers for each id, on these services.
    pub fn add_writers(&mut self, servers: [&Dyndata; 2], pressure: Pressure) {
        let addrs = servers.map(|server| server.addr.as_str());
        let pressure = Pressure {
            late_expiry: self.late_expiry,
            ..pressure
        };
        self.writers = Some(Writers::start(&addrs, &self.load.recorder, pressure));
    }

    /// Adds a load of increments on these services.
    pub fn add_counters(&mut self, servers: [&Dyndata; 2]) {
        let addrs = servers.map(|server| server.addr.as_str());
        self.counters = Some(Counters::start(&addrs, &self.load.recorder));
    }

    /// Lets the load run for a while without a fault.
    pub fn calm(&self) {
        thread::sleep(CALM);
    }

    /// Allows the service to close connections, after GOAWAY.
    pub fn expect_goaway(&mut self) {
        self.closes_connections = true;
    }

    /// Allows Redis to expire values later than promised, by at most this.
    pub fn expect_late_expiry(&mut self, by: Duration) {
        self.late_expiry = by;
    }

    /// Notes that a fault begins now.
    pub fn begin_fault(&mut self) {
        let now = self.load.recorder.now();
        if self.losses == Losses::Failover {
            let from = now.before(REPLICATION_LAG);
            self.losses_end();
            self.lossy_from = Some(from);
            if let Some(writers) = &self.writers {
                writers.losses_begin(from);
            }
        }
        if let Some(last) = self.faults.last_mut() {
            last.calm_until = now;
        }
        self.faults.push(Fault {
            begin: now,
            repair_began: None,
            end: now,
            followed: None,
            calm_until: now,
        });
    }

    /// Notes that the repair of the fault begins now.
    pub fn begin_repair(&mut self) {
        let now = self.load.recorder.now();
        if let Some(fault) = self.faults.last_mut() {
            fault.repair_began = Some(now);
        }
    }

    /// Notes that the fault is over now, and waits until the service has recovered.
    pub fn end_fault(&mut self) {
        let now = self.load.recorder.count_from_now();
        self.fault_ended_at(now);
    }

    /// Notes that the fault was over at `end`, and waits until the service has recovered.
    pub fn fault_ended_at(&mut self, end: Moment) {
        let Some(fault) = self.faults.last_mut() else {
            return;
        };
        fault.end = end;
        let start = Instant::now();
        while !self.has_recovered(end) && start.elapsed() < self.limit + PATIENCE {
            thread::sleep(Duration::from_millis(5));
        }
        self.losses_end();
        if let Some(writers) = &self.writers {
            writers.losses_end();
        }
    }

    fn losses_end(&mut self) {
        let now = self.load.recorder.now();
        self.lossy
            .extend(self.lossy_from.take().map(|from| (from, now)));
    }

    /// True after enough successful calls in a row, once no older call can still fail.
    fn has_recovered(&self, end: Moment) -> bool {
        let recorder = &self.load.recorder;
        let quiet = recorder.now().since(recorder.last_failure().max(end));
        recorder.successes() >= RECOVERED && quiet >= QUIET
    }

    /// Notes that the service uses the new master now.
    pub fn followed(&mut self) {
        let now = self.load.recorder.now();
        if let Some(fault) = self.faults.last_mut() {
            fault.followed = Some(now);
        }
    }

    /// Reports a failure unless a condition holds.
    pub fn check(&mut self, holds: bool, otherwise: impl Into<String>) {
        if !holds {
            self.failures.push(otherwise.into());
        }
    }

    /// Ends the load, and checks its history.
    pub fn judge(self) -> Report {
        self.judge_with(|_, _| Vec::new())
    }

    /// The same, with further checks of the case. They return failures.
    pub fn judge_with(
        mut self,
        checks: impl FnOnce(&[Operation], &[Fault]) -> Vec<String>,
    ) -> Report {
        self.losses_end();
        let Self {
            load,
            writers,
            counters,
            limit,
            losses,
            closes_connections,
            late_expiry,
            mut faults,
            lossy,
            lossy_from: _,
            mut failures,
        } = self;
        let end = load.recorder.now();
        if let Some(last) = faults.last_mut() {
            last.calm_until = end;
        }
        let recorder = Arc::clone(&load.recorder);
        let written = writers.map(Writers::finish);
        let counted = counters.map(|counters| counters.finish(&lossy));
        let operations = load.finish();
        let allowances = Allowances {
            lossy: match losses {
                Losses::None => Vec::new(),
                Losses::Failover => faults
                    .iter()
                    .map(|fault| {
                        let end = recovered(&operations, fault).unwrap_or(fault.calm_until);
                        (fault.begin.before(REPLICATION_LAG), end)
                    })
                    .collect(),
            },
            service_stops: closes_connections,
            stalls: recorder.stalls(),
            late_expiry,
        };
        let mut findings = checker::check(&operations, &allowances);
        let steady = operations.iter().filter(|operation| !operation.closing);
        let whole = end.since(Moment::default());
        let stalled = allowances.stalls.between(Moment::default(), end);
        let rate = steady.count() as f64 / whole.as_secs_f64();
        if rate < LEAST_RATE && stalled < whole / 2 {
            failures.push(format!(
                "only {rate:.0} calls a second: is the machine busy?"
            ));
        }
        failures.extend(checks(&operations, &faults));
        let mut slowest = None;
        for fault in &faults {
            match recovered(&operations, fault) {
                Some(moment) => {
                    let stalled = allowances.stalls.between(fault.end, moment);
                    let took = moment.since(fault.end).saturating_sub(stalled);
                    slowest = slowest.max(Some(took));
                }
                None => {
                    let waited = fault.calm_until.since(fault.end);
                    let stalled = allowances.stalls.between(fault.end, fault.calm_until);
                    if stalled < waited / 2 {
                        failures.push("never recovered".to_owned());
                    }
                }
            }
        }
        if let Some(first) = faults.first() {
            let before = operations
                .iter()
                .filter(|operation| operation.end < first.begin && operation.failed_by_itself());
            let before = endings(before);
            // Before the first fault, no call has a reason to fail.
            if !before.is_empty() {
                failures.push(format!("failed before the first fault: {before:?}"));
            }
        }
        let written = written.map(|(summary, found)| {
            findings.add(found);
            failures.extend(summary.failures());
            summary
        });
        let counted = counted.map(|(summary, found)| {
            findings.add(found);
            failures.extend(summary.failures());
            summary
        });
        let mut report = Report::new(findings, failures);
        report.written = written;
        report.notes.extend(counted.map(|summary| summary.note()));
        let excused = operations.iter().filter(|it| it.is_excused()).count();
        report.notes.push(format!(
            "the machine stalled for {} ms of {} ms ({:.0} %), {} ms at most at once; {excused} calls excused",
            stalled.as_millis(),
            whole.as_millis(),
            stalled.as_secs_f64() * 100.0 / whole.as_secs_f64(),
            allowances.stalls.longest().as_millis()
        ));
        report.limit_recovery(slowest, limit);
        report.limit_overrun(OVERRUN);
        report
    }
}

/// How much later a replica may expire values. Redis 6 replicates the remaining time to live, which
/// starts again when the replica receives it. Redis 7 replicates the moment of expiry.
pub fn late_replicas() -> Duration {
    match is_redis_6() {
        true => Duration::from_millis(250),
        false => Duration::ZERO,
    }
}

/// The first moment after the fault from which on every call succeeded, until the next fault.
fn recovered(operations: &[Operation], fault: &Fault) -> Option<Moment> {
    served(operations, fault).map(|since| fault.followed.unwrap_or(since).max(since))
}

fn served(operations: &[Operation], fault: &Fault) -> Option<Moment> {
    let mut since = None;
    let after = operations
        .iter()
        .filter(|operation| operation.start >= fault.end && operation.end < fault.calm_until);
    for operation in after {
        if operation.is_ok() {
            since = since.or(Some(operation.start));
        } else if operation.failed_by_itself() {
            since = None;
        }
    }
    since
}

/// The calls that started and ended within a fault. The first `settled` of the fault is left out, and
/// so is what failed late because the machine was busy.
pub fn during<'a>(
    operations: &'a [Operation],
    fault: &Fault,
    settled: Duration,
) -> impl Iterator<Item = &'a Operation> {
    let from = fault.begin.after(settled);
    let to = fault.repair_began.unwrap_or(fault.end);
    operations
        .iter()
        .filter(move |operation| operation.start >= from && operation.end <= to)
        .filter(|operation| !operation.is_excused())
}
