//! The embedded store: values in this process, for development and for single-node use.
//!
//! It behaves as Redis does: a Mark replaces the whole value, expiry is exact on read. It is
//! bounded: a Mark of a new id beyond the limit is refused, nothing is ever evicted early.
//! Expired entries are removed by [`MemoryStore::sweep`] in the background, and at once when
//! their room is needed.
//!
//! Absent: persistence, replication, any sharing between processes.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use crate::{
    model::{ExpireTime, Found, Id, Namespace, Ttl, Value},
    store::StoreError,
};

/// Enough that workers hardly ever meet on a lock.
const SHARDS: usize = 64;

/// How often the background sweep should run.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// A bounded map from (namespace, id) to a value that expires.
#[derive(Debug)]
pub(crate) struct MemoryStore {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    entries: AtomicUsize,
    max_entries: usize,
    sequence: AtomicU64,
}

/// `<namespace>/<id>`: unambiguous, because a namespace has no slash.
type Key = Arc<str>;

/// When something expires, and a number that tells apart what expires at the same instant.
type Expiry = (Instant, u64);

#[derive(Debug, Default)]
struct Shard {
    slots: HashMap<Key, Slot>,
    by_expiry: BTreeMap<Expiry, Key>,
}

#[derive(Debug)]
struct Slot {
    value: Value,
    expiry: Expiry,
}

impl MemoryStore {
    /// An empty store that takes at most `max_entries`.
    pub(crate) fn new(max_entries: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            entries: AtomicUsize::new(0),
            max_entries,
            sequence: AtomicU64::new(0),
        }
    }

    /// Writes a value; see [`Store::mark`](super::Store::mark).
    pub(crate) fn mark(
        &self,
        namespace: &Namespace,
        id: &Id,
        value: Value,
        ttl: Ttl,
    ) -> Result<SystemTime, StoreError> {
        let key = key(namespace, id);
        // Read before the monotonic clock, so that the promise is never later than the expiry.
        let expire_time = SystemTime::now() + ttl.as_duration();
        let expiry = (
            Instant::now() + ttl.as_duration(),
            self.sequence.fetch_add(1, Ordering::Relaxed),
        );
        let known = self.shard(&key).slots.contains_key(&key);
        if !known {
            self.reserve()?;
        }
        let mut shard = self.shard(&key);
        let Shard { slots, by_expiry } = &mut *shard;
        by_expiry.insert(expiry, Arc::clone(&key));
        match slots.insert(key, Slot { value, expiry }) {
            Some(previous) => {
                by_expiry.remove(&previous.expiry);
                if !known {
                    // Another worker marked the same new id since; one reservation is enough.
                    self.entries.fetch_sub(1, Ordering::Relaxed);
                }
            }
            None if known => {
                // The entry had expired, and was swept since.
                self.entries.fetch_add(1, Ordering::Relaxed);
            }
            None => {}
        }
        Ok(expire_time)
    }

    /// About how much room a value takes in a reply; nothing if there is none.
    pub(crate) fn size(&self, namespace: &Namespace, id: &Id) -> usize {
        let key = key(namespace, id);
        let shard = self.shard(&key);
        shard.slots.get(&key).map_or(0, |slot| slot.value.size())
    }

    /// Reads a value; see [`Store::get`](super::Store::get).
    pub(crate) fn get(
        &self,
        namespace: &Namespace,
        id: &Id,
        expire_time: ExpireTime,
    ) -> Option<Found> {
        let key = key(namespace, id);
        let shard = self.shard(&key);
        let system_now = match expire_time {
            ExpireTime::Include => Some(SystemTime::now()),
            ExpireTime::Omit => None,
        };
        let slot = shard.slots.get(&key)?;
        let left = slot.expiry.0.checked_duration_since(Instant::now())?;
        if left.is_zero() {
            return None;
        }
        Some(Found {
            value: slot.value.clone(),
            expire_time: system_now.map(|now| now + left),
        })
    }

    /// Removes what has expired. Holds one lock at a time, each for as long as its shard's
    /// expired entries take to drop.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        for shard in &self.shards {
            let removed = lock(shard).remove_expired(now);
            self.entries.fetch_sub(removed, Ordering::Relaxed);
        }
    }

    /// The number of entries, including expired ones that are not yet swept.
    pub(crate) fn len(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    /// Takes room for one more entry, sweeping if there seems to be none.
    fn reserve(&self) -> Result<(), StoreError> {
        let take = || {
            self.entries
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |entries| {
                    (entries < self.max_entries).then_some(entries + 1)
                })
                .is_ok()
        };
        if take() {
            return Ok(());
        }
        self.sweep();
        if take() {
            return Ok(());
        }
        Err(StoreError::Full {
            max: self.max_entries,
        })
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        // The remainder is below SHARDS, so it fits and is in bounds.
        let index = (self.hasher.hash_one(key) % SHARDS as u64) as usize;
        lock(&self.shards[index])
    }
}

impl Shard {
    fn remove_expired(&mut self, now: Instant) -> usize {
        let mut removed = 0;
        while let Some(first) = self.by_expiry.first_entry()
            && first.key().0 <= now
        {
            self.slots.remove(&first.remove());
            removed += 1;
        }
        removed
    }
}

/// Every operation leaves a shard consistent, so a panic elsewhere does not spoil it.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(namespace: &Namespace, id: &Id) -> Key {
    format!("{}/{}", namespace.as_str(), id.as_str()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Limits;

    fn ttl(millis: i32) -> Ttl {
        let limits = Limits {
            default_ttl: Duration::from_secs(60),
            max_ttl: Duration::from_secs(60),
            max_batch: 1,
            max_value_bytes: 1,
            max_reply_bytes: 100,
        };
        let duration = prost_types::Duration {
            seconds: 0,
            nanos: millis * 1_000_000,
        };
        Ttl::parse(Some(duration), &limits).expect("a valid ttl")
    }

    fn id(id: &str) -> Id {
        Id::try_from(id.to_owned()).expect("a valid id")
    }

    #[test]
    fn a_full_store_refuses_new_ids_only_and_takes_room_back_from_what_expired() {
        let store = MemoryStore::new(2);
        let namespace = Namespace::default();
        let mark = |name, millis| store.mark(&namespace, &id(name), Value::Int(1), ttl(millis));
        assert!(mark("short", 20).is_ok());
        assert!(mark("long", 900).is_ok());
        assert_eq!(mark("third", 900), Err(StoreError::Full { max: 2 }));
        assert!(
            mark("long", 900).is_ok(),
            "an id that is there is no new entry"
        );
        std::thread::sleep(Duration::from_millis(30));
        assert!(mark("third", 900).is_ok());
        assert_eq!(store.len(), 2);
        assert!(
            store
                .get(&namespace, &id("long"), ExpireTime::Omit)
                .is_some()
        );
    }

    #[test]
    fn the_sweep_removes_what_expired_and_keeps_what_was_marked_again() {
        let store = MemoryStore::new(10);
        let namespace = Namespace::default();
        let mark = |name, millis| store.mark(&namespace, &id(name), Value::Int(1), ttl(millis));
        assert!(mark("gone", 20).is_ok());
        assert!(mark("kept", 20).is_ok());
        assert!(mark("kept", 900).is_ok());
        std::thread::sleep(Duration::from_millis(30));
        store.sweep();
        assert_eq!(store.len(), 1);
        assert!(
            store
                .get(&namespace, &id("kept"), ExpireTime::Omit)
                .is_some()
        );
    }
}
