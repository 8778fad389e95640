//! Work on many ids that is still to be done.
//!
//! A watch may have as many ids as the table. To add or to remove them all at once would keep the
//! worker of the same thread waiting. So the work is queued here, and the task does a piece of it in
//! each turn. [`steps`](super::steps) has the pieces.

use std::{collections::VecDeque, vec::IntoIter};

use super::hub::WaitingIds;

/// Work on ids that is still to be done.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Done first, because additions need the room.
    pub(super) removals: VecDeque<Removal>,
    pub(super) additions: VecDeque<Addition>,
}

/// Ids to remove.
#[derive(Debug)]
pub(super) enum Removal {
    /// The ids of a watch that has ended. They still have the number of the watch.
    OfWatch { watch: u32, ids: IntoIter<u32> },
    /// The ids of a namespace that nobody watches as a whole any more, from this number on.
    OfNamespace { namespace: usize, next: usize },
    /// Ids that have no value any more.
    Gone { ids: IntoIter<u32> },
}

/// Ids to add.
#[derive(Debug)]
pub(super) enum Addition {
    /// The ids of a new watch.
    OfWatch {
        watch: u32,
        ids: IntoIter<String>,
        waiting: WaitingIds,
    },
    /// The ids that were listed in a namespace which is watched as a whole.
    Listed {
        namespace: usize,
        ids: IntoIter<Box<str>>,
    },
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.removals.is_empty() && self.additions.is_empty()
    }

    /// Forgets what was listed in a namespace.
    pub(super) fn forget_listed(&mut self, number: usize) {
        self.additions.retain(|addition| {
            !matches!(addition, Addition::Listed { namespace, .. } if *namespace == number)
        });
    }
}
