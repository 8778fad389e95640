//! Noticing that values change, whoever changes them.
//!
//! A [`ChangeFeed`] says which keys of some namespaces may have changed. It never says how: whoever
//! wants to know reads the key, with the [`Reader`] of the feed. A feed works only while it tracks
//! at least one namespace.
//!
//! A key belongs to a *part* of the store. A part is what is lost together: in a Redis Cluster the
//! parts are the slots, elsewhere there is one part.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    failure::StoreError,
    memory::{MemoryChanges, MemoryReader},
    redis::{RedisChanges, RedisReader},
};
use crate::model::{Id, Namespace, Value};

/// What a feed says.
#[derive(Debug)]
pub(crate) enum ChangeEvent {
    /// From now on, the feed says what changes in these parts and namespaces. What was read before
    /// may be outdated.
    Began {
        parts: Parts,
        namespaces: Arc<[String]>,
    },
    /// The feed tracks these namespaces from now on, some of them since before.
    Tracking { namespaces: Arc<[String]> },
    /// Changes in these parts are not noticed any more, until they begin again.
    Lost { parts: Parts, error: StoreError },
    /// These keys may have changed.
    Changed(Vec<Bytes>),
    /// Every key of these parts may have changed.
    AllChanged(Parts),
    /// Every change that a writer knew of before the last second has been told.
    Complete,
}

/// Some parts of a store.
#[derive(Debug, Clone)]
pub(crate) enum Parts {
    All,
    /// For each part whether it is meant.
    Some(Arc<[bool]>),
}

impl Parts {
    /// Whether a part is one of these.
    pub(crate) fn contain(&self, part: u16) -> bool {
        match self {
            Self::All => true,
            Self::Some(parts) => parts
                .get(usize::from(part))
                .is_some_and(|is_meant| *is_meant),
        }
    }
}

/// What a read of one key found: a value, and how long it will live if it expires. `None` if there
/// is no value, or something that is not a value.
pub(crate) type Reading = Result<Option<(Value<'static>, Option<Duration>)>, StoreError>;

/// Says what changes in a store.
#[derive(Debug)]
pub(crate) enum ChangeFeed {
    Memory(MemoryChanges),
    Redis(RedisChanges),
}

impl ChangeFeed {
    /// The key of an id, as events name it.
    pub(crate) fn key(&self, namespace: Namespace<'_>, id: Id<'_>) -> Vec<u8> {
        match self {
            Self::Memory(feed) => feed.key(namespace, id),
            Self::Redis(feed) => feed.key(namespace, id),
        }
    }

    /// The part of the store that has a key.
    pub(crate) fn part(&self, key: &[u8]) -> u16 {
        match self {
            Self::Memory(_) => 0,
            Self::Redis(feed) => feed.part(key),
        }
    }

    /// The namespace and the id of a key, if it is a key of an indexed namespace.
    pub(crate) fn id_of<'a>(&self, key: &'a [u8]) -> Option<(&'a str, Id<'a>)> {
        let (namespace, id) = match self {
            Self::Memory(feed) => feed.id_of(key),
            Self::Redis(feed) => feed.id_of(key),
        }?;
        let (name, id) = (Namespace::try_from(namespace).ok()?, Id::try_from(id).ok()?);
        // Another program may write keys that look like ours.
        (self.key(name, id) == key).then_some((namespace, id))
    }

    /// The number of parts of the store.
    pub(crate) fn parts(&self) -> usize {
        match self {
            Self::Memory(_) => 1,
            Self::Redis(feed) => feed.parts(),
        }
    }

    /// Tracks these namespaces and no others. With none, the feed stops, and begins anew with the
    /// next one.
    pub(crate) fn track(&mut self, namespaces: Arc<[String]>) {
        match self {
            Self::Memory(feed) => feed.track(namespaces),
            Self::Redis(feed) => feed.track(namespaces),
        }
    }

    /// The next event. Waits for ever while the feed has stopped. Cancel-safe.
    pub(crate) async fn next(&mut self) -> ChangeEvent {
        match self {
            Self::Memory(feed) => feed.next().await,
            Self::Redis(feed) => feed.next().await,
        }
    }

    /// Reads keys as they are now. `None` while the feed has not begun.
    pub(crate) fn reader(&self) -> Option<Reader> {
        match self {
            Self::Memory(feed) => Some(Reader::Memory(feed.reader())),
            Self::Redis(feed) => feed.reader().map(Reader::Redis),
        }
    }
}

/// Reads what keys hold.
#[derive(Debug)]
pub(crate) enum Reader {
    Memory(MemoryReader),
    Redis(RedisReader),
}

impl Reader {
    /// Reads these keys. The result has a reading for each of them, in their order.
    pub(crate) async fn read(self, keys: Vec<Arc<[u8]>>) -> Vec<Reading> {
        match self {
            Self::Memory(reader) => reader.read(&keys),
            Self::Redis(reader) => reader.read(&keys).await,
        }
    }

    /// The ids that have values in an indexed namespace, and perhaps some that have had values
    /// until lately. If there are more than `max`, the list is longer than that, but not complete.
    pub(crate) async fn list(
        self,
        namespace: String,
        max: usize,
    ) -> Result<Vec<Box<str>>, StoreError> {
        match self {
            Self::Memory(reader) => Ok(reader.list(&namespace, max).await),
            Self::Redis(reader) => reader.list(&namespace, max).await,
        }
    }
}
