//! How many links the workers have, how many are up, and how well they know the clocks of their
//! servers, for `/metrics`.
//!
//! A scrape comes from another thread than the calls, and must not wait for them. So each link keeps
//! a record for the scrapes, with a second copy of its estimate of the clock.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::super::wire::clock::{RedisClock, Sample};

/// The records of all links. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Links {
    all: Arc<Mutex<Vec<Weak<Mutex<LinkReading>>>>>,
    /// How often a link has connected.
    connects: Arc<AtomicU64>,
}

/// The record of a link. The link leaves the [`Links`] when this is dropped.
#[derive(Debug)]
pub(crate) struct LinkRecord {
    reading: Arc<Mutex<LinkReading>>,
    connects: Arc<AtomicU64>,
}

/// What scrapes read about a link.
#[derive(Debug, Default)]
struct LinkReading {
    is_up: bool,
    clock: RedisClock,
}

/// What a link knows about the clock of its server.
#[derive(Debug, Clone, Copy)]
struct Estimate {
    /// How far apart the bounds are.
    width: Duration,
    /// How many seconds the server's clock is ahead of ours.
    ahead: f64,
}

impl Links {
    /// Adds a link, which is not up and has no estimate yet.
    pub(crate) fn add(&self) -> LinkRecord {
        let reading = Arc::<Mutex<LinkReading>>::default();
        let mut all = lock(&self.all);
        // A cluster's links come and go.
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&reading));
        LinkRecord {
            reading,
            connects: Arc::clone(&self.connects),
        }
    }

    /// How many links there are.
    pub(crate) fn count(&self) -> usize {
        self.readings(|_| Some(())).len()
    }

    /// How many of them are up.
    pub(crate) fn up(&self) -> usize {
        self.readings(|reading| reading.is_up.then_some(())).len()
    }

    /// How often a link has connected.
    pub(crate) fn connects(&self) -> u64 {
        self.connects.load(Ordering::Relaxed)
    }

    /// How many links have an estimate.
    pub(crate) fn clocks_known(&self) -> usize {
        self.estimates().len()
    }

    /// The width in seconds of the widest estimate, if there is one.
    pub(crate) fn clock_error(&self) -> Option<f64> {
        let estimates = self.estimates().into_iter();
        let widest = estimates.map(|estimate| estimate.width).max();
        widest.map(|width| width.as_secs_f64())
    }

    /// How many seconds the clock that differs most is ahead of ours. Negative if it is behind.
    pub(crate) fn clock_offset(&self) -> Option<f64> {
        let estimates = self.estimates().into_iter();
        let offsets = estimates.map(|estimate| estimate.ahead);
        offsets.max_by(|a, b| a.abs().total_cmp(&b.abs()))
    }

    fn estimates(&self) -> Vec<Estimate> {
        self.readings(|reading| estimate(&reading.clock))
    }

    /// What `read` finds in the records.
    fn readings<T>(&self, read: impl Fn(&LinkReading) -> Option<T>) -> Vec<T> {
        let all = lock(&self.all);
        let readings = all.iter().filter_map(Weak::upgrade);
        readings
            .filter_map(|reading| read(&lock(&reading)))
            .collect()
    }
}

impl LinkRecord {
    /// The link has a new connection.
    pub(crate) fn connected(&self) {
        self.connects.fetch_add(1, Ordering::Relaxed);
    }

    /// Says whether the link is up. One that is connected is not up while its server does not serve.
    pub(crate) fn set_up(&self, is_up: bool) {
        lock(&self.reading).is_up = is_up;
    }

    /// Forgets the estimate, because the connection has ended.
    pub(crate) fn forget_clock(&self) {
        lock(&self.reading).clock = RedisClock::default();
    }

    /// Adds a sample.
    pub(crate) fn add_sample(&self, sample: Sample) {
        lock(&self.reading).clock.add(sample);
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
    fn offset(links: &Links) -> Option<i64> {
        links.clock_offset().map(|offset| offset.round() as i64)
    }

    #[test]
    fn links_that_are_up_are_counted_and_each_connection() {
        let links = Links::default();
        let (one, other) = (links.add(), links.add());
        assert_eq!((links.count(), links.up(), links.connects()), (2, 0, 0));
        for link in [&one, &other] {
            link.connected();
            link.set_up(true);
        }
        // Its server is busy for a while.
        one.set_up(false);
        assert_eq!((links.count(), links.up(), links.connects()), (2, 1, 2));
        one.set_up(true);
        assert_eq!((links.count(), links.up(), links.connects()), (2, 2, 2));
        // The node has left the cluster.
        drop(one);
        assert_eq!((links.count(), links.up(), links.connects()), (1, 1, 2));
    }

    #[test]
    fn the_worst_estimate_and_the_largest_offset_are_shown() {
        let links = Links::default();
        let (exact, ahead, behind) = (links.add(), links.add(), links.add());
        assert_eq!(
            (
                links.clocks_known(),
                links.clock_error(),
                links.clock_offset()
            ),
            (0, None, None)
        );
        exact.add_sample(sample(0, Duration::ZERO));
        let error = links.clock_error().expect("known");
        assert!(error < 0.002, "{error}");
        assert_eq!(offset(&links), Some(0));
        ahead.add_sample(sample(10, 2 * MILLISECOND));
        let error = links.clock_error().expect("known");
        assert!((0.002..0.005).contains(&error), "{error}");
        behind.add_sample(sample(-60, Duration::ZERO));
        assert_eq!(offset(&links), Some(-60));
        assert_eq!(links.clocks_known(), 3);
        behind.forget_clock();
        assert_eq!(offset(&links), Some(10));
        drop(ahead);
        assert_eq!(links.clocks_known(), 1);
    }

    /// A link whose samples are too vague or contradict each other has no estimate.
    #[test]
    fn an_estimate_that_calls_would_not_use_is_not_shown() {
        let links = Links::default();
        let link = links.add();
        link.add_sample(sample(0, 6 * MILLISECOND));
        assert_eq!((links.clocks_known(), links.clock_error()), (0, None));
        link.add_sample(sample(0, Duration::ZERO));
        assert_eq!(links.clocks_known(), 1);
        link.add_sample(sample(5, Duration::ZERO));
        assert_eq!((links.clocks_known(), links.clock_error()), (0, None));
    }
}
