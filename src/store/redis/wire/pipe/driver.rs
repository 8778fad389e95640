//! The task that moves bytes between a connection's requests and its socket.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep},
};
use tokio_util::io::poll_read_buf;

use super::{
    super::resp::{ProtocolError, Scanner},
    queue::{CurrentConnection, PipeConnection},
};
use crate::store::failure::{StoreError, WriteError};

/// Room for one read, which may bring many small replies.
const READ_BYTES: usize = 16 * 1024;
/// How much memory an empty buffer may keep after a burst.
const MAX_SPARE_BYTES: usize = 1 << 20;
/// A connection is dead if this many requests in a row get no answer in time.
const MAX_TIMEOUTS: usize = 3;
/// How long bytes may come without completing a reply, after a request has timed out. Otherwise a
/// reply without end would keep its connection, and fail every call, for ever.
const MAX_REPLY_TIME: Duration = Duration::from_secs(10);

/// Why a driver ended. The messages are for the log and `/readyz`.
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

/// Moves bytes between a connection's requests and its socket. Ends when the socket does, or when
/// the connection is retired; [`Driver::finish`] then serves what is in flight. Dropping the driver
/// fails all requests that wait.
pub(crate) struct Driver<S> {
    stream: S,
    connection: Arc<PipeConnection>,
    /// Where requests find the connection, unless another one has taken its place.
    current: CurrentConnection,
    /// How long a request may take.
    timeout: Duration,
    /// Commands on their way into the socket.
    writing: Vec<u8>,
    /// How many bytes of `writing` the socket has taken.
    written: usize,
    /// How many bytes of commands may have left our buffer since the connection began.
    left: u64,
    /// Whether the stream may hold back some of what it was given, as TLS does.
    unflushed: bool,
    reading: BytesMut,
    /// How much has come of the replies to the first unanswered request.
    scanner: Option<Scanner>,
    timer: Option<Pin<Box<Sleep>>>,
    /// How many requests in a row got no answer in time.
    timeouts: usize,
    /// When the last bytes came. A peer is not silent if we are too slow to read its bytes.
    heard: Instant,
    /// When the first of the requests that `timeouts` counts timed out.
    late_since: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Driver<S> {
    type Output = Broken;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Broken> {
        let this = &mut *self;
        if let Poll::Ready(broken) = this.poll_io(cx) {
            return Poll::Ready(broken);
        }
        match this.connection.lock().retired {
            true => Poll::Ready(Broken::Retired),
            false => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Serves a retired connection until its requests have their replies or have timed out.
    pub(crate) async fn finish(mut self) {
        std::future::poll_fn(|cx| {
            let ended = self.poll_io(cx).is_ready();
            if ended || self.connection.lock().is_done() {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    /// Moves what can be moved. Is ready when the connection has ended.
    fn poll_io(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        // Always both directions. A peer that reads nothing until we read would otherwise block
        // us for ever.
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

    /// Writes until nothing is left or the socket is full.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            if self.written < self.writing.len() {
                let rest = &self.writing[self.written..];
                let before = self.left;
                // All of it may leave: TLS may send a part and then fail. If the stream says how
                // much it took, that counts instead.
                self.left += rest.len() as u64;
                let Poll::Ready(result) = Pin::new(&mut self.stream).poll_write(cx, rest) else {
                    self.left = before;
                    // The socket wakes the driver, and so does whoever retires the connection.
                    self.connection.lock().driver = Some(cx.waker().clone());
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
            let mut state = self.connection.lock();
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

    /// Reads until the socket is empty, and hands complete replies out.
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

    /// Gives complete replies to their requests, in order.
    fn hand_out(&mut self) -> Result<(), Broken> {
        let mut state = self.connection.lock();
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
        // Requests whose callers are gone may be at the front now.
        state.trim();
        Ok(())
    }

    /// Fails requests whose deadline has passed. One timer is enough for all: requests are in the
    /// order of their deadlines, because all have the same timeout.
    fn poll_timeouts(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        loop {
            let timer = match &mut self.timer {
                Some(timer) => timer,
                None => {
                    let state = self.connection.lock();
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
            let mut state = self.connection.lock();
            let answered = state.answered;
            let mut next = None;
            for entry in state.queue.iter_mut().skip(answered) {
                if entry.deadline > now {
                    next = Some(entry.deadline);
                    break;
                }
                // Counted whether or not its caller still waits. Callers with short deadlines of
                // their own must not hide a dead connection.
                if !entry.late {
                    entry.late = true;
                    if self.timeouts == 0 {
                        self.late_since = now;
                    }
                    self.timeouts += 1;
                    // Its bytes may still leave our buffer.
                    let failed = WriteError::unknown(StoreError::Timeout);
                    entry.caller.finish(Err(failed));
                }
            }
            let silence = now.duration_since(self.heard);
            if self.timeouts >= MAX_TIMEOUTS && silence >= self.timeout {
                return Poll::Ready(Broken::Silent);
            }
            if self.timeouts >= MAX_TIMEOUTS && now - self.late_since >= MAX_REPLY_TIME {
                return Poll::Ready(Broken::Endless);
            }
            // Wait for the next deadline. The next request in the queue may have failed already.
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
    pub(super) fn new(
        stream: S,
        connection: Arc<PipeConnection>,
        current: CurrentConnection,
        timeout: Duration,
    ) -> Self {
        Self {
            stream,
            connection,
            current,
            timeout,
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

    /// Fails all requests that wait.
    fn close(&self, error: StoreError) {
        let mut current = self.current.lock();
        current.take_if(|current| current.number == self.connection.number);
        drop(current);
        self.connection.lock().close(error, self.left);
    }
}

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        self.close(StoreError::Unavailable);
    }
}
