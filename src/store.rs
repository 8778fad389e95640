//! Where values are kept: in this process, or in Redis.
//!
//! A store takes and returns domain types and does not know gRPC. [`Store`] is a closed enum, not a
//! trait: both kinds are in every binary, and the settings choose one.
//!
//! Every call may be dropped: the store stays consistent. A write whose call was dropped may still
//! happen.
//!
//! [`failure`] has the errors, [`status`] says whether the store can be used, [`sweeps`] what the sweeps
//! of indexes have found, [`changes`] says what changes.

pub(crate) mod changes;
pub(crate) mod failure;
pub(crate) mod memory;
pub(crate) mod redis;
pub(crate) mod settings;
pub(crate) mod status;
pub(crate) mod sweeps;

use std::{sync::Arc, time::SystemTime};

pub(crate) use self::changes::{ChangeEvent, ChangeFeed, Parts, Reading};
pub(crate) use self::failure::{Outcome, StoreError, WriteError};
pub(crate) use self::status::{LinkState, StoreStatus};
use self::{memory::MemoryStore, redis::RedisStore};
use crate::model::{
    Condition, Counter, ExpireTime, Found, Id, Increment, MarkItem, MarkedIf, Namespace, Page,
    PageStart, Ttl, Value,
};

/// One worker's access to the values.
#[derive(Debug, Clone)]
pub(crate) enum Store {
    /// The embedded store, which all workers of this process share.
    Memory(Arc<MemoryStore>),
    /// Redis, over the worker's own connections.
    Redis(RedisStore),
}

impl Store {
    /// The name of this kind of store in traces.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Redis(_) => "redis",
        }
    }

    /// Whether the ids of a namespace can be counted and listed.
    pub(crate) fn is_indexed(&self, namespace: Namespace<'_>) -> bool {
        match self {
            Self::Memory(store) => store.is_indexed(namespace),
            Self::Redis(store) => store.is_indexed(namespace),
        }
    }

    /// Writes a value in place of the one before. Returns when the value expires; the true expiry
    /// is never earlier.
    pub(crate) async fn mark(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        value: &Value<'_>,
        ttl: Ttl,
    ) -> Result<SystemTime, WriteError> {
        match self {
            Self::Memory(store) => store.mark(namespace, id, value, ttl),
            Self::Redis(store) => store.mark(namespace, id, value, ttl).await,
        }
    }

    /// Reads one value. `see` gets it in place, and its result is returned.
    pub(crate) async fn get<T>(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        expire_time: ExpireTime,
        see: impl FnOnce(Option<Found<'_>>) -> T,
    ) -> Result<T, StoreError> {
        match self {
            Self::Memory(store) => Ok(store.get(namespace, id, expire_time, see)),
            Self::Redis(store) => store.get(namespace, id, expire_time, see).await,
        }
    }

    /// Reads the values of all `ids`. `see` gets them in this order. Fails if the values have more
    /// than `max_bytes` together, or if one cannot be read; `see` may have got others then.
    pub(crate) async fn batch_get<'a>(
        &self,
        namespace: Namespace<'_>,
        ids: &[Id<'a>],
        expire_time: ExpireTime,
        max_bytes: usize,
        see: impl FnMut(Id<'a>, Option<Found<'_>>),
    ) -> Result<(), StoreError> {
        match self {
            Self::Memory(store) => store.batch_get(namespace, ids, expire_time, max_bytes, see),
            Self::Redis(store) => {
                store
                    .batch_get(namespace, ids, expire_time, max_bytes, see)
                    .await
            }
        }
    }

    /// Writes many values, each as [`Store::mark`] does. Not atomic. The outcome of a failure is
    /// `NotExecuted` only if no item was executed.
    pub(crate) async fn batch_mark(
        &self,
        namespace: Namespace<'_>,
        items: &[MarkItem<'_>],
    ) -> Result<(), WriteError> {
        match self {
            Self::Memory(store) => store.batch_mark(namespace, items),
            Self::Redis(store) => store.batch_mark(namespace, items).await,
        }
    }

    /// Removes a value, if it is equal to `if_equal` or there is no such condition. Returns whether
    /// a value was removed.
    pub(crate) async fn unmark(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        if_equal: Option<&Value<'_>>,
    ) -> Result<bool, WriteError> {
        match self {
            Self::Memory(store) => Ok(store.unmark(namespace, id, if_equal)),
            Self::Redis(store) => store.unmark(namespace, id, if_equal).await,
        }
    }

    /// Removes many values. Not atomic, as [`Store::batch_mark`]. Returns how many were removed.
    pub(crate) async fn batch_unmark(
        &self,
        namespace: Namespace<'_>,
        ids: &[Id<'_>],
    ) -> Result<usize, WriteError> {
        match self {
            Self::Memory(store) => Ok(store.batch_unmark(namespace, ids)),
            Self::Redis(store) => store.batch_unmark(namespace, ids).await,
        }
    }

    /// Writes a value if `condition` holds, and returns what was marked before, in one step.
    pub(crate) async fn mark_if(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        value: &Value<'_>,
        ttl: Ttl,
        condition: &Condition<'_>,
    ) -> Result<MarkedIf<'static>, WriteError> {
        match self {
            Self::Memory(store) => store.mark_if(namespace, id, value, ttl, condition),
            Self::Redis(store) => store.mark_if(namespace, id, value, ttl, condition).await,
        }
    }

    /// Restarts the time to live of the values that are marked. `see` gets them in the order of
    /// `ids`. Each value is read and touched in one step. Fails if the values have more than
    /// `max_bytes` together; they may be touched all the same.
    pub(crate) async fn touch<'a>(
        &self,
        namespace: Namespace<'_>,
        ids: &[Id<'a>],
        ttl: Ttl,
        max_bytes: usize,
        see: impl FnMut(Id<'a>, Option<Found<'_>>),
    ) -> Result<(), WriteError> {
        match self {
            Self::Memory(store) => store.touch(namespace, ids, ttl, max_bytes, see),
            Self::Redis(store) => store.touch(namespace, ids, ttl, max_bytes, see).await,
        }
    }

    /// Says how many ids of an indexed namespace are marked: at least those that are marked
    /// throughout the call, and at most those that are marked at some moment of it.
    pub(crate) async fn count(&self, namespace: Namespace<'_>) -> Result<u64, StoreError> {
        match self {
            Self::Memory(store) => Ok(store.count(namespace)),
            Self::Redis(store) => store.count(namespace).await,
        }
    }

    /// Lists about `size` ids of an indexed namespace, from the start or from where a page before
    /// has ended. An id that stays marked until the last page is on at least one page.
    pub(crate) async fn list(
        &self,
        namespace: Namespace<'_>,
        size: usize,
        start: Option<PageStart>,
    ) -> Result<Page, StoreError> {
        match self {
            Self::Memory(store) => Ok(store.list(namespace, size, start)),
            Self::Redis(store) => store.list(namespace, size, start).await,
        }
    }

    /// Adds to a number, in one step with reading it.
    pub(crate) async fn increment(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        increment: &Increment,
    ) -> Result<Counter, WriteError> {
        match self {
            Self::Memory(store) => store.increment(namespace, id, increment),
            Self::Redis(store) => store.increment(namespace, id, increment).await,
        }
    }
}
