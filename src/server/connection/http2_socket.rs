//! The socket that HTTP/2 gets: it reads the client preface first, bounds what is read in one turn,
//! and has no vectored writes.
//!
//! The preface is read here for two reasons. A connection on which h2 still waits for the preface
//! cannot be shut down gracefully. And a client that speaks another protocol can be told so.
//!
//! On a socket with vectored writes, h2 flushes after every DATA frame of 256 bytes or more. On a
//! socket without them, it copies frames of up to 1,023 bytes into its buffer and sends many
//! replies with one system call. For values of 500 bytes that halves the CPU of a Get
//! (`docs/performance.md`). Larger frames are never copied.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    time::{Instant, Sleep},
};

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

/// Wraps a client's socket. Writing fails when the peer takes no bytes for too long.
#[derive(Debug)]
pub(crate) struct Http2Socket<S> {
    inner: S,
    /// How much of the preface HTTP/2 has read.
    replayed: usize,
    /// How many bytes were read since there was last nothing to read.
    in_a_row: usize,
    turn: Turn,
    budget: Option<ConnectionBudget>,
    /// Set while the connection pauses.
    pause: Option<Pin<Box<Sleep>>>,
    last_read: LastRead,
    send_timeout: Duration,
    /// Set while the peer takes no bytes.
    stalled: Option<Pin<Box<Sleep>>>,
    unwritten: Unwritten,
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
        Ok(Self {
            inner: socket,
            replayed: 0,
            in_a_row: 0,
            turn: Turn::default(),
            budget: None,
            pause: None,
            last_read: LastRead::now(),
            send_timeout,
            stalled: None,
            unwritten: Unwritten::default(),
        })
    }
}

/// Whether bytes wait to be written to the socket. Clones are about the same socket.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unwritten(Arc<AtomicBool>);

impl Unwritten {
    pub(crate) fn is_some(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many bytes were read since other tasks last had their turn. Clones are about the same socket.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turn(Arc<AtomicUsize>);

impl Turn {
    /// To be called when the connection's task is polled.
    pub(crate) fn begin(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// When a socket last gave something to read. Clones are about the same socket.
#[derive(Debug, Clone)]
pub(crate) struct LastRead {
    start: Instant,
    /// In milliseconds since `start`.
    at: Arc<AtomicU64>,
}

impl LastRead {
    fn now() -> Self {
        Self {
            start: Instant::now(),
            at: Arc::default(),
        }
    }

    fn note(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at.store(millis, Ordering::Relaxed);
    }

    pub(crate) fn elapsed(&self) -> Duration {
        let at = Duration::from_millis(self.at.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(at)
    }
}

impl<S> Http2Socket<S> {
    /// From now on, reads less in each turn while this budget is pressed.
    pub(crate) fn watch_pressure(&mut self, budget: ConnectionBudget) {
        self.budget = Some(budget);
    }

    pub(crate) fn turn(&self) -> Turn {
        self.turn.clone()
    }

    pub(crate) fn last_read(&self) -> LastRead {
        self.last_read.clone()
    }

    pub(crate) fn unwritten(&self) -> Unwritten {
        self.unwritten.clone()
    }

    /// Returns the result of a write, or an error if writing has waited for too long.
    fn unless_stalled<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            if self.stalled.take().is_some() {
                self.unwritten.0.store(false, Ordering::Relaxed);
            }
            return polled;
        }
        let send_timeout = self.send_timeout;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(send_timeout)));
        self.unwritten.0.store(true, Ordering::Relaxed);
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Http2Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
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
        let in_this_turn = self.turn.0.load(Ordering::Relaxed);
        if in_this_turn >= most {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = if pressed {
            let length = (most - in_this_turn).min(buffer.remaining());
            let mut part = ReadBuf::new(buffer.initialize_unfilled_to(length));
            let polled = Pin::new(&mut self.inner).poll_read(cx, &mut part);
            let length = part.filled().len();
            buffer.advance(length);
            polled
        } else {
            Pin::new(&mut self.inner).poll_read(cx, buffer)
        };
        let read = buffer.filled().len() - before;
        self.turn.0.store(in_this_turn + read, Ordering::Relaxed);
        if polled.is_ready() {
            self.last_read.note();
        }
        self.in_a_row = match polled {
            Poll::Ready(_) => self.in_a_row + buffer.filled().len() - before,
            Poll::Pending => 0,
        };
        polled
    }
}

// `is_write_vectored` and `poll_write_vectored` keep their defaults on purpose: no vectored writes.
impl<S: AsyncWrite + Unpin> AsyncWrite for Http2Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.unless_stalled(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.unless_stalled(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
