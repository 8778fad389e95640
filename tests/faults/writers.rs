//! A load with several writers for each id. [`crate::register`] checks its histories.
//!
//! Every id has three writers and three readers. Each has its own connection, and the connections
//! are spread over all services that share the store. The writers call Mark, and MarkIf with what
//! somebody saw last: a compare-and-set. Some ids are also removed, by Unmark with `if_equal`. An id
//! is finished after a number of successful calls, or after four writes with unknown outcome. Then a
//! new id takes its place.
//! Other threads check the finished ids while the load goes on, so that neither the memory nor the
//! time at the end grows with the length of the run.

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
    history::{Condition, Moment, Operation, Outcome, Recorder, Value},
    register::{self, Span, Verdict},
    runner::Pace,
    starvation,
};

/// Callers of one id. There are as many readers as writers, because only a read can show an error.
pub const WRITERS: usize = 3;
const READERS: usize = 3;
/// After this many writes with unknown outcome, an id is finished.
const MAX_UNKNOWN: usize = 4;
/// After this time an id is finished in any case, so that ids also end in an outage.
const MAX_AGE: Duration = Duration::from_secs(30);
/// How long such an id is read after its last write. A proxy may deliver writes late.
const AFTERMATH: Duration = Duration::from_millis(800);
/// One id in five has a short time to live, so that values expire between two Marks.
const SHORT_LIVED: u32 = 5;
/// The ids that are also removed have this remainder.
const REMOVED: u32 = 1;
const SHORT_TTL: Duration = Duration::from_millis(400);
const LONG_TTL: Duration = Duration::from_secs(3600);
/// The first id. The ids of [`crate::load`] are lower.
const FIRST_ID: u32 = 1_000_000;
/// Threads that check histories, and the number of histories that may wait for them. If more are
/// finished, the load waits.
const JUDGES: usize = 2;
const WAITING: usize = 256;
/// Number of violations that are printed in full.
const SHOWN: usize = 3;
/// Pause of a caller after a failed call.
const AFTER_FAILURE: Duration = Duration::from_millis(40);

/// How much load there is.
#[derive(Debug, Clone, Copy)]
pub struct Pressure {
    /// Number of ids at the same time.
    pub ids: u32,
    /// Number of successful calls after which an id is finished.
    pub calls_per_id: usize,
    /// The longest pause between two calls of one caller.
    pub pause: Duration,
    /// How much later than promised Redis itself may expire a value.
    pub late_expiry: Duration,
}

impl Pressure {
    /// Less load in the short version, in which other cases run at the same time.
    pub fn of(pace: &Pace) -> Self {
        Self {
            ids: pace.times(3, 10) as u32,
            calls_per_id: pace.times(150, 300),
            pause: Duration::from_millis(40),
            late_expiry: Duration::ZERO,
        }
    }
}

/// The result of this load.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    pub operations: usize,
    /// Number of ids on which every writer has a write that took effect or may have.
    pub ids: usize,
    /// Number of writes with unknown outcome.
    pub unknown: usize,
    /// Number of failed writes that never took effect.
    pub not_executed: usize,
    /// Number of MarkIfs and Unmarks whose condition held, and whose condition did not.
    pub applied: usize,
    pub not_applied: usize,
    /// Number of acknowledged Marks that a failover has lost.
    pub vanished: usize,
    pub violations: Vec<String>,
    /// When the first violation was found, since the start of the load.
    pub first_violation: Option<Duration>,
    /// Number of ids whose check gave up.
    pub undecided: usize,
    pub longest_check: Duration,
    /// Number of lossy spans. Without any, all ids must be strictly linearizable.
    pub failovers: usize,
}

/// A running load with several writers for each id, until it is finished or dropped.
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

/// The spans in which a failover may lose acknowledged Marks.
#[derive(Debug, Default)]
struct Spans {
    closed: Vec<Span>,
    open: Option<Moment>,
}

/// All calls on one id.
struct FinishedId {
    id: u32,
    operations: Vec<Operation>,
    writers: usize,
}

impl Writers {
    /// Starts the load on all these services. It uses the clock of `recorder`.
    pub fn start(addrs: &[&str], recorder: &Recorder, pressure: Pressure) -> Self {
        let shared = Arc::new(Shared {
            recorder: Arc::new(recorder.on_same_clock()),
            began: Instant::now(),
            stop: AtomicBool::new(false),
            next_id: AtomicU32::new(FIRST_ID),
            next_value: AtomicU64::new(u64::from(FIRST_ID)),
            spans: Mutex::default(),
            result: Mutex::default(),
        });
        let (finished, histories) = mpsc::channel(WAITING);
        let histories = Arc::new(Mutex::new(histories));
        let judges = (0..JUDGES).map(|_| {
            let (shared, histories) = (Arc::clone(&shared), Arc::clone(&histories));
            thread::spawn(move || judge_all(&shared, &histories, pressure.late_expiry))
        });
        let judges = judges.collect();
        let addrs: Vec<_> = addrs.iter().map(ToString::to_string).collect();
        let builder = thread::Builder::new().name(starvation::LOAD.to_owned());
        let load = builder.spawn({
            let shared = Arc::clone(&shared);
            move || run(&addrs, pressure, &shared, &finished)
        });
        Self {
            shared,
            load: Some(load.expect("a thread")),
            judges,
        }
    }

    /// Begins a lossy span: from `from` on, a failover may lose acknowledged Marks.
    pub fn losses_begin(&self, from: Moment) {
        self.losses_end();
        self.shared.spans().open = Some(from);
    }

    /// Ends the lossy span: from now on, only the new masters answer.
    pub fn losses_end(&self) {
        let now = self.shared.recorder.now();
        let mut spans = self.shared.spans();
        if let Some(from) = spans.open.take() {
            spans.closed.push((from, now));
        }
    }

    /// Ends the load, and waits until all its histories are checked.
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

    /// The lossy spans so far. Waits until none is open.
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
    finished: &mpsc::Sender<FinishedId>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        // Callers next to each other use different services.
        let callers: Vec<_> = addrs
            .iter()
            .cycle()
            .take(WRITERS + READERS)
            .map(|addr| Caller::new(addr, Arc::clone(&shared.recorder)))
            .collect();
        let ids = (0..pressure.ids).map(|_| async {
            while !shared.stopped() {
                let history = ActiveId::new(shared, pressure).run(&callers).await;
                // This fails only if a judge panicked, which `Writers::end` reports.
                _ = finished.send(history).await;
            }
        });
        futures_util::future::join_all(ids).await;
    });
}

/// An id that is being marked and read.
struct ActiveId<'a> {
    id: u32,
    ttl: Duration,
    pause: Duration,
    calls: usize,
    began: Instant,
    recorder: Arc<Recorder>,
    shared: &'a Shared,
    /// The value that somebody saw last. 0 before the first.
    last_seen: AtomicU64,
    answered: AtomicUsize,
    unknown: AtomicUsize,
    /// Number of writers that still mark.
    writing: AtomicUsize,
    /// Number of writers whose writes took effect or may have.
    writers: AtomicUsize,
}

impl<'a> ActiveId<'a> {
    fn new(shared: &'a Shared, pressure: Pressure) -> Self {
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (ttl, pause) = match id % SHORT_LIVED {
            // Most pauses are longer than the time to live.
            0 => (SHORT_TTL, 6 * SHORT_TTL),
            _ => (LONG_TTL, pressure.pause),
        };
        Self {
            id,
            ttl,
            pause,
            calls: pressure.calls_per_id,
            began: Instant::now(),
            recorder: Arc::new(shared.recorder.on_same_clock()),
            shared,
            last_seen: AtomicU64::new(0),
            answered: AtomicUsize::new(0),
            unknown: AtomicUsize::new(0),
            writing: AtomicUsize::new(WRITERS),
            writers: AtomicUsize::new(0),
        }
    }

    async fn run(self, callers: &[Caller]) -> FinishedId {
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
        FinishedId {
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
        // Every writer writes at least once.
        loop {
            random_pause(self.pause).await;
            let outcome = self.write_once(caller).await;
            let fate = fate(&outcome);
            if fate == Fate::Unknown {
                self.unknown.fetch_add(1, Ordering::Relaxed);
            }
            took_part |= fate != Fate::NoEffect;
            self.call_ended(&outcome).await;
            if self.is_over() {
                break;
            }
        }
        self.writers
            .fetch_add(usize::from(took_part), Ordering::Relaxed);
        self.writing.fetch_sub(1, Ordering::Relaxed);
    }

    async fn write_once(&self, caller: &Caller) -> Outcome {
        let value = self.shared.next_value.fetch_add(1, Ordering::Relaxed);
        let if_equal = match self.last_seen.load(Ordering::Relaxed) {
            0 => Condition::Absent,
            seen => Condition::Equal(seen),
        };
        let condition = match (fastrand::u32(0..10), if_equal) {
            (0..4, _) => return caller.mark(self.id, value, self.ttl, deadline()).await,
            (4, Condition::Equal(seen)) if self.id % SHORT_LIVED == REMOVED => {
                return caller.unmark_if(self.id, seen, deadline()).await;
            }
            (4..6, _) => Condition::Absent,
            (_, condition) => condition,
        };
        caller
            .mark_if(self.id, value, self.ttl, condition, deadline())
            .await
    }

    async fn read(&self, caller: &Caller) {
        let expire_time = || match fastrand::bool() {
            true => ExpireTime::Ask,
            false => ExpireTime::Omit,
        };
        let longest = self.pause.min(SHORT_TTL / 2);
        while self.writing.load(Ordering::Relaxed) > 0 {
            random_pause(longest).await;
            let outcome = caller.get(self.id, expire_time(), deadline()).await;
            self.call_ended(&outcome).await;
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
            random_pause(AFTERMATH / 8).await;
        }
    }

    /// Counts a successful call, and waits after a failed one.
    async fn call_ended(&self, outcome: &Outcome) {
        if !outcome.is_ok() {
            return tokio::time::sleep(AFTER_FAILURE).await;
        }
        self.answered.fetch_add(1, Ordering::Relaxed);
        let seen = match outcome {
            Outcome::Found(entries) => entries.first(),
            Outcome::NotApplied(seen) => Some(seen),
            _ => None,
        };
        if let Some(Value::Marked(value)) = seen.map(|seen| &seen.value) {
            self.last_seen.store(*value, Ordering::Relaxed);
        }
    }
}

async fn random_pause(longest: Duration) {
    tokio::time::sleep(longest.mul_f64(fastrand::f64())).await;
}

/// A random deadline. Some deadlines are shorter than the timeout of a Redis command.
fn deadline() -> Duration {
    Duration::from_millis(fastrand::u64(400..1_200))
}

fn judge_all(
    shared: &Shared,
    histories: &Mutex<mpsc::Receiver<FinishedId>>,
    late_expiry: Duration,
) {
    loop {
        let next = histories
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .blocking_recv();
        let Some(finished) = next else { return };
        let lossy = shared.closed_spans();
        let began = Instant::now();
        let verdict = register::check(&finished.operations, &lossy, late_expiry);
        let took = began.elapsed();
        let allowances = Allowances {
            lossy,
            late_expiry,
            stalls: shared.recorder.stalls(),
            ..Allowances::default()
        };
        let mut findings = checker::check(&finished.operations, &allowances);
        // The other load measures overruns.
        findings.longest_overrun = Duration::ZERO;
        let mut result = shared.result();
        let (summary, all) = &mut *result;
        summary.vanished += findings.lost_in_failover;
        all.add(findings);
        summary.add(&finished, verdict, took, shared.began.elapsed());
    }
}

impl Summary {
    pub const TITLE: &str = concat!(
        "\nSeveral writers for each id: is the history of every id linearizable?\n",
        "| load                                         |  calls |  ids, >= 3 | conditions: | did | unknown  |      not |    lost in |     no |  longest |\n",
        "|                                              |        |    writers |        held | not | outcomes | executed |   failover |  order | check ms |\n",
    );

    pub fn row(&self, name: &str) -> String {
        let Self {
            operations,
            ids,
            unknown,
            not_executed,
            applied,
            not_applied,
            vanished,
            violations,
            longest_check,
            ..
        } = self;
        format!(
            "| {name:<44} | {operations:>6} | {ids:>10} | {applied:>11} | {not_applied:>3} | {unknown:>8} | {not_executed:>8} | {vanished:>10} | {:>6} | {:>8} |\n",
            violations.len(),
            longest_check.as_millis()
        )
    }

    /// The sum of all loads without a failover.
    pub fn total<'a>(summaries: impl Iterator<Item = &'a Self>) -> Self {
        summaries.filter(|summary| summary.failovers == 0).fold(
            Self::default(),
            |mut total, summary| {
                total.operations += summary.operations;
                total.ids += summary.ids;
                total.unknown += summary.unknown;
                total.not_executed += summary.not_executed;
                total.applied += summary.applied;
                total.not_applied += summary.not_applied;
                total.violations.extend(summary.violations.iter().cloned());
                total.longest_check = total.longest_check.max(summary.longest_check);
                total
            },
        )
    }

    /// The failures, as sentences.
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
        if self.applied == 0 || self.not_applied == 0 {
            failures.push(format!(
                "{} conditions held, and {} did not",
                self.applied, self.not_applied
            ));
        }
        failures
    }

    fn add(&mut self, finished: &FinishedId, verdict: Verdict, took: Duration, at: Duration) {
        self.operations += finished.operations.len();
        if finished.writers == WRITERS {
            self.ids += 1;
        }
        for operation in finished.operations.iter().filter(|it| it.is_write()) {
            match (&operation.outcome, fate(&operation.outcome)) {
                (Outcome::Applied { .. } | Outcome::Unmarked, _) => self.applied += 1,
                (Outcome::NotApplied(_) | Outcome::NotUnmarked, _) => self.not_applied += 1,
                (_, Fate::Acknowledged) => {}
                (_, Fate::Unknown) => self.unknown += 1,
                (_, Fate::NoEffect) => self.not_executed += 1,
            }
        }
        match verdict {
            Verdict::Linearizable => {}
            Verdict::Violated(what) => {
                self.first_violation = self.first_violation.or(Some(at));
                self.violations.push(format!("id {}: {what}", finished.id));
            }
            Verdict::Undecided => self.undecided += 1,
        }
        self.longest_check = self.longest_check.max(took);
    }
}
