//! What is watched, and by whom. The [`table`](super::table) says when something happens, and this
//! module what follows for the ids and the watches.
//!
//! To open or to close a watch of many ids takes long. Here it is only begun, and the
//! [`steps`](super::steps) do the rest.

use std::sync::Arc;

use super::{
    counts::WatchCounts,
    end::{WatchEnd, WatchLimit},
    hub::{OpenWatch, Target},
    ids::{Ids, WatchedId},
    pending::{Addition, Pending, Removal},
    places::{Listing, MAX_NAMESPACES, Namespaces, PartState, PartStates},
    snapshots::Snapshots,
    watches::{Progress, Watch, fall_behind},
};
use crate::{
    codec::replies::EntryField,
    model::Id,
    store::{Parts, StoreError},
};
use bytes::Bytes;
use slab::Slab;

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
    pub(super) snapshots: Snapshots,
    /// Ids to add and to remove.
    pub(super) pending: Pending,
    /// Ids without a value that are only kept for watches of their whole namespace.
    pub(super) gone: Vec<u32>,
    /// What the encoded entries take together.
    pub(super) value_bytes: usize,
    /// A message with one entry may have this many bytes.
    pub(super) max_reply_bytes: usize,
    pub(super) counts: Arc<WatchCounts>,
    /// Room to encode an entry.
    pub(super) scratch: Vec<u8>,
}

impl Watched {
    pub(super) fn new(parts: usize, max_reply_bytes: usize, counts: Arc<WatchCounts>) -> Self {
        Self {
            ids: Ids::default(),
            namespaces: Namespaces::default(),
            parts: PartStates::new(parts),
            watches: Slab::new(),
            snapshots: Snapshots::default(),
            pending: Pending::default(),
            gone: Vec::new(),
            value_bytes: 0,
            max_reply_bytes,
            counts,
            scratch: Vec::new(),
        }
    }

    /// Begins to open a watch. To be called while nothing is pending.
    pub(super) fn try_open(&mut self, open: OpenWatch) -> Result<(), WatchEnd> {
        debug_assert!(self.pending.is_empty(), "numbers may still be in use");
        let OpenWatch {
            namespace,
            target,
            outbox,
            place,
            waiting,
        } = open;
        let number = self.namespaces.place(&namespace);
        let number = number.ok_or(WatchLimit::Namespaces {
            max: MAX_NAMESPACES,
        })?;
        if let (Target::All, PartState::Down(error)) = (&target, self.parts.of_all()) {
            return Err(error.into());
        }
        let entry = self.watches.vacant_entry();
        // Far fewer watches than a u32 can count.
        let watch = entry.key() as u32;
        _ = outbox.number.set(watch);
        let state = &mut self.namespaces.0[number];
        state.watches += 1;
        let ids = match target {
            Target::All => {
                state.all.push(watch);
                None
            }
            Target::Ids(names) => {
                let room = Vec::with_capacity(names.len());
                self.pending.additions.push_back(Addition::OfWatch {
                    watch,
                    ids: names.into_iter(),
                    waiting,
                });
                Some(room)
            }
        };
        entry.insert(Watch {
            outbox,
            namespace: number,
            ids,
            missing: 0,
            progress: Progress::Starting,
            is_queued: false,
            _place: place,
        });
        // A watch of ids goes live after the last one is there.
        if self.watches[watch as usize].ids.is_none() {
            self.go_live(watch);
        }
        Ok(())
    }

    pub(super) fn add(&mut self, key: Arc<[u8]>, id: Id<'_>, namespace: usize, part: u16) -> u32 {
        let watched = WatchedId::new(key, id.as_str(), namespace, part);
        self.scratch.clear();
        EntryField::new(id, None).encode_for_watch(&mut self.scratch);
        self.value_bytes += self.scratch.len();
        watched.entry.lock().encoded = Bytes::copy_from_slice(&self.scratch);
        self.namespaces.0[namespace].ids += 1;
        self.ids.insert(watched)
    }

    /// Removes a watch. Its ids are removed later.
    pub(super) fn remove(&mut self, number: u32) {
        let Some(watch) = self.watches.try_remove(number as usize) else {
            return;
        };
        let namespace = &mut self.namespaces.0[watch.namespace];
        namespace.watches -= 1;
        match watch.ids {
            Some(ids) => self.pending.removals.push_back(Removal::OfWatch {
                watch: number,
                ids: ids.into_iter(),
            }),
            None => {
                namespace.all.retain(|watcher| *watcher != number);
                if namespace.all.is_empty() {
                    // New ids are not noticed any more.
                    self.list_again(watch.namespace);
                    self.pending.removals.push_back(Removal::OfNamespace {
                        namespace: watch.namespace,
                        next: 0,
                    });
                }
            }
        }
    }

    /// The ids of a namespace have to be listed before its next snapshot. What is being listed does
    /// not count.
    pub(super) fn list_again(&mut self, namespace: usize) {
        self.namespaces.0[namespace].listing = Listing::Needed;
        self.pending.forget_listed(namespace);
    }

    /// Whether there is no room for a further id.
    pub(super) fn is_full(&self) -> bool {
        // What is to be removed takes no room from others.
        self.ids.len() >= MAX_IDS && self.pending.removals.is_empty()
    }

    /// Whether the values take too much memory.
    pub(super) fn has_too_many_bytes(&self) -> bool {
        self.value_bytes > MAX_VALUE_BYTES
    }

    /// Ends a watch from this side.
    pub(super) fn end(&mut self, number: u32, why: WatchEnd) {
        if let Some(watch) = self.watches.get(number as usize) {
            watch.outbox.end(why);
            self.remove(number);
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
            namespace.ids -= 1;
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
        for namespace in 0..self.namespaces.0.len() {
            self.list_again(namespace);
            for number in &self.namespaces.0[namespace].all {
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
        } else if self.has_too_many_bytes() && self.pending.removals.is_empty() {
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
        self.snapshots
            .go_live(number, &mut self.watches, &self.namespaces);
    }

    /// Makes the next piece of a snapshot.
    pub(super) fn make_snapshots(&mut self) {
        self.snapshots
            .step(&mut self.watches, &self.ids, &self.namespaces);
    }

    /// A change had no room in the outbox of a watch. It gets a new snapshot instead.
    pub(super) fn overflowed(&mut self, number: u32) {
        fall_behind(&mut self.watches, number, &self.counts);
        self.snapshots.wait_for_room(number, &mut self.watches);
    }

    pub(super) fn count(&self) {
        let counts = &self.counts;
        WatchCounts::set(&counts.watches, self.watches.len());
        WatchCounts::set(&counts.ids, self.ids.len());
    }
}
