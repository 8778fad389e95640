//! One supervised connection to Redis, shared by all calls of one worker.
//!
//! Concurrent commands pipeline by themselves on one connection; a pool with a checkout per call
//! costs several times as much CPU. A supervisor task owns the connection: it connects, drives it
//! until it breaks, and connects again. While there is none, commands fail at once. This is also
//! the seam for other ways to reach Redis.

use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    task::AbortHandle,
    time::{Instant, timeout},
};

use super::{connect::Connector, pipe::Pipe};
use crate::store::{LinkState, StoreError, StoreStatus};

/// How long one attempt to connect may take, name resolution, TLS and PING included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause before the first attempt to connect again, and the longest one.
const BACKOFF: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(1);
/// A connection that held this long was a good one: the backoff starts anew after it.
const GOOD: Duration = Duration::from_secs(5);

/// A handle to the connection. Clones share it; the last one to go ends the supervisor.
#[derive(Clone)]
pub(super) struct Link {
    pipe: Pipe,
    timeout: Duration,
    _supervisor: Arc<AbortOnDrop>,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Link {
    /// Starts the supervisor on the current runtime. It reports to `status` as link `number`.
    pub(super) fn start(
        connector: Connector,
        timeout: Duration,
        number: usize,
        status: StoreStatus,
    ) -> Self {
        let pipe = Pipe::default();
        let supervisor = Supervisor {
            connector,
            pipe: pipe.clone(),
            number,
            status,
            last_reason: String::new(),
        };
        let task = tokio::spawn(supervisor.run());
        Self {
            pipe,
            timeout,
            _supervisor: Arc::new(AbortOnDrop(task.abort_handle())),
        }
    }

    /// Sends what `encode` writes: one command or several, which get `replies` replies between
    /// them. Gives the replies as they came, error replies included.
    pub(super) async fn request(
        &self,
        replies: usize,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Bytes, StoreError> {
        self.pipe.request(self.timeout, replies, encode)?.await
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

struct Supervisor {
    connector: Connector,
    pipe: Pipe,
    number: usize,
    status: StoreStatus,
    last_reason: String,
}

impl Supervisor {
    async fn run(mut self) {
        let mut pause = *BACKOFF.start();
        loop {
            match timeout(CONNECT_TIMEOUT, self.connector.connect()).await {
                Ok(Ok(stream)) => {
                    let connected = Instant::now();
                    let driver = self.pipe.drive(stream);
                    self.up();
                    let broken = driver.await;
                    self.down(&broken.to_string());
                    if connected.elapsed() >= GOOD {
                        pause = *BACKOFF.start();
                    }
                }
                Ok(Err(error)) => self.down(&error.to_string()),
                Err(_) => self.down("connecting timed out"),
            }
            // Between half the pause and all of it, so that workers and replicas spread.
            tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
            pause = (pause * 2).min(*BACKOFF.end());
        }
    }

    fn up(&mut self) {
        tracing::info!(worker = self.number, "redis connected");
        self.last_reason.clear();
        self.status.set(self.number, LinkState::Up);
    }

    /// Logs a reason once, not at every attempt of a long outage.
    fn down(&mut self, reason: &str) {
        if self.last_reason != reason {
            tracing::warn!(worker = self.number, reason, "redis not connected");
            reason.clone_into(&mut self.last_reason);
        }
        self.status
            .set(self.number, LinkState::Down(format!("redis: {reason}")));
    }
}
