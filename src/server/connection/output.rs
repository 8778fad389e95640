//! Gathers what HTTP/2 writes in one turn of the connection's task, so that it is sent together.
//!
//! h2 copies small DATA frames into its buffer. It writes each frame of 1,024 bytes or more on its
//! own, in two pieces, and flushes after it. Without this buffer, each reply to a BatchGet would take
//! two system calls.
//!
//! The bytes are in a buffer of the worker's thread. Only bytes that the peer does not take at the
//! end of the turn get a buffer of their own. They count in the budget of the connection, and HTTP/2
//! can write no more until they are sent. So a connection has at most [`MAX_GATHERED_BYTES`] here,
//! and an idle connection has none.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{io::AsyncWrite, time::Sleep};

use crate::budget::{ConnectionBudget, Reservation};

/// After this many bytes the turn's output is sent early.
const MAX_GATHERED_BYTES: usize = 64 * 1024;

thread_local! {
    /// The buffer for the turn of any connection. Empty during a turn that uses it.
    static TURN_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What waits to be sent.
#[derive(Debug)]
pub(super) struct Output {
    gathered: Vec<u8>,
    /// How many of these bytes have been sent.
    sent: usize,
    /// Whether the bytes are left from an earlier turn, or from earlier in this turn.
    left: bool,
    /// For bytes that are left.
    reservation: Option<Reservation>,
    send_timeout: Duration,
    /// Set while the peer takes no bytes.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Output {
    /// Sending fails when the peer has taken no bytes for `send_timeout`.
    pub(super) fn new(send_timeout: Duration) -> Self {
        Self {
            gathered: Vec::new(),
            sent: 0,
            left: false,
            reservation: None,
            send_timeout,
            stalled: None,
        }
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// Takes some of `bytes`, and returns how many. Pending while the peer does not take earlier
    /// bytes.
    pub(super) fn poll_gather<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
        budget: Option<&ConnectionBudget>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.left || self.gathered.len() == MAX_GATHERED_BYTES {
            ready!(self.poll_send(cx, socket, budget))?;
        }
        if self.gathered.capacity() == 0 {
            self.gathered = TURN_BUFFER.take();
            self.gathered.reserve_exact(MAX_GATHERED_BYTES);
        }
        let length = bytes.len().min(MAX_GATHERED_BYTES - self.gathered.len());
        self.gathered.extend_from_slice(&bytes[..length]);
        Poll::Ready(Ok(length))
    }

    /// Sends all that was gathered.
    pub(super) fn poll_flush<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
        budget: Option<&ConnectionBudget>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx, socket, budget))?;
        let flushed = Pin::new(socket).poll_flush(cx);
        self.unless_stalled(cx, flushed)
    }

    fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
        budget: Option<&ConnectionBudget>,
    ) -> Poll<io::Result<()>> {
        if self.gathered.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.sent < self.gathered.len() {
            let written = Pin::new(&mut *socket).poll_write(cx, &self.gathered[self.sent..]);
            let Poll::Ready(written) = self.unless_stalled(cx, written) else {
                if !self.left {
                    self.keep_rest(budget);
                }
                return Poll::Pending;
            };
            match written? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        self.reservation = None;
        if std::mem::take(&mut self.left) {
            self.gathered = Vec::new();
        } else {
            self.gathered.clear();
            TURN_BUFFER.set(std::mem::take(&mut self.gathered));
        }
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    fn keep_rest(&mut self, budget: Option<&ConnectionBudget>) {
        let rest = self.gathered.split_off(self.sent);
        self.gathered.clear();
        TURN_BUFFER.set(std::mem::replace(&mut self.gathered, rest));
        self.sent = 0;
        self.reservation = budget.map(|budget| budget.hold(self.gathered.len()));
        self.left = true;
    }

    /// Returns the result of a write, or an error if writing has waited for too long.
    fn unless_stalled<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let send_timeout = self.send_timeout;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(send_timeout)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        io::{ErrorKind, Read as _},
        os::unix::net::UnixStream as StdUnixStream,
    };

    use tokio::net::UnixStream;

    use super::*;
    use crate::budget::WorkerBudget;

    const SEND_TIMEOUT: Duration = Duration::from_secs(5);

    struct Line {
        output: Output,
        socket: UnixStream,
        budget: ConnectionBudget,
        // The budget is idle with two clones: this is the other one.
        _calls: ConnectionBudget,
    }

    impl Line {
        fn new() -> (Self, StdUnixStream) {
            let (socket, peer) = StdUnixStream::pair().expect("sockets");
            socket.set_nonblocking(true).expect("non-blocking");
            peer.set_nonblocking(true).expect("non-blocking");
            let budget = WorkerBudget::default().for_connection();
            let line = Self {
                output: Output::new(SEND_TIMEOUT),
                socket: UnixStream::from_std(socket).expect("a runtime"),
                _calls: budget.clone(),
                budget,
            };
            (line, peer)
        }

        fn poll_gather(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let budget = Some(&self.budget);
            self.output.poll_gather(cx, &mut self.socket, budget, bytes)
        }

        fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let budget = Some(&self.budget);
            self.output.poll_flush(cx, &mut self.socket, budget)
        }

        /// Writes turns of bytes until the peer's socket is full. Returns how many bytes were taken.
        async fn fill(&mut self) -> usize {
            // Before this, the runtime does not know that the socket can be written to.
            self.socket.writable().await.expect("writable");
            let mut taken = 0;
            poll_fn(|cx| {
                loop {
                    for _ in 0..10 {
                        let bytes: Vec<u8> = (taken..taken + 3000).map(pattern).collect();
                        match self.poll_gather(cx, &bytes) {
                            Poll::Ready(length) => taken += length.expect("taken"),
                            Poll::Pending => return Poll::Ready(()),
                        }
                    }
                    if self.poll_flush(cx).is_pending() {
                        return Poll::Ready(());
                    }
                }
            })
            .await;
            taken
        }
    }

    fn pattern(position: usize) -> u8 {
        (position % 251) as u8
    }

    #[tokio::test]
    async fn bytes_are_sent_together_at_the_end_of_the_turn() {
        let (mut line, mut peer) = Line::new();
        let mut buffer = [0; 100];
        for piece in [&b"one "[..], b"turn"] {
            let length = poll_fn(|cx| line.poll_gather(cx, piece)).await;
            assert_eq!(length.expect("taken"), piece.len());
            let early = peer.read(&mut buffer).expect_err("nothing to read yet");
            assert_eq!(early.kind(), ErrorKind::WouldBlock);
        }
        poll_fn(|cx| line.poll_flush(cx)).await.expect("sent");
        let length = peer.read(&mut buffer).expect("sent");
        assert_eq!(&buffer[..length], b"one turn");
        assert_eq!(line.output.gathered.capacity(), 0);
    }

    #[tokio::test]
    async fn bytes_that_the_peer_does_not_take_count_and_keep_their_order() {
        let (mut line, mut peer) = Line::new();
        let mut taken = line.fill().await;
        let rest = line.output.gathered.len();
        assert!((1..=MAX_GATHERED_BYTES).contains(&rest), "{rest}");
        assert!(taken > 2 * MAX_GATHERED_BYTES, "{taken}");
        assert_eq!(line.output.gathered.capacity(), rest);
        assert!(line.output.is_stalled());
        assert!(!line.budget.is_idle());
        // No more is taken before the rest is sent.
        let more = poll_fn(|cx| Poll::Ready(line.poll_gather(cx, b"more"))).await;
        assert!(more.is_pending());
        assert_eq!(line.output.gathered.len(), rest);

        let mut received = Vec::new();
        let mut buffer = vec![0; 1 << 20];
        while received.len() < taken {
            match peer.read(&mut buffer) {
                Ok(length) => received.extend_from_slice(&buffer[..length]),
                Err(_) => poll_fn(|cx| line.poll_flush(cx)).await.expect("sent"),
            }
        }
        assert!((0..taken).map(pattern).eq(received.iter().copied()));
        assert!(line.budget.is_idle());
        assert!(!line.output.is_stalled());
        assert_eq!(line.output.gathered.capacity(), 0);
        // The next turn is like the first.
        taken = poll_fn(|cx| line.poll_gather(cx, b"next"))
            .await
            .expect("taken");
        assert_eq!(taken, 4);
        poll_fn(|cx| line.poll_flush(cx)).await.expect("sent");
        assert_eq!(peer.read(&mut buffer).expect("sent"), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_an_error_after_the_send_timeout() {
        let (mut line, _peer) = Line::new();
        line.fill().await;
        let begin = tokio::time::Instant::now();
        let flushed = poll_fn(|cx| line.poll_flush(cx)).await;
        assert_eq!(
            flushed.expect_err("the peer takes nothing").kind(),
            ErrorKind::TimedOut
        );
        assert!(begin.elapsed() >= SEND_TIMEOUT);
    }
}
