//! The task that keeps the two connections to one server: one that tracks, and one for reads.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use redis::ConnectionAddr;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, interval_at, sleep, timeout},
};

use super::{
    super::{
        layout::KeyLayout,
        servers::{backoff::Backoff, place::Place},
        wire::{
            connect::Transport,
            failure::ConnectError,
            pipe::{Driver, Pipe},
        },
    },
    reads::RedisReader,
    subscription::{Heard, Subscription},
};
use crate::store::changes::{ChangeEvent, Parts};

/// How long one attempt to connect may take, with both connections.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often to ask for the role, and the sentinels for the master.
const ROLE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a question may wait for its answer.
const MAX_SILENCE: Duration = Duration::from_secs(2);

/// What the task tells.
#[derive(Debug)]
pub(super) enum Told {
    Event(ChangeEvent),
    /// How to read from now on. Comes before the event that makes it count.
    Reader(Option<RedisReader>),
}

/// The task. Whoever drops the other end of its channel has to end it.
pub(super) struct Tracker {
    place: Place,
    layout: KeyLayout,
    /// How long a read may take.
    timeout: Duration,
    namespaces: watch::Receiver<Arc<[String]>>,
    /// The number of this server, and where to tell.
    tell: (u64, mpsc::Sender<(u64, Told)>),
}

/// Both connections.
struct Session {
    addr: ConnectionAddr,
    subscription: Subscription,
    pipe: Pipe,
    driver: Driver<Box<dyn Transport>>,
}

impl Tracker {
    pub(super) fn new(
        place: Place,
        layout: KeyLayout,
        timeout: Duration,
        namespaces: watch::Receiver<Arc<[String]>>,
        tell: (u64, mpsc::Sender<(u64, Told)>),
    ) -> Self {
        Self {
            place,
            layout,
            timeout,
            namespaces,
            tell,
        }
    }

    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new();
        let mut last_reason = String::new();
        loop {
            let mut began = Instant::now();
            let connected = timeout(CONNECT_TIMEOUT, self.connect()).await;
            let error = match connected {
                Ok(Ok(session)) => {
                    // A panic must not end the task, or nobody would notice changes any more.
                    let served = AssertUnwindSafe(self.serve(session)).catch_unwind();
                    let error = served.await.unwrap_or(ConnectError::OutOfStep);
                    backoff.lasted(began.elapsed());
                    if began.elapsed() >= ROLE_INTERVAL {
                        last_reason.clear();
                    }
                    began = Instant::now();
                    error
                }
                Ok(Err(error)) => error,
                Err(_) => std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
            };
            // Once, and not at every attempt of a long outage. Redis says that something is not allowed
            // only on a connection.
            let reason = error.to_string();
            if reason != last_reason {
                tracing::warn!(server = %self.place, reason, "redis does not tell changes");
                last_reason = reason;
            }
            self.tell(Told::Reader(None)).await;
            self.tell_event(ChangeEvent::Lost {
                parts: Parts::All,
                error: error.for_calls(),
            })
            .await;
            backoff.wait(began).await;
        }
    }

    async fn connect(&mut self) -> Result<Session, ConnectError> {
        let tracking = self.place.connect().await?;
        if let Some(reason) = tracking.unwell {
            return Err(ConnectError::Refused(reason));
        }
        let addr = tracking.addr;
        let reading = self.place.connect_again(&addr).await?;
        let namespaces = Arc::clone(&self.namespaces.borrow_and_update());
        let layout = self.layout.clone();
        let subscription = Subscription::start(tracking.stream, layout, namespaces).await?;
        let pipe = Pipe::new(self.timeout);
        let driver = pipe.drive(reading.stream, 1);
        Ok(Session {
            addr,
            subscription,
            pipe,
            driver,
        })
    }

    /// Serves until one of the connections breaks, or leads to the wrong server.
    async fn serve(&mut self, session: Session) -> ConnectError {
        let Session {
            addr,
            mut subscription,
            pipe,
            mut driver,
        } = session;
        let place = self.place.clone();
        let mut replaced = std::pin::pin!(replaced(&place, &addr));
        let mut ticks = interval_at(Instant::now() + ROLE_INTERVAL, ROLE_INTERVAL);
        let mut progress = Progress {
            reader: RedisReader::One(pipe, self.layout.clone()),
            has_begun: false,
            was_master: None,
        };
        loop {
            let step = tokio::select! {
                heard = subscription.next() => match heard {
                    Ok(heard) => self.hear(heard, &mut progress).await,
                    Err(error) => Err(error),
                },
                broken = &mut driver => Err(ConnectError::Refused(broken.to_string())),
                changed = self.namespaces.changed() => match changed {
                    Ok(()) => {
                        let namespaces = Arc::clone(&self.namespaces.borrow_and_update());
                        subscription.track(namespaces).await
                    }
                    // The feed is gone, and this task soon, too.
                    Err(_) => Err(ConnectError::Closed),
                },
                _ = ticks.tick() => match subscription.silence() {
                    silence if silence > MAX_SILENCE => {
                        Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())
                    }
                    _ => subscription.ask_role().await,
                },
                error = replaced.as_mut() => Err(error),
            };
            if let Err(error) = step {
                return error;
            }
        }
    }

    async fn hear(&self, heard: Heard, progress: &mut Progress) -> Result<(), ConnectError> {
        match heard {
            Heard::Changed(keys) => self.tell_event(ChangeEvent::Changed(keys)).await,
            Heard::AllChanged => self.tell_event(ChangeEvent::AllChanged(Parts::All)).await,
            Heard::Tracking {
                namespaces,
                after_pause,
            } if progress.has_begun => {
                self.tell_event(ChangeEvent::Tracking { namespaces }).await;
                if after_pause {
                    self.tell_event(ChangeEvent::AllChanged(Parts::All)).await;
                }
            }
            Heard::Tracking { namespaces, .. } => {
                progress.has_begun = true;
                let reader = Some(progress.reader.clone());
                self.tell(Told::Reader(reader)).await;
                let parts = Parts::All;
                self.tell_event(ChangeEvent::Began { parts, namespaces })
                    .await;
            }
            Heard::Role { is_master } => {
                let was_master = progress.was_master.replace(is_master);
                let is_wrong = self.place.wants_master() && !is_master;
                if is_wrong || was_master.is_some_and(|was| was != is_master) {
                    return Err(ConnectError::NotMaster(self.place.to_string()));
                }
                self.tell_event(ChangeEvent::Complete).await;
            }
        }
        Ok(())
    }

    async fn tell_event(&self, event: ChangeEvent) {
        self.tell(Told::Event(event)).await;
    }

    async fn tell(&self, told: Told) {
        // It fails only if the feed is gone, and this task soon, too.
        let (number, tell) = &self.tell;
        _ = tell.send((*number, told)).await;
    }
}

/// What a session has reached.
struct Progress {
    reader: RedisReader,
    has_begun: bool,
    /// The role in the last answer.
    was_master: Option<bool>,
}

/// Waits until another server has taken the place of the one at `addr`.
async fn replaced(place: &Place, addr: &ConnectionAddr) -> ConnectError {
    loop {
        sleep(ROLE_INTERVAL).await;
        if let Ok(false) = timeout(CONNECT_TIMEOUT, place.is_right(addr)).await {
            return ConnectError::NotMaster(addr.to_string());
        }
    }
}
