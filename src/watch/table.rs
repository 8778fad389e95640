//! The table of watched ids: what follows when the store says something, or when something was read.
//!
//! The table does nothing by itself and knows no clock. Its task tells it what happens.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    counts::WatchCounts,
    hub::OpenWatch,
    ids::{self, BatchItem, Dirty, WatchedId},
    outbox::{Outbox, WatchLimit},
    places::{PartState, WatchedNamespace},
    watched::{MAX_IDS, Progress, Watched},
};
use crate::{
    codec::replies::EntryField,
    model::{Found, Id, Namespace, Value},
    store::{ChangeFeed, Parts, Reading, StoreError},
};

/// Each id is read again at least this often.
pub(super) const REREAD: Duration = Duration::from_secs(60);

/// What all watchers of a process know.
#[derive(Debug)]
pub(super) struct Table {
    watched: Watched,
    /// The mark up to which everything has to be read before the watchers are told that nothing is
    /// missing.
    alive_after: Option<u64>,
    /// Ids without a value that are only kept for watches of their whole namespace.
    gone: Vec<u32>,
}

impl Table {
    pub(super) fn new(parts: usize, max_reply_bytes: usize, counts: Arc<WatchCounts>) -> Self {
        Self {
            watched: Watched::new(parts, max_reply_bytes, counts),
            alive_after: None,
            gone: Vec::new(),
        }
    }

    /// The names of the namespaces to track: those that have watches, and those that had some and
    /// whose place nobody has needed.
    pub(super) fn namespaces(&self) -> Vec<String> {
        self.watched.namespaces.names()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.watched.watches.is_empty()
    }

    /// Forgets everything besides the counts. To be called when the feed stops.
    pub(super) fn reset(&mut self, parts: usize) {
        let (max_reply_bytes, counts) = (
            self.watched.max_reply_bytes,
            Arc::clone(&self.watched.counts),
        );
        *self = Self::new(parts, max_reply_bytes, counts);
        self.watched.count();
    }

    /// Adds a watch, or ends it at once.
    pub(super) fn open(&mut self, open: OpenWatch, feed: &ChangeFeed, now: Instant) {
        let outbox = Arc::clone(&open.outbox);
        if let Err(why) = self.watched.try_open(open, feed, now) {
            outbox.end(why);
        }
        self.watched.count();
    }

    /// Removes a watch. Does nothing if it has been removed already.
    pub(super) fn close(&mut self, outbox: &Arc<Outbox>) {
        let Some(number) = outbox.number.get() else {
            return;
        };
        let watch = self.watched.watches.get(*number as usize);
        if watch.is_some_and(|watch| Arc::ptr_eq(&watch.outbox, outbox)) {
            self.watched.remove(*number);
            self.watched.count();
        }
    }

    /// Changes in these parts and namespaces are noticed from now on.
    pub(super) fn began(&mut self, parts: &Parts, namespaces: &[String], now: Instant) {
        self.watched.forget(parts);
        self.watched.parts.set(parts, PartState::Up);
        self.watched.set_tracked(namespaces);
        self.mark_all(parts, now);
    }

    /// Changes in these namespaces are noticed from now on, in all parts that are up.
    pub(super) fn tracking(&mut self, namespaces: &[String], now: Instant) {
        let new = self.watched.set_tracked(namespaces);
        let numbers: Vec<_> = {
            let of_new = self
                .watched
                .ids
                .iter()
                .filter(|(_, id)| new.contains(&id.namespace));
            let is_up = |id: &WatchedId| self.watched.parts.get(id.part) == PartState::Up;
            of_new
                .filter(|(_, id)| is_up(id))
                .map(|(number, _)| number)
                .collect()
        };
        for number in numbers {
            self.watched.ids.mark_unpushed(number, now);
        }
    }

    /// Changes in these parts are not noticed any more.
    pub(super) fn lost(&mut self, parts: &Parts, error: StoreError) {
        self.watched.parts.set(parts, PartState::Down(error));
        self.watched.forget(parts);
        self.alive_after = None;
        let mut failed = Vec::new();
        for (number, watch) in &self.watched.watches {
            watch.outbox.withdraw_alive();
            if watch.progress == Progress::Starting && self.watched.waits_for(watch, parts) {
                failed.push(number as u32);
            }
        }
        for number in failed {
            self.watched.end(number, error.into());
        }
        self.watched.count();
    }

    /// The store says that these keys may have changed.
    pub(super) fn changed(&mut self, keys: &[Bytes], feed: &ChangeFeed, now: Instant) {
        WatchCounts::add(&self.watched.counts.pushes, keys.len());
        let dirty = Dirty {
            since: now,
            is_pushed: true,
        };
        for key in keys {
            let number = self
                .watched
                .ids
                .find(key)
                .or_else(|| self.discover(key, feed));
            if let Some(number) = number {
                self.watched.ids.mark(number, dirty);
            }
        }
    }

    /// Adds an id that is new in a namespace which is watched as a whole.
    fn discover(&mut self, key: &Bytes, feed: &ChangeFeed) -> Option<u32> {
        let mut namespaces = self.watched.namespaces.0.iter();
        if namespaces.all(|namespace| namespace.all.is_empty()) {
            return None;
        }
        let (name, id) = feed.id_of(key)?;
        let is_watched =
            |namespace: &WatchedNamespace| namespace.name == name && !namespace.all.is_empty();
        let namespace = self.watched.namespaces.0.iter().position(is_watched)?;
        if self.watched.ids.len() >= MAX_IDS {
            self.watched
                .end_all(namespace, WatchLimit::Ids { max: MAX_IDS }.into());
            return None;
        }
        Some(
            self.watched
                .add(key.as_ref().into(), id, namespace, feed.part(key)),
        )
    }

    /// A namespace whose ids have to be listed now.
    pub(super) fn to_list(&self) -> Option<&str> {
        if self.watched.parts.of_all() != PartState::Up {
            return None;
        }
        let mut namespaces = self.watched.namespaces.0.iter();
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
        let Some(number) = self.watched.namespaces.find(name) else {
            return;
        };
        let ids = match listed {
            Ok(ids) => ids,
            Err(error) => {
                for watcher in self.watched.namespaces.0[number].all.clone() {
                    self.watched.end_if_starting(watcher, error);
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
            if self.watched.ids.find(&key).is_some() {
                continue;
            }
            if self.watched.ids.len() >= MAX_IDS {
                self.watched
                    .end_all(number, WatchLimit::Ids { max: MAX_IDS }.into());
                return;
            }
            let part = feed.part(&key);
            let id = self.watched.add(key.into(), id, number, part);
            self.watched.ids.mark_unpushed(id, now);
        }
        let state = &mut self.watched.namespaces.0[number];
        state.is_listed = true;
        state.listed_at = now;
        state.awaited += self.watched.ids.await_unknown(number);
        self.watched.all_go_live(number);
        self.watched.count();
    }

    /// Every key of these parts may have changed.
    pub(super) fn mark_all(&mut self, parts: &Parts, now: Instant) {
        for namespace in &mut self.watched.namespaces.0 {
            // There may be new ids.
            namespace.is_listed = false;
        }
        let in_parts = self
            .watched
            .ids
            .iter()
            .filter(|(_, id)| parts.contain(id.part));
        let tracked = in_parts.filter(|(_, id)| self.watched.namespaces.0[id.namespace].is_tracked);
        let numbers: Vec<_> = tracked.map(|(number, _)| number).collect();
        for number in numbers {
            self.watched.ids.mark_unpushed(number, now);
        }
    }

    /// Ids that have to be read now.
    pub(super) fn take_dirty(&mut self, max: usize) -> Vec<BatchItem> {
        let batch = self.watched.ids.take_dirty(max);
        WatchCounts::add(&self.watched.counts.reads, batch.len());
        batch
    }

    pub(super) fn is_clean(&self) -> bool {
        self.watched.ids.is_clean()
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.watched.ids.next_due()
    }

    pub(super) fn mark_due(&mut self, now: Instant) {
        self.watched.ids.mark_due(now);
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
                    if self.watched.ids.end_read(&item).is_some() {
                        // It stays dirty.
                        self.watched.ids.mark(item.number, item.dirty);
                        if let Some(mark) = &mut self.alive_after {
                            *mark = self.watched.ids.last_mark();
                        }
                        self.watched.fail_starting(item.number, failed);
                    }
                }
            }
        }
        self.watched.count();
        error
    }

    /// One id was read.
    fn read(
        &mut self,
        item: &BatchItem,
        value: Option<Value<'static>>,
        left: Option<Duration>,
        sent: Instant,
    ) {
        let Some(id) = self.watched.ids.end_read(item) else {
            return;
        };
        let is_present = value.is_some();
        let found = value.map(|value| Found {
            value,
            expire_time: None,
        });
        self.watched.scratch.clear();
        if let Ok(name) = Id::try_from(&*id.id) {
            EntryField::new(name, found).encode_for_watch(&mut self.watched.scratch);
        }
        let is_new = !std::mem::replace(&mut id.is_known, true);
        let was_awaited = std::mem::take(&mut id.is_awaited);
        let namespace = id.namespace;
        let mut entry = id.entry.lock();
        let is_changed = entry.encoded != self.watched.scratch;
        if is_changed {
            self.watched.value_bytes -= entry.encoded.len();
            self.watched.value_bytes += self.watched.scratch.len();
            entry.encoded = Bytes::copy_from_slice(&self.watched.scratch);
            entry.is_present = is_present;
        }
        drop(entry);
        let mut overflowed = Vec::new();
        if is_changed {
            let mut events = 0;
            let all = &self.watched.namespaces.0[namespace].all;
            for watcher in id.watchers.iter().chain(all) {
                if let Some(watch) = self.watched.watches.get(*watcher as usize)
                    && watch.progress == Progress::Live
                {
                    if !watch.outbox.push(item.number, &id.entry) {
                        overflowed.push(*watcher);
                    }
                    events += 1;
                }
            }
            WatchCounts::add(&self.watched.counts.events, events);
            if !is_new {
                WatchCounts::add(&self.watched.counts.changes, 1);
                if item.dirty.is_pushed {
                    self.watched.counts.lag(item.dirty.since.elapsed());
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
        self.watched
            .ids
            .schedule(item.number, ids::due(sent, left, REREAD));
        for watcher in overflowed {
            self.watched.overflowed(watcher);
        }
        for watcher in watchers {
            if let Some(watch) = self.watched.watches.get_mut(watcher as usize) {
                watch.missing -= 1;
            }
            self.watched.go_live(watcher);
        }
        if was_awaited {
            self.watched.namespaces.0[namespace].awaited -= 1;
            self.watched.all_go_live(namespace);
        }
        if is_changed {
            self.watched.check_sizes(item.number, namespace);
        }
    }

    /// Whether snapshots wait for room.
    pub(super) fn has_waiting(&self) -> bool {
        self.watched.has_waiting()
    }

    /// Gives the watches that wait for room their snapshots, as far as there is room now.
    pub(super) fn serve_waiting(&mut self) {
        self.watched.serve_waiting();
    }

    /// Asks for the watchers to be told that nothing is missing, once everything that is dirty now
    /// has been read.
    pub(super) fn ask_alive(&mut self) {
        let last = self.watched.ids.last_mark();
        self.alive_after.get_or_insert(last);
    }

    /// Tells the watchers that nothing is missing, if that was asked for and is true now. To be
    /// called while no read is on its way. Returns whether they were told.
    pub(super) fn tell_alive(&mut self) -> bool {
        let Some(mark) = self.alive_after else {
            return false;
        };
        if !self.watched.ids.has_taken(mark) || self.to_list().is_some() {
            return false;
        }
        self.alive_after = None;
        for (_, watch) in &self.watched.watches {
            if watch.progress == Progress::Live {
                watch.outbox.push_alive();
            }
        }
        true
    }

    /// Removes ids that are gone and that all watchers of their namespace have heard of.
    pub(super) fn sweep(&mut self, now: Instant) {
        for number in std::mem::take(&mut self.gone) {
            self.watched.remove_if_unwatched(number);
            let id = self.watched.ids.get(number);
            if id.is_some_and(|id| id.watchers.is_empty() && !id.entry.lock().is_present) {
                self.gone.push(number);
            }
        }
        for namespace in &mut self.watched.namespaces.0 {
            if now - namespace.listed_at >= REREAD {
                namespace.is_listed = false;
            }
        }
        let waiting = self.watched.ids.oldest_mark().map(|since| now - since);
        self.watched.counts.waiting(waiting.unwrap_or_default());
        self.watched.count();
    }
}
