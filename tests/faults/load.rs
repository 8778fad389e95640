//! Steady load: several callers on connections of their own, at a fixed rate whatever the answers
//! are, on a thread of its own so that faults can be scripted in plain sequence.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::task::JoinSet;

use crate::{
    client::{Caller, ExpireTime, SAME_SLOT},
    history::{Call, Operation, Recorder},
};

/// Ids that live for an hour, and after them those that do not.
const LONG_IDS: u32 = 240;
const SHORT_IDS: u32 = 60;
/// Of the ids that were marked last, one is read as often as any other.
const RECENT: u64 = 16;
/// Reads of the whole at the end: ids in one call, and attempts.
const CLOSING_BATCH: usize = 50;
const CLOSING_ATTEMPTS: usize = 20;

/// How much, and from whom.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    pub callers: u32,
    pub calls_per_second: u32,
    /// The shortest and the longest deadline, in milliseconds.
    pub deadline_millis: (u64, u64),
    pub at_the_end: AtTheEnd,
}

/// What follows when the load stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtTheEnd {
    /// Every id is read once more.
    ReadAll,
    /// The service is gone, or what is there is of no interest.
    Nothing,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            callers: 4,
            calls_per_second: 240,
            // Some end before a command's own time does, which is 500 ms.
            deadline_millis: (300, 1_000),
            at_the_end: AtTheEnd::ReadAll,
        }
    }
}

impl Rate {
    /// Callers who wait for longer than any slow answer takes.
    pub fn patient() -> Self {
        Self {
            deadline_millis: (1_500, 2_000),
            ..Self::default()
        }
    }
}

/// A load that runs until it is finished, or dropped.
pub struct Load {
    pub recorder: Arc<Recorder>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Load {
    pub fn start(addr: &str, rate: Rate) -> Self {
        let recorder = Arc::new(Recorder::new());
        let stop = Arc::<AtomicBool>::default();
        let thread = thread::spawn({
            let (addr, recorder, stop) =
                (addr.to_owned(), Arc::clone(&recorder), Arc::clone(&stop));
            move || run(&addr, rate, &recorder, &stop)
        });
        Self {
            recorder,
            stop,
            thread: Some(thread),
        }
    }

    /// Waits for the calls that run, reads every id once more, and gives the history.
    pub fn finish(mut self) -> Vec<Operation> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            panic!("the load panicked");
        }
        self.recorder.operations()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Only a case that has failed already drops it with the thread still there.
            _ = thread.join();
        }
    }
}

fn run(addr: &str, rate: Rate, recorder: &Arc<Recorder>, stop: &AtomicBool) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mix = Arc::new(Mix::default());
    runtime.block_on(async {
        tokio::spawn(watch_for_stalls(Arc::clone(recorder)));
        let callers: Vec<_> = (0..rate.callers)
            .map(|_| Caller::new(addr, Arc::clone(recorder)))
            .collect();
        // What the machine was too slow for is made up for: the rate is what was asked for.
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate.calls_per_second);
        let mut calls = JoinSet::new();
        for caller in callers.iter().cycle() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            ticks.tick().await;
            while calls.try_join_next().is_some() {}
            let (mix, caller) = (Arc::clone(&mix), caller.clone());
            let (shortest, longest) = rate.deadline_millis;
            let deadline = Duration::from_millis(fastrand::u64(shortest..=longest));
            calls.spawn(async move { mix.call(&caller, deadline).await });
        }
        calls.join_all().await;
        if rate.at_the_end == AtTheEnd::ReadAll {
            read_all(addr, recorder).await;
        }
    });
}

/// Notes when this thread does not come to its turn: what it measures then is its own lateness.
async fn watch_for_stalls(recorder: Arc<Recorder>) {
    const TICK: Duration = Duration::from_millis(5);
    loop {
        let due = recorder.now().after(TICK);
        tokio::time::sleep(TICK).await;
        let now = recorder.now();
        if now.since(due) > TICK {
            recorder.stalled(due, now);
        }
    }
}

/// Reads every long-lived id that a Mark was tried on.
async fn read_all(addr: &str, recorder: &Arc<Recorder>) {
    let caller = Caller::new(addr, Arc::clone(recorder));
    let mut ids: Vec<u32> = recorder
        .operations()
        .iter()
        .filter_map(|operation| match operation.call {
            Call::Mark { id, .. } if id < LONG_IDS => Some(id),
            Call::Mark { .. } | Call::Read { .. } => None,
        })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    for ids in ids.chunks(CLOSING_BATCH) {
        for _ in 0..CLOSING_ATTEMPTS {
            if caller
                .closing_read(ids.to_vec(), Duration::from_secs(1))
                .await
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Which call comes next.
#[derive(Default)]
struct Mix {
    marks: AtomicU64,
}

impl Mix {
    async fn call(&self, caller: &Caller, deadline: Duration) {
        let asks = if fastrand::bool() {
            ExpireTime::Ask
        } else {
            ExpireTime::Omit
        };
        match fastrand::u32(0..100) {
            0..40 => {
                let value = self.marks.fetch_add(1, Ordering::Relaxed);
                let id = marked_by(value);
                _ = caller.mark(id, value, ttl(id), deadline).await;
            }
            40..65 => _ = caller.get(self.id(), ExpireTime::Omit, deadline).await,
            65..80 => _ = caller.get(self.id(), ExpireTime::Ask, deadline).await,
            _ => {
                let ids = match fastrand::bool() {
                    true => (0..fastrand::usize(2..10)).map(|_| self.id()).collect(),
                    // Of one slot, and in a cluster of one that may be on its way.
                    false => (self.id() % SAME_SLOT..LONG_IDS + SHORT_IDS)
                        .step_by(SAME_SLOT as usize)
                        .collect(),
                };
                caller.batch_get(ids, asks, deadline).await;
            }
        }
    }

    /// Every second read is of an id that was marked a moment ago.
    fn id(&self) -> u32 {
        let marks = self.marks.load(Ordering::Relaxed);
        if marks == 0 || fastrand::bool() {
            return fastrand::u32(0..LONG_IDS + SHORT_IDS);
        }
        marked_by(marks - fastrand::u64(1..=RECENT.min(marks)))
    }
}

/// Values are numbers in a row; each says by itself whose it is. The step has no factor in common
/// with the number of ids, so that neighbours are far apart and every id has its turn.
fn marked_by(value: u64) -> u32 {
    const STEP: u64 = 7919;
    let ids = u64::from(LONG_IDS + SHORT_IDS);
    u32::try_from(value * STEP % ids).unwrap_or(0)
}

/// One time to live for each id, for ever.
fn ttl(id: u32) -> Duration {
    if id < LONG_IDS {
        return Duration::from_secs(3600);
    }
    Duration::from_millis(300 + u64::from(id - LONG_IDS) * 1700 / u64::from(SHORT_IDS - 1))
}

/// How many calls ended how, between two moments.
pub fn endings<'a>(operations: impl Iterator<Item = &'a Operation>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for operation in operations {
        *counts.entry(operation.ending()).or_default() += 1;
    }
    counts
}

/// The time within which this share of the calls ended, in percent; nothing without calls.
pub fn percentile<'a>(
    operations: impl Iterator<Item = &'a Operation>,
    percent: usize,
) -> Option<Duration> {
    let mut times: Vec<_> = operations.map(Operation::took).collect();
    times.sort_unstable();
    let place = (times.len() * percent).div_ceil(100).checked_sub(1)?;
    times.get(place).copied()
}
