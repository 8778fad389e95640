//! One supervised connection to Redis, shared by all calls of one worker.
//!
//! Concurrent commands pipeline by themselves on one connection. A pool with a checkout per call
//! costs several times as much CPU. A task, the [`supervisor`], owns the connection: it connects,
//! drives the connection until it breaks, and connects again. While there is no connection,
//! commands fail at once.
//!
//! A request whose connection ends before the reply is repeated once, if that is safe: a read
//! always, a write only if it was certainly not executed. Otherwise a repeated write could
//! arrive after a newer one of another caller and bring the older value back. Requests on a
//! connection that was given up because it was silent are not repeated: most of their time is over.
//! At most a tenth of all requests is repeated, so that an outage does not multiply the load.

mod supervisor;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

pub(super) use self::supervisor::Report;
use self::supervisor::{Attempt, LinkSupervisor};
use super::{
    super::wire::{
        commands::Commands,
        pipe::Pipe,
        resp::{Replies, Reply},
        transaction,
    },
    effect::Effect,
    links::Links,
    place::Place,
    task::AbortOnDrop,
};
use crate::store::failure::{Outcome, StoreError, WriteError};

/// A handle to the connection. Clones share it. Dropping the last one ends the supervisor.
#[derive(Clone)]
pub(crate) struct Link {
    pipe: Pipe,
    attempts: watch::Receiver<Attempt>,
    budget: Arc<RepeatBudget>,
    _supervisor: Arc<AbortOnDrop>,
}

impl Link {
    /// Starts the supervisor on the current runtime. Each request may take as long as `timeout`. The
    /// link is one of `links`, for the metrics.
    pub(crate) fn start(place: Place, timeout: Duration, report: Report, links: &Links) -> Self {
        let pipe = Pipe::new(timeout);
        let (ended, attempts) = watch::channel(Attempt::default());
        let supervisor = LinkSupervisor::new(place, pipe.clone(), ended, report, links);
        let task = tokio::spawn(supervisor.run());
        Self {
            pipe,
            attempts,
            budget: Arc::default(),
            _supervisor: Arc::new(AbortOnDrop(task.abort_handle())),
        }
    }

    /// Sends what `encode` writes: one command or several. Returns the replies as they came, error
    /// replies included.
    pub(crate) async fn request(
        &self,
        effect: Effect,
        encode: impl Fn(&mut Commands<'_>),
    ) -> Result<Bytes, WriteError> {
        self.budget.earn();
        let request = self.pipe.request(&encode);
        let request = request.map_err(|error| WriteError::not_executed(self.reason(error)))?;
        let (connection, deadline) = (request.connection(), request.deadline());
        let result = request.await;
        let again = match &result {
            // Redis has refused the request, so a write may be repeated too: if it has several
            // commands, only if all of them were refused.
            Ok(reply) => {
                supervisor::is_reason_to_retire(effect, reply)
                    && self.pipe.retire(connection)
                    && is_repeatable(effect, reply)
            }
            Err(failed) => {
                failed.error == StoreError::Unavailable
                    && (effect == Effect::Read || failed.outcome == Outcome::NotExecuted)
            }
        };
        if !again || !self.budget.spend() {
            return result;
        }
        // Boxed, so that the future of every call need not have room for the few that need this.
        Box::pin(self.repeat(connection, deadline, encode)).await
    }

    /// Sends a request again, on the next connection after number `connection`.
    async fn repeat(
        &self,
        connection: u64,
        deadline: Instant,
        encode: impl Fn(&mut Commands<'_>),
    ) -> Result<Bytes, WriteError> {
        let connected = timeout_at(deadline, self.connected_after(connection)).await;
        let connected = connected.unwrap_or(Err(StoreError::Unavailable));
        let request = connected.and_then(|()| self.pipe.request(encode));
        let request = request.map_err(WriteError::not_executed)?;
        let reply = timeout_at(deadline, request).await;
        reply.unwrap_or(Err(WriteError::unknown(StoreError::Timeout)))
    }

    /// Why a request could not be sent. If there is no connection, that is the reason why the last
    /// attempt to connect failed.
    fn reason(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Unavailable => self.attempts.borrow().failure.unwrap_or(error),
            error => error,
        }
    }

    /// Whether there is a connection.
    pub(super) fn is_up(&self) -> bool {
        self.pipe.is_up()
    }

    /// Waits until there was a connection. Fails if the next attempt to connect does.
    pub(super) async fn connected(&self) -> Result<(), StoreError> {
        self.connected_after(0).await
    }

    /// Waits for the end of the first attempt to connect after connection `number`.
    async fn connected_after(&self, number: u64) -> Result<(), StoreError> {
        let mut attempts = self.attempts.clone();
        match attempts.wait_for(|last| last.number > number).await {
            Ok(last) => last.failure.map_or(Ok(()), Err),
            Err(_) => Err(StoreError::Unavailable),
        }
    }
}

/// Whether a request that got this reply may be repeated.
fn is_repeatable(effect: Effect, reply: &[u8]) -> bool {
    match effect {
        Effect::Read => true,
        Effect::Write => Replies::new(reply).all(|reply| matches!(reply, Reply::Error(_))),
        Effect::Transactions => transaction::are_refused(reply),
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

/// How many requests may be repeated: a tenth of all, and a few at the start.
#[derive(Debug)]
struct RepeatBudget(AtomicU32);

impl RepeatBudget {
    // In tenths of a repetition.
    const START: u32 = 100;
    const MAX: u32 = 5_000;
    const PRICE: u32 = 10;

    // Only the worker's thread calls these, so a load and a store are as good as one atomic step.

    fn earn(&self) {
        let balance = self.0.load(Ordering::Relaxed);
        if balance < Self::MAX {
            self.0.store(balance + 1, Ordering::Relaxed);
        }
    }

    fn spend(&self) -> bool {
        let balance = self.0.load(Ordering::Relaxed);
        match balance.checked_sub(Self::PRICE) {
            Some(rest) => {
                self.0.store(rest, Ordering::Relaxed);
                true
            }
            None => false,
        }
    }
}

impl Default for RepeatBudget {
    fn default() -> Self {
        Self(AtomicU32::new(Self::START))
    }
}
