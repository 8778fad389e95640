//! The entries of the embedded store: a map that is split into shards, each with its own lock.
//!
//! Expired entries are removed by [`MemoryStore::sweep`] in the background, and at once when a new
//! entry needs their room.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, RandomState},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{change_log::ChangeLog, key::Key};
use crate::{
    model::{IndexedNamespaces, Namespace, Value},
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
    indexed: IndexedNamespaces,
    sequence: AtomicU64,
    pub(super) changes: ChangeLog,
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
    value: Value<'static>,
    expiry: Expiry,
}

/// What becomes of an entry.
pub(super) enum Change {
    /// It stays as it is.
    Keep,
    /// It gets this value and this expiry. It need not have been there.
    Write(Value<'static>, Instant),
    /// It keeps its value and gets this expiry.
    ExpireAt(Instant),
    /// It is removed.
    Remove,
}

impl MemoryStore {
    /// An empty store that takes at most `max_entries`, and indexes some namespaces.
    pub(crate) fn new(max_entries: usize, indexed: IndexedNamespaces) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            entries: AtomicUsize::new(0),
            max_entries,
            indexed,
            sequence: AtomicU64::new(0),
            changes: ChangeLog::default(),
        }
    }

    /// Whether the store can count and list the ids of a namespace.
    pub(crate) fn is_indexed(&self, namespace: Namespace<'_>) -> bool {
        self.indexed.contains(namespace)
    }

    /// Changes one entry in one step: `decide` sees the live entry, if there is one, and says what
    /// becomes of it. A failure leaves everything as it was.
    pub(super) fn update<T>(
        &self,
        key: &Key,
        decide: impl FnOnce(Option<(&Value<'_>, Instant)>) -> (Change, T),
    ) -> Result<T, StoreError> {
        let mut room = None;
        loop {
            let mut shard = self.shard(key);
            let is_new = !shard.slots.contains_key(key);
            if is_new && room.is_none() {
                // Making room may lock every shard, so it is done without this lock.
                drop(shard);
                room = Some(self.reserve());
                continue;
            }
            let (change, result) = decide(shard.live(key));
            let writes_new = is_new && matches!(change, Change::Write(..));
            match room {
                Some(Err(full)) if writes_new => return Err(full),
                Some(Ok(())) if !writes_new => {
                    // The room is not needed after all.
                    self.entries.fetch_sub(1, Ordering::Relaxed);
                }
                _ => {}
            }
            self.apply(&mut shard, key, change);
            return Ok(result);
        }
    }

    /// As [`MemoryStore::update`], if `decide` never writes a new entry.
    pub(super) fn update_existing<T>(
        &self,
        key: &Key,
        decide: impl FnOnce(Option<(&Value<'_>, Instant)>) -> (Change, T),
    ) -> T {
        let mut shard = self.shard(key);
        let (change, result) = decide(shard.live(key));
        self.apply(&mut shard, key, change);
        result
    }

    fn apply(&self, shard: &mut Shard, key: &Key, change: Change) {
        let expiry = |instant| (instant, self.sequence.fetch_add(1, Ordering::Relaxed));
        match change {
            Change::Keep => return,
            Change::Write(value, instant) => {
                let expiry = expiry(instant);
                shard.put(key, Slot { value, expiry });
            }
            Change::ExpireAt(instant) => shard.expire_at(key, expiry(instant)),
            Change::Remove => {
                if shard.remove(key) {
                    self.entries.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
        self.changes.note(key);
    }

    /// Lets `read` look at the value of a key and the instant of its expiry, which may have passed.
    pub(super) fn read<T>(
        &self,
        key: &Key,
        read: impl FnOnce(Option<(&Value<'_>, Instant)>) -> T,
    ) -> T {
        let shard = self.shard(key);
        let slot = shard.slots.get(key);
        read(slot.map(|slot| (&slot.value, slot.expiry.0)))
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
    /// The value and the expiry of an entry that has not expired.
    fn live(&self, key: &Key) -> Option<(&Value<'_>, Instant)> {
        let slot = self.slots.get(key)?;
        let instant = slot.expiry.0;
        (instant > Instant::now()).then_some((&slot.value, instant))
    }

    fn put(&mut self, key: &Key, slot: Slot) {
        self.by_expiry.insert(slot.expiry, key.clone());
        if let Some(previous) = self.slots.insert(key.clone(), slot) {
            self.by_expiry.remove(&previous.expiry);
        }
    }

    fn expire_at(&mut self, key: &Key, expiry: Expiry) {
        if let Some(slot) = self.slots.get_mut(key) {
            let previous = std::mem::replace(&mut slot.expiry, expiry);
            self.by_expiry.remove(&previous);
            self.by_expiry.insert(expiry, key.clone());
        }
    }

    /// Whether there was such an entry.
    fn remove(&mut self, key: &Key) -> bool {
        let removed = self.slots.remove(key);
        if let Some(slot) = &removed {
            self.by_expiry.remove(&slot.expiry);
        }
        removed.is_some()
    }

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
