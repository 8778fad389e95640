//! What is watched, and by whom. The [`table`](super::table) says when something happens, and this
//! module what follows for the ids and the watches.
//!
//! A watch is *live* once it has its snapshot. It stops being live when changes of one of its ids
//! may have been missed, and gets a new snapshot when all its ids have been read again.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use slab::Slab;
use tokio::time::Instant;

use super::{
    counts::WatchCounts,
    hub::{OpenWatch, Target, WatchPlace},
    ids::{Ids, WatchedId},
    outbox::{Outbox, WatchEnd, WatchLimit},
    places::{MAX_NAMESPACES, Namespaces, PartState, PartStates},
};
use crate::{
    codec::replies::EntryField,
    model::{Id, Namespace},
    store::{ChangeFeed, Parts, StoreError},
};

/// How many distinct ids a process watches at most.
pub(super) const MAX_IDS: usize = 100_000;
/// How many bytes the values of all watched ids may have together.
const MAX_VALUE_BYTES: usize = 64 << 20;
/// What a message has besides its entries.
const MESSAGE_OVERHEAD: usize = 16;

/// The ids, and the watches of them.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) ids: Ids,
    pub(super) namespaces: Namespaces,
    pub(super) parts: PartStates,
    pub(super) watches: Slab<Watch>,
    /// The watches whose snapshots wait for room, the one that has waited longest first.
    waiting: VecDeque<u32>,
    /// What the encoded entries take together.
    pub(super) value_bytes: usize,
    /// A message with one entry may have this many bytes.
    pub(super) max_reply_bytes: usize,
    pub(super) counts: Arc<WatchCounts>,
    /// Room to encode an entry.
    pub(super) scratch: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Watch {
    pub(super) outbox: Arc<Outbox>,
    pub(super) namespace: usize,
    /// The ids, or `None` for the whole namespace.
    pub(super) ids: Option<Box<[u32]>>,
    /// How many of `ids` are not known.
    pub(super) missing: usize,
    pub(super) progress: Progress,
    /// Whether it is among those that wait for room.
    is_waiting: bool,
    _place: WatchPlace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Has had no snapshot yet.
    Starting,
    /// Waits for a new snapshot.
    Behind,
    Live,
}

impl Watched {
    pub(super) fn new(parts: usize, max_reply_bytes: usize, counts: Arc<WatchCounts>) -> Self {
        Self {
            ids: Ids::default(),
            namespaces: Namespaces::default(),
            parts: PartStates::new(parts),
            watches: Slab::new(),
            waiting: VecDeque::new(),
            value_bytes: 0,
            max_reply_bytes,
            counts,
            scratch: Vec::new(),
        }
    }

    pub(super) fn try_open(
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
                            self.ids.mark_unpushed(*id, now);
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
            is_waiting: false,
            _place: place,
        });
        self.go_live(watch);
        Ok(())
    }

    /// The numbers of these ids, each once. Adds those that are new.
    pub(super) fn look_up(
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

    pub(super) fn add(&mut self, key: Arc<[u8]>, id: Id<'_>, namespace: usize, part: u16) -> u32 {
        let watched = WatchedId::new(key, id.as_str(), namespace, part);
        self.scratch.clear();
        EntryField::new(id, None).encode_for_watch(&mut self.scratch);
        self.value_bytes += self.scratch.len();
        watched.entry.lock().encoded = Bytes::copy_from_slice(&self.scratch);
        self.ids.insert(watched)
    }

    pub(super) fn remove(&mut self, number: u32) {
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
    pub(super) fn end(&mut self, number: u32, why: WatchEnd) {
        if let Some(watch) = self.watches.get(number as usize) {
            watch.outbox.end(why);
            self.remove(number);
        }
    }

    pub(super) fn remove_unwatched_ids(&mut self, namespace: usize) {
        let of_namespace = self.ids.iter().filter(|(_, id)| id.namespace == namespace);
        let numbers: Vec<_> = of_namespace.map(|(number, _)| number).collect();
        for number in numbers {
            self.remove_if_unwatched(number);
        }
    }

    /// Removes an id that nobody watches. An id that is only watched with its whole namespace stays
    /// while it has a value, and until its watchers have heard that the value is gone.
    pub(super) fn remove_if_unwatched(&mut self, number: u32) {
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

    /// Returns the numbers of those that were not tracked before.
    pub(super) fn set_tracked(&mut self, names: &[String]) -> Vec<usize> {
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

    /// Whether a watch cannot begin without these parts.
    pub(super) fn waits_for(&self, watch: &Watch, parts: &Parts) -> bool {
        let Some(ids) = &watch.ids else {
            return true;
        };
        let mut watched = ids.iter().filter_map(|id| self.ids.get(*id));
        watched.any(|id| !id.is_known && parts.contain(id.part))
    }

    /// What was read of these parts does not count any more.
    pub(super) fn forget(&mut self, parts: &Parts) {
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

    /// Ends the watches of a whole namespace.
    pub(super) fn end_all(&mut self, namespace: usize, why: WatchEnd) {
        for watcher in self.namespaces.0[namespace].all.clone() {
            self.end(watcher, why);
        }
    }

    /// Ends the watches that cannot begin, because one of their ids cannot be read.
    pub(super) fn fail_starting(&mut self, number: u32, error: StoreError) {
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

    pub(super) fn end_if_starting(&mut self, watcher: u32, error: StoreError) {
        let watch = self.watches.get(watcher as usize);
        if watch.is_some_and(|watch| watch.progress == Progress::Starting) {
            self.end(watcher, error.into());
        }
    }

    /// Ends the watches of an id whose value is too large, alone or with all others.
    pub(super) fn check_sizes(&mut self, number: u32, namespace: usize) {
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

    pub(super) fn all_go_live(&mut self, namespace: usize) {
        let state = &self.namespaces.0[namespace];
        if state.is_complete() {
            for watcher in state.all.clone() {
                self.go_live(watcher);
            }
        }
    }

    /// Gives a watch its snapshot, if it needs one and all of its ids are known.
    pub(super) fn go_live(&mut self, number: u32) {
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
        let ids = watch.ids.as_ref().map_or(self.ids.len(), |ids| ids.len());
        if !watch.outbox.has_room(ids) {
            self.wait_for_room(number);
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

    /// A change had no room in the outbox of a watch. It gets a new snapshot instead.
    pub(super) fn overflowed(&mut self, number: u32) {
        fall_behind(&mut self.watches, number, &self.counts);
        self.wait_for_room(number);
    }

    fn wait_for_room(&mut self, number: u32) {
        if let Some(watch) = self.watches.get_mut(number as usize)
            && !std::mem::replace(&mut watch.is_waiting, true)
        {
            self.waiting.push_back(number);
        }
    }

    /// Whether snapshots wait for room.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Gives the watches that wait for room their snapshots, as far as there is room now. The others
    /// wait again, in the same order.
    pub(super) fn serve_waiting(&mut self) {
        for number in std::mem::take(&mut self.waiting) {
            if let Some(watch) = self.watches.get_mut(number as usize) {
                watch.is_waiting = false;
                self.go_live(number);
            }
        }
    }

    pub(super) fn count(&self) {
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
