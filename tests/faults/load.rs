//! A steady load of several callers, each with its own connection. The rate is fixed and does not
//! depend on the answers. The load has its own thread, so that a case can inject faults one after
//! another.

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
    starvation,
};

/// The first ids have a time to live of an hour. The ids after them have a short one.
const LONG_IDS: u32 = 240;
const SHORT_IDS: u32 = 60;
/// Every second read is of one of this many ids that were marked last.
const RECENT: u64 = 16;
/// The reads of all ids at the end: ids in a call, and attempts.
const CLOSING_BATCH: usize = 50;
const CLOSING_ATTEMPTS: usize = 20;

/// The rate of a load.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    pub callers: u32,
    pub calls_per_second: u32,
    /// The shortest and the longest deadline, in milliseconds.
    pub deadline_millis: (u64, u64),
    pub at_the_end: AtTheEnd,
}

/// What the load does after its last call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtTheEnd {
    /// Reads every id once more.
    ReadAll,
    /// Nothing, because the service is gone, or because its data does not matter.
    Nothing,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            callers: 4,
            calls_per_second: 240,
            // Some deadlines are shorter than the timeout of a Redis command, which is 500 ms.
            deadline_millis: (300, 1_000),
            at_the_end: AtTheEnd::ReadAll,
        }
    }
}

impl Rate {
    /// Callers with deadlines that are longer than any slow answer.
    pub fn patient() -> Self {
        Self {
            deadline_millis: (1_500, 2_000),
            ..Self::default()
        }
    }
}

/// A running load, until it is finished or dropped.
pub struct Load {
    pub recorder: Arc<Recorder>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Load {
    pub fn start(addr: &str, rate: Rate) -> Self {
        let recorder = Arc::new(Recorder::new());
        let stop = Arc::<AtomicBool>::default();
        let builder = thread::Builder::new().name(starvation::LOAD.to_owned());
        let thread = builder.spawn({
            let (addr, recorder, stop) =
                (addr.to_owned(), Arc::clone(&recorder), Arc::clone(&stop));
            move || run(&addr, rate, &recorder, &stop)
        });
        Self {
            recorder,
            stop,
            thread: Some(thread.expect("a thread")),
        }
    }

    /// Waits for the running calls, reads every id once more, and returns the history.
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
            // Only a case that has already failed drops a running load.
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
        // A late call is made up for, so that the average rate is kept.
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

/// Notes when this thread did not run in time, because the times measured then are too long.
async fn watch_for_stalls(recorder: Arc<Recorder>) {
    const TICK: Duration = Duration::from_millis(5);
    loop {
        let due = recorder.now().after(TICK);
        tokio::time::sleep(TICK).await;
        let now = recorder.now();
        if now.since(due) > TICK {
            recorder.add_stall(due, now);
        }
    }
}

/// Reads every id with a long time to live that was marked.
async fn read_all(addr: &str, recorder: &Arc<Recorder>) {
    let caller = Caller::new(addr, Arc::clone(recorder));
    let mut ids: Vec<u32> = recorder
        .operations()
        .iter()
        .filter_map(|operation| match operation.call {
            Call::Mark { id, .. } if id < LONG_IDS => Some(id),
            _ => None,
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

/// Chooses the next call.
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
                    // All ids of one slot, which may be migrating in a cluster.
                    false => (self.id() % SAME_SLOT..LONG_IDS + SHORT_IDS)
                        .step_by(SAME_SLOT as usize)
                        .collect(),
                };
                caller.batch_get(ids, asks, deadline).await;
            }
        }
    }

    /// The id for a read: every second one was marked a moment ago.
    fn id(&self) -> u32 {
        let marks = self.marks.load(Ordering::Relaxed);
        if marks == 0 || fastrand::bool() {
            return fastrand::u32(0..LONG_IDS + SHORT_IDS);
        }
        marked_by(marks - fastrand::u64(1..=RECENT.min(marks)))
    }
}

/// The id that is marked with this value. Values are consecutive numbers. The step shares no factor
/// with the number of ids, so that consecutive values belong to distant ids and every id is used.
fn marked_by(value: u64) -> u32 {
    const STEP: u64 = 7919;
    let ids = u64::from(LONG_IDS + SHORT_IDS);
    u32::try_from(value * STEP % ids).unwrap_or(0)
}

/// The time to live of an id, which never changes.
fn ttl(id: u32) -> Duration {
    if id < LONG_IDS {
        return Duration::from_secs(3600);
    }
    Duration::from_millis(300 + u64::from(id - LONG_IDS) * 1700 / u64::from(SHORT_IDS - 1))
}

/// The number of calls with each ending.
pub fn endings<'a>(operations: impl Iterator<Item = &'a Operation>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for operation in operations {
        *counts.entry(operation.ending()).or_default() += 1;
    }
    counts
}

/// A percentile of durations. `None` if there are none.
pub fn percentile(times: impl Iterator<Item = Duration>, percent: usize) -> Option<Duration> {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    let place = (times.len() * percent).div_ceil(100).checked_sub(1)?;
    times.get(place).copied()
}
