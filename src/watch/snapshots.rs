//! The snapshots of watches: which watches are to get one, and making them.
//!
//! Snapshots are made one after the other, and each in pieces, because one may have all ids of the
//! table. A watch is live from the first piece on, so its outbox hears of each change. While the
//! snapshot is being made, the outbox takes the id of a change into it, if it is not there yet.
//!
//! All outboxes together have a limit. A snapshot for which there is no room waits.

use std::{collections::VecDeque, sync::Arc};

use slab::Slab;

use super::{
    ids::Ids,
    outbox::Outbox,
    places::Namespaces,
    watches::{Progress, Watch},
};

/// How many ids are looked at in one piece. They take about half a millisecond.
const PIECE: usize = 8_192;

/// Which watches are to get snapshots.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    /// The watches whose snapshots are to be made, the next one first.
    queue: VecDeque<u32>,
    /// The watches whose snapshots wait for room, the one that has waited longest first.
    waiting: VecDeque<u32>,
    /// The snapshot that is being made.
    begun: Option<Begun>,
}

/// A snapshot of which a part has been made.
#[derive(Debug)]
struct Begun {
    watch: u32,
    outbox: Arc<Outbox>,
    /// How far the watch was before.
    before: Progress,
    /// The place of the next id: in the ids of the watch, or of the table for a whole namespace.
    next: usize,
}

impl Snapshots {
    /// Gives a watch its snapshot, if it needs one and all of its ids are known.
    pub(super) fn go_live(
        &mut self,
        number: u32,
        watches: &mut Slab<Watch>,
        namespaces: &Namespaces,
    ) {
        if let Some(watch) = watches.get_mut(number as usize)
            && watch.can_go_live(namespaces)
            && !std::mem::replace(&mut watch.is_queued, true)
        {
            self.queue.push_back(number);
        }
    }

    /// Lets a watch wait until there may be room for its snapshot.
    pub(super) fn wait_for_room(&mut self, number: u32, watches: &mut Slab<Watch>) {
        if let Some(watch) = watches.get_mut(number as usize)
            && !std::mem::replace(&mut watch.is_queued, true)
        {
            self.waiting.push_back(number);
        }
    }

    /// Whether snapshots wait for room.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Tries the snapshots that wait for room once more.
    pub(super) fn try_waiting(&mut self) {
        self.queue.append(&mut self.waiting);
    }

    /// Whether there is something to make.
    pub(super) fn has_work(&self) -> bool {
        self.begun.is_some() || !self.queue.is_empty()
    }

    /// Makes the next piece.
    pub(super) fn step(&mut self, watches: &mut Slab<Watch>, ids: &Ids, namespaces: &Namespaces) {
        let mut left = PIECE;
        while left > 0 {
            let Some(mut begun) = self
                .begun
                .take()
                .or_else(|| self.begin(watches, namespaces))
            else {
                return;
            };
            let watch = watches.get_mut(begun.watch as usize);
            let is_same = |watch: &&mut Watch| {
                Arc::ptr_eq(&watch.outbox, &begun.outbox) && watch.progress == Progress::Live
            };
            // Otherwise it has ended, or has to begin again later.
            let Some(watch) = watch.filter(is_same) else {
                continue;
            };
            let length = watch.ids.as_ref().map_or_else(|| ids.range_end(), Vec::len);
            let end = length.min(begun.next + left);
            left -= end - begun.next;
            let has_room = match &watch.ids {
                Some(of_watch) => {
                    let piece = of_watch[begun.next..end].iter();
                    let entry = |id: &u32| Some((*id, Arc::clone(&ids.get(*id)?.entry)));
                    watch.outbox.extend_snapshot(piece.filter_map(entry))
                }
                None => {
                    let present = ids.range(begun.next..end).filter(|(_, id)| {
                        id.namespace == watch.namespace && id.is_known && id.entry.lock().is_present
                    });
                    let entries = present.map(|(number, id)| (number, Arc::clone(&id.entry)));
                    watch.outbox.extend_snapshot(entries)
                }
            };
            if !has_room {
                watch.progress = begun.before;
                self.wait_for_room(begun.watch, watches);
            } else if end < length {
                begun.next = end;
                self.begun = Some(begun);
            } else {
                watch.outbox.end_snapshot();
            }
        }
    }

    /// Begins the next snapshot for which there is room.
    fn begin(&mut self, watches: &mut Slab<Watch>, namespaces: &Namespaces) -> Option<Begun> {
        while let Some(number) = self.queue.pop_front() {
            let Some(watch) = watches.get_mut(number as usize) else {
                continue;
            };
            watch.is_queued = false;
            if !watch.can_go_live(namespaces) {
                continue;
            }
            let of_namespace = namespaces.0[watch.namespace].ids;
            let length = watch.ids.as_ref().map_or(of_namespace, Vec::len);
            if !watch.outbox.has_room(length) {
                self.wait_for_room(number, watches);
                continue;
            }
            watch.outbox.begin_snapshot(watch.ids.is_none());
            return Some(Begun {
                watch: number,
                outbox: Arc::clone(&watch.outbox),
                before: std::mem::replace(&mut watch.progress, Progress::Live),
                next: 0,
            });
        }
        None
    }
}
