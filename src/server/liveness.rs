//! Detects workers whose event loop is stuck. Each event loop records the time once a second.
//!
//! A stuck worker serves nobody, and nothing else would show it: its connections stay open, and the
//! other threads go on.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// How often a worker records the time.
const INTERVAL: Duration = Duration::from_secs(1);
/// A worker that has not recorded the time for this long is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// When each worker last recorded the time. Clones are about the same workers.
#[derive(Debug, Clone)]
pub struct Liveness(Arc<Heartbeats>);

#[derive(Debug)]
struct Heartbeats {
    start: Instant,
    /// In milliseconds since `start`, by worker.
    seen: Vec<AtomicU64>,
    draining: AtomicBool,
}

impl Liveness {
    pub(super) fn for_workers(count: usize) -> Self {
        Self(Arc::new(Heartbeats {
            start: Instant::now(),
            seen: (0..count).map(|_| AtomicU64::default()).collect(),
            draining: AtomicBool::default(),
        }))
    }

    /// The task that records the time. To be run on the event loop of worker `number`.
    pub(super) async fn beat(self, number: usize) -> Infallible {
        loop {
            self.0.seen[number].store(self.millis(), Ordering::Relaxed);
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// The drain begins. From now on no worker is stuck, because workers may end.
    pub(super) fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    /// Whether worker `number` is stuck, or has ended too early.
    pub(super) fn is_stuck(&self, number: usize) -> bool {
        let seen = self.0.seen[number].load(Ordering::Relaxed);
        !self.0.draining.load(Ordering::Relaxed)
            && u128::from(self.millis().saturating_sub(seen)) > PATIENCE.as_millis()
    }

    /// The numbers of the workers that are stuck.
    pub fn stuck(&self) -> Vec<usize> {
        let workers = 0..self.0.seen.len();
        workers.filter(|number| self.is_stuck(*number)).collect()
    }

    /// How many workers are not stuck.
    pub(super) fn moving(&self) -> usize {
        self.0.seen.len() - self.stuck().len()
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_stands_still_when_it_has_not_moved_for_a_while() {
        let liveness = Liveness::for_workers(2);
        let beats = [0, 1].map(|number| tokio::spawn(liveness.clone().beat(number)));
        tokio::time::sleep(10 * PATIENCE).await;
        assert!(liveness.stuck().is_empty());
        beats[1].abort();
        tokio::time::sleep(PATIENCE / 2).await;
        assert!(liveness.stuck().is_empty());
        tokio::time::sleep(PATIENCE).await;
        assert_eq!(liveness.stuck(), [1]);
        assert_eq!(liveness.moving(), 1);
        // In the drain, workers are expected to end.
        liveness.drain();
        assert!(liveness.stuck().is_empty());
    }
}
