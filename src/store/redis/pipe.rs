//! One pipelined connection: many calls at once, each waiting for its own replies.
//!
//! Redis answers in the order of its commands, so a queue is all that is needed to find whose a
//! reply is. A [`Request`] appends its command to a shared output buffer and joins the queue; the
//! [`Driver`], one task, writes what has gathered with one system call, reads what is there with
//! another, and hands each reply to its request as one piece of bytes, unparsed.
//!
//! The lock is never contended: requests and driver run on one thread, and it is not held across
//! a wait. A request that is dropped leaves its place in the queue, and its reply is thrown away:
//! dropping cancels the wait, not the command.

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
use crate::store::StoreError;

/// Room for a read: many small replies at once.
const READ_BYTES: usize = 16 * 1024;
/// Commands that wait to be written, in bytes. More only gathers while Redis does not read.
const MAX_QUEUED_BYTES: usize = 64 << 20;
/// What an empty buffer may keep allocated after a burst.
const MAX_SPARE_BYTES: usize = 1 << 20;
/// Requests in a row without an answer in time that make a connection a dead one.
const MAX_TIMEOUTS: usize = 3;
/// The least time between two connections of which the first was given up for what Redis answered
/// on it. A replica would otherwise have every refused Mark disturb the Gets beside it.
const MIN_TRUST: Duration = Duration::from_secs(2);

/// The callers' end. Clones share the connection; it outlives the sockets that it is driven by.
#[derive(Clone)]
pub(super) struct Pipe {
    shared: Arc<Mutex<State>>,
    timeout: Duration,
}

#[derive(Default)]
struct State {
    /// What is being driven; none while the pipe is down.
    connection: Option<Connection>,
    /// Commands that the driver has not taken yet.
    out: Vec<u8>,
    /// Requests in the order of their commands.
    queue: VecDeque<Entry>,
    /// The number of the request at the front of the queue.
    front: u64,
    /// How many at the front of the queue have got their replies.
    answered: usize,
    /// Set while the driver waits.
    driver: Option<Waker>,
}

struct Connection {
    /// As given to [`Pipe::drive`].
    number: u64,
    since: Instant,
    distrusted: bool,
}

struct Entry {
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
    Ready(Result<Bytes, StoreError>),
    /// It has taken its result, or went away without.
    Gone,
}

/// Why a driver ended. For the log and `/readyz`.
#[derive(Debug, Error)]
pub(super) enum Broken {
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
    #[error("it answers, but as the wrong server or without our credentials")]
    Distrusted,
    #[error("a bug of this program; the log has the panic")]
    Panicked,
}

impl Pipe {
    /// A pipe that is down until it is driven. All requests may take as long as `timeout`.
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            shared: Arc::default(),
            timeout,
        }
    }

    /// Sends what `encode` writes, a command or several, and waits for their replies.
    pub(super) fn request(
        &self,
        encode: impl FnOnce(&mut Commands<'_>),
    ) -> Result<Request, StoreError> {
        let mut state = self.state();
        let Some(connection) = state.connection.as_ref().map(|current| current.number) else {
            return Err(StoreError::Unavailable);
        };
        if state.out.len() > MAX_QUEUED_BYTES {
            return Err(StoreError::Busy);
        }
        let mut commands = Commands::new(&mut state.out);
        encode(&mut commands);
        let replies = commands.replies();
        let number = state.front + state.queue.len() as u64;
        let deadline = Instant::now() + self.timeout;
        state.queue.push_back(Entry {
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
            shared: Arc::clone(&self.shared),
            number,
            connection,
            deadline,
        })
    }

    /// Whether it is being driven.
    pub(super) fn is_up(&self) -> bool {
        self.state().connection.is_some()
    }

    /// Gives up connection `number` because of what Redis answers on it, unless it is too new for
    /// that. Whether there is or will soon be another one.
    pub(super) fn distrust(&self, number: u64) -> bool {
        let mut state = self.state();
        match &mut state.connection {
            Some(current) if current.number == number => {
                if current.since.elapsed() < MIN_TRUST {
                    return false;
                }
                current.distrusted = true;
                if let Some(driver) = state.driver.take() {
                    driver.wake();
                }
                true
            }
            // It has been replaced, or is being replaced, already.
            _ => true,
        }
    }

    /// Drives the pipe over a connected and authenticated `stream`, the connection `number`.
    pub(super) fn drive<S>(&self, stream: S, number: u64) -> Driver<S> {
        let mut state = self.state();
        state.connection = Some(Connection {
            number,
            since: Instant::now(),
            distrusted: false,
        });
        drop(state);
        Driver {
            pipe: self.clone(),
            stream,
            writing: Vec::new(),
            written: 0,
            unflushed: false,
            reading: BytesMut::new(),
            scanner: None,
            timer: None,
            timeouts: 0,
            heard: Instant::now(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared)
    }
}

fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// The connection is gone: nobody will get an answer any more.
    fn close(&mut self, error: StoreError) {
        self.connection = None;
        self.out = Vec::new();
        self.answered = self.queue.len();
        for entry in &mut self.queue {
            entry.caller.finish(Err(error));
        }
        self.trim();
    }
}

impl Caller {
    /// Gives it its result, if it still waits for one.
    fn finish(&mut self, result: Result<Bytes, StoreError>) {
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
/// [`StoreError::Unavailable`] says that the connection ended first, which its peer did or this
/// end for what the peer said; [`StoreError::Timeout`] that no answer came, be it that the
/// connection was then given up as a silent one. The difference matters to whoever repeats a
/// command: a peer that has closed a connection will not run what is still on its way there, one
/// that is only slow might, later than what is sent on the next connection.
pub(super) struct Request {
    shared: Arc<Mutex<State>>,
    number: u64,
    connection: u64,
    deadline: Instant,
}

impl Request {
    /// The number of the connection that it was sent on.
    pub(super) fn connection(&self) -> u64 {
        self.connection
    }

    /// When it gives up.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Future for Request {
    type Output = Result<Bytes, StoreError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.shared);
        let Some(entry) = state.entry(self.number) else {
            // Only a request that was polled after its end is no longer in the queue.
            return Poll::Ready(Err(StoreError::Unexpected));
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
                Caller::Gone | Caller::Waiting(_) => Poll::Ready(Err(StoreError::Unexpected)),
            },
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut state = lock(&self.shared);
        if let Some(entry) = state.entry(self.number) {
            entry.caller = Caller::Gone;
            state.trim();
        }
    }
}

/// Moves bytes between the pipe and a socket. Ends when the connection does, and then fails
/// everybody who waits; so does dropping it.
pub(super) struct Driver<S> {
    pipe: Pipe,
    stream: S,
    /// Commands on their way into the socket, and how much of them is there.
    writing: Vec<u8>,
    written: usize,
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
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Driver<S> {
    type Output = Broken;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Broken> {
        let this = &mut *self;
        // Both directions, always: a peer that waits for us to read must not keep us from it.
        if let Poll::Ready(broken) = this.poll_read(cx) {
            return Poll::Ready(broken);
        }
        if let Poll::Ready(error) = this.poll_write(cx) {
            return Poll::Ready(error.into());
        }
        if this.distrusted() {
            return Poll::Ready(Broken::Distrusted);
        }
        let silent = this.poll_timeouts(cx);
        if silent.is_ready() {
            this.pipe.state().close(StoreError::Timeout);
        }
        silent
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Writes until there is nothing left or the socket is full.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            if self.written < self.writing.len() {
                let rest = &self.writing[self.written..];
                match ready!(Pin::new(&mut self.stream).poll_write(cx, rest)) {
                    Ok(0) => return Poll::Ready(io::ErrorKind::WriteZero.into()),
                    Ok(written) => self.written += written,
                    Err(error) => return Poll::Ready(error),
                }
                self.unflushed = true;
                continue;
            }
            self.writing.clear();
            self.writing.shrink_to(MAX_SPARE_BYTES);
            self.written = 0;
            let mut state = self.pipe.state();
            if !state.out.is_empty() {
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
        let mut state = self.pipe.state();
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

    fn distrusted(&self) -> bool {
        let state = self.pipe.state();
        state.connection.as_ref().is_some_and(|it| it.distrusted)
    }

    /// Fails requests whose time is up. One timer serves all of them: requests are in the order
    /// of their deadlines, because all have the same timeout.
    fn poll_timeouts(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        loop {
            let timer = match &mut self.timer {
                Some(timer) => timer,
                None => {
                    let state = self.pipe.state();
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
            let mut state = self.pipe.state();
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
                    self.timeouts += 1;
                    entry.caller.finish(Err(StoreError::Timeout));
                }
            }
            let silence = now.duration_since(self.heard);
            if self.timeouts >= MAX_TIMEOUTS && silence >= self.pipe.timeout {
                return Poll::Ready(Broken::Silent);
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

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        self.pipe.state().close(StoreError::Unavailable);
    }
}
