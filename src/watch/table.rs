//! The table of watched ids: what each of them holds, as far as is known, and who watches it.
//!
//! The table does nothing by itself and knows no clock. Its task tells it what happens. A watch is
//! *live* once it has its snapshot. It stops being live when changes of one of its ids may have
//! been missed, and gets a new snapshot when all its ids have been read again.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use slab::Slab;
use tokio::time::Instant;

use super::{
    counts::WatchCounts,
    hub::{OpenWatch, Target, WatchPlace},
    ids::{self, BatchItem, Dirty, Ids, WatchedId},
    outbox::{Outbox, WatchEnd, WatchLimit},
    places::{MAX_NAMESPACES, Namespaces, PartState, PartStates, WatchedNamespace},
};
use crate::{
    codec::replies::EntryField,
    model::{Found, Id, Namespace},
    store::{ChangeFeed, Parts, Reading, StoreError},
};

/// Each id is read again at least this often.
pub(super) const REREAD: Duration = Duration::from_secs(60);
/// How many distinct ids a process watches at most.
pub(super) const MAX_IDS: usize = 100_000;
/// How many bytes the values of all watched ids may have together.
const MAX_VALUE_BYTES: usize = 64 << 20;
/// What a message has besides its entries.
const MESSAGE_OVERHEAD: usize = 16;

/// What all watchers of a process know.
#[derive(Debug)]
pub(super) struct Table {
    ids: Ids,
    namespaces: Namespaces,
    parts: PartStates,
    watches: Slab<Watch>,
    /// What the encoded entries take together.
    value_bytes: usize,
    /// A message with one entry may have this many bytes.
    max_reply_bytes: usize,
    counts: Arc<WatchCounts>,
    /// The mark up to which everything has to be read before the watchers are told that nothing is
    /// missing.
    alive_after: Option<u64>,
    /// Ids without a value that are only kept for watches of their whole namespace.
    gone: Vec<u32>,
    /// Room to encode an entry.
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Watch {
    outbox: Arc<Outbox>,
    namespace: usize,
    /// The ids, or `None` for the whole namespace.
    ids: Option<Box<[u32]>>,
    /// How many of `ids` are not known.
    missing: usize,
    progress: Progress,
    _place: WatchPlace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Has had no snapshot yet.
    Starting,
    /// Waits for a new snapshot.
    Behind,
    Live,
}

impl Table {
    pub(super) fn new(parts: usize, max_reply_bytes: usize, counts: Arc<WatchCounts>) -> Self {
        Self {
            ids: Ids::default(),
            namespaces: Namespaces::default(),
            parts: PartStates::new(parts),
            watches: Slab::new(),
            value_bytes: 0,
            max_reply_bytes,
            counts,
            alive_after: None,
            gone: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// The names of the namespaces to track: those that have watches, and those that had some and
    /// whose place nobody has needed.
    pub(super) fn namespaces(&self) -> Vec<String> {
        self.namespaces.names()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.watches.is_empty()
    }

    /// Forgets everything besides the counts. To be called when the feed stops.
    pub(super) fn reset(&mut self, parts: usize) {
        let (max_reply_bytes, counts) = (self.max_reply_bytes, Arc::clone(&self.counts));
        *self = Self::new(parts, max_reply_bytes, counts);
        self.count();
    }

    /// Adds a watch, or ends it at once.
    pub(super) fn open(&mut self, open: OpenWatch, feed: &ChangeFeed, now: Instant) {
        let outbox = Arc::clone(&open.outbox);
        if let Err(why) = self.try_open(open, feed, now) {
            outbox.end(why);
        }
        self.count();
    }

    fn try_open(
        &mut self,
        open: OpenWatch,
        feed: &ChangeFeed,
        now: Instant,
    ) -> Result<(), WatchEnd> {
        let OpenWatch {
            namespace,
            target,
            outbox,
            place,
            waiting: _waiting,
        } = open;
        let place_of = self.namespaces.place(&namespace);
        let number = place_of.ok_or(WatchLimit::Namespaces {
            max: MAX_NAMESPACES,
        })?;
        // Both were checked before the request came here.
        let namespace = Namespace::try_from(namespace.as_str()).map_err(|_| UNEXPECTED)?;
        let ids = match &target {
            Target::All => {
                if let PartState::Down(error) = self.parts.of_all() {
                    return Err(error.into());
                }
                None
            }
            Target::Ids(names) => Some(self.look_up(number, namespace, names, feed)?),
        };
        let entry = self.watches.vacant_entry();
        // Far fewer watches than a u32 can count.
        let watch = entry.key() as u32;
        _ = outbox.number.set(watch);
        let mut missing = 0;
        let state = &mut self.namespaces.0[number];
        state.watches += 1;
        match &ids {
            None => state.all.push(watch),
            Some(ids) => {
                for id in ids {
                    let Some(watched) = self.ids.get_mut(*id) else {
                        continue;
                    };
                    watched.watchers.push(watch);
                    if !watched.is_known {
                        missing += 1;
                        let is_up = self.parts.get(watched.part) == PartState::Up;
                        if state.is_tracked && is_up {
                            let dirty = Dirty {
                                since: now,
                                is_pushed: false,
                            };
                            self.ids.mark(*id, dirty);
                        }
                    }
                }
            }
        }
        entry.insert(Watch {
            outbox,
            namespace: number,
            ids,
            missing,
            progress: Progress::Starting,
            _place: place,
        });
        self.go_live(watch);
        Ok(())
    }

    /// The numbers of these ids, each once. Adds those that are new.
    fn look_up(
        &mut self,
        number: usize,
        namespace: Namespace<'_>,
        names: &[String],
        feed: &ChangeFeed,
    ) -> Result<Box<[u32]>, WatchEnd> {
        let mut numbers = Vec::with_capacity(names.len());
        let mut failed = None;
        for name in names {
            let Ok(id) = Id::try_from(name.as_str()) else {
                return Err(UNEXPECTED);
            };
            let key = feed.key(namespace, id);
            if let Some(known) = self.ids.find(&key) {
                numbers.push(known);
                continue;
            }
            let part = feed.part(&key);
            if let PartState::Down(error) = self.parts.get(part) {
                failed = Some(WatchEnd::from(error));
                break;
            }
            if self.ids.len() == MAX_IDS {
                failed = Some(WatchLimit::Ids { max: MAX_IDS }.into());
                break;
            }
            numbers.push(self.add(key.into(), id, number, part));
        }
        numbers.sort_unstable();
        numbers.dedup();
        for known in &numbers {
            let id = self.ids.get(*known).filter(|id| !id.is_known);
            if let Some(id) = id
                && let PartState::Down(error) = self.parts.get(id.part)
            {
                failed = Some(error.into());
            }
        }
        match failed {
            None => Ok(numbers.into()),
            Some(why) => {
                for number in numbers {
                    self.remove_if_unwatched(number);
                }
                Err(why)
            }
        }
    }

    fn add(&mut self, key: Arc<[u8]>, id: Id<'_>, namespace: usize, part: u16) -> u32 {
        let watched = WatchedId::new(key, id.as_str(), namespace, part);
        self.scratch.clear();
        EntryField::new(id, None).encode_for_watch(&mut self.scratch);
        self.value_bytes += self.scratch.len();
        watched.entry.lock().encoded = Bytes::copy_from_slice(&self.scratch);
        self.ids.insert(watched)
    }

    /// Removes a watch. Does nothing if it has been removed already.
    pub(super) fn close(&mut self, outbox: &Arc<Outbox>) {
        let Some(number) = outbox.number.get() else {
            return;
        };
        let watch = self.watches.get(*number as usize);
        if watch.is_some_and(|watch| Arc::ptr_eq(&watch.outbox, outbox)) {
            self.remove(*number);
            self.count();
        }
    }

    fn remove(&mut self, number: u32) {
        let Some(watch) = self.watches.try_remove(number as usize) else {
            return;
        };
        let namespace = &mut self.namespaces.0[watch.namespace];
        namespace.watches -= 1;
        match watch.ids {
            Some(ids) => {
                for id in ids {
                    if let Some(watched) = self.ids.get_mut(id) {
                        watched.watchers.retain(|watcher| *watcher != number);
                    }
                    self.remove_if_unwatched(id);
                }
            }
            None => {
                namespace.all.retain(|watcher| *watcher != number);
                if namespace.all.is_empty() {
                    namespace.is_listed = false;
                    self.remove_unwatched_ids(watch.namespace);
                }
            }
        }
    }

    /// Ends a watch from this side.
    fn end(&mut self, number: u32, why: WatchEnd) {
        if let Some(watch) = self.watches.get(number as usize) {
            watch.outbox.end(why);
            self.remove(number);
        }
    }

    fn remove_unwatched_ids(&mut self, namespace: usize) {
        let of_namespace = self.ids.iter().filter(|(_, id)| id.namespace == namespace);
        let numbers: Vec<_> = of_namespace.map(|(number, _)| number).collect();
        for number in numbers {
            self.remove_if_unwatched(number);
        }
    }

    /// Removes an id that nobody watches. An id that is only watched with its whole namespace stays
    /// while it has a value, and until its watchers have heard that the value is gone.
    fn remove_if_unwatched(&mut self, number: u32) {
        let Some(id) = self.ids.get(number).filter(|id| id.watchers.is_empty()) else {
            return;
        };
        let namespace = &mut self.namespaces.0[id.namespace];
        let is_told = Arc::strong_count(&id.entry) == 1;
        let is_gone = id.is_settled() && is_told && !id.entry.lock().is_present;
        if !namespace.all.is_empty() && !is_gone {
            return;
        }
        if let Some(id) = self.ids.remove(number) {
            self.value_bytes -= id.entry.lock().encoded.len();
            if id.is_awaited {
                namespace.awaited -= 1;
            }
        }
    }

    /// Changes in these parts and namespaces are noticed from now on.
    pub(super) fn began(&mut self, parts: &Parts, namespaces: &[String], now: Instant) {
        self.forget(parts);
        self.parts.set(parts, PartState::Up);
        self.set_tracked(namespaces);
        self.mark_all(parts, now);
    }

    /// Changes in these namespaces are noticed from now on, in all parts that are up.
    pub(super) fn tracking(&mut self, namespaces: &[String], now: Instant) {
        let new = self.set_tracked(namespaces);
        let numbers: Vec<_> = {
            let of_new = self
                .ids
                .iter()
                .filter(|(_, id)| new.contains(&id.namespace));
            let is_up = |id: &WatchedId| self.parts.get(id.part) == PartState::Up;
            of_new
                .filter(|(_, id)| is_up(id))
                .map(|(number, _)| number)
                .collect()
        };
        for number in numbers {
            self.mark(number, now);
        }
    }

    /// Returns the numbers of those that were not tracked before.
    fn set_tracked(&mut self, names: &[String]) -> Vec<usize> {
        let mut new = Vec::new();
        for (number, namespace) in self.namespaces.0.iter_mut().enumerate() {
            let is_tracked = names.contains(&namespace.name);
            if is_tracked && !namespace.is_tracked {
                new.push(number);
            }
            namespace.is_tracked = is_tracked;
        }
        new
    }

    /// Changes in these parts are not noticed any more.
    pub(super) fn lost(&mut self, parts: &Parts, error: StoreError) {
        self.parts.set(parts, PartState::Down(error));
        self.forget(parts);
        self.alive_after = None;
        let mut failed = Vec::new();
        for (number, watch) in &self.watches {
            watch.outbox.withdraw_alive();
            if watch.progress == Progress::Starting && self.waits_for(watch, parts) {
                failed.push(number as u32);
            }
        }
        for number in failed {
            self.end(number, error.into());
        }
        self.count();
    }

    /// Whether a watch cannot begin without these parts.
    fn waits_for(&self, watch: &Watch, parts: &Parts) -> bool {
        let Some(ids) = &watch.ids else {
            return true;
        };
        let mut watched = ids.iter().filter_map(|id| self.ids.get(*id));
        watched.any(|id| !id.is_known && parts.contain(id.part))
    }

    /// What was read of these parts does not count any more.
    fn forget(&mut self, parts: &Parts) {
        for namespace in &mut self.namespaces.0 {
            namespace.is_listed = false;
            for number in &namespace.all {
                fall_behind(&mut self.watches, *number, &self.counts);
            }
        }
        for number in self.ids.forget(parts) {
            let Some(id) = self.ids.get_mut(number) else {
                continue;
            };
            if std::mem::take(&mut id.is_awaited) {
                self.namespaces.0[id.namespace].awaited -= 1;
            }
            if std::mem::take(&mut id.is_known) {
                for watcher in &id.watchers {
                    if let Some(watch) = self.watches.get_mut(*watcher as usize) {
                        watch.missing += 1;
                    }
                    fall_behind(&mut self.watches, *watcher, &self.counts);
                }
            }
        }
    }

    /// The store says that these keys may have changed.
    pub(super) fn changed(&mut self, keys: &[Bytes], feed: &ChangeFeed, now: Instant) {
        WatchCounts::add(&self.counts.pushes, keys.len());
        let dirty = Dirty {
            since: now,
            is_pushed: true,
        };
        for key in keys {
            let number = self.ids.find(key).or_else(|| self.discover(key, feed));
            if let Some(number) = number {
                self.ids.mark(number, dirty);
            }
        }
    }

    /// Adds an id that is new in a namespace which is watched as a whole.
    fn discover(&mut self, key: &Bytes, feed: &ChangeFeed) -> Option<u32> {
        let mut namespaces = self.namespaces.0.iter();
        if namespaces.all(|namespace| namespace.all.is_empty()) {
            return None;
        }
        let (name, id) = feed.id_of(key)?;
        let is_watched =
            |namespace: &WatchedNamespace| namespace.name == name && !namespace.all.is_empty();
        let namespace = self.namespaces.0.iter().position(is_watched)?;
        if self.ids.len() >= MAX_IDS {
            self.end_all(namespace, WatchLimit::Ids { max: MAX_IDS }.into());
            return None;
        }
        Some(self.add(key.as_ref().into(), id, namespace, feed.part(key)))
    }

    /// Ends the watches of a whole namespace.
    fn end_all(&mut self, namespace: usize, why: WatchEnd) {
        for watcher in self.namespaces.0[namespace].all.clone() {
            self.end(watcher, why);
        }
    }

    /// A namespace whose ids have to be listed now.
    pub(super) fn to_list(&self) -> Option<&str> {
        if self.parts.of_all() != PartState::Up {
            return None;
        }
        let mut namespaces = self.namespaces.0.iter();
        let unlisted = namespaces.find(|namespace| {
            !namespace.all.is_empty() && namespace.is_tracked && !namespace.is_listed
        });
        unlisted.map(|namespace| namespace.name.as_str())
    }

    /// These ids are in a namespace.
    pub(super) fn listed(
        &mut self,
        name: &str,
        listed: Result<Vec<Box<str>>, StoreError>,
        feed: &ChangeFeed,
        now: Instant,
    ) {
        let Some(number) = self.namespaces.find(name) else {
            return;
        };
        let ids = match listed {
            Ok(ids) => ids,
            Err(error) => {
                for watcher in self.namespaces.0[number].all.clone() {
                    self.end_if_starting(watcher, error);
                }
                return;
            }
        };
        let Ok(namespace) = Namespace::try_from(name) else {
            return;
        };
        for id in &ids {
            let Ok(id) = Id::try_from(&**id) else {
                continue;
            };
            let key = feed.key(namespace, id);
            if self.ids.find(&key).is_some() {
                continue;
            }
            if self.ids.len() >= MAX_IDS {
                self.end_all(number, WatchLimit::Ids { max: MAX_IDS }.into());
                return;
            }
            let part = feed.part(&key);
            let id = self.add(key.into(), id, number, part);
            self.mark(id, now);
        }
        let state = &mut self.namespaces.0[number];
        state.is_listed = true;
        state.listed_at = now;
        state.awaited += self.ids.await_unknown(number);
        self.all_go_live(number);
        self.count();
    }

    /// Every key of these parts may have changed.
    pub(super) fn mark_all(&mut self, parts: &Parts, now: Instant) {
        for namespace in &mut self.namespaces.0 {
            // There may be new ids.
            namespace.is_listed = false;
        }
        let in_parts = self.ids.iter().filter(|(_, id)| parts.contain(id.part));
        let tracked = in_parts.filter(|(_, id)| self.namespaces.0[id.namespace].is_tracked);
        let numbers: Vec<_> = tracked.map(|(number, _)| number).collect();
        for number in numbers {
            self.mark(number, now);
        }
    }

    fn mark(&mut self, number: u32, now: Instant) {
        let dirty = Dirty {
            since: now,
            is_pushed: false,
        };
        self.ids.mark(number, dirty);
    }

    /// Ids that have to be read now.
    pub(super) fn take_dirty(&mut self, max: usize) -> Vec<BatchItem> {
        let batch = self.ids.take_dirty(max);
        WatchCounts::add(&self.counts.reads, batch.len());
        batch
    }

    pub(super) fn is_clean(&self) -> bool {
        self.ids.is_clean()
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.ids.next_due()
    }

    pub(super) fn mark_due(&mut self, now: Instant) {
        self.ids.mark_due(now);
    }

    /// Takes in what was read. The reads were sent at `sent`. Returns the error of a read that
    /// failed, if one did.
    pub(super) fn readings(
        &mut self,
        batch: Vec<BatchItem>,
        readings: Vec<Reading>,
        sent: Instant,
    ) -> Option<StoreError> {
        let mut error = None;
        let mut readings = readings.into_iter();
        for item in batch {
            let reading = readings.next().unwrap_or(Err(StoreError::Unexpected));
            match reading {
                Ok(found) => {
                    let (value, left) = found.unzip();
                    self.read(&item, value, left.flatten(), sent);
                }
                Err(failed) => {
                    error = Some(failed);
                    if self.ids.end_read(&item).is_some() {
                        // It stays dirty.
                        self.ids.mark(item.number, item.dirty);
                        if let Some(mark) = &mut self.alive_after {
                            *mark = self.ids.last_mark();
                        }
                        self.fail_starting(item.number, failed);
                    }
                }
            }
        }
        self.count();
        error
    }

    /// Ends the watches that cannot begin, because one of their ids cannot be read.
    fn fail_starting(&mut self, number: u32, error: StoreError) {
        let Some(id) = self.ids.get(number) else {
            return;
        };
        let mut watchers = id.watchers.clone();
        if id.is_awaited {
            watchers.extend(&self.namespaces.0[id.namespace].all);
        }
        for watcher in watchers {
            self.end_if_starting(watcher, error);
        }
    }

    fn end_if_starting(&mut self, watcher: u32, error: StoreError) {
        let watch = self.watches.get(watcher as usize);
        if watch.is_some_and(|watch| watch.progress == Progress::Starting) {
            self.end(watcher, error.into());
        }
    }

    /// One id was read.
    fn read(
        &mut self,
        item: &BatchItem,
        value: Option<crate::model::Value<'static>>,
        left: Option<Duration>,
        sent: Instant,
    ) {
        let Some(id) = self.ids.end_read(item) else {
            return;
        };
        let is_present = value.is_some();
        let found = value.map(|value| Found {
            value,
            expire_time: None,
        });
        self.scratch.clear();
        if let Ok(name) = Id::try_from(&*id.id) {
            EntryField::new(name, found).encode_for_watch(&mut self.scratch);
        }
        let is_new = !std::mem::replace(&mut id.is_known, true);
        let was_awaited = std::mem::take(&mut id.is_awaited);
        let namespace = id.namespace;
        let mut entry = id.entry.lock();
        let is_changed = entry.encoded != self.scratch;
        if is_changed {
            self.value_bytes -= entry.encoded.len();
            self.value_bytes += self.scratch.len();
            entry.encoded = Bytes::copy_from_slice(&self.scratch);
            entry.is_present = is_present;
        }
        drop(entry);
        if is_changed {
            let mut events = 0;
            let all = &self.namespaces.0[namespace].all;
            for watcher in id.watchers.iter().chain(all) {
                if let Some(watch) = self.watches.get(*watcher as usize)
                    && watch.progress == Progress::Live
                {
                    watch.outbox.push(item.number, &id.entry);
                    events += 1;
                }
            }
            WatchCounts::add(&self.counts.events, events);
            if !is_new {
                WatchCounts::add(&self.counts.changes, 1);
                if item.dirty.is_pushed {
                    self.counts.lag(item.dirty.since.elapsed());
                }
            }
        }
        let watchers = match is_new {
            true => id.watchers.clone(),
            false => Vec::new(),
        };
        if !is_present && id.watchers.is_empty() {
            self.gone.push(item.number);
        }
        self.ids.schedule(item.number, ids::due(sent, left, REREAD));
        for watcher in watchers {
            if let Some(watch) = self.watches.get_mut(watcher as usize) {
                watch.missing -= 1;
            }
            self.go_live(watcher);
        }
        if was_awaited {
            self.namespaces.0[namespace].awaited -= 1;
            self.all_go_live(namespace);
        }
        if is_changed {
            self.check_sizes(item.number, namespace);
        }
    }

    /// Ends the watches of an id whose value is too large, alone or with all others.
    fn check_sizes(&mut self, number: u32, namespace: usize) {
        let size = MESSAGE_OVERHEAD + self.scratch.len();
        let why = if size > self.max_reply_bytes {
            StoreError::TooLarge {
                max: self.max_reply_bytes,
            }
            .into()
        } else if self.value_bytes > MAX_VALUE_BYTES {
            WatchLimit::ValueBytes {
                max: MAX_VALUE_BYTES,
            }
            .into()
        } else {
            return;
        };
        let mut watchers = self.namespaces.0[namespace].all.clone();
        watchers.extend(self.ids.get(number).iter().flat_map(|id| &id.watchers));
        for watcher in watchers {
            self.end(watcher, why);
        }
    }

    fn all_go_live(&mut self, namespace: usize) {
        let state = &self.namespaces.0[namespace];
        if state.is_complete() {
            for watcher in state.all.clone() {
                self.go_live(watcher);
            }
        }
    }

    /// Gives a watch its snapshot, if it needs one and all of its ids are known.
    fn go_live(&mut self, number: u32) {
        let Some(watch) = self.watches.get_mut(number as usize) else {
            return;
        };
        let is_complete = match &watch.ids {
            Some(_) => watch.missing == 0,
            None => self.namespaces.0[watch.namespace].is_complete(),
        };
        if watch.progress == Progress::Live || !is_complete {
            return;
        }
        watch.progress = Progress::Live;
        match &watch.ids {
            Some(ids) => {
                let entry = |id: &u32| Some((*id, Arc::clone(&self.ids.get(*id)?.entry)));
                watch
                    .outbox
                    .begin_snapshot(ids.iter().filter_map(entry), false);
            }
            None => {
                let known = self.ids.iter().filter(|(_, id)| {
                    id.namespace == watch.namespace && id.is_known && id.entry.lock().is_present
                });
                let entries = known.map(|(number, id)| (number, Arc::clone(&id.entry)));
                watch.outbox.begin_snapshot(entries, true);
            }
        }
    }

    /// Asks for the watchers to be told that nothing is missing, once everything that is dirty now
    /// has been read.
    pub(super) fn ask_alive(&mut self) {
        let last = self.ids.last_mark();
        self.alive_after.get_or_insert(last);
    }

    /// Tells the watchers that nothing is missing, if that was asked for and is true now. To be
    /// called while no read is on its way. Returns whether they were told.
    pub(super) fn tell_alive(&mut self) -> bool {
        let Some(mark) = self.alive_after else {
            return false;
        };
        if !self.ids.has_taken(mark) || self.to_list().is_some() {
            return false;
        }
        self.alive_after = None;
        for (_, watch) in &self.watches {
            if watch.progress == Progress::Live {
                watch.outbox.push_alive();
            }
        }
        true
    }

    /// Removes ids that are gone and that all watchers of their namespace have heard of.
    pub(super) fn sweep(&mut self, now: Instant) {
        for number in std::mem::take(&mut self.gone) {
            self.remove_if_unwatched(number);
            let id = self.ids.get(number);
            if id.is_some_and(|id| id.watchers.is_empty() && !id.entry.lock().is_present) {
                self.gone.push(number);
            }
        }
        for namespace in &mut self.namespaces.0 {
            if now - namespace.listed_at >= REREAD {
                namespace.is_listed = false;
            }
        }
        let waiting = self.ids.oldest_mark().map(|since| now - since);
        self.counts.waiting(waiting.unwrap_or_default());
        self.count();
    }

    fn count(&self) {
        let counts = &self.counts;
        WatchCounts::set(&counts.watches, self.watches.len());
        WatchCounts::set(&counts.ids, self.ids.len());
    }
}

/// What a bug of this program looks like to a caller.
const UNEXPECTED: WatchEnd = WatchEnd::Store(StoreError::Unexpected);

/// A watch needs a new snapshot.
fn fall_behind(watches: &mut Slab<Watch>, number: u32, counts: &WatchCounts) {
    if let Some(watch) = watches.get_mut(number as usize)
        && watch.progress == Progress::Live
    {
        watch.progress = Progress::Behind;
        counts.resyncs.fetch_add(1, Ordering::Relaxed);
    }
}
