//! Whether the workers' event loops turn: each of them notes the time once a second.
//!
//! A worker that stands still serves nobody, and nothing else would say so: its connections stay
//! open, and the other threads are well.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// How often a worker notes the time.
const INTERVAL: Duration = Duration::from_secs(1);
/// After this long without, it stands still.
const PATIENCE: Duration = Duration::from_secs(10);

/// When each worker was last seen to move. Clones see the same workers.
#[derive(Debug, Clone)]
pub struct Liveness(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    start: Instant,
    /// In milliseconds since `start`, by worker.
    seen: Vec<AtomicU64>,
    draining: AtomicBool,
}

impl Liveness {
    pub(super) fn for_workers(count: usize) -> Self {
        Self(Arc::new(Shared {
            start: Instant::now(),
            seen: (0..count).map(|_| AtomicU64::default()).collect(),
            draining: AtomicBool::default(),
        }))
    }

    /// Notes the time for as long as the event loop turns that this runs on, which is worker
    /// `number`'s.
    pub(super) async fn beat(self, number: usize) -> Infallible {
        loop {
            self.0.seen[number].store(self.millis(), Ordering::Relaxed);
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Workers may end from now on.
    pub(super) fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    /// Whether worker `number` stands still, or is gone.
    pub(super) fn is_stuck(&self, number: usize) -> bool {
        let seen = self.0.seen[number].load(Ordering::Relaxed);
        !self.0.draining.load(Ordering::Relaxed)
            && u128::from(self.millis().saturating_sub(seen)) > PATIENCE.as_millis()
    }

    /// The workers that stand still.
    pub fn stuck(&self) -> Vec<usize> {
        let workers = 0..self.0.seen.len();
        workers.filter(|number| self.is_stuck(*number)).collect()
    }

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
        // At the end, that is as it should be.
        liveness.drain();
        assert!(liveness.stuck().is_empty());
    }
}
