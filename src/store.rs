//! Where values live: embedded in this process, or in Redis.
//!
//! A store takes and gives domain types, and knows nothing of gRPC. It is a closed enum: both
//! kinds are in every binary, and configuration picks.
//!
//! Calls are cancel-safe in the sense that dropping one leaves the store consistent; a write
//! whose call was dropped may still happen.

pub(crate) mod memory;
pub(crate) mod redis;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use thiserror::Error;
use tokio::sync::watch;

use self::{memory::MemoryStore, redis::RedisStore};
use crate::model::{ExpireTime, Found, Id, Namespace, Ttl, Value};

/// One worker's way to the values.
#[derive(Debug, Clone)]
pub(crate) enum Store {
    /// Embedded: shared by all workers of this process.
    Memory(Arc<MemoryStore>),
    /// Redis, over the worker's own connection.
    Redis(RedisStore),
    /// Panics when it is read, to show what that does to a call.
    #[cfg(test)]
    Panicking,
}

/// Why a store could not do what it was asked. The messages are for callers: what the store
/// itself said is logged where it happens.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum StoreError {
    /// There is no connection to it.
    #[error("the data store is not reachable")]
    Unavailable,
    /// It did not answer in time.
    #[error("the data store did not answer in time")]
    Timeout,
    /// It is up, but cannot serve right now.
    #[error("the data store is busy")]
    Busy,
    /// It is a replica.
    #[error("the data store does not take writes at the moment")]
    ReadOnly,
    /// It refuses writes until somebody mends it.
    #[error("the data store refuses writes because of its own state")]
    Misconfigured,
    /// It does not accept this service's credentials.
    #[error("the data store does not accept this service's credentials")]
    Auth,
    /// It has no memory left.
    #[error("the data store is out of memory")]
    OutOfMemory,
    /// The embedded store has as many entries as it may have.
    #[error("the embedded store is full: it has {max} entries (memory-max-entries)")]
    Full {
        /// The limit.
        max: usize,
    },
    /// The values that were asked for are too large together.
    #[error(
        "the values are too large for one reply; at most {max} bytes are allowed \
         (max-reply-bytes); ask for fewer ids"
    )]
    TooLarge {
        /// The limit, in bytes.
        max: usize,
    },
    /// The key holds something else than a plain value.
    #[error("the key holds a data type that is not a value")]
    WrongType,
    /// It answered something that it never should.
    #[error("the data store gave an unexpected answer")]
    Unexpected,
}

/// Whether a write that failed may have an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The write never takes effect.
    NotExecuted,
    /// The write has taken effect, takes effect once at some later time, or never does.
    Unknown,
}

impl Outcome {
    /// Its name in the metadata of an `ErrorInfo`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NotExecuted => "not_executed",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a write failed, and whether it may have an effect all the same.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("{error}")]
pub struct WriteError {
    /// What went wrong.
    pub error: StoreError,
    /// Whether the write may have an effect.
    pub outcome: Outcome,
}

impl WriteError {
    pub(crate) fn not_executed(error: StoreError) -> Self {
        Self {
            error,
            outcome: Outcome::NotExecuted,
        }
    }

    pub(crate) fn unknown(error: StoreError) -> Self {
        Self {
            error,
            outcome: Outcome::Unknown,
        }
    }
}

/// For reads, which have no outcome.
impl From<WriteError> for StoreError {
    fn from(failed: WriteError) -> Self {
        failed.error
    }
}

impl StoreError {
    /// All that [`StoreError::reason`] can be.
    pub(crate) const REASONS: [&str; 10] = [
        "BACKEND_UNAVAILABLE",
        "BACKEND_TIMEOUT",
        "BACKEND_BUSY",
        "BACKEND_READONLY",
        "BACKEND_MISCONFIGURED",
        "BACKEND_AUTH",
        "BACKEND_OUT_OF_MEMORY",
        "REPLY_TOO_LARGE",
        "WRONG_TYPE",
        "INTERNAL",
    ];

    /// What programs can switch on.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Unavailable => "BACKEND_UNAVAILABLE",
            Self::Timeout => "BACKEND_TIMEOUT",
            Self::Busy => "BACKEND_BUSY",
            Self::ReadOnly => "BACKEND_READONLY",
            Self::Misconfigured => "BACKEND_MISCONFIGURED",
            Self::Auth => "BACKEND_AUTH",
            Self::OutOfMemory | Self::Full { .. } => "BACKEND_OUT_OF_MEMORY",
            Self::TooLarge { .. } => "REPLY_TOO_LARGE",
            Self::WrongType => "WRONG_TYPE",
            Self::Unexpected => "INTERNAL",
        }
    }
}

impl Store {
    /// What it is, as traces name it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Redis(_) => "redis",
            #[cfg(test)]
            Self::Panicking => "panicking",
        }
    }

    /// Writes a value, replacing what was there, and says when it will expire: never later than
    /// it really does.
    pub(crate) async fn mark(
        &self,
        namespace: &Namespace,
        id: &Id,
        value: Value,
        ttl: Ttl,
    ) -> Result<SystemTime, WriteError> {
        match self {
            Self::Memory(store) => store
                .mark(namespace, id, value, ttl)
                // Written is the last thing that it does.
                .map_err(WriteError::not_executed),
            Self::Redis(store) => store.mark(namespace, id, &value, ttl).await,
            #[cfg(test)]
            Self::Panicking => Ok(SystemTime::now()),
        }
    }

    /// Reads one value.
    pub(crate) async fn get(
        &self,
        namespace: &Namespace,
        id: &Id,
        expire_time: ExpireTime,
    ) -> Result<Option<Found>, StoreError> {
        match self {
            Self::Memory(store) => Ok(store.get(namespace, id, expire_time)),
            Self::Redis(store) => store.get(namespace, id, expire_time).await,
            #[cfg(test)]
            Self::Panicking => panic!("a bug"),
        }
    }

    /// Reads the values of all `ids`, in their order, if they have at most `max_bytes` together.
    pub(crate) async fn batch_get(
        &self,
        namespace: &Namespace,
        ids: &[Id],
        expire_time: ExpireTime,
        max_bytes: usize,
    ) -> Result<Vec<Option<Found>>, StoreError> {
        match self {
            Self::Memory(store) => {
                // Looked at first: copying what is then too large is what an attacker wants.
                let mut bytes = 0;
                for id in ids {
                    bytes += store.size(namespace, id);
                    if bytes > max_bytes {
                        return Err(StoreError::TooLarge { max: max_bytes });
                    }
                }
                Ok(ids
                    .iter()
                    .map(|id| store.get(namespace, id, expire_time))
                    .collect())
            }
            Self::Redis(store) => {
                store
                    .batch_get(namespace, ids, expire_time, max_bytes)
                    .await
            }
            #[cfg(test)]
            Self::Panicking => panic!("a bug"),
        }
    }
}

/// Whether the store can be used, as seen by all links to it. The store's side writes it, health
/// reads it.
#[derive(Debug, Clone)]
pub(crate) struct StoreStatus {
    links: Arc<Mutex<Vec<LinkState>>>,
    /// How often a link has come up.
    connects: Arc<AtomicU64>,
    summary: watch::Sender<LinkState>,
}

/// Whether one link is up; if not, why, in words for the people who run the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkState {
    Up,
    Down(String),
}

impl StoreStatus {
    /// A status over `links` links, each of them in the `initial` state.
    pub(crate) fn new(links: usize, initial: LinkState) -> Self {
        Self {
            summary: watch::Sender::new(initial.clone()),
            links: Arc::new(Mutex::new(vec![initial; links])),
            connects: Arc::default(),
        }
    }

    /// Records the state of one link.
    pub(crate) fn set(&self, link: usize, state: LinkState) {
        let mut links = self.lock();
        if let Some(slot) = links.get_mut(link) {
            if *slot != LinkState::Up && state == LinkState::Up {
                self.connects.fetch_add(1, Ordering::Relaxed);
            }
            *slot = state;
        }
        // A worker whose link is down fails its calls, so the store is up when every link is.
        let summary = links
            .iter()
            .find(|state| **state != LinkState::Up)
            .unwrap_or(&LinkState::Up);
        self.summary.send_if_modified(|current| {
            let changed = current != summary;
            if changed {
                current.clone_from(summary);
            }
            changed
        });
    }

    /// How many links there are to be.
    pub(crate) fn links(&self) -> usize {
        self.lock().len()
    }

    /// How many of them are up.
    pub(crate) fn links_up(&self) -> usize {
        let links = self.lock();
        let up = links.iter().filter(|state| **state == LinkState::Up);
        up.count()
    }

    /// How often one has come up.
    pub(crate) fn connects(&self) -> u64 {
        self.connects.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<LinkState>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the state of the store.
    pub(crate) fn subscribe(&self) -> watch::Receiver<LinkState> {
        self.summary.subscribe()
    }
}
