//! One pipelined connection: many calls at once, each waiting for its own replies.
//!
//! Redis answers in the order of its commands, so a queue is all that is needed to find whose a
//! reply is. A [`Request`] appends its command to a shared output buffer and joins the queue; the
//! [`Driver`], one task, writes what has gathered with one system call, reads what is there with
//! another, and hands each reply to its request as one piece of bytes, unparsed.
//!
//! A [`Connection`] is what requests and one driver share. A [`Pipe`] has the connection that new
//! requests go to. A connection that is *retired* gets no new requests; its driver goes on until
//! those in flight are answered, beside the driver of the next connection.
//!
//! When a connection ends, nothing tells which commands its peer has run or will still run: bytes
//! that have left our buffer may be on the line, and a device on it may deliver them later. Only a
//! request of which no byte has left is certain not to be executed. The end of a request says which
//! of the two it is ([`WriteError`]).
//!
//! The locks are never contended: requests and drivers run on one thread, and no lock is held
//! across a wait. A request that is dropped leaves its place in the queue, and its reply is thrown
//! away: dropping cancels the wait, not the command.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep},
};
use tokio_util::io::poll_read_buf;

use super::resp::{Commands, ProtocolError, Scanner};
use crate::store::failure::{Outcome, StoreError, WriteError};

/// Room for a read: many small replies at once.
const READ_BYTES: usize = 16 * 1024;
/// Commands that wait to be written, in bytes. More only gathers while Redis does not read.
const MAX_QUEUED_BYTES: usize = 64 << 20;
/// What an empty buffer may keep allocated after a burst.
const MAX_SPARE_BYTES: usize = 1 << 20;
/// Requests in a row without an answer in time that make a connection a dead one.
const MAX_TIMEOUTS: usize = 3;
/// How long bytes may come and complete no reply, after a request has timed out. A reply that does
/// not end would otherwise keep its connection, and fail every call, for ever.
const MAX_REPLY_TIME: Duration = Duration::from_secs(10);
/// Minimum age of a connection before it may be retired. Without it, a read-only replica would be
/// connected to anew for every refused Mark, and calls would fail meanwhile.
const MIN_AGE: Duration = Duration::from_secs(2);

/// The callers' end. Clones share the connection; it outlives the sockets that it is driven by.
#[derive(Clone)]
pub(crate) struct Pipe {
    /// The connection that new requests go to; none while the pipe is down.
    current: Arc<Mutex<Option<Arc<Connection>>>>,
    timeout: Duration,
}

/// What the requests on one connection share with its driver.
struct Connection {
    state: Mutex<State>,
    /// As given to [`Pipe::drive`].
    number: u64,
    since: Instant,
}

#[derive(Default)]
struct State {
    /// Commands that the driver has not taken yet.
    out: Vec<u8>,
    /// How many bytes of commands the driver has taken since the connection began.
    taken: u64,
    /// Requests in the order of their commands.
    queue: VecDeque<Entry>,
    /// The number of the request at the front of the queue.
    front: u64,
    /// How many at the front of the queue have got their replies.
    answered: usize,
    /// Set while the driver waits.
    driver: Option<Waker>,
    /// Set once the connection gets no new requests.
    retired: bool,
}

struct Entry {
    /// Where its first command begins among all bytes of the connection.
    start: u64,
    /// Replies that it is still owed, for the scanner.
    replies: usize,
    deadline: Instant,
    /// Whether the deadline has been seen to pass.
    late: bool,
    caller: Caller,
}

enum Caller {
    /// It waits; the waker is there once it was polled.
    Waiting(Option<Waker>),
    /// Its result is there.
    Ready(Result<Bytes, WriteError>),
    /// It has taken its result, or went away without.
    Gone,
}

/// Why a driver ended. For the log and `/readyz`.
#[derive(Debug, Error)]
pub(crate) enum Broken {
    #[error("connection closed")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    #[error("a reply that nobody asked for")]
    Unasked,
    #[error("no answer in time, {MAX_TIMEOUTS} times in a row")]
    Silent,
    #[error("a reply that does not end")]
    Endless,
    #[error("its replies do not belong to its commands")]
    OutOfStep,
    #[error("it answers, but as the wrong server or without our credentials")]
    Retired,
    #[error("a bug of this program; the log has the panic")]
    Panicked,
}

impl Pipe {
    /// A pipe that is down until it is driven. All requests may take as long as `timeout`.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self {
            current: Arc::default(),
            timeout,
        }
    }

    /// Sends what `encode` writes, a command or several, and waits for their replies. An error
    /// means that nothing was sent.
    pub(crate) fn request(
        &self,
        encode: impl FnOnce(&mut Commands<'_>),
    ) -> Result<Request, StoreError> {
        let Some(connection) = self.current().clone() else {
            return Err(StoreError::Unavailable);
        };
        let mut state = lock(&connection.state);
        if state.out.len() > MAX_QUEUED_BYTES {
            return Err(StoreError::Busy);
        }
        let start = state.taken + state.out.len() as u64;
        let mut commands = Commands::new(&mut state.out);
        encode(&mut commands);
        let replies = commands.replies();
        let number = state.front + state.queue.len() as u64;
        let deadline = Instant::now() + self.timeout;
        state.queue.push_back(Entry {
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

    /// Whether it is being driven.
    pub(crate) fn is_up(&self) -> bool {
        self.current().is_some()
    }

    /// Gives connection `number` no new requests, unless it is too new for that; those in flight go
    /// on. Whether there is or will soon be another connection.
    pub(crate) fn retire(&self, number: u64) -> bool {
        let mut current = self.current();
        let is_too_new = match &*current {
            Some(connection) if connection.number == number => connection.since.elapsed() < MIN_AGE,
            // It has been replaced, or is being replaced, already.
            Some(_) | None => return true,
        };
        if is_too_new {
            return false;
        }
        let Some(connection) = current.take() else {
            return true;
        };
        drop(current);
        let mut state = lock(&connection.state);
        state.retired = true;
        if let Some(driver) = state.driver.take() {
            driver.wake();
        }
        true
    }

    /// Drives the pipe over a connected and authenticated `stream`, the connection `number`.
    pub(crate) fn drive<S>(&self, stream: S, number: u64) -> Driver<S> {
        let connection = Arc::new(Connection {
            state: Mutex::default(),
            number,
            since: Instant::now(),
        });
        *self.current() = Some(Arc::clone(&connection));
        Driver {
            pipe: self.clone(),
            connection,
            stream,
            writing: Vec::new(),
            written: 0,
            left: 0,
            unflushed: false,
            reading: BytesMut::new(),
            scanner: None,
            timer: None,
            timeouts: 0,
            heard: Instant::now(),
            late_since: Instant::now(),
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        lock(&self.current)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn entry(&mut self, number: u64) -> Option<&mut Entry> {
        let place = usize::try_from(number.checked_sub(self.front)?).ok()?;
        self.queue.get_mut(place)
    }

    /// Forgets requests that have got and taken everything.
    fn trim(&mut self) {
        while self.answered > 0
            && let Some(Entry {
                caller: Caller::Gone,
                ..
            }) = self.queue.front()
        {
            self.queue.pop_front();
            self.front += 1;
            self.answered -= 1;
        }
    }

    /// The connection is gone, after the first `left` bytes of commands have left our buffer:
    /// nobody will get an answer any more.
    fn close(&mut self, error: StoreError, left: u64) {
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

    /// Whether all requests have got a reply or are late.
    fn is_done(&self) -> bool {
        let mut unanswered = self.queue.iter().skip(self.answered);
        unanswered.all(|entry| entry.late)
    }
}

impl Caller {
    /// Gives it its result, if it still waits for one.
    fn finish(&mut self, result: Result<Bytes, WriteError>) {
        if let Self::Waiting(waker) = self {
            let waker = waker.take();
            *self = Self::Ready(result);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// Waits for the replies to what [`Pipe::request`] sent: all of them, complete, as they came.
///
/// [`StoreError::Unavailable`] says that the connection ended first, [`StoreError::Timeout`] that
/// no answer came in time, or none to the requests before it and the connection was given up. The
/// outcome says whether the commands may have been executed, or may still be.
pub(crate) struct Request {
    connection: Arc<Connection>,
    number: u64,
    deadline: Instant,
}

impl Request {
    /// The number of the connection that it was sent on.
    pub(crate) fn connection(&self) -> u64 {
        self.connection.number
    }

    /// When it gives up.
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
        let mut state = lock(&self.connection.state);
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
        let mut state = lock(&self.connection.state);
        if let Some(entry) = state.entry(self.number) {
            entry.caller = Caller::Gone;
            state.trim();
        }
    }
}

/// Moves bytes between a connection's requests and its socket. Ends when the socket does or when
/// the connection is retired; [`Driver::finish`] then serves what is in flight. Dropping it fails
/// everybody who waits.
pub(crate) struct Driver<S> {
    pipe: Pipe,
    connection: Arc<Connection>,
    stream: S,
    /// Commands on their way into the socket, and how much of them is there.
    writing: Vec<u8>,
    written: usize,
    /// How many bytes of commands may have left our buffer since the connection began.
    left: u64,
    /// Whether the stream may hold back what it was given, as TLS does.
    unflushed: bool,
    reading: BytesMut,
    /// How far the replies to the first unanswered request are.
    scanner: Option<Scanner>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Requests in a row without an answer in time, and when the last bytes came: a peer whose
    /// bytes we are too slow to read is not a silent one.
    timeouts: usize,
    heard: Instant,
    /// When the first of those requests timed out.
    late_since: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Driver<S> {
    type Output = Broken;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Broken> {
        let this = &mut *self;
        if let Poll::Ready(broken) = this.poll_io(cx) {
            return Poll::Ready(broken);
        }
        match lock(&this.connection.state).retired {
            true => Poll::Ready(Broken::Retired),
            false => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Serves a retired connection until its requests have got their replies, which takes no longer
    /// than they may take.
    pub(crate) async fn finish(mut self) {
        std::future::poll_fn(|cx| {
            let ended = self.poll_io(cx).is_ready();
            if ended || lock(&self.connection.state).is_done() {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    /// Moves what can be moved; ready when the connection has ended.
    fn poll_io(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        // Both directions, always: a peer that waits for us to read must not keep us from it.
        if let Poll::Ready(broken) = self.poll_read(cx) {
            return Poll::Ready(broken);
        }
        if let Poll::Ready(error) = self.poll_write(cx) {
            return Poll::Ready(error.into());
        }
        let silent = self.poll_timeouts(cx);
        if silent.is_ready() {
            self.close(StoreError::Timeout);
        }
        silent
    }

    /// Writes until there is nothing left or the socket is full.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            if self.written < self.writing.len() {
                let rest = &self.writing[self.written..];
                let before = self.left;
                // Until the stream says how much it took: TLS may send a part and then fail.
                self.left += rest.len() as u64;
                let Poll::Ready(result) = Pin::new(&mut self.stream).poll_write(cx, rest) else {
                    self.left = before;
                    // Not only the socket wakes the driver: so does whoever retires it.
                    lock(&self.connection.state).driver = Some(cx.waker().clone());
                    return Poll::Pending;
                };
                match result {
                    Ok(0) => return Poll::Ready(io::ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        self.written += written;
                        self.left = before + written as u64;
                    }
                    Err(error) => return Poll::Ready(error),
                }
                self.unflushed = true;
                continue;
            }
            self.writing.clear();
            self.writing.shrink_to(MAX_SPARE_BYTES);
            self.written = 0;
            let mut state = lock(&self.connection.state);
            if !state.out.is_empty() {
                state.taken += state.out.len() as u64;
                std::mem::swap(&mut self.writing, &mut state.out);
                continue;
            }
            state.driver = Some(cx.waker().clone());
            drop(state);
            if !self.unflushed {
                return Poll::Pending;
            }
            match ready!(Pin::new(&mut self.stream).poll_flush(cx)) {
                Ok(()) => self.unflushed = false,
                Err(error) => return Poll::Ready(error),
            }
        }
    }

    /// Reads until the socket is empty, and hands out complete replies.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        loop {
            self.reading.reserve(READ_BYTES);
            match ready!(poll_read_buf(
                Pin::new(&mut self.stream),
                cx,
                &mut self.reading
            )) {
                Ok(0) => return Poll::Ready(Broken::Closed),
                Ok(_) => self.heard = Instant::now(),
                Err(error) => return Poll::Ready(error.into()),
            }
            if let Err(broken) = self.hand_out() {
                return Poll::Ready(broken);
            }
        }
    }

    /// Gives complete replies to those who wait for them, in order.
    fn hand_out(&mut self) -> Result<(), Broken> {
        let mut state = lock(&self.connection.state);
        let state = &mut *state;
        while !self.reading.is_empty() {
            let entry = state.queue.get_mut(state.answered).ok_or(Broken::Unasked)?;
            let scanner = self
                .scanner
                .get_or_insert_with(|| Scanner::new(entry.replies));
            let Some(length) = scanner.scan(&self.reading)? else {
                break;
            };
            self.scanner = None;
            self.timeouts = 0;
            entry
                .caller
                .finish(Ok(self.reading.split_to(length).freeze()));
            state.answered += 1;
        }
        // Those who have left are at the front only now.
        state.trim();
        Ok(())
    }

    /// Fails requests whose time is up. One timer serves all of them: requests are in the order
    /// of their deadlines, because all have the same timeout.
    fn poll_timeouts(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        loop {
            let timer = match &mut self.timer {
                Some(timer) => timer,
                None => {
                    let state = lock(&self.connection.state);
                    let Some(oldest) = state.queue.get(state.answered) else {
                        return Poll::Pending;
                    };
                    self.timer
                        .insert(Box::pin(tokio::time::sleep_until(oldest.deadline)))
                }
            };
            ready!(timer.as_mut().poll(cx));
            self.timer = None;
            let now = Instant::now();
            let mut state = lock(&self.connection.state);
            let answered = state.answered;
            let mut next = None;
            for entry in state.queue.iter_mut().skip(answered) {
                if entry.deadline > now {
                    next = Some(entry.deadline);
                    break;
                }
                // Counted whether or not somebody still waits: callers with short deadlines of
                // their own must not hide a dead connection.
                if !entry.late {
                    entry.late = true;
                    if self.timeouts == 0 {
                        self.late_since = now;
                    }
                    self.timeouts += 1;
                    // Its bytes may leave our buffer yet.
                    let failed = WriteError::unknown(StoreError::Timeout);
                    entry.caller.finish(Err(failed));
                }
            }
            let silence = now.duration_since(self.heard);
            if self.timeouts >= MAX_TIMEOUTS && silence >= self.pipe.timeout {
                return Poll::Ready(Broken::Silent);
            }
            if self.timeouts >= MAX_TIMEOUTS && now - self.late_since >= MAX_REPLY_TIME {
                return Poll::Ready(Broken::Endless);
            }
            // The next in time, not the next in place: that one has already failed.
            match next {
                Some(deadline) => {
                    self.timer = Some(Box::pin(tokio::time::sleep_until(deadline)));
                }
                None => return Poll::Pending,
            }
        }
    }
}

impl<S> Driver<S> {
    /// Fails everybody who waits.
    fn close(&self, error: StoreError) {
        let mut current = self.pipe.current();
        current.take_if(|current| current.number == self.connection.number);
        drop(current);
        lock(&self.connection.state).close(error, self.left);
    }
}

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        self.close(StoreError::Unavailable);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::ReadBuf;

    use super::*;

    /// Sends some of what it is given, and then fails without a word of how much: as TLS does.
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
    async fn what_was_offered_to_a_stream_that_failed_may_have_been_executed() {
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
