//! The table of watched ids: what follows when the store says something, or when something was read.
//!
//! The table does nothing by itself and knows no clock. Its task tells it what happens.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    counts::WatchCounts,
    end::WatchLimit,
    hub::OpenWatch,
    ids::{self, BatchItem, Dirty, WatchedId},
    outbox::Outbox,
    pending::{Addition, Removal},
    places::{Listing, PartState, WatchedNamespace},
    watched::{MAX_IDS, Watched},
    watches::Progress,
};
use crate::{
    codec::replies::EntryField,
    model::{Found, Id, Value},
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
    /// Since when changes are not noticed, or watches wait for the snapshot that they need after that.
    lost_since: Option<Instant>,
}

impl Table {
    pub(super) fn new(parts: usize, max_reply_bytes: usize, counts: Arc<WatchCounts>) -> Self {
        Self {
            watched: Watched::new(parts, max_reply_bytes, counts),
            alive_after: None,
            lost_since: None,
        }
    }

    /// The names of the namespaces to track: those that have watches, and those that had some and
    /// whose place nobody has needed.
    pub(super) fn namespaces(&self) -> Vec<String> {
        self.watched.namespaces.names()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.watched.watches.is_empty() && !self.is_adding_or_removing()
    }

    /// Whether ids are still to be added or removed. Requests have to wait for that.
    pub(super) fn is_adding_or_removing(&self) -> bool {
        !self.watched.pending.is_empty()
    }

    /// Whether there is work that is done in steps.
    pub(super) fn has_work(&self) -> bool {
        self.is_adding_or_removing() || self.watched.snapshots.has_work()
    }

    /// Does a step of the work. No snapshot is made before each watch has all of its ids.
    pub(super) fn work(&mut self, feed: &ChangeFeed, now: Instant) {
        if self.is_adding_or_removing() {
            self.watched.step(feed, now);
        } else {
            self.watched.make_snapshots();
        }
    }

    /// Forgets everything besides the counts. To be called when the feed stops.
    pub(super) fn reset(&mut self, parts: usize) {
        let (max_reply_bytes, counts) = (
            self.watched.max_reply_bytes,
            Arc::clone(&self.watched.counts),
        );
        *self = Self::new(parts, max_reply_bytes, counts);
        self.watched.counts.waiting(Duration::ZERO);
        self.watched.count();
    }

    /// Adds a watch, or ends it at once. To be called while no ids are added or removed.
    pub(super) fn open(&mut self, open: OpenWatch) {
        let outbox = Arc::clone(&open.outbox);
        if let Err(why) = self.watched.try_open(open) {
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
    pub(super) fn lost(&mut self, parts: &Parts, error: StoreError, now: Instant) {
        self.lost_since.get_or_insert(now);
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
        if self.watched.is_full() {
            self.watched
                .end_all(namespace, WatchLimit::Ids { max: MAX_IDS }.into());
            return None;
        }
        Some(
            self.watched
                .add(key.as_ref().into(), id, namespace, feed.part(key)),
        )
    }

    /// The namespaces that are watched as a whole, and whose ids are not all known.
    fn unlisted(&self) -> impl Iterator<Item = &WatchedNamespace> {
        let is_up = self.watched.parts.of_all() == PartState::Up;
        let namespaces = self.watched.namespaces.0.iter().filter(move |_| is_up);
        namespaces.filter(|namespace| {
            !namespace.all.is_empty() && namespace.is_tracked && namespace.listing != Listing::Done
        })
    }

    /// A namespace whose ids have to be listed now.
    pub(super) fn to_list(&self) -> Option<&str> {
        let mut unlisted = self.unlisted();
        let needed = unlisted.find(|namespace| namespace.listing == Listing::Needed);
        needed.map(|namespace| namespace.name.as_str())
    }

    /// The ids of a namespace are being listed.
    pub(super) fn listing(&mut self, name: &str) {
        if let Some(number) = self.watched.namespaces.find(name) {
            self.watched.namespaces.0[number].listing = Listing::Running;
        }
    }

    /// These ids are in a namespace. They do not count if they have to be listed again.
    pub(super) fn listed(&mut self, name: &str, listed: Result<Vec<Box<str>>, StoreError>) {
        let Some(number) = self.watched.namespaces.find(name) else {
            return;
        };
        if self.watched.namespaces.0[number].listing != Listing::Running {
            return;
        }
        match listed {
            Ok(ids) => self.watched.pending.additions.push_back(Addition::Listed {
                namespace: number,
                ids: ids.into_iter(),
            }),
            Err(error) => {
                self.watched.list_again(number);
                for watcher in self.watched.namespaces.0[number].all.clone() {
                    self.watched.end_if_starting(watcher, error);
                }
            }
        }
    }

    /// Every key of these parts may have changed.
    pub(super) fn mark_all(&mut self, parts: &Parts, now: Instant) {
        for namespace in 0..self.watched.namespaces.0.len() {
            // There may be new ids.
            self.watched.list_again(namespace);
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

    /// Ids that have to be read now. None while ids are removed to make room for values.
    pub(super) fn take_dirty(&mut self, max: usize) -> Vec<BatchItem> {
        if self.watched.has_too_many_bytes() && !self.watched.pending.removals.is_empty() {
            return Vec::new();
        }
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
            self.watched.gone.push(item.number);
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
        self.watched.snapshots.has_waiting()
    }

    /// Tries the snapshots that wait for room once more.
    pub(super) fn try_waiting(&mut self) {
        self.watched.snapshots.try_waiting();
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
        if !self.watched.ids.has_taken(mark) || self.unlisted().next().is_some() {
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
        let gone = std::mem::take(&mut self.watched.gone);
        if !gone.is_empty() {
            let ids = gone.into_iter();
            self.watched
                .pending
                .removals
                .push_back(Removal::Gone { ids });
        }
        for number in 0..self.watched.namespaces.0.len() {
            let namespace = &self.watched.namespaces.0[number];
            if namespace.listing == Listing::Done && now - namespace.listed_at >= REREAD {
                self.watched.list_again(number);
            }
        }
        if self.is_recovered() {
            self.lost_since = None;
        }
        let oldest = self.watched.ids.oldest_mark().into_iter();
        let oldest = oldest.chain(self.lost_since).min();
        let waiting = oldest.map(|since| now - since);
        self.watched.counts.waiting(waiting.unwrap_or_default());
        self.watched.count();
    }

    /// Whether all changes are noticed, and no watch waits for a new snapshot.
    fn is_recovered(&self) -> bool {
        let mut watches = self.watched.watches.iter();
        self.watched.parts.of_all() == PartState::Up
            && watches.all(|(_, watch)| watch.progress != Progress::Behind)
    }
}
