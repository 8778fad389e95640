//! One supervised connection to Redis, shared by all calls of one worker.
//!
//! Concurrent commands pipeline by themselves on one connection; a pool with a checkout per call
//! costs several times as much CPU. A supervisor task owns the connection: it connects, drives it
//! until it breaks, and connects again. While there is none, commands fail at once.
//!
//! A request whose connection ends under it is repeated, once, if it may be: a read always, a write
//! only if it was certainly not executed. A repeated write could otherwise land after somebody
//! else's newer one, and bring an older value back. Requests to a connection that was given up as a
//! silent one are not repeated, because their time is mostly over. At most a tenth of all requests
//! is repeated, so that an outage is not multiplied.
//!
//! READONLY, NOAUTH and sentinels that name another master make the supervisor *retire* a
//! connection: it connects anew, and new requests fail until it has. The old connection serves what
//! is in flight on it for as long as that may take, beside the new one.

use std::{
    collections::VecDeque,
    fmt,
    ops::RangeInclusive,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use redis::ConnectionAddr;
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

use super::super::wire::{
    connect::{Connected, Connector, Stream},
    failure::{self, PingFailure},
    pipe::{Broken, Driver, Pipe},
    resp::{Commands, Replies, Reply},
};
use crate::store::{
    failure::{Outcome, StoreError, WriteError},
    status::LinkState,
};

/// How long one attempt to connect may take, name resolution, TLS and PING included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause before the first attempt to connect again, and the longest one.
const BACKOFF: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(1);
/// How much the pause grows with each attempt. With a factor of 2, the pauses of an outage of half a
/// second outlast the four attempts of a common gRPC retry policy (`docs/resilience.md`).
const GROWTH: f64 = 1.5;
/// A connection that held this long was a good one: the backoff starts anew after it.
const GOOD: Duration = Duration::from_secs(5);
/// How often a connection is asked for a sign of life, so that health knows without any calls.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How many retired connections may still serve what is in flight on them. More come about only if
/// connections are retired faster than requests time out; the oldest is then closed.
const MAX_RETIRED: usize = 4;

/// What a request does to Redis: decides whether it may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It changes nothing.
    Read,
    /// It changes what Redis holds.
    Write,
}

/// A handle to the connection. Clones share it; the last one to go ends the supervisor.
#[derive(Clone)]
pub(crate) struct Link {
    pipe: Pipe,
    attempts: watch::Receiver<Attempt>,
    budget: Arc<Budget>,
    _supervisor: Arc<AbortOnDrop>,
}

/// Ends a task with its owner.
pub(crate) struct AbortOnDrop(pub(super) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The last attempt to connect that came to an end, and why it failed, if it did.
#[derive(Debug, Clone, Copy, Default)]
struct Attempt {
    number: u64,
    failure: Option<StoreError>,
}

/// Is told whenever the link's state may have changed.
pub(crate) type Report = Box<dyn Fn(LinkState) + Send>;

impl Link {
    /// Starts the supervisor on the current runtime.
    pub(crate) fn start(connector: Connector, timeout: Duration, report: Report) -> Self {
        let pipe = Pipe::new(timeout);
        let (ended, attempts) = watch::channel(Attempt::default());
        let supervisor = Supervisor {
            connector,
            pipe: pipe.clone(),
            attempts: ended,
            report,
            last_state: None,
            retired: VecDeque::new(),
        };
        let task = tokio::spawn(supervisor.run());
        Self {
            pipe,
            attempts,
            budget: Arc::default(),
            _supervisor: Arc::new(AbortOnDrop(task.abort_handle())),
        }
    }

    /// Sends what `encode` writes: one command or several. Gives the replies as they came, error
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
            // Redis has refused the request, so that also a write may be repeated.
            Ok(reply) => is_reason_to_retire(reply) && self.pipe.retire(connection),
            Err(failed) => {
                failed.error == StoreError::Unavailable
                    && (effect == Effect::Read || failed.outcome == Outcome::NotExecuted)
            }
        };
        if !again || !self.budget.spend() {
            return result;
        }
        // Boxed, so that its room is not in every call for the few that need it.
        Box::pin(self.repeat(connection, deadline, encode)).await
    }

    /// Sends a request again, on the connection after number `connection`.
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

    /// Why a request could not be sent: without a connection, what came of the last attempt at one.
    fn reason(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Unavailable => self.attempts.borrow().failure.unwrap_or(error),
            error => error,
        }
    }

    /// Whether there was a connection a moment ago.
    pub(crate) fn is_up(&self) -> bool {
        self.pipe.is_up()
    }

    /// Waits until there is a first connection; fails if the next attempt to get one does.
    pub(crate) async fn connected(&self) -> Result<(), StoreError> {
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

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

/// The argument of a PING, which Redis sends back: its reply cannot be that to another command.
pub(crate) struct Challenge(String);

impl Challenge {
    pub(crate) fn new() -> Self {
        Self(format!("{:016x}", fastrand::u64(..)))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Some proxies answer PING themselves, and ignore its argument.
    pub(crate) fn is_met(&self, reply: &[u8]) -> bool {
        reply == self.as_bytes() || reply == b"PONG"
    }
}

/// Whether another connection may answer better: it may lead to the master that this one no
/// longer leads to, or log in with a password that has changed.
fn is_reason_to_retire(reply: &[u8]) -> bool {
    reply.starts_with(b"-READONLY") || reply.starts_with(b"-NOAUTH")
}

/// How many commands may be repeated: a tenth of them, and a few at the start.
#[derive(Debug)]
struct Budget(AtomicU32);

impl Budget {
    /// In tenths of a repetition.
    const START: u32 = 100;
    const MAX: u32 = 5_000;
    const PRICE: u32 = 10;

    // Only the worker's thread calls these, so that a load and a store are as good as one step.

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

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicU32::new(Self::START))
    }
}

struct Supervisor {
    connector: Connector,
    pipe: Pipe,
    attempts: watch::Sender<Attempt>,
    report: Report,
    last_state: Option<LinkState>,
    /// The drivers of retired connections, the oldest first.
    retired: VecDeque<AbortOnDrop>,
}

impl Supervisor {
    async fn run(mut self) {
        let mut pause = *BACKOFF.start();
        let mut number = 0;
        loop {
            number += 1;
            let mut began = Instant::now();
            match timeout(CONNECT_TIMEOUT, self.connector.connect()).await {
                Ok(Ok(connected)) => {
                    let since = Instant::now();
                    let broken = self.serve(connected, number).await;
                    self.down(&broken.to_string());
                    if since.elapsed() >= GOOD {
                        pause = *BACKOFF.start();
                    }
                    if let Broken::Retired = broken {
                        // Not a failure; how often that may happen is bounded elsewhere.
                        continue;
                    }
                    began = Instant::now();
                }
                Ok(Err(error)) => self.failed(number, error.of_a_call(), &error.to_string()),
                Err(_) => self.failed(number, StoreError::Unavailable, "connecting timed out"),
            }
            // Spread a little, so that workers and replicas do not come all at once.
            // An attempt that took long has been pause enough.
            sleep_until(began + pause.mul_f64(0.75 + 0.5 * fastrand::f64())).await;
            pause = pause.mul_f64(GROWTH).min(*BACKOFF.end());
        }
    }

    /// Serves calls until the connection breaks.
    async fn serve(&mut self, connected: Connected, number: u64) -> Broken {
        let Connected {
            stream,
            addr,
            unwell,
        } = connected;
        let mut driver = self.pipe.drive(stream, number);
        self.attempts.send_replace(Attempt {
            number,
            failure: None,
        });
        tracing::info!(%addr, "redis connected");
        self.set(match unwell {
            None => LinkState::Up,
            Some(reason) => LinkState::Down(format!("redis: {reason}")),
        });
        let served = async {
            tokio::select! {
                broken = &mut driver => broken,
                broken = self.probe(&addr, number) => broken,
            }
        };
        // A panic must not end the supervisor, or nobody would connect again. What it leaves behind
        // goes with the driver, which fails everybody who waits.
        let served = AssertUnwindSafe(served).catch_unwind();
        let broken = served.await.unwrap_or(Broken::Panicked);
        if let Broken::Retired = broken {
            self.retire(driver);
        }
        broken
    }

    /// Lets a retired connection serve what is in flight on it.
    fn retire(&mut self, driver: Driver<Box<dyn Stream>>) {
        if self.retired.len() == MAX_RETIRED {
            self.retired.pop_front();
        }
        let task = tokio::spawn(driver.finish());
        self.retired.push_back(AbortOnDrop(task.abort_handle()));
    }

    /// Looks after a connection for as long as it lasts. Ends when the replies turn out to belong to
    /// other commands, which a proxy in between can bring about: callers would be given each
    /// other's values.
    async fn probe(&mut self, addr: &ConnectionAddr, number: u64) -> Broken {
        loop {
            sleep(PROBE_INTERVAL).await;
            let challenge = Challenge::new();
            let ping = self.pipe.request(|commands| {
                commands.whole(&[b"PING", challenge.as_bytes()]);
            });
            let answer = match ping {
                Ok(request) => request.await.map_err(StoreError::from),
                Err(error) => Err(error),
            };
            match answer {
                Ok(reply) => {
                    if is_reason_to_retire(&reply) {
                        self.pipe.retire(number);
                    }
                    match Replies::new(&reply).next() {
                        Some(Reply::Error(line)) => self.pinged(&String::from_utf8_lossy(line)),
                        Some(Reply::Bulk(text) | Reply::Status(text)) if challenge.is_met(text) => {
                            self.set(LinkState::Up);
                        }
                        _ => return Broken::OutOfStep,
                    }
                }
                Err(error) => self.down(&error.to_string()),
            }
            if let Ok(false) = timeout(CONNECT_TIMEOUT, self.connector.is_right(addr)).await {
                tracing::warn!(%addr, "the sentinels name another master");
                self.pipe.retire(number);
            }
        }
    }

    /// The answer to a PING was an error.
    fn pinged(&mut self, error: &str) {
        match failure::of_ping(failure::split(error).0) {
            PingFailure::Harmless => self.set(LinkState::Up),
            PingFailure::Unwell | PingFailure::Refused => self.down(error),
        }
    }

    /// An attempt to connect came to nothing.
    fn failed(&mut self, number: u64, failure: StoreError, reason: &str) {
        self.attempts.send_replace(Attempt {
            number,
            failure: Some(failure),
        });
        self.down(reason);
    }

    fn down(&mut self, reason: &str) {
        self.set(LinkState::Down(format!("redis: {reason}")));
    }

    /// Logs a state once, not at every attempt of a long outage.
    fn set(&mut self, state: LinkState) {
        if self.last_state.as_ref() == Some(&state) {
            return;
        }
        if let LinkState::Down(reason) = &state {
            tracing::warn!(server = %self.connector, reason, "redis cannot serve");
        }
        (self.report)(state.clone());
        self.last_state = Some(state);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        pin::Pin,
        task::{Context, Poll},
    };

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::*;
    use crate::store::redis::{RedisTlsFiles, wire::url::RedisUrl};

    /// A socket whose reader has a bug.
    struct Buggy;

    impl AsyncRead for Buggy {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            panic!("a bug")
        }
    }

    impl AsyncWrite for Buggy {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_panic_ends_a_connection_and_not_its_supervisor() {
        let url = RedisUrl::parse("redis://127.0.0.1:1").expect("valid");
        let mut supervisor = Supervisor {
            connector: Connector::to(&url, None, RedisTlsFiles::default()),
            pipe: Pipe::new(Duration::from_secs(1)),
            attempts: watch::Sender::default(),
            report: Box::new(|_| {}),
            last_state: None,
            retired: VecDeque::new(),
        };
        let connected = Connected {
            stream: Box::new(Buggy),
            addr: ConnectionAddr::Tcp("127.0.0.1".to_owned(), 1),
            unwell: None,
        };
        let broken = supervisor.serve(connected, 1).await;
        assert!(matches!(broken, Broken::Panicked), "{broken}");
        assert!(!supervisor.pipe.is_up());
    }
}
