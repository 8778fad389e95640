//! Calls at a fixed rate, whatever becomes of those before. Latency counts from when a call
//! should have been sent: a server that stalls cannot hide it by not being asked.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use tokio::{sync::mpsc, time};

use crate::{
    keys::Workload,
    load::{CALL_LIMIT, Control, call, connect, new_histogram, request_template, runtime},
};

/// Calls that may be waiting. Those that become due beyond it are not sent, and told of.
const WAITING_LIMIT: u64 = 50_000;

/// How long the pacing thread sleeps between looks at the clock.
const TICK: Duration = Duration::from_micros(50);

/// What one open-loop run saw.
pub struct Outcome {
    pub answered_per_second: f64,
    /// Calls that were told to come back later.
    pub refused: u64,
    /// Calls that were not sent because too many were waiting: the rate was not held.
    pub unsent: u64,
    pub latencies: Histogram<u64>,
    /// How late the generator sent.
    pub lateness: Histogram<u64>,
}

/// Sends `rate` calls a second, evenly spaced, over so many connections in turn.
pub fn run(
    target: SocketAddr,
    workload: Workload,
    connections: usize,
    rate: f64,
    duration: Duration,
) -> Result<Outcome> {
    let template = Arc::new(request_template(&workload)?);
    let control = Control::new(workload)?;
    let (due, mut arrivals) = mpsc::unbounded_channel();
    let over = Arc::new(AtomicBool::new(false));
    let pacer = pace(due, Arc::clone(&over), rate, duration);

    let outcome = runtime()?.block_on(async {
        let clients = connect(target, connections).await?;
        let mut lateness = new_histogram()?;
        let mut unsent = 0;
        let waiting = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        // A batch of calls that became due between two looks at the clock.
        while let Some(batch) = arrivals.recv().await {
            for intended in batch {
                if waiting.load(Relaxed) >= WAITING_LIMIT {
                    unsent += 1;
                    continue;
                }
                let Some(number) = control.next() else { break };
                lateness.saturating_record(intended.elapsed().as_nanos() as u64);
                let client = clients[number as usize % clients.len()].clone();
                let (control, template) = (Arc::clone(&control), Arc::clone(&template));
                let waiting = Arc::clone(&waiting);
                waiting.fetch_add(1, Relaxed);
                tokio::spawn(async move {
                    match call(&client, &template, &control.workload, number).await {
                        Ok(()) => control.succeeded(intended),
                        Err(error) => control.failed(error),
                    }
                    waiting.fetch_sub(1, Relaxed);
                });
            }
        }
        let elapsed = start.elapsed().as_secs_f64();
        let answered_per_second = control.completed() as f64 / elapsed;
        let drained = time::timeout(CALL_LIMIT, async {
            while waiting.load(Relaxed) > 0 {
                time::sleep(Duration::from_millis(1)).await;
            }
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
    });
    over.store(true, Relaxed);
    ensure!(pacer.join().is_ok(), "the pacing thread panicked");
    outcome
}

/// Says from a thread of its own what is due: the runtime's timers count in milliseconds.
fn pace(
    due: mpsc::UnboundedSender<Vec<Instant>>,
    over: Arc<AtomicBool>,
    rate: f64,
    duration: Duration,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        // Without this the kernel may add 50 microseconds to every sleep. It refuses nobody.
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
