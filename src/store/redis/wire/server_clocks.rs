//! How well the clocks of the Redis servers are known, for `/metrics`.
//!
//! A scrape comes from another thread than the calls, and must not wait for them. So each link keeps a
//! second copy of its estimate for the scrapes.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::clock::{RedisClock, Sample};

/// The copies of all links. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServerClocks(Arc<Mutex<Vec<Weak<Mutex<RedisClock>>>>>);

/// A link's copy of its estimate. It leaves the [`ServerClocks`] when it is dropped.
#[derive(Debug)]
pub(crate) struct ClockCopy(Arc<Mutex<RedisClock>>);

/// What a link knows about the clock of its server.
#[derive(Debug, Clone, Copy)]
struct Estimate {
    /// How far apart the bounds are.
    width: Duration,
    /// How many seconds the server's clock is ahead of ours.
    ahead: f64,
}

impl ServerClocks {
    /// Adds a link, which has no estimate yet.
    pub(crate) fn add_link(&self) -> ClockCopy {
        let clock = Arc::<Mutex<RedisClock>>::default();
        let mut all = lock(&self.0);
        // A cluster's links come and go.
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&clock));
        ClockCopy(clock)
    }

    /// How many links have an estimate.
    pub(crate) fn known(&self) -> usize {
        self.estimates().len()
    }

    /// The width in seconds of the widest estimate, if there is one.
    pub(crate) fn error(&self) -> Option<f64> {
        let estimates = self.estimates().into_iter();
        let widest = estimates.map(|estimate| estimate.width).max();
        widest.map(|width| width.as_secs_f64())
    }

    /// How many seconds the clock that differs most is ahead of ours. Negative if it is behind.
    pub(crate) fn offset(&self) -> Option<f64> {
        let estimates = self.estimates().into_iter();
        let offsets = estimates.map(|estimate| estimate.ahead);
        offsets.max_by(|a, b| a.abs().total_cmp(&b.abs()))
    }

    fn estimates(&self) -> Vec<Estimate> {
        let all = lock(&self.0);
        let clocks = all.iter().filter_map(Weak::upgrade);
        clocks.filter_map(|clock| estimate(&lock(&clock))).collect()
    }
}

impl ClockCopy {
    /// Forgets the estimate, because the connection has ended.
    pub(crate) fn forget(&self) {
        *lock(&self.0) = RedisClock::default();
    }

    /// Adds a sample.
    pub(crate) fn add(&self, sample: Sample) {
        lock(&self.0).add(sample);
    }
}

fn estimate(clock: &RedisClock) -> Option<Estimate> {
    let (earliest, latest) = clock.bounds(Instant::now())?;
    let ours = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let server = Duration::from_micros(earliest.midpoint(latest));
    Some(Estimate {
        width: Duration::from_micros(earliest.abs_diff(latest)),
        ahead: server.as_secs_f64() - ours.as_secs_f64(),
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// A sample of a clock that is ahead of ours by so many seconds, whose round trip has just ended.
    fn sample(ahead: i64, round_trip: Duration) -> Sample {
        let ours = SystemTime::now().duration_since(UNIX_EPOCH).expect("after");
        let answered = Instant::now();
        let micros = u64::try_from(ours.as_micros()).expect("fits");
        let micros = micros.saturating_add_signed(ahead * 1_000_000);
        Sample::new(answered - round_trip, answered, micros)
    }

    /// The offset in whole seconds. The test may stand still between two looks at a clock.
    fn offset(clocks: &ServerClocks) -> Option<i64> {
        clocks.offset().map(|offset| offset.round() as i64)
    }

    #[test]
    fn the_worst_estimate_and_the_largest_offset_are_shown() {
        let clocks = ServerClocks::default();
        let (exact, ahead, behind) = (clocks.add_link(), clocks.add_link(), clocks.add_link());
        assert_eq!(
            (clocks.known(), clocks.error(), clocks.offset()),
            (0, None, None)
        );
        exact.add(sample(0, Duration::ZERO));
        let error = clocks.error().expect("known");
        assert!(error < 0.002, "{error}");
        assert_eq!(offset(&clocks), Some(0));
        ahead.add(sample(10, 2 * MILLISECOND));
        let error = clocks.error().expect("known");
        assert!((0.002..0.005).contains(&error), "{error}");
        behind.add(sample(-60, Duration::ZERO));
        assert_eq!(offset(&clocks), Some(-60));
        assert_eq!(clocks.known(), 3);
        behind.forget();
        assert_eq!(offset(&clocks), Some(10));
        drop(ahead);
        assert_eq!(clocks.known(), 1);
    }

    /// A link whose samples are too vague or contradict each other has no estimate.
    #[test]
    fn an_estimate_that_calls_would_not_use_is_not_shown() {
        let clocks = ServerClocks::default();
        let link = clocks.add_link();
        link.add(sample(0, 6 * MILLISECOND));
        assert_eq!((clocks.known(), clocks.error()), (0, None));
        link.add(sample(0, Duration::ZERO));
        assert_eq!(clocks.known(), 1);
        link.add(sample(5, Duration::ZERO));
        assert_eq!((clocks.known(), clocks.error()), (0, None));
    }
}
