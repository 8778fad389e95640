//! An estimate of Redis's clock, for writes that name the time of their expiry.
//!
//! Each sample is a reply to TIME, and the moments before it was asked for and after it came. So
//! Redis's clock was somewhere between two bounds. The estimate is the lowest upper bound: it is
//! never behind Redis's clock, and a value never lives shorter than its caller asked for.
//!
//! There is no estimate without recent samples, or if samples contradict each other because a clock
//! was set. The writes then let Redis itself look at its clock.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::resp::{Replies, Reply};

/// How many samples to keep.
const MAX_SAMPLES: usize = 8;
/// The age at which a sample says too little.
const MAX_AGE: Duration = Duration::from_secs(3);
/// A clock gains or loses at most a thousandth against another: twice what NTP does to each.
const DRIFT: u32 = 1000;
/// How much the bounds of samples may contradict each other, in microseconds. More means that a clock
/// was set.
const MAX_CONTRADICTION: u64 = 3_000;
/// How far apart the bounds may be, in microseconds. A value may live longer by this time.
const MAX_WIDTH: u64 = 5_000;

/// The clock of the server at the end of one connection.
#[derive(Debug, Default)]
pub(crate) struct RedisClock {
    samples: VecDeque<Sample>,
}

/// What Redis's clock showed between two moments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    asked: Instant,
    answered: Instant,
    /// Microseconds since the epoch.
    micros: u64,
}

impl Sample {
    #[cfg(test)]
    pub(crate) fn new(asked: Instant, answered: Instant, micros: u64) -> Self {
        Self {
            asked,
            answered,
            micros,
        }
    }

    /// Reads the reply to a TIME that was sent after `asked`. To be called as soon as it is there.
    pub(crate) fn read(asked: Instant, replies: &mut Replies<'_>) -> Option<Self> {
        let answered = Instant::now();
        let Some(Reply::Array(2)) = replies.next() else {
            return None;
        };
        let (seconds, micros) = (replies.next()?.number()?, replies.next()?.number()?);
        let (seconds, micros) = (u64::try_from(seconds).ok()?, u64::try_from(micros).ok()?);
        Some(Self {
            asked,
            answered,
            micros: seconds.checked_mul(1_000_000)?.checked_add(micros)?,
        })
    }

    /// What Redis's clock shows now at least and at most, in microseconds.
    fn bounds(&self, now: Instant) -> (u64, u64) {
        let since = |moment| now.saturating_duration_since(moment);
        let drift = since(self.asked) / DRIFT;
        let earliest = since(self.answered).saturating_sub(drift);
        let latest = since(self.asked) + drift;
        (self.micros + micros(earliest), self.micros + micros(latest))
    }
}

impl RedisClock {
    /// Adds a sample. The oldest makes room for it.
    pub(crate) fn add(&mut self, sample: Sample) {
        if self.samples.len() == MAX_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// What Redis's clock shows at most, in milliseconds since the epoch, if that is known well
    /// enough.
    pub(crate) fn latest_millis(&self, now: Instant) -> Option<u64> {
        let (_, latest) = self.bounds(now)?;
        Some(latest.div_ceil(1000))
    }

    /// What Redis's clock shows at least and at most, in microseconds since the epoch, if that is known
    /// well enough.
    pub(crate) fn bounds(&self, now: Instant) -> Option<(u64, u64)> {
        let recent = self.samples.iter().filter(|sample| {
            let age = now.saturating_duration_since(sample.answered);
            age < MAX_AGE
        });
        let (earliest, latest) = recent
            .map(|sample| sample.bounds(now))
            .reduce(|(a, b), (c, d)| (a.max(c), b.min(d)))?;
        let is_contradiction = earliest > latest + MAX_CONTRADICTION;
        let is_vague = latest > earliest + MAX_WIDTH;
        (!is_contradiction && !is_vague).then_some((earliest, latest))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    /// Samples of a clock, each with its age when asked, its round trip, and how far it is set wrong.
    fn estimate(samples: &[(Duration, Duration, i64)]) -> Option<i64> {
        let start = Instant::now() + 10 * SECOND;
        let mut clock = RedisClock::default();
        for (age, round_trip, wrong) in samples {
            let asked = start - *age;
            // Redis looks at its clock in the middle.
            let elapsed = 10 * SECOND - *age + *round_trip / 2;
            let micros = micros(elapsed).saturating_add_signed(wrong * 1000) + 1_000_000_000;
            clock.add(Sample::new(asked, asked + *round_trip, micros));
        }
        let latest = clock.latest_millis(start)?;
        // Milliseconds ahead of Redis's clock.
        Some(i64::try_from(latest).expect("fits") - 1_010_000)
    }

    #[test]
    fn the_estimate_is_never_behind_and_hardly_ahead() {
        assert_eq!(estimate(&[]), None);
        let ahead = estimate(&[(SECOND, MILLISECOND, 0)]).expect("known");
        assert!((0..=3).contains(&ahead), "{ahead}");
        // The best sample counts.
        let slow = (SECOND / 2, 300 * MILLISECOND, 0);
        let ahead = estimate(&[slow, (SECOND, MILLISECOND / 10, 0), slow]).expect("known");
        assert!((0..=2).contains(&ahead), "{ahead}");
    }

    #[test]
    fn old_vague_and_contradicting_samples_give_no_estimate() {
        assert_eq!(estimate(&[(4 * SECOND, MILLISECOND, 0)]), None);
        assert_eq!(estimate(&[(SECOND, 20 * MILLISECOND, 0)]), None);
        for wrong in [-3_600_000, -50, 50, 3_600_000] {
            let samples = [(2 * SECOND, MILLISECOND, 0), (SECOND, MILLISECOND, wrong)];
            assert_eq!(estimate(&samples), None, "{wrong}");
        }
        // Once the samples of before are old, the new time is known.
        let samples = [(4 * SECOND, MILLISECOND, 70_000), (SECOND, MILLISECOND, 0)];
        assert!(estimate(&samples).is_some());
    }

    #[test]
    fn only_a_reply_to_time_is_a_sample() {
        let read = |reply: &str| Sample::read(Instant::now(), &mut Replies::new(reply.as_bytes()));
        let sample = read("*2\r\n$2\r\n17\r\n$1\r\n5\r\n").expect("a time");
        assert_eq!(sample.micros, 17_000_005);
        for reply in [
            "-NOPERM no\r\n",
            "+OK\r\n",
            "*1\r\n:1\r\n",
            "*2\r\n:-1\r\n:1\r\n",
            "",
        ] {
            assert!(read(reply).is_none(), "{reply}");
        }
    }
}
