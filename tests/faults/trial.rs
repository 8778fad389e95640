//! One case as it runs: load, faults that come and go, and what is asked of the history at the end.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    checker::{self, Allowances},
    history::{Moment, Operation},
    load::{Load, Rate, endings},
    report::Report,
    starvation::Watch,
    support::{Dyndata, redis_server::is_redis_6},
    writers::{Pressure, Writers},
};

/// This many calls in a row that succeed end a recovery.
const RECOVERED: usize = 50;
/// And so does that no call fails for longer than any may take.
const QUIET: Duration = Duration::from_millis(1_200);
/// How long to wait for that beyond the limit, to be able to say how long it took.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long nothing may go wrong before the first fault.
const CALM: Duration = Duration::from_millis(700);
/// How long before a failover the Marks may have been acknowledged that it loses.
const REPLICATION_LAG: Duration = Duration::from_millis(500);
/// A machine that stands still for longer than this explains what it does not excuse.
const NOTABLE_STALL: Duration = Duration::from_millis(500);
/// Calls a second, on the average; with fewer of them a case proves less than it says.
const LEAST_RATE: f64 = 200.0;
/// No call may outlive its deadline by more.
const OVERRUN: Duration = Duration::from_millis(50);

/// A fault with its time to recover from it.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub begin: Moment,
    /// When it began to be put right.
    pub lifted: Option<Moment>,
    /// When it was right again.
    pub end: Moment,
    /// When the service was seen to have followed, if its calls alone do not show it.
    pub followed: Option<Moment>,
    /// When the next one began, or everything ended.
    pub calm_until: Moment,
}

/// Whether a failover may lose what was acknowledged just before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Losses {
    None,
    Failover,
}

pub struct Trial {
    pub load: Load,
    writers: Option<Writers>,
    _watch: Watch,
    limit: Duration,
    losses: Losses,
    /// Whether the service closes connections, as it may.
    goes_away: bool,
    late_expiry: Duration,
    faults: Vec<Fault>,
    failures: Vec<String>,
}

impl Trial {
    /// Puts load on a service that is ready, and sees that all is well.
    pub fn start(server: &Dyndata, limit: Duration, losses: Losses) -> Self {
        let trial = Self::start_unready(server, limit, losses);
        trial.calm();
        trial
    }

    /// Puts load on a service that has nothing to serve from yet.
    pub fn start_unready(server: &Dyndata, limit: Duration, losses: Losses) -> Self {
        Self::with_rate(server, limit, losses, Rate::default())
    }

    pub fn with_rate(server: &Dyndata, limit: Duration, losses: Losses, rate: Rate) -> Self {
        let load = Load::start(&server.addr, rate);
        Self {
            _watch: Watch::start(server.pid(), Arc::clone(&load.recorder)),
            load,
            writers: None,
            limit,
            losses,
            goes_away: false,
            late_expiry: match losses {
                Losses::None => Duration::ZERO,
                Losses::Failover => late_replicas(),
            },
            faults: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Puts the load of several writers for each id on these services too.
    pub fn add_writers(&mut self, servers: [&Dyndata; 2], pressure: Pressure) {
        let addrs = servers.map(|server| server.addr.as_str());
        let pressure = Pressure {
            late_expiry: self.late_expiry,
            ..pressure
        };
        self.writers = Some(Writers::start(&addrs, &self.load.recorder, pressure));
    }

    /// A while in which all is well.
    pub fn calm(&self) {
        thread::sleep(CALM);
    }

    /// The service will close connections, after GOAWAY.
    pub fn expect_goaway(&mut self) {
        self.goes_away = true;
    }

    /// Redis itself will let values live longer than they were marked for, by at most this.
    pub fn expect_late_expiry(&mut self, by: Duration) {
        self.late_expiry = by;
    }

    /// A fault begins.
    pub fn fault(&mut self) {
        let now = self.load.recorder.now();
        if let Some(writers) = &self.writers
            && self.losses == Losses::Failover
        {
            writers.losses_begin(now.before(REPLICATION_LAG));
        }
        if let Some(last) = self.faults.last_mut() {
            last.calm_until = now;
        }
        self.faults.push(Fault {
            begin: now,
            lifted: None,
            end: now,
            followed: None,
            calm_until: now,
        });
    }

    /// From now on it is being put right.
    pub fn lift(&mut self) {
        let now = self.load.recorder.now();
        if let Some(fault) = self.faults.last_mut() {
            fault.lifted = Some(now);
        }
    }

    /// It is over: waits until calls succeed again.
    pub fn over(&mut self) {
        let now = self.load.recorder.watch();
        self.over_since(now);
    }

    /// It was over at `end` already.
    pub fn over_since(&mut self, end: Moment) {
        let Some(fault) = self.faults.last_mut() else {
            return;
        };
        fault.end = end;
        let start = Instant::now();
        while !self.has_recovered(end) && start.elapsed() < self.limit + PATIENCE {
            thread::sleep(Duration::from_millis(5));
        }
        if let Some(writers) = &self.writers {
            writers.losses_end();
        }
    }

    /// Enough calls in a row, and none that still waits may be about to fail.
    fn has_recovered(&self, end: Moment) -> bool {
        let recorder = &self.load.recorder;
        let quiet = recorder.now().since(recorder.last_failure().max(end));
        recorder.successes() >= RECOVERED && quiet >= QUIET
    }

    /// The service has noticed what it has to follow.
    pub fn followed(&mut self) {
        let now = self.load.recorder.now();
        if let Some(fault) = self.faults.last_mut() {
            fault.followed = Some(now);
        }
    }

    /// Something else that has to hold.
    pub fn check(&mut self, holds: bool, otherwise: impl Into<String>) {
        if !holds {
            self.failures.push(otherwise.into());
        }
    }

    /// Ends the load, and judges.
    pub fn judge(self) -> Report {
        self.judge_with(|_, _| Vec::new())
    }

    /// The same, with demands of the case's own on what happened under the faults.
    pub fn judge_with(self, demands: impl FnOnce(&[Operation], &[Fault]) -> Vec<String>) -> Report {
        let Self {
            load,
            writers,
            _watch,
            limit,
            losses,
            goes_away,
            late_expiry,
            mut faults,
            mut failures,
        } = self;
        let end = load.recorder.now();
        if let Some(last) = faults.last_mut() {
            last.calm_until = end;
        }
        let recorder = Arc::clone(&load.recorder);
        let written = writers.map(Writers::finish);
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
            service_stops: goes_away,
            stalls: recorder.stalls(),
            late_expiry,
        };
        let mut findings = checker::check(&operations, &allowances);
        let steady = operations.iter().filter(|operation| !operation.closing);
        let rate = steady.count() as f64 / end.since(Moment::default()).as_secs_f64();
        if rate < LEAST_RATE {
            failures.push(format!(
                "only {rate:.0} calls a second: is the machine busy?"
            ));
        }
        failures.extend(demands(&operations, &faults));
        let mut slowest = None;
        for fault in &faults {
            match recovered(&operations, fault) {
                Some(moment) => slowest = slowest.max(Some(moment.since(fault.end))),
                None => failures.push("never recovered".to_owned()),
            }
        }
        if let Some(first) = faults.first() {
            let before = operations
                .iter()
                .filter(|operation| operation.end < first.begin && !operation.is_ok());
            let before = endings(before);
            // Before the first fault there is nothing to recover from, unless it came first.
            if !before.is_empty() {
                failures.push(format!("failed before the first fault: {before:?}"));
            }
        }
        let written = written.map(|(summary, found)| {
            findings.add(found);
            failures.extend(summary.failures());
            summary
        });
        let mut report = Report::new(findings, failures);
        report.written = written;
        let longest = allowances
            .stalls
            .iter()
            .map(|(from, to)| to.since(*from))
            .max();
        if let Some(longest) = longest.filter(|longest| *longest > NOTABLE_STALL) {
            report.notes.push(format!(
                "the machine stood still for {} ms",
                longest.as_millis()
            ));
        }
        report.limit_recovery(slowest, limit);
        report.limit_overrun(OVERRUN);
        report
    }
}

/// How much longer a replica may let values live. Redis 6 replicates what is left of a time to
/// live, which starts anew when the replica hears of it; Redis 7 replicates the moment of expiry.
pub fn late_replicas() -> Duration {
    match is_redis_6() {
        true => Duration::from_millis(250),
        false => Duration::ZERO,
    }
}

/// The first moment since which every call succeeded, until the next fault.
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
        } else {
            since = None;
        }
    }
    since
}

/// The calls that ran wholly within the fault, without its first moments.
pub fn during<'a>(
    operations: &'a [Operation],
    fault: &Fault,
    settled: Duration,
) -> impl Iterator<Item = &'a Operation> {
    let from = fault.begin.after(settled);
    let to = fault.lifted.unwrap_or(fault.end);
    operations
        .iter()
        .filter(move |operation| operation.start >= from && operation.end <= to)
}
