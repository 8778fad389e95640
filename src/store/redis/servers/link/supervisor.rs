//! The task that owns a link's connection.
//!
//! READONLY, NOAUTH and sentinels that name another master make the supervisor *retire* a
//! connection. It then connects again, and new requests fail until it has. The old connection goes
//! on beside the new one until the requests in flight on it are answered or have timed out.

use std::{collections::VecDeque, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt as _;
use redis::ConnectionAddr;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::super::{
    super::wire::{
        clock::Sample,
        connect::{Connected, Transport},
        failure,
        ping::{Challenge, ServerHealth},
        pipe::{Broken, Driver, Pipe},
        resp::{Replies, Reply},
        transaction,
    },
    backoff::Backoff,
    effect::Effect,
    links::{LinkRecord, Links},
    place::Place,
    task::AbortOnDrop,
};
use crate::store::failure::StoreError;
use crate::store::status::LinkState;

/// How long one attempt to connect may take, including name resolution, TLS and PING.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often to send a PING, so that health knows the state of a link without calls.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of retired connections with requests in flight. More come about only if
/// connections are retired faster than requests time out. The oldest is then closed.
const MAX_RETIRED: usize = 4;

/// Is called whenever the state of the link may have changed.
pub(crate) type Report = Box<dyn Fn(LinkState) + Send>;

/// The last attempt to connect that has ended, and why it failed, if it did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Attempt {
    pub(super) number: u64,
    pub(super) failure: Option<StoreError>,
}

/// Whether a new connection may answer better: it may lead to the master if this one does not any
/// more, or log in with a password that has changed.
pub(super) fn is_reason_to_retire(effect: Effect, reply: &[u8]) -> bool {
    let error = match effect {
        Effect::Read | Effect::Write if reply.first() != Some(&b'-') => None,
        Effect::Read | Effect::Write => Replies::new(reply).next().and_then(|reply| match reply {
            Reply::Error(line) => Some(line),
            _ => None,
        }),
        Effect::Transactions => transaction::first_error(reply),
    };
    let Some(line) = error else {
        return false;
    };
    let text = String::from_utf8_lossy(line);
    matches!(
        failure::split(failure::cause(&text)).0,
        "READONLY" | "NOAUTH"
    )
}

pub(super) struct LinkSupervisor {
    place: Place,
    pipe: Pipe,
    attempts: watch::Sender<Attempt>,
    report: Report,
    last_state: Option<LinkState>,
    /// What the metrics see of this link.
    record: LinkRecord,
    /// The drivers of retired connections, the oldest first.
    retired: VecDeque<AbortOnDrop>,
}

impl LinkSupervisor {
    pub(super) fn new(
        place: Place,
        pipe: Pipe,
        attempts: watch::Sender<Attempt>,
        report: Report,
        links: &Links,
    ) -> Self {
        Self {
            record: links.add(),
            place,
            pipe,
            attempts,
            report,
            last_state: None,
            retired: VecDeque::new(),
        }
    }

    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new();
        let mut number = 0;
        loop {
            number += 1;
            let mut began = Instant::now();
            match timeout(CONNECT_TIMEOUT, self.place.connect()).await {
                Ok(Ok(connected)) => {
                    let since = Instant::now();
                    let broken = self.serve(connected, number).await;
                    self.down(&broken.to_string());
                    backoff.lasted(since.elapsed());
                    if let Broken::Retired = broken {
                        // Not a failure. The minimum age of a connection bounds how often this
                        // happens.
                        continue;
                    }
                    began = Instant::now();
                }
                Ok(Err(error)) => self.failed(number, error.for_calls(), &error.to_string()),
                Err(_) => self.failed(number, StoreError::Unavailable, "connecting timed out"),
            }
            backoff.wait(began).await;
        }
    }

    /// Serves calls until the connection breaks.
    async fn serve(&mut self, connected: Connected, number: u64) -> Broken {
        let Connected {
            stream,
            addr,
            unwell,
            clock,
        } = connected;
        let mut driver = self.pipe.drive(stream, number);
        if let Some(sample) = clock {
            self.add_sample(number, sample);
        }
        self.attempts.send_replace(Attempt {
            number,
            failure: None,
        });
        tracing::info!(%addr, "redis connected");
        self.record.connected();
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
        // A panic must not end the supervisor, or nobody would reconnect. Dropping the driver then
        // fails all requests on the connection.
        let served = AssertUnwindSafe(served).catch_unwind();
        let broken = served.await.unwrap_or(Broken::Panicked);
        self.record.forget_clock();
        if let Broken::Retired = broken {
            self.retire(driver);
        }
        broken
    }

    /// Lets a retired connection serve what is in flight on it.
    fn retire(&mut self, driver: Driver<Box<dyn Transport>>) {
        if self.retired.len() == MAX_RETIRED {
            self.retired.pop_front();
        }
        let task = tokio::spawn(driver.finish());
        self.retired.push_back(AbortOnDrop(task.abort_handle()));
    }

    /// Watches a connection with PINGs. Ends if a reply does not belong to its PING, which a proxy
    /// in between can bring about: callers would then be given each other's values.
    async fn probe(&mut self, addr: &ConnectionAddr, number: u64) -> Broken {
        loop {
            sleep(PROBE_INTERVAL).await;
            let challenge = Challenge::new();
            let asked = std::time::Instant::now();
            let ping = self.pipe.request(|commands| {
                commands.whole(&[b"PING", challenge.as_bytes()]);
                if self.place.estimates_clock() {
                    commands.whole(&[b"TIME"]);
                }
            });
            let answer = match ping {
                Ok(request) => request.await.map_err(StoreError::from),
                Err(error) => Err(error),
            };
            match answer {
                Ok(reply) => {
                    let mut replies = Replies::new(&reply);
                    replies.pass(1);
                    if let Some(sample) = Sample::read(asked, &mut replies) {
                        self.add_sample(number, sample);
                    }
                    if is_reason_to_retire(Effect::Read, &reply) {
                        self.pipe.retire(number);
                    }
                    match challenge.judge(&reply) {
                        ServerHealth::Serves => self.set(LinkState::Up),
                        ServerHealth::Unwell(line) | ServerHealth::Refuses(line) => {
                            self.down(&line);
                        }
                        ServerHealth::OutOfStep => return Broken::OutOfStep,
                    }
                }
                Err(error) => self.down(&error.to_string()),
            }
            if let Ok(false) = timeout(CONNECT_TIMEOUT, self.place.is_right(addr)).await {
                tracing::warn!(%addr, "the sentinels name another master");
                self.pipe.retire(number);
            }
        }
    }

    /// Adds a sample of the clock of the server at the end of connection `number`.
    fn add_sample(&self, number: u64, sample: Sample) {
        self.pipe.add_sample(number, sample);
        self.record.add_sample(sample);
    }

    /// An attempt to connect has failed.
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

    /// Reports a state and logs it, once and not at every attempt of a long outage.
    fn set(&mut self, state: LinkState) {
        if self.last_state.as_ref() == Some(&state) {
            return;
        }
        if let LinkState::Down(reason) = &state {
            tracing::warn!(server = %self.place, reason, "redis cannot serve");
        }
        self.record.set_up(state == LinkState::Up);
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
    use crate::store::redis::wire::{connect::Connector, tls::RedisTlsFiles, url::RedisUrl};

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
        let connector = Connector::new(&url, None, RedisTlsFiles::default());
        let addr = ConnectionAddr::Tcp("127.0.0.1".to_owned(), 1);
        let mut supervisor = LinkSupervisor::new(
            Place::at(connector, addr.clone()),
            Pipe::new(Duration::from_secs(1)),
            watch::Sender::default(),
            Box::new(|_| {}),
            &Links::default(),
        );
        let connected = Connected {
            stream: Box::new(Buggy),
            addr,
            unwell: None,
            clock: None,
        };
        let broken = supervisor.serve(connected, 1).await;
        assert!(matches!(broken, Broken::Panicked), "{broken}");
        assert!(!supervisor.pipe.is_up());
    }
}
