//! A load of increments, with several callers for each counter, and the check of its history.
//!
//! An acknowledged Increment counts exactly once. One with the outcome `unknown` counts at most once,
//! at any later time. One with `not_executed` never counts. Every Increment adds 1, so the answers
//! show whether this is true:
//!
//! - No two acknowledged Increments of a counter have the same value.
//! - A value is at least the number of Increments that were acknowledged before the call.
//! - A value is at most the number of Increments that began before its end, without those that were
//!   not executed.
//! - Values never fall, and an Increment answers more than every call that ended before it.
//!
//! At the end, every counter is read once more. Increments never race with an expiry, because the
//! time to live is an hour.
//!
//! A failover may lose acknowledged Increments, and two masters may answer during a failover. So the
//! rules hold only among the calls between two failovers, except that a value never exceeds the number
//! of Increments that may count. A failover cannot make one count twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{
    checker::{self, Allowances, Fate, Findings, fate},
    client::Caller,
    history::{Call, Moment, Operation, Outcome, Recorder},
    register::Span,
    starvation,
};

/// Number of counters, and of callers for each of them. One more caller reads it.
const COUNTERS: u32 = 3;
const CALLERS: usize = 4;
/// The first id. No other load uses ids from here to [`crate::writers`]'s first.
pub const FIRST_ID: u32 = 900_000;
const TTL: Duration = Duration::from_secs(3600);
/// The longest pause between two calls of one caller.
const PAUSE: Duration = Duration::from_millis(60);
/// Pause of a caller after a failed call.
const AFTER_FAILURE: Duration = Duration::from_millis(40);
/// A proxy may deliver Increments late. The last read waits for them.
const AFTERMATH: Duration = Duration::from_millis(800);
/// Attempts to read a counter at the end.
const LAST_READS: usize = 20;

/// A running load of increments, until it is finished or dropped.
pub struct Counters {
    recorder: Arc<Recorder>,
    stop: Arc<AtomicBool>,
    load: Option<thread::JoinHandle<()>>,
}

/// The numbers of Increments by how they ended, and what is wrong with them.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    pub acknowledged: usize,
    pub unknown: usize,
    pub not_executed: usize,
    /// The sum of all counters at the end.
    pub counted: i64,
    /// Each is a sentence.
    pub violations: Vec<String>,
}

impl Counters {
    /// Starts the load on all these services. It uses the clock of `recorder`.
    pub fn start(addrs: &[&str], recorder: &Recorder) -> Self {
        let recorder = Arc::new(recorder.on_same_clock());
        let stop = Arc::<AtomicBool>::default();
        let builder = thread::Builder::new().name(starvation::LOAD.to_owned());
        let load = builder.spawn({
            let addrs: Vec<_> = addrs.iter().map(ToString::to_string).collect();
            let (recorder, stop) = (Arc::clone(&recorder), Arc::clone(&stop));
            move || run(&addrs, &recorder, &stop)
        });
        Self {
            recorder,
            stop,
            load: Some(load.expect("a thread")),
        }
    }

    /// Ends the load, reads every counter once more, and checks the history. In the lossy spans, a
    /// failover may lose acknowledged Increments.
    pub fn finish(mut self, lossy: &[Span]) -> (Summary, Findings) {
        self.end();
        let operations = self.recorder.operations();
        let mut findings = checker::check(&operations, &Allowances::default());
        // The other load measures overruns.
        findings.longest_overrun = Duration::ZERO;
        (check(&operations, lossy), findings)
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(load) = self.load.take() {
            let ended = load.join();
            assert!(
                ended.is_ok() || thread::panicking(),
                "the counters panicked"
            );
        }
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        self.end();
    }
}

impl Summary {
    /// The numbers, as a sentence.
    pub fn note(&self) -> String {
        let Self {
            acknowledged,
            unknown,
            not_executed,
            counted,
            violations: _,
        } = self;
        format!(
            "increments: {acknowledged} acknowledged, {unknown} unknown, {not_executed} not executed; {counted} counted"
        )
    }

    /// The failures, as sentences.
    pub fn failures(&self) -> Vec<String> {
        const SHOWN: usize = 5;
        let mut failures: Vec<_> = self.violations.iter().take(SHOWN).cloned().collect();
        if self.violations.len() > SHOWN {
            failures.push(format!(
                "{} answers of counters are wrong",
                self.violations.len()
            ));
        }
        if self.acknowledged == 0 {
            failures.push("no increment was acknowledged".to_owned());
        }
        failures
    }
}

fn run(addrs: &[String], recorder: &Arc<Recorder>, stop: &AtomicBool) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        // Callers next to each other use different services.
        let callers: Vec<_> = addrs
            .iter()
            .cycle()
            .take(CALLERS + 1)
            .map(|addr| Caller::new(addr, Arc::clone(recorder)))
            .collect();
        let counters = FIRST_ID..FIRST_ID + COUNTERS;
        let load = counters.clone().flat_map(|id| {
            callers
                .iter()
                .enumerate()
                .map(move |(number, caller)| async move {
                    while !stop.load(Ordering::Relaxed) {
                        tokio::time::sleep(PAUSE.mul_f64(fastrand::f64())).await;
                        let outcome = match number {
                            0 => caller.counter(id, deadline()).await,
                            _ => caller.increment(id, TTL, deadline()).await,
                        };
                        if !outcome.is_ok() {
                            tokio::time::sleep(AFTER_FAILURE).await;
                        }
                    }
                })
        });
        futures_util::future::join_all(load).await;
        tokio::time::sleep(AFTERMATH).await;
        for id in counters {
            for _ in 0..LAST_READS {
                if callers[0].counter(id, deadline()).await.is_ok() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
}

/// A random deadline. Some deadlines are shorter than the timeout of a Redis command.
fn deadline() -> Duration {
    Duration::from_millis(fastrand::u64(400..1_200))
}

/// Checks the history of all counters. It has to end with a read of each.
pub fn check(operations: &[Operation], lossy: &[Span]) -> Summary {
    let mut summary = Summary::default();
    let mut counters: BTreeMap<u32, Counter> = BTreeMap::new();
    for operation in operations {
        let &Operation { start, end, .. } = operation;
        match (&operation.call, &operation.outcome) {
            (Call::Increment { id }, outcome) => {
                let counter = counters.entry(*id).or_default();
                counter.last_increment = counter.last_increment.max(end);
                match (outcome, fate(outcome)) {
                    (Outcome::Counted(value), _) => {
                        summary.acknowledged += 1;
                        counter.possible.push(start);
                        counter.answers.push(Answer::new(operation, *value, lossy));
                    }
                    (_, Fate::NoEffect) => summary.not_executed += 1,
                    (_, Fate::Unknown | Fate::Acknowledged) => {
                        summary.unknown += 1;
                        counter.possible.push(start);
                    }
                }
            }
            (Call::ReadCounter { id }, Outcome::Counted(value)) => {
                let counter = counters.entry(*id).or_default();
                counter.answers.push(Answer::new(operation, *value, lossy));
            }
            _ => {}
        }
    }
    for (id, mut counter) in counters {
        match counter.at_the_end() {
            Some(value) => summary.counted += value,
            None => summary
                .violations
                .push(format!("counter {id} was not read at the end")),
        }
        for what in counter.violations(lossy.len()) {
            summary.violations.push(format!("counter {id}: {what}"));
        }
    }
    summary
}

/// All calls on one counter.
#[derive(Debug, Default)]
struct Counter {
    /// The starts of all Increments that count or may count.
    possible: Vec<Moment>,
    answers: Vec<Answer>,
    /// The end of the last Increment, however it ended.
    last_increment: Moment,
}

/// The value in a reply.
#[derive(Debug, Clone, Copy)]
struct Answer {
    start: Moment,
    end: Moment,
    value: i64,
    /// 1 for an Increment, 0 for a read.
    adds: i64,
    /// Number of failovers before. `None` during a failover.
    failovers: Option<usize>,
}

impl Answer {
    fn new(operation: &Operation, value: i64, lossy: &[Span]) -> Self {
        let &Operation { start, end, .. } = operation;
        let during = lossy.iter().any(|(from, to)| end >= *from && start <= *to);
        let before = lossy.iter().filter(|(_, to)| *to < start).count();
        Self {
            start,
            end,
            value,
            adds: i64::from(operation.is_write()),
            failovers: (!during).then_some(before),
        }
    }

    fn complaint(&self, what: &str) -> String {
        format!("{} at {:.3} s, {what}", self.value, self.end.0 as f64 / 1e6)
    }
}

impl Counter {
    /// The value of the last read, if it began after all Increments had ended.
    fn at_the_end(&self) -> Option<i64> {
        let reads = self.answers.iter().filter(|answer| answer.adds == 0);
        let last = reads.max_by_key(|answer| answer.start)?;
        (last.start > self.last_increment).then_some(last.value)
    }

    fn violations(&mut self, failovers: usize) -> Vec<String> {
        let Self {
            possible, answers, ..
        } = self;
        possible.sort_unstable();
        answers.sort_by_key(|answer| answer.end);
        let mut violations = Vec::new();
        for answer in &*answers {
            let most = number(possible.partition_point(|started| *started < answer.end));
            if answer.value > most {
                violations.push(answer.complaint(&format!("but at most {most} increments count")));
            }
        }
        for failovers in 0..=failovers {
            let between = answers.iter().filter(|it| it.failovers == Some(failovers));
            violations.extend(disorder(&between.copied().collect::<Vec<_>>()));
        }
        violations
    }
}

/// What is wrong with answers between two failovers. They are sorted by their ends.
fn disorder(answers: &[Answer]) -> Vec<String> {
    // The largest value among the first answers, and the number of Increments.
    let mut before = Vec::with_capacity(answers.len() + 1);
    before.push((i64::MIN, 0));
    let (mut largest, mut counted) = (i64::MIN, 0);
    for answer in answers {
        largest = largest.max(answer.value);
        counted += answer.adds;
        before.push((largest, counted));
    }
    let mut violations = Vec::new();
    let mut values = BTreeSet::new();
    for answer in answers {
        let &Answer { value, adds, .. } = answer;
        if adds == 1 && !values.insert(value) {
            violations.push(answer.complaint("a second time"));
        }
        let ended = answers.partition_point(|earlier| earlier.end < answer.start);
        let (largest, counted) = before[ended];
        let least = counted + adds;
        if value < least {
            violations.push(answer.complaint(&format!("but at least {least} increments count")));
        }
        if value < largest.saturating_add(adds) {
            let what = format!("after a call that ended before had {largest}");
            violations.push(answer.complaint(&what));
        }
    }
    violations
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
