//! Calls at a fixed rate, which does not depend on the replies. Latency counts from when a call was
//! due. So a stall of the server shows in all calls that were due in the meantime.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time,
};

use crate::{
    load::{CALL_LIMIT, Control, call, connect, new_histogram, request_template, runtime, within},
    workload::Workload,
};

/// Number of calls at the same time on a connection. Further calls wait in our queue, which is
/// cheaper than a queue in the HTTP/2 library.
const STREAMS: usize = 100;

/// Number of calls that may wait. Further calls are not sent, and are counted.
const WAITING_LIMIT: usize = 50_000;

/// How long the pacing thread sleeps before it reads the clock again.
const TICK: Duration = Duration::from_micros(50);

/// The result of an open-loop run.
pub struct Outcome {
    pub answered_per_second: f64,
    /// Number of refused calls.
    pub refused: u64,
    /// Number of calls that were not sent because too many were waiting. The rate was not held.
    pub unsent: usize,
    pub latencies: Histogram<u64>,
    /// How late the generator sent each call.
    pub lateness: Histogram<u64>,
}

/// Sends `rate` calls a second, evenly spaced, over this many connections.
pub fn run(
    target: SocketAddr,
    workload: Workload,
    connections: usize,
    rate: f64,
    duration: Duration,
) -> Result<Outcome> {
    let template = Arc::new(request_template(&workload)?);
    let control = Control::new(workload)?;
    let queue = Arc::new(Queue::default());
    let (due, mut arrivals) = mpsc::unbounded_channel();
    let over = Arc::new(AtomicBool::new(false));
    let pacer = pace(due, Arc::clone(&over), rate, duration);

    let limit = duration + 2 * CALL_LIMIT;
    let run = async {
        let mut streams = JoinSet::new();
        let clients = connect(target, connections).await?;
        for client in clients.iter().cycle().take(connections * STREAMS) {
            let (client, template) = (client.clone(), Arc::clone(&template));
            let (control, queue) = (Arc::clone(&control), Arc::clone(&queue));
            streams.spawn(async move {
                while let Some(intended) = queue.next().await {
                    let Some(number) = control.next() else { break };
                    match call(&client, &template, &control.workload, number).await {
                        Ok(()) => control.succeeded(intended),
                        Err(error) => control.failed(error),
                    }
                }
            });
        }
        let mut lateness = new_histogram()?;
        let mut unsent = 0;
        let start = Instant::now();
        while let Some(batch) = arrivals.recv().await {
            for intended in &batch {
                lateness.saturating_record(intended.elapsed().as_nanos() as u64);
            }
            unsent += queue.push(batch);
        }
        let answered_per_second = control.completed() as f64 / start.elapsed().as_secs_f64();
        queue.end(streams.len());
        let drained = time::timeout(CALL_LIMIT, async {
            while streams.join_next().await.is_some() {}
        });
        let drained = drained.await;
        control.result()?;
        drained.with_context(|| format!("a call took more than {CALL_LIMIT:?}"))?;
        Ok(Outcome {
            answered_per_second,
            refused: control.refused(),
            unsent,
            latencies: control.take_latencies()?,
            lateness,
        })
    };
    let outcome = runtime()?.block_on(within(limit, run));
    over.store(true, Relaxed);
    ensure!(pacer.join().is_ok(), "the pacing thread panicked");
    outcome
}

/// The due times of the calls that wait. A permit stands for an entry, or for the end of the queue.
struct Queue {
    intended: Mutex<VecDeque<Instant>>,
    entries: Semaphore,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            intended: Mutex::default(),
            entries: Semaphore::new(0),
        }
    }
}

impl Queue {
    /// Adds calls. Returns how many had no room.
    fn push(&self, mut batch: Vec<Instant>) -> usize {
        let mut intended = self.intended.lock().unwrap_or_else(PoisonError::into_inner);
        let due = batch.len();
        batch.truncate(WAITING_LIMIT.saturating_sub(intended.len()));
        let pushed = batch.len();
        intended.extend(batch);
        drop(intended);
        self.entries.add_permits(pushed);
        due - pushed
    }

    /// The due time of the next call. `None` after the end.
    async fn next(&self) -> Option<Instant> {
        self.entries.acquire().await.ok()?.forget();
        let mut intended = self.intended.lock().unwrap_or_else(PoisonError::into_inner);
        intended.pop_front()
    }

    /// Ends this many waiting tasks, once the entries are used up.
    fn end(&self, waiters: usize) {
        self.entries.add_permits(waiters);
    }
}

/// Sends the due calls from its own thread, because the timers of the runtime count milliseconds.
fn pace(
    due: mpsc::UnboundedSender<Vec<Instant>>,
    over: Arc<AtomicBool>,
    rate: f64,
    duration: Duration,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        // Without this, the kernel may add 50 microseconds to every sleep. The call cannot fail.
        _ = nix::sys::prctl::set_timerslack(1);
        let start = Instant::now() + Duration::from_millis(50);
        let total = (rate * duration.as_secs_f64()) as u64;
        let mut sent = 0;
        while sent < total && !over.load(Relaxed) {
            let now = Instant::now()
                .saturating_duration_since(start)
                .as_secs_f64();
            let until = total.min((now * rate) as u64);
            if until > sent {
                let intended =
                    (sent..until).map(|call| start + Duration::from_secs_f64(call as f64 / rate));
                if due.send(intended.collect()).is_err() {
                    return;
                }
                sent = until;
            }
            thread::sleep(TICK);
        }
    })
}
