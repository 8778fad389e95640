//! One watch of the table: what it watches, and how far it is.
//!
//! A watch is *live* once it has its snapshot. It stops being live when changes of one of its ids
//! may have been missed, and gets a new snapshot when all its ids have been read again.

use std::sync::{Arc, atomic::Ordering};

use slab::Slab;

use super::{counts::WatchCounts, hub::WatchPlace, outbox::Outbox, places::Namespaces};

#[derive(Debug)]
pub(super) struct Watch {
    pub(super) outbox: Arc<Outbox>,
    pub(super) namespace: usize,
    /// The ids, or `None` for the whole namespace.
    pub(super) ids: Option<Vec<u32>>,
    /// How many of `ids` are not known.
    pub(super) missing: usize,
    pub(super) progress: Progress,
    /// Whether it is in a queue for its snapshot.
    pub(super) is_queued: bool,
    pub(super) _place: WatchPlace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Has had no snapshot yet.
    Starting,
    /// Waits for a new snapshot.
    Behind,
    /// Is told each change. Its snapshot has been made, or is being made.
    Live,
}

impl Watch {
    /// Whether it needs a snapshot, and all of its ids are known. Does not see ids that are still to be
    /// added.
    pub(super) fn can_go_live(&self, namespaces: &Namespaces) -> bool {
        let is_complete = match &self.ids {
            Some(_) => self.missing == 0,
            None => namespaces.0[self.namespace].is_complete(),
        };
        is_complete && self.progress != Progress::Live
    }
}

/// A watch needs a new snapshot.
pub(super) fn fall_behind(watches: &mut Slab<Watch>, number: u32, counts: &WatchCounts) {
    if let Some(watch) = watches.get_mut(number as usize)
        && watch.progress == Progress::Live
    {
        watch.progress = Progress::Behind;
        counts.resyncs.fetch_add(1, Ordering::Relaxed);
    }
}
