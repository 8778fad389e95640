//! The entries of the embedded store: a map that is split into shards, each with its own lock.
//!
//! Expired entries are removed by [`MemoryStore::sweep`] in the background, and at once when a new
//! entry needs their room.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasher as _, RandomState},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{change_log::ChangeLog, clocks::Clocks, key::Key};
use crate::{
    model::{INDEX_SHARDS, IndexedNamespaces, Namespace, Page, PageStart, RunId, Value},
    store::failure::StoreError,
};

/// So many shards that two workers rarely want the same lock. A List goes from shard to shard.
const SHARDS: usize = INDEX_SHARDS as usize;

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
    /// Tells the pages of this store from those of others.
    run_id: RunId,
    sequence: AtomicU64,
    pub(super) changes: ChangeLog,
}

/// An id of a page, and when it expires.
type Listed = (Box<str>, Instant);

/// When an entry expires, and a number that differs between entries with the same instant.
type Expiry = (Instant, u64);

#[derive(Debug, Default)]
struct Shard {
    slots: HashMap<Key, Slot>,
    by_expiry: BTreeMap<Expiry, Key>,
    /// The keys of each indexed namespace, with their hashes. A hash says where a List goes on.
    indexes: Vec<BTreeSet<(u64, Key)>>,
}

#[derive(Debug)]
struct Slot {
    value: Value<'static>,
    expiry: Expiry,
    /// Where the key is in an index, if its namespace has one.
    place: Option<Place>,
}

/// Where a key is in an index.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The place of the namespace among those that are indexed.
    index: usize,
    /// The hash of the key.
    hash: u64,
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
            shards: (0..SHARDS)
                .map(|_| Mutex::new(Shard::new(indexed.len())))
                .collect(),
            run_id: RunId(std::array::from_fn(|_| fastrand::u8(..))),
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

    /// Whether there are indexed namespaces.
    pub(crate) fn has_indexes(&self) -> bool {
        !self.indexed.is_empty()
    }

    /// How many ids of an indexed namespace are marked. Locks one shard at a time.
    pub(crate) fn count(&self, namespace: Namespace<'_>) -> u64 {
        let index = self.indexed.position(namespace);
        index.map_or(0, |index| self.count_at(index))
    }

    /// How many ids are marked in each indexed namespace. Locks one shard at a time.
    pub(crate) fn counts(&self) -> Vec<(String, u64)> {
        let names = self.indexed.names().enumerate();
        names
            .map(|(index, name)| (name.to_owned(), self.count_at(index)))
            .collect()
    }

    fn count_at(&self, index: usize) -> u64 {
        let counts = self.shards.iter().map(|shard| {
            let mut shard = lock(shard);
            let removed = shard.remove_expired(Instant::now());
            self.entries.fetch_sub(removed, Ordering::Relaxed);
            shard.indexes[index].len() as u64
        });
        counts.sum()
    }

    /// One page of the ids of an indexed namespace. Locks one shard at a time.
    pub(crate) fn list(
        &self,
        namespace: Namespace<'_>,
        size: usize,
        start: Option<PageStart>,
    ) -> Page {
        let Some(index) = self.indexed.position(namespace) else {
            return Page::default();
        };
        let (first, mut cursor) = start.map_or((0, 0), |start| {
            // A cursor means nothing to another store.
            let is_ours = start.run_id == self.run_id;
            (start.shard, if is_ours { start.cursor } else { 0 })
        });
        let clocks = Clocks::read();
        let mut listed = Vec::new();
        let mut next = None;
        for number in first..INDEX_SHARDS {
            let shard = lock(&self.shards[usize::from(number)]);
            if let Some(cursor) = shard.list(
                Place {
                    index,
                    hash: cursor,
                },
                size,
                &mut listed,
            ) {
                next = Some(PageStart {
                    shard: number,
                    run_id: self.run_id,
                    cursor,
                });
                break;
            }
            cursor = 0;
        }
        let ids = listed.into_iter();
        let ids = ids.map(|(id, expiry)| (id, Some(clocks.system_time_of(expiry))));
        Page {
            ids: ids.collect(),
            next,
        }
    }

    /// Where a key is in an index, if its namespace has one.
    fn place(&self, key: &Key) -> Option<Place> {
        if self.indexed.is_empty() {
            return None;
        }
        let namespace = Namespace::try_from(key.namespace()).ok()?;
        Some(Place {
            index: self.indexed.position(namespace)?,
            hash: self.hasher.hash_one(key),
        })
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
                let place = self.place(key);
                let slot = Slot {
                    value,
                    expiry,
                    place,
                };
                shard.put(key, slot);
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
    /// An empty shard that indexes so many namespaces.
    fn new(indexes: usize) -> Self {
        Self {
            indexes: vec![BTreeSet::new(); indexes],
            ..Self::default()
        }
    }

    /// Adds ids of an index to a page until it has `size`. Returns the hash at which to go on, if there
    /// is more. All ids of one hash come together.
    fn list(&self, from: Place, size: usize, page: &mut Vec<Listed>) -> Option<u64> {
        let mut last = None;
        for (hash, key) in self.indexes[from.index].range((from.hash, Key::first())..) {
            if page.len() >= size && last != Some(*hash) {
                return Some(*hash);
            }
            last = Some(*hash);
            if let Some((_, expiry)) = self.live(key) {
                page.push((key.id().into(), expiry));
            }
        }
        None
    }

    /// The value and the expiry of an entry that has not expired.
    fn live(&self, key: &Key) -> Option<(&Value<'_>, Instant)> {
        let slot = self.slots.get(key)?;
        let instant = slot.expiry.0;
        (instant > Instant::now()).then_some((&slot.value, instant))
    }

    fn put(&mut self, key: &Key, slot: Slot) {
        self.by_expiry.insert(slot.expiry, key.clone());
        if let Some(Place { index, hash }) = slot.place {
            self.indexes[index].insert((hash, key.clone()));
        }
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
        let Some(slot) = self.slots.remove(key) else {
            return false;
        };
        self.by_expiry.remove(&slot.expiry);
        self.remove_from_index(key, slot.place);
        true
    }

    fn remove_from_index(&mut self, key: &Key, place: Option<Place>) {
        if let Some(Place { index, hash }) = place {
            self.indexes[index].remove(&(hash, key.clone()));
        }
    }

    fn remove_expired(&mut self, now: Instant) -> usize {
        let mut removed = 0;
        while let Some(first) = self.by_expiry.first_entry()
            && first.key().0 <= now
        {
            let key = first.remove();
            if let Some(slot) = self.slots.remove(&key) {
                self.remove_from_index(&key, slot.place);
            }
            removed += 1;
        }
        removed
    }
}

/// Ignores that another thread panicked: every operation leaves a shard consistent.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
