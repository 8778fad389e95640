//! The entries of the embedded store: a map that is split into shards, each with its own lock.
//!
//! Expired entries are removed by [`MemoryStore::sweep`] in the background, and at once when a new
//! entry needs their room.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    model::{Id, Namespace, Value},
    store::failure::StoreError,
};

/// So many shards that two workers rarely want the same lock.
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

/// `<namespace>/<id>`. No two pairs share a key, because a namespace has no slash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key(Arc<str>);

impl Key {
    pub(super) fn new(namespace: &Namespace, id: &Id) -> Self {
        Self(format!("{}/{}", namespace.as_str(), id.as_str()).into())
    }
}

/// When an entry expires, and a number that differs between entries with the same instant.
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

    /// Writes an entry in place of the one with the same key. A failure leaves all as it was.
    pub(super) fn insert(&self, key: Key, value: Value, expiry: Instant) -> Result<(), StoreError> {
        let expiry = (expiry, self.sequence.fetch_add(1, Ordering::Relaxed));
        let known = self.shard(&key).slots.contains_key(&key);
        if !known {
            self.reserve()?;
        }
        let mut shard = self.shard(&key);
        let Shard { slots, by_expiry } = &mut *shard;
        by_expiry.insert(expiry, key.clone());
        match slots.insert(key, Slot { value, expiry }) {
            Some(previous) => {
                by_expiry.remove(&previous.expiry);
                if !known {
                    // Another worker has inserted the same key since. Give one reservation back.
                    self.entries.fetch_sub(1, Ordering::Relaxed);
                }
            }
            None if known => {
                // The entry had expired, and the sweep has removed it since.
                self.entries.fetch_add(1, Ordering::Relaxed);
            }
            None => {}
        }
        Ok(())
    }

    /// Lets `read` look at the value of a key and the instant of its expiry, which may have passed.
    pub(super) fn read<T>(&self, key: &Key, read: impl FnOnce(&Value, Instant) -> T) -> Option<T> {
        let shard = self.shard(key);
        let slot = shard.slots.get(key)?;
        Some(read(&slot.value, slot.expiry.0))
    }

    /// Removes what has expired. Locks one shard at a time.
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

    /// Reserves room for one more entry. Sweeps first if there seems to be none.
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

/// Ignores that another thread panicked: every operation leaves a shard consistent.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
