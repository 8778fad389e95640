//! The socket that HTTP/2 gets: it reads the client preface first, bounds what is read in one turn,
//! and gathers what is written in one turn.
//!
//! The preface is read here for two reasons. A connection on which h2 still waits for the preface
//! cannot be shut down gracefully. And a client that speaks another protocol can be told so.
//!
//! h2 owns one clone of the socket. The task of the connection has another one: it begins a turn,
//! polls h2, and ends the turn, which sends what h2 has written (`output.rs`).

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    time::{Instant, Sleep},
};

use super::output::Output;
use crate::budget::ConnectionBudget;

/// What every HTTP/2 client sends first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The answer to a browser or another HTTP/1 client.
const NOT_HTTP2: &[u8] = b"HTTP/1.1 505 HTTP Version Not Supported\r\n\
    content-type: text/plain\r\ncontent-length: 46\r\nconnection: close\r\n\r\n\
    This is a gRPC server; it speaks only HTTP/2.\n";

/// After this many bytes in a row the connection pauses. HTTP/2 reads for as long as there is
/// something to read. These bytes may be seven thousand small frames, so a flood of them would
/// leave little time to the other connections of the event loop. A single yield is not enough: tokio would then poll
/// the other sockets only now and then. One connection can still send 40 MB/s.
const MAX_BYTES_IN_A_ROW: usize = 64 * 1024;
/// How long the connection pauses.
const PAUSE: Duration = Duration::from_millis(1);
/// After this many bytes the calls of the connection get their turn. Otherwise HTTP/2 would accept
/// all calls that it can read before any of them runs, and would keep the memory for so many calls
/// as long as the connection lasts. The last read may go beyond the limit.
const TURN_BYTES: usize = 4 * 1024;
/// The exact limit instead, while the worker's memory budget is pressed.
const PRESSED_BYTES: usize = 1024;
/// How much of an HTTP/1 request is read and discarded. Its head is smaller.
const MAX_UNREAD_BYTES: u64 = 16 * 1024;

/// Wraps a client's socket. Clones are the same socket. Only the task of the connection uses them, so
/// nobody ever waits for the lock.
#[derive(Debug)]
pub(crate) struct Http2Socket<S>(Arc<Mutex<State<S>>>);

#[derive(Debug)]
struct State<S> {
    inner: S,
    /// How much of the preface HTTP/2 has read.
    replayed: usize,
    /// How many bytes were read since there was last nothing to read.
    in_a_row: usize,
    /// How many bytes were read in this turn.
    in_this_turn: usize,
    budget: Option<ConnectionBudget>,
    /// Set while the connection pauses.
    pause: Option<Pin<Box<Sleep>>>,
    last_read: Instant,
    output: Output,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Http2Socket<S> {
    /// Waits for the client preface. An HTTP/1 client gets an answer that says what is wrong. After
    /// the preface, a write fails when the peer has taken no bytes for `send_timeout`.
    pub(crate) async fn greet(mut socket: S, send_timeout: Duration) -> io::Result<Self> {
        let mut buffer = [0; PREFACE.len()];
        let mut seen = 0;
        while seen < PREFACE.len() {
            match socket.read(&mut buffer[seen..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => seen += more,
            }
            if !PREFACE.starts_with(&buffer[..seen]) {
                // A TLS client gets no answer. TLS begins with a byte that is not a letter.
                if buffer[0].is_ascii_uppercase() {
                    socket.write_all(NOT_HTTP2).await?;
                    socket.shutdown().await?;
                    // Closing a socket with unread bytes would make the kernel discard the answer.
                    let mut rest = socket.take(MAX_UNREAD_BYTES);
                    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
                }
                return Err(io::Error::other("it does not speak HTTP/2"));
            }
        }
        Ok(Self(Arc::new(Mutex::new(State {
            inner: socket,
            replayed: 0,
            in_a_row: 0,
            in_this_turn: 0,
            budget: None,
            pause: None,
            last_read: Instant::now(),
            output: Output::new(send_timeout),
        }))))
    }
}

impl<S> Http2Socket<S> {
    fn state(&self) -> MutexGuard<'_, State<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, unsent bytes count in this budget. While it is pressed, the socket reads less in
    /// each turn.
    pub(crate) fn watch_budget(&self, budget: ConnectionBudget) {
        self.state().budget = Some(budget);
    }

    /// To be called when the connection's task is polled, before HTTP/2 is.
    pub(crate) fn begin_turn(&self) {
        self.state().in_this_turn = 0;
    }

    /// How long there has been nothing to read.
    pub(crate) fn silence(&self) -> Duration {
        self.state().last_read.elapsed()
    }

    /// Whether bytes wait because the peer takes none.
    pub(crate) fn is_stalled(&self) -> bool {
        self.state().output.is_stalled()
    }
}

impl<S: AsyncWrite + Unpin> Http2Socket<S> {
    /// To be called after HTTP/2 was polled: sends what it has written in this turn. If the peer
    /// does not take all of it, the task is woken when it does, or after `send_timeout`.
    pub(crate) fn poll_end_turn(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state().poll_flush(cx)
    }
}

impl<S> Clone for Http2Socket<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: AsyncRead + Unpin> State<S> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = &PREFACE[self.replayed..];
        if !rest.is_empty() {
            let length = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..length]);
            self.replayed += length;
            return Poll::Ready(Ok(()));
        }
        if self.in_a_row > MAX_BYTES_IN_A_ROW {
            let pause = self
                .pause
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(PAUSE)));
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
            self.in_a_row = 0;
        }
        let before = buffer.filled().len();
        let pressed = self
            .budget
            .as_ref()
            .is_some_and(ConnectionBudget::is_pressed);
        let most = if pressed { PRESSED_BYTES } else { TURN_BYTES };
        if self.in_this_turn >= most {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = if pressed {
            let length = (most - self.in_this_turn).min(buffer.remaining());
            let mut part = ReadBuf::new(buffer.initialize_unfilled_to(length));
            let polled = Pin::new(&mut self.inner).poll_read(cx, &mut part);
            let length = part.filled().len();
            buffer.advance(length);
            polled
        } else {
            Pin::new(&mut self.inner).poll_read(cx, buffer)
        };
        let read = buffer.filled().len() - before;
        self.in_this_turn += read;
        if polled.is_ready() {
            self.last_read = Instant::now();
            self.in_a_row += read;
        } else {
            self.in_a_row = 0;
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> State<S> {
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let budget = self.budget.as_ref();
        self.output.poll_flush(cx, &mut self.inner, budget)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Http2Socket<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.state().poll_read(cx, buffer)
    }
}

// `is_write_vectored` and `poll_write_vectored` keep their defaults on purpose: no vectored writes.
impl<S: AsyncWrite + Unpin> AsyncWrite for Http2Socket<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let state = &mut *self.state();
        let budget = state.budget.as_ref();
        state
            .output
            .poll_gather(cx, &mut state.inner, budget, bytes)
    }

    /// Does nothing: h2 flushes after every large frame. The end of the turn flushes.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.state();
        ready!(state.poll_flush(cx))?;
        Pin::new(&mut state.inner).poll_shutdown(cx)
    }
}
