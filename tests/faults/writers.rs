//! Several writers for each id: the load whose histories [`crate::register`] judges.
//!
//! Every id has three writers and three readers, each on a connection of its own, through all
//! the services that share the store. An id is retired after so many answers, or after four
//! Marks of unknown outcome, and a fresh one takes its place. What is retired is judged on
//! threads beside the load, so that neither memory nor the time at the end grows with the run.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use crate::{
    checker::{self, Allowances, Fate, Findings, fate},
    client::{Caller, ExpireTime},
    history::{Moment, Operation, Outcome, Recorder},
    register::{self, Span, Verdict},
    runner::Pace,
};

/// Callers of one id. The readers are as many as the writers, because only a read is evidence.
pub const WRITERS: usize = 3;
const READERS: usize = 3;
/// After this many Marks of unknown outcome an id is retired.
const MAX_UNKNOWN: usize = 4;
/// After this long it is retired whatever happened, so that an outage ends too.
const MAX_AGE: Duration = Duration::from_secs(30);
/// How long an id with such Marks is read after the last of them: a line may deliver them late.
const AFTERMATH: Duration = Duration::from_millis(800);
/// One id in so many has a short time to live, so that values expire between two Marks.
const SHORT_LIVED: u32 = 5;
const SHORT_TTL: Duration = Duration::from_millis(400);
const LONG_TTL: Duration = Duration::from_secs(3600);
/// The first id. Below it are those of the other load.
const FIRST_ID: u32 = 1_000_000;
/// Threads that judge, and histories that wait for them. The load waits when there are more.
const JUDGES: usize = 2;
const WAITING: usize = 256;
/// Violations that are printed in full.
const SHOWN: usize = 3;
/// Pause of a caller whose call has failed.
const AFTER_FAILURE: Duration = Duration::from_millis(40);

/// How much.
#[derive(Debug, Clone, Copy)]
pub struct Pressure {
    /// Ids at the same time.
    pub ids: u32,
    /// Answered calls after which an id is retired.
    pub calls_per_id: usize,
    /// The longest pause between two calls of one caller.
    pub pause: Duration,
    /// How much longer Redis itself may let a value live.
    pub late_expiry: Duration,
}

impl Pressure {
    /// What the short version can afford, beside other cases; and the long one.
    pub fn of(pace: &Pace) -> Self {
        Self {
            ids: pace.times(3, 10) as u32,
            calls_per_id: pace.times(150, 300),
            pause: Duration::from_millis(40),
            late_expiry: Duration::ZERO,
        }
    }
}

/// What was done, and what came of it.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    pub operations: usize,
    /// Ids on which all writers had Marks that took effect or may have.
    pub ids: usize,
    /// Marks of unknown outcome.
    pub unknown: usize,
    /// Marks that ended with an error and certainly never took effect.
    pub not_executed: usize,
    /// Acknowledged Marks that a failover is seen to have lost.
    pub vanished: usize,
    pub violations: Vec<String>,
    /// When the first violation had been found, from the beginning of the load.
    pub first_violation: Option<Duration>,
    pub undecided: usize,
    pub longest_check: Duration,
    /// Spans in which something may have been lost. Without any, all ids are strictly linearizable.
    pub failovers: usize,
}

/// A load of several writers for each id, until it is finished or dropped.
pub struct Writers {
    shared: Arc<Shared>,
    load: Option<thread::JoinHandle<()>>,
    judges: Vec<thread::JoinHandle<()>>,
}

struct Shared {
    recorder: Arc<Recorder>,
    began: Instant,
    stop: AtomicBool,
    next_id: AtomicU32,
    next_value: AtomicU64,
    spans: Mutex<Spans>,
    result: Mutex<(Summary, Findings)>,
}

/// The spans in which a failover may lose what was acknowledged.
#[derive(Debug, Default)]
struct Spans {
    closed: Vec<Span>,
    open: Option<Moment>,
}

/// Everything on one id.
struct Retired {
    id: u32,
    operations: Vec<Operation>,
    writers: usize,
}

impl Writers {
    /// Starts the load on all these services. Its clock is `recorder`'s.
    pub fn start(addrs: &[&str], recorder: &Recorder, pressure: Pressure) -> Self {
        let shared = Arc::new(Shared {
            recorder: Arc::new(recorder.beside()),
            began: Instant::now(),
            stop: AtomicBool::new(false),
            next_id: AtomicU32::new(FIRST_ID),
            next_value: AtomicU64::new(u64::from(FIRST_ID)),
            spans: Mutex::default(),
            result: Mutex::default(),
        });
        let (retired, histories) = mpsc::channel(WAITING);
        let histories = Arc::new(Mutex::new(histories));
        let judges = (0..JUDGES).map(|_| {
            let (shared, histories) = (Arc::clone(&shared), Arc::clone(&histories));
            thread::spawn(move || judge_all(&shared, &histories, pressure.late_expiry))
        });
        let judges = judges.collect();
        let addrs: Vec<_> = addrs.iter().map(ToString::to_string).collect();
        let load = thread::spawn({
            let shared = Arc::clone(&shared);
            move || run(&addrs, pressure, &shared, &retired)
        });
        Self {
            shared,
            load: Some(load),
            judges,
        }
    }

    /// From `from` on, a failover may lose what was acknowledged.
    pub fn losses_begin(&self, from: Moment) {
        self.losses_end();
        self.shared.spans().open = Some(from);
    }

    /// No more: all answers are those of the new masters.
    pub fn losses_end(&self) {
        let now = self.shared.recorder.now();
        let mut spans = self.shared.spans();
        if let Some(from) = spans.open.take() {
            spans.closed.push((from, now));
        }
    }

    /// Ends the load, and waits for the judges.
    pub fn finish(mut self) -> (Summary, Findings) {
        self.end();
        let (mut summary, findings) = std::mem::take(&mut *self.shared.result());
        summary.failovers = self.shared.spans().closed.len();
        (summary, findings)
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.losses_end();
        for thread in self.load.take().into_iter().chain(self.judges.drain(..)) {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the writers panicked");
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn spans(&self) -> std::sync::MutexGuard<'_, Spans> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn result(&self) -> std::sync::MutexGuard<'_, (Summary, Findings)> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The spans so far, once none is open.
    fn closed_spans(&self) -> Vec<Span> {
        loop {
            let spans = self.spans();
            if spans.open.is_none() {
                return spans.closed.clone();
            }
            drop(spans);
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn run(
    addrs: &[String],
    pressure: Pressure,
    shared: &Arc<Shared>,
    retired: &mpsc::Sender<Retired>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        // Neighbours have different services.
        let callers: Vec<_> = addrs
            .iter()
            .cycle()
            .take(WRITERS + READERS)
            .map(|addr| Caller::new(addr, Arc::clone(&shared.recorder)))
            .collect();
        let ids = (0..pressure.ids).map(|_| async {
            while !shared.stopped() {
                let history = Life::new(shared, pressure).run(&callers).await;
                // Fails only if a judge panicked, and then the end says so.
                _ = retired.send(history).await;
            }
        });
        futures_util::future::join_all(ids).await;
    });
}

/// One id from its first call to its last.
struct Life<'a> {
    id: u32,
    ttl: Duration,
    pause: Duration,
    calls: usize,
    began: Instant,
    recorder: Arc<Recorder>,
    shared: &'a Shared,
    answered: AtomicUsize,
    unknown: AtomicUsize,
    /// Writers that still mark.
    writing: AtomicUsize,
    /// Writers whose Marks took effect or may have.
    writers: AtomicUsize,
}

impl<'a> Life<'a> {
    fn new(shared: &'a Shared, pressure: Pressure) -> Self {
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (ttl, pause) = match id % SHORT_LIVED {
            // Every other pause is longer than the time to live.
            0 => (SHORT_TTL, 6 * SHORT_TTL),
            _ => (LONG_TTL, pressure.pause),
        };
        Self {
            id,
            ttl,
            pause,
            calls: pressure.calls_per_id,
            began: Instant::now(),
            recorder: Arc::new(shared.recorder.beside()),
            shared,
            answered: AtomicUsize::new(0),
            unknown: AtomicUsize::new(0),
            writing: AtomicUsize::new(WRITERS),
            writers: AtomicUsize::new(0),
        }
    }

    async fn run(self, callers: &[Caller]) -> Retired {
        let callers: Vec<_> = callers
            .iter()
            .map(|caller| caller.recording(&self.recorder))
            .collect();
        let (writers, readers) = callers.split_at(WRITERS);
        futures_util::future::join(
            futures_util::future::join_all(writers.iter().map(|caller| self.write(caller))),
            futures_util::future::join_all(readers.iter().map(|caller| self.read(caller))),
        )
        .await;
        Retired {
            id: self.id,
            operations: self.recorder.operations(),
            writers: self.writers.into_inner(),
        }
    }

    fn is_over(&self) -> bool {
        self.shared.stopped()
            || self.answered.load(Ordering::Relaxed) >= self.calls
            || self.unknown.load(Ordering::Relaxed) >= MAX_UNKNOWN
            || self.began.elapsed() > MAX_AGE
    }

    async fn write(&self, caller: &Caller) {
        let mut took_part = false;
        // Each marks at least once, so that no id has fewer writers.
        loop {
            pause(self.pause).await;
            let value = self.shared.next_value.fetch_add(1, Ordering::Relaxed);
            let outcome = caller.mark(self.id, value, self.ttl, deadline()).await;
            let fate = fate(&outcome);
            if fate == Fate::Open {
                self.unknown.fetch_add(1, Ordering::Relaxed);
            }
            took_part |= fate != Fate::NoEffect;
            self.ended(matches!(outcome, Outcome::Marked(_))).await;
            if self.is_over() {
                break;
            }
        }
        self.writers
            .fetch_add(usize::from(took_part), Ordering::Relaxed);
        self.writing.fetch_sub(1, Ordering::Relaxed);
    }

    async fn read(&self, caller: &Caller) {
        let expire_time = || match fastrand::bool() {
            true => ExpireTime::Ask,
            false => ExpireTime::Omit,
        };
        let longest = self.pause.min(SHORT_TTL / 2);
        while self.writing.load(Ordering::Relaxed) > 0 {
            pause(longest).await;
            let outcome = caller.get(self.id, expire_time(), deadline()).await;
            self.ended(matches!(outcome, Outcome::Found(_))).await;
        }
        let last = Instant::now();
        let aftermath = match self.unknown.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            _ => AFTERMATH,
        };
        loop {
            caller.get(self.id, expire_time(), deadline()).await;
            if last.elapsed() >= aftermath {
                break;
            }
            pause(AFTERMATH / 8).await;
        }
    }

    /// Counts a call; a caller does not hammer what fails.
    async fn ended(&self, is_ok: bool) {
        if is_ok {
            self.answered.fetch_add(1, Ordering::Relaxed);
        } else {
            tokio::time::sleep(AFTER_FAILURE).await;
        }
    }
}

async fn pause(longest: Duration) {
    tokio::time::sleep(longest.mul_f64(fastrand::f64())).await;
}

/// Most calls may take as long as a command may; some give up before.
fn deadline() -> Duration {
    Duration::from_millis(fastrand::u64(400..1_200))
}

fn judge_all(shared: &Shared, histories: &Mutex<mpsc::Receiver<Retired>>, late_expiry: Duration) {
    loop {
        let next = histories
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .blocking_recv();
        let Some(retired) = next else { return };
        let lossy = shared.closed_spans();
        let began = Instant::now();
        let verdict = register::check(&retired.operations, &lossy, late_expiry);
        let took = began.elapsed();
        let allowances = Allowances {
            lossy,
            late_expiry,
            ..Allowances::default()
        };
        let mut findings = checker::check(&retired.operations, &allowances);
        // The other load measures that, and knows when the machine stood still.
        findings.longest_overrun = Duration::ZERO;
        let mut result = shared.result();
        let (summary, all) = &mut *result;
        summary.vanished += findings.lost_in_failover;
        all.add(findings);
        summary.add(&retired, verdict, took, shared.began.elapsed());
    }
}

impl Summary {
    pub const TITLE: &str = concat!(
        "\nSeveral writers for each id: is the history of every id linearizable?\n",
        "| load                                         |  calls |  ids, >= 3 |  unknown |      not |    lost in |     no |  longest |\n",
        "|                                              |        |    writers | outcomes | executed |   failover |  order | check ms |\n",
    );

    pub fn row(&self, name: &str) -> String {
        let Self {
            operations,
            ids,
            unknown,
            not_executed,
            vanished,
            violations,
            longest_check,
            ..
        } = self;
        format!(
            "| {name:<44} | {operations:>6} | {ids:>10} | {unknown:>8} | {not_executed:>8} | {vanished:>10} | {:>6} | {:>8} |\n",
            violations.len(),
            longest_check.as_millis()
        )
    }

    /// One line for all loads without a failover.
    pub fn total<'a>(summaries: impl Iterator<Item = &'a Self>) -> Self {
        summaries.filter(|summary| summary.failovers == 0).fold(
            Self::default(),
            |mut total, summary| {
                total.operations += summary.operations;
                total.ids += summary.ids;
                total.unknown += summary.unknown;
                total.not_executed += summary.not_executed;
                total.violations.extend(summary.violations.iter().cloned());
                total.longest_check = total.longest_check.max(summary.longest_check);
                total
            },
        )
    }

    /// What is wrong, as sentences.
    pub fn failures(&self) -> Vec<String> {
        let mut failures: Vec<_> = self.violations.iter().take(SHOWN).cloned().collect();
        let found = self.violations.len();
        if let Some(first) = self.first_violation {
            failures.push(format!(
                "{found} ids are not linearizable; the first was found after {:.1} s",
                first.as_secs_f64()
            ));
        }
        if self.undecided > 0 {
            failures.push(format!(
                "{} ids have too many possible orders to try them all",
                self.undecided
            ));
        }
        if self.ids == 0 {
            failures.push("no id had several writers".to_owned());
        }
        failures
    }

    fn add(&mut self, retired: &Retired, verdict: Verdict, took: Duration, at: Duration) {
        self.operations += retired.operations.len();
        if retired.writers == WRITERS {
            self.ids += 1;
        }
        for operation in retired.operations.iter().filter(|it| it.is_mark()) {
            match fate(&operation.outcome) {
                Fate::Acknowledged { .. } => {}
                Fate::Open => self.unknown += 1,
                Fate::NoEffect => self.not_executed += 1,
            }
        }
        match verdict {
            Verdict::Linearizable => {}
            Verdict::Violated(what) => {
                self.first_violation = self.first_violation.or(Some(at));
                self.violations.push(format!("id {}: {what}", retired.id));
            }
            Verdict::Undecided => self.undecided += 1,
        }
        self.longest_check = self.longest_check.max(took);
    }
}
