//! One pipelined connection: many calls at once, each waiting for its own replies.
//!
//! Redis answers commands in their order, so a queue is enough to find the request that a reply
//! belongs to. A [`Request`] appends its command to a shared output buffer and joins the queue. The
//! [`Driver`], one task, writes the buffer with one system call, reads what has come with another,
//! and hands each reply to its request as one piece of bytes, unparsed.
//!
//! A [`PipeConnection`] is what requests and one driver share. A [`Pipe`] knows the connection that
//! new requests go to. A connection that is *retired* gets no new requests. Its driver goes on
//! until the requests in flight are answered, beside the driver of the next connection.
//!
//! When a connection ends, nothing tells which commands Redis has run or will still run. Bytes that
//! have left our buffer may be on the way, and a device on the way may deliver them later. A
//! request is certain not to be executed only if none of its bytes has left. The error of a request
//! says which of the two it is ([`WriteError`]).
//!
//! The locks are never contended: requests and drivers run on one thread, and no lock is held
//! across an await. A request that is dropped keeps its place in the queue, and its reply is thrown
//! away. Dropping cancels the wait, not the command.
//!
//! [`queue`] has what requests and drivers share, [`driver`] the task.

mod driver;
mod queue;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

pub(crate) use self::driver::{Broken, Driver};
use self::queue::{Caller, CurrentConnection, PendingRequest, PipeConnection, PipeState};
use super::{clock::Sample, commands::Commands};
use crate::store::failure::{Outcome, StoreError, WriteError};

/// Maximum size of the commands that wait to be written. They gather only while Redis does not
/// read.
const MAX_QUEUED_BYTES: usize = 64 << 20;
/// Minimum age of a connection before an error reply may make us replace it. Without it, a
/// read-only replica would be reconnected for every refused Mark, and the Gets on that connection
/// would fail with it.
const MIN_AGE: Duration = Duration::from_secs(2);

/// The callers' end. Clones share the connection. A pipe outlives its connections.
#[derive(Clone)]
pub(crate) struct Pipe {
    current: CurrentConnection,
    timeout: Duration,
}

impl Pipe {
    /// A pipe without a connection. All requests may take as long as `timeout`.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self {
            current: CurrentConnection::default(),
            timeout,
        }
    }

    /// Sends what `encode` writes, one command or several. The result waits for their replies. An
    /// error means that nothing was sent.
    pub(crate) fn request(
        &self,
        encode: impl FnOnce(&mut Commands<'_>),
    ) -> Result<Request, StoreError> {
        let Some(connection) = self.current.lock().clone() else {
            return Err(StoreError::Unavailable);
        };
        let mut state = connection.lock();
        if state.out.len() > MAX_QUEUED_BYTES {
            return Err(StoreError::Busy);
        }
        let start = state.taken + state.out.len() as u64;
        let PipeState { out, clock, .. } = &mut *state;
        let mut commands = Commands::new(out).with_clock(clock);
        encode(&mut commands);
        let replies = commands.replies();
        let number = state.front + state.queue.len() as u64;
        let deadline = Instant::now() + self.timeout;
        state.queue.push_back(PendingRequest {
            start,
            replies,
            deadline,
            late: false,
            caller: Caller::Waiting(None),
        });
        if let Some(driver) = state.driver.take() {
            driver.wake();
        }
        drop(state);
        Ok(Request {
            connection,
            number,
            deadline,
        })
    }

    /// Adds a sample of the clock of the server at the end of connection `number`.
    pub(crate) fn add_sample(&self, number: u64, sample: Sample) {
        let Some(connection) = self.current.lock().clone() else {
            return;
        };
        if connection.number == number {
            connection.lock().clock.add(sample);
        }
    }

    /// Whether there is a connection.
    pub(crate) fn is_up(&self) -> bool {
        self.current.lock().is_some()
    }

    /// Sends no new requests on connection `number`, unless it is younger than [`MIN_AGE`].
    /// Requests in flight go on. Returns whether there is another connection, or will be soon.
    pub(crate) fn retire(&self, number: u64) -> bool {
        let mut current = self.current.lock();
        let is_too_new = match &*current {
            Some(connection) if connection.number == number => connection.since.elapsed() < MIN_AGE,
            // It has been replaced already, or will be.
            Some(_) | None => return true,
        };
        if is_too_new {
            return false;
        }
        let Some(connection) = current.take() else {
            return true;
        };
        drop(current);
        let mut state = connection.lock();
        state.retired = true;
        if let Some(driver) = state.driver.take() {
            driver.wake();
        }
        true
    }

    /// Sends new requests on a connected and authenticated `stream`, the connection `number`. The
    /// driver has to be polled.
    pub(crate) fn drive<S>(&self, stream: S, number: u64) -> Driver<S> {
        let connection = Arc::new(PipeConnection::new(number));
        *self.current.lock() = Some(Arc::clone(&connection));
        Driver::new(stream, connection, self.current.clone(), self.timeout)
    }
}

/// Waits for the replies to what [`Pipe::request`] sent: all of them, complete, as they came.
///
/// [`StoreError::Unavailable`] means that the connection ended first. [`StoreError::Timeout`] means
/// that no answer came in time, or that the connection was given up because earlier requests got no
/// answer. The outcome says whether the commands may have been executed, or may still be.
pub(crate) struct Request {
    connection: Arc<PipeConnection>,
    number: u64,
    deadline: Instant,
}

impl Request {
    /// The number of the connection that the request was sent on.
    pub(crate) fn connection(&self) -> u64 {
        self.connection.number
    }

    /// When the request times out.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Future for Request {
    type Output = Result<Bytes, WriteError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const POLLED_AFTER_ITS_END: WriteError = WriteError {
            error: StoreError::Unexpected,
            outcome: Outcome::Unknown,
        };
        let mut state = self.connection.lock();
        let Some(entry) = state.entry(self.number) else {
            return Poll::Ready(Err(POLLED_AFTER_ITS_END));
        };
        match &mut entry.caller {
            Caller::Waiting(Some(waker)) if waker.will_wake(cx.waker()) => Poll::Pending,
            Caller::Waiting(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            caller => match std::mem::replace(caller, Caller::Gone) {
                Caller::Ready(result) => {
                    state.trim();
                    Poll::Ready(result)
                }
                Caller::Gone | Caller::Waiting(_) => Poll::Ready(Err(POLLED_AFTER_ITS_END)),
            },
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut state = self.connection.lock();
        if let Some(entry) = state.entry(self.number) {
            entry.caller = Caller::Gone;
            state.trim();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::*;

    /// Sends some of what it is given and then fails without saying how much, as TLS may do.
    struct SendsAndFails;

    impl AsyncRead for SendsAndFails {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for SendsAndFails {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_request_given_to_a_stream_that_failed_may_have_been_executed() {
        let pipe = Pipe::new(Duration::from_secs(1));
        let driver = pipe.drive(SendsAndFails, 1);
        let ask = || pipe.request(|commands| commands.whole(&[b"PING"]));
        let requests = [ask().expect("is up"), ask().expect("is up")];
        let broken = driver.await;
        assert!(matches!(broken, Broken::Io(_)), "{broken}");
        for request in requests {
            let failed = request.await.expect_err("no reply");
            assert_eq!(failed, WriteError::unknown(StoreError::Unavailable));
        }
    }
}
