//! The pauses between attempts to connect to Redis.

use std::{ops::RangeInclusive, time::Duration};

use tokio::time::{Instant, sleep_until};

/// The pause before the first attempt to reconnect, and the longest pause.
const PAUSES: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(1);
/// How much the pause grows with each attempt. With a factor of 2, the pauses of an outage of half
/// a second outlast the four attempts of a common gRPC retry policy (`docs/resilience.md`).
const GROWTH: f64 = 1.5;
/// A connection that lasted this long was a good one. The pauses start anew after it.
const GOOD: Duration = Duration::from_secs(5);

/// Pauses that grow with each attempt.
#[derive(Debug)]
pub(crate) struct Backoff {
    pause: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self {
            pause: *PAUSES.start(),
        }
    }

    /// A connection has ended.
    pub(crate) fn lasted(&mut self, time: Duration) {
        if time >= GOOD {
            self.pause = *PAUSES.start();
        }
    }

    /// Waits until the next attempt. The pause counts from `began`, when the last attempt began or
    /// its connection ended: a slow attempt was pause enough. It varies, so that workers and replicas
    /// do not all reconnect at the same time.
    pub(crate) async fn wait(&mut self, began: Instant) {
        sleep_until(began + self.pause.mul_f64(0.75 + 0.5 * fastrand::f64())).await;
        self.pause = self.pause.mul_f64(GROWTH).min(*PAUSES.end());
    }
}
