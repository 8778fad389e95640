//! What the requests on one connection share with its driver.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::super::clock::RedisClock;
use crate::store::failure::{Outcome, StoreError, WriteError};

/// The connection that new requests go to, if there is one. Clones share it.
#[derive(Clone, Default)]
pub(super) struct CurrentConnection(Arc<Mutex<Option<Arc<PipeConnection>>>>);

impl CurrentConnection {
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Arc<PipeConnection>>> {
        lock(&self.0)
    }
}

/// One connection, from its first request to its last reply.
pub(super) struct PipeConnection {
    state: Mutex<PipeState>,
    /// The number that [`Pipe::drive`](super::Pipe::drive) got.
    pub(super) number: u64,
    pub(super) since: Instant,
}

#[derive(Default)]
pub(super) struct PipeState {
    /// Commands that the driver has not taken yet.
    pub(super) out: Vec<u8>,
    /// How many bytes of commands the driver has taken since the connection began.
    pub(super) taken: u64,
    /// Requests in the order of their commands.
    pub(super) queue: VecDeque<PendingRequest>,
    /// The number of the request at the front of the queue.
    pub(super) front: u64,
    /// How many requests at the front of the queue have their replies.
    pub(super) answered: usize,
    /// Is set while the driver waits.
    pub(super) driver: Option<Waker>,
    /// The clock of the server.
    pub(super) clock: RedisClock,
    /// Whether the connection gets no new requests any more.
    pub(super) retired: bool,
}

pub(super) struct PendingRequest {
    /// Where its first command begins among all bytes of the connection.
    pub(super) start: u64,
    /// How many replies are still to come, for the scanner.
    pub(super) replies: usize,
    pub(super) deadline: Instant,
    /// Whether the driver has seen that the deadline has passed.
    pub(super) late: bool,
    pub(super) caller: Caller,
}

pub(super) enum Caller {
    /// The caller waits. There is a waker once the request was polled.
    Waiting(Option<Waker>),
    /// The result is there.
    Ready(Result<Bytes, WriteError>),
    /// The caller has taken the result, or went away without.
    Gone,
}

impl PipeConnection {
    pub(super) fn new(number: u64) -> Self {
        Self {
            state: Mutex::default(),
            number,
            since: Instant::now(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, PipeState> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PipeState {
    pub(super) fn entry(&mut self, number: u64) -> Option<&mut PendingRequest> {
        let place = usize::try_from(number.checked_sub(self.front)?).ok()?;
        self.queue.get_mut(place)
    }

    /// Removes requests that have been answered and whose callers are gone.
    pub(super) fn trim(&mut self) {
        while self.answered > 0
            && let Some(PendingRequest {
                caller: Caller::Gone,
                ..
            }) = self.queue.front()
        {
            self.queue.pop_front();
            self.front += 1;
            self.answered -= 1;
        }
    }

    /// Fails all requests that wait, because the connection has ended. The first `left` bytes of
    /// the commands may have left our buffer.
    pub(super) fn close(&mut self, error: StoreError, left: u64) {
        self.out = Vec::new();
        self.answered = self.queue.len();
        for entry in &mut self.queue {
            let outcome = if entry.start < left {
                Outcome::Unknown
            } else {
                Outcome::NotExecuted
            };
            entry.caller.finish(Err(WriteError { error, outcome }));
        }
        self.trim();
    }

    /// Whether all requests have their replies or are late.
    pub(super) fn is_done(&self) -> bool {
        let mut unanswered = self.queue.iter().skip(self.answered);
        unanswered.all(|entry| entry.late)
    }
}

impl Caller {
    /// Gives the caller its result, if it still waits.
    pub(super) fn finish(&mut self, result: Result<Bytes, WriteError>) {
        if let Self::Waiting(waker) = self {
            let waker = waker.take();
            *self = Self::Ready(result);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}
