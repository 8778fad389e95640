//! What one watcher has not been sent yet.
//!
//! The task of the table fills an outbox, and the stream of the watcher empties it, on another
//! thread. An outbox holds no values. It has the ids that have changed, each at most once, and the
//! stream reads what they hold when it sends them. So a slow watcher takes bounded memory, and
//! skips the states in between.
//!
//! All outboxes together have a limit, too. Beyond it, snapshots wait, and a watcher with many
//! changes to take gets a new snapshot instead of them.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::end::WatchEnd;

/// How many ids all outboxes may have together. Each takes about 30 bytes. The largest snapshot has
/// a fifth of them.
const MAX_QUEUED: usize = 500_000;
/// An outbox may always have this many ids.
const FAIR_QUEUED: usize = 500;

/// What one id holds, encoded for its watchers. The task writes it, and streams read it.
#[derive(Debug, Default)]
pub(super) struct SharedEntry(Mutex<EntryState>);

#[derive(Debug, Clone, Default)]
pub(super) struct EntryState {
    /// The entry as a field of the message.
    pub(super) encoded: Bytes,
    /// Whether the id has a value.
    pub(super) is_present: bool,
}

impl SharedEntry {
    pub(super) fn lock(&self) -> MutexGuard<'_, EntryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many ids all outboxes have together. Clones share the count.
#[derive(Debug, Clone, Default)]
pub(super) struct Queued(Arc<AtomicUsize>);

impl Queued {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn changed(&self, before: usize, after: usize) {
        if after > before {
            self.0.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.0.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

/// The outbox of one watcher.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<OutboxState>,
    queued: Queued,
    /// Wakes the stream of the watcher.
    wake: Notify,
    /// The number of the watch in the table, once it has one.
    pub(super) number: OnceLock<u32>,
}

#[derive(Debug, Default)]
struct OutboxState {
    /// The ids to send, in the order in which they changed.
    queue: VecDeque<(u32, Arc<SharedEntry>)>,
    /// Their numbers.
    queued: HashSet<u32>,
    snapshot: Snapshot,
    /// Whether a part of a snapshot has been sent whose end will not come.
    is_cut: bool,
    /// Whether to say that nothing is missing, after the queue.
    alive: bool,
    end: Option<WatchEnd>,
}

/// How much of a snapshot is still to be sent.
#[derive(Debug, Default)]
enum Snapshot {
    #[default]
    Sent,
    /// The ids of the queue belong to it, and more are to come.
    Begun {
        /// Whether ids without a value are left out.
        skips_absent: bool,
    },
    /// This many ids at the front of the queue belong to it.
    Left {
        ids: usize,
        /// Whether ids without a value are left out.
        skips_absent: bool,
        /// Whether a part of it has been sent.
        is_begun: bool,
    },
}

/// A part of what a watcher is told: the entries of one message.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) kind: PartKind,
    /// Encoded entries.
    pub(crate) entries: Vec<Bytes>,
}

/// What the entries of a [`Part`] are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartKind {
    /// A part of a snapshot; more of it follows.
    Snapshot,
    /// The last part of a snapshot.
    SnapshotEnd,
    /// Ids that have changed.
    Changes,
    /// No entries: nothing is missing.
    Alive,
}

impl Outbox {
    pub(super) fn new(queued: Queued) -> Self {
        Self {
            queued,
            state: Mutex::default(),
            wake: Notify::default(),
            number: OnceLock::default(),
        }
    }

    /// Whether there is room for a snapshot of `ids` ids.
    pub(super) fn has_room(&self, ids: usize) -> bool {
        ids <= FAIR_QUEUED || self.queued.count() + ids <= MAX_QUEUED
    }

    /// Begins a snapshot. It replaces all that was to be sent. Ids that change before its end belong
    /// to it, too.
    pub(super) fn begin_snapshot(&self, skips_absent: bool) {
        let mut state = self.lock();
        state.cut();
        self.queued.changed(state.queue.len(), 0);
        state.clear();
        state.snapshot = Snapshot::Begun { skips_absent };
        state.alive = false;
    }

    /// Adds ids to a snapshot that has begun. Returns false if there is no room for them. The outbox
    /// is empty then, and the watcher needs a new snapshot.
    pub(super) fn extend_snapshot(
        &self,
        ids: impl Iterator<Item = (u32, Arc<SharedEntry>)>,
    ) -> bool {
        let mut state = self.lock();
        let state = &mut *state;
        let before = state.queue.len();
        let new = ids.filter(|(number, _)| state.queued.insert(*number));
        state.queue.extend(new);
        let after = state.queue.len();
        self.queued.changed(before, after);
        let has_room = after <= FAIR_QUEUED || self.queued.count() <= MAX_QUEUED;
        if !has_room {
            state.cut();
            state.clear();
            self.queued.changed(after, 0);
        }
        has_room
    }

    /// The snapshot that has begun has all its ids now.
    pub(super) fn end_snapshot(&self) {
        let mut state = self.lock();
        if let Snapshot::Begun { skips_absent } = state.snapshot {
            state.snapshot = Snapshot::Left {
                ids: state.queue.len(),
                skips_absent,
                is_begun: false,
            };
        }
        drop(state);
        self.wake.notify_one();
    }

    /// An id has changed. Returns false if there is no room for it. The outbox is empty then, and
    /// the watcher needs a new snapshot.
    pub(super) fn push(&self, number: u32, entry: &Arc<SharedEntry>) -> bool {
        let mut state = self.lock();
        // What was said before this change would no longer be true.
        state.alive = false;
        if !state.queued.insert(number) {
            return true;
        }
        let before = state.queue.len();
        let has_room = before < FAIR_QUEUED || self.queued.count() < MAX_QUEUED;
        if has_room {
            state.queue.push_back((number, Arc::clone(entry)));
        } else {
            state.cut();
            state.clear();
        }
        self.queued.changed(before, state.queue.len());
        drop(state);
        self.wake.notify_one();
        has_room
    }

    /// Nothing is missing besides what is in the outbox.
    pub(super) fn push_alive(&self) {
        self.lock().alive = true;
        self.wake.notify_one();
    }

    /// Something may be missing from now on.
    pub(super) fn withdraw_alive(&self) {
        self.lock().alive = false;
    }

    /// Ends the watch. The first reason counts.
    pub(super) fn end(&self, why: WatchEnd) {
        let mut state = self.lock();
        state.end.get_or_insert(why);
        self.queued.changed(state.queue.len(), 0);
        state.clear();
        drop(state);
        self.wake.notify_one();
    }

    /// The next part, of up to `max_bytes` if it has more than one entry. Waits until there is
    /// something to say. Cancel-safe.
    pub(super) async fn next(&self, max_bytes: usize) -> Result<Part, WatchEnd> {
        loop {
            if let Some(part) = self.take(max_bytes)? {
                return Ok(part);
            }
            self.wake.notified().await;
        }
    }

    fn take(&self, max_bytes: usize) -> Result<Option<Part>, WatchEnd> {
        let mut state = self.lock();
        let state = &mut *state;
        if let Some(why) = state.end {
            return Err(why);
        }
        if std::mem::take(&mut state.is_cut) {
            // Its parts must not count for the next snapshot.
            return Ok(Some(Part {
                kind: PartKind::SnapshotEnd,
                entries: Vec::new(),
            }));
        }
        let (mut left, skips_absent) = match state.snapshot {
            Snapshot::Sent => (usize::MAX, false),
            Snapshot::Begun { .. } => return Ok(None),
            Snapshot::Left {
                ids, skips_absent, ..
            } => (ids, skips_absent),
        };
        let before = state.queue.len();
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while left > 0
            && let Some((number, entry)) = state.queue.front()
        {
            let EntryState {
                encoded,
                is_present,
            } = entry.lock().clone();
            if is_present || !skips_absent {
                if !entries.is_empty() && bytes + encoded.len() > max_bytes {
                    break;
                }
                bytes += encoded.len();
                entries.push(encoded);
            }
            state.queued.remove(number);
            state.queue.pop_front();
            left -= 1;
        }
        self.queued.changed(before, state.queue.len());
        if state.queue.is_empty() {
            // A long queue is rare. Its memory is not kept.
            state.queue.shrink_to(64);
            state.queued.shrink_to(64);
        }
        let kind = match &mut state.snapshot {
            Snapshot::Left { .. } if left == 0 => {
                state.snapshot = Snapshot::Sent;
                PartKind::SnapshotEnd
            }
            Snapshot::Left { ids, is_begun, .. } => {
                (*ids, *is_begun) = (left, true);
                PartKind::Snapshot
            }
            Snapshot::Sent if !entries.is_empty() => PartKind::Changes,
            Snapshot::Sent if std::mem::take(&mut state.alive) => PartKind::Alive,
            Snapshot::Sent | Snapshot::Begun { .. } => return Ok(None),
        };
        Ok(Some(Part { kind, entries }))
    }

    fn lock(&self) -> MutexGuard<'_, OutboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let left = self.lock().queue.len();
        self.queued.changed(left, 0);
    }
}

impl OutboxState {
    /// Gives up the snapshot that is being sent. Its parts would count for the next one. That does no
    /// harm if the next one has the same ids, with or without a value.
    fn cut(&mut self) {
        let snapshot = std::mem::take(&mut self.snapshot);
        self.is_cut |= matches!(
            snapshot,
            Snapshot::Left {
                is_begun: true,
                skips_absent: true,
                ..
            }
        );
    }

    /// Forgets what was to be sent, with its memory.
    fn clear(&mut self) {
        self.queue = VecDeque::new();
        self.queued = HashSet::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;

    fn entry(text: &'static str) -> Arc<SharedEntry> {
        let state = EntryState {
            encoded: Bytes::from_static(text.as_bytes()),
            is_present: !text.starts_with('-'),
        };
        Arc::new(SharedEntry(Mutex::new(state)))
    }

    fn snapshot(
        outbox: &Outbox,
        ids: impl IntoIterator<Item = (u32, Arc<SharedEntry>)>,
        skips_absent: bool,
    ) {
        outbox.begin_snapshot(skips_absent);
        assert!(outbox.extend_snapshot(ids.into_iter()));
        outbox.end_snapshot();
    }

    fn taken(outbox: &Outbox, max_bytes: usize) -> Option<(PartKind, Vec<Bytes>)> {
        let part = outbox.take(max_bytes).expect("has not ended");
        part.map(|part| (part.kind, part.entries))
    }

    #[test]
    fn a_snapshot_is_split_and_what_changes_meanwhile_follows() {
        let outbox = Outbox::default();
        let [a, b, c] = [entry("aaaa"), entry("bbbb"), entry("-c")];
        let ids = [(0, Arc::clone(&a)), (1, Arc::clone(&b)), (2, c)];
        snapshot(&outbox, ids, true);
        outbox.push_alive();
        assert_eq!(
            taken(&outbox, 5),
            Some((PartKind::Snapshot, vec!["aaaa".into()]))
        );
        // One id that has been sent, and one that has not.
        outbox.push(0, &a);
        b.lock().encoded = "BBBB".into();
        outbox.push(1, &b);
        assert_eq!(
            taken(&outbox, 5),
            Some((PartKind::SnapshotEnd, vec!["BBBB".into()]))
        );
        assert_eq!(
            taken(&outbox, 5),
            Some((PartKind::Changes, vec!["aaaa".into()]))
        );
        assert_eq!(taken(&outbox, 5), None, "it is not known to be complete");
        outbox.push_alive();
        assert_eq!(taken(&outbox, 5), Some((PartKind::Alive, vec![])));
        assert_eq!(taken(&outbox, 5), None);
    }

    #[test]
    fn an_empty_snapshot_is_one_part() {
        let outbox = Outbox::default();
        snapshot(&outbox, [(0, entry("-a"))], true);
        assert_eq!(taken(&outbox, 5), Some((PartKind::SnapshotEnd, vec![])));
        assert_eq!(taken(&outbox, 5), None);
    }

    #[test]
    fn an_id_that_changes_often_is_sent_once() {
        let outbox = Outbox::default();
        let a = entry("a");
        for _ in 0..3 {
            outbox.push(7, &a);
        }
        assert_eq!(
            taken(&outbox, 5),
            Some((PartKind::Changes, vec!["a".into()]))
        );
        assert_eq!(taken(&outbox, 5), None);
        outbox.end(StoreError::Unavailable.into());
        assert_eq!(
            outbox.take(5).map(|_| ()),
            Err(WatchEnd::Store(StoreError::Unavailable))
        );
    }

    #[test]
    fn what_changes_while_a_snapshot_is_made_belongs_to_it() {
        let outbox = Outbox::default();
        let [a, b, gone] = [entry("a"), entry("b"), entry("-c")];
        outbox.push(9, &a);
        outbox.begin_snapshot(true);
        assert!(outbox.extend_snapshot([(0, Arc::clone(&a))].into_iter()));
        // One id that is there, one that comes later, and two that do not come otherwise.
        for (number, entry) in [(0, &a), (1, &b), (2, &gone), (3, &b)] {
            assert!(outbox.push(number, entry));
        }
        outbox.push_alive();
        assert_eq!(taken(&outbox, 99), None, "the snapshot is not complete");
        assert!(outbox.extend_snapshot([(1, b)].into_iter()));
        outbox.end_snapshot();
        let all = vec!["a".into(), "b".into(), "b".into()];
        assert_eq!(taken(&outbox, 99), Some((PartKind::SnapshotEnd, all)));
        assert_eq!(taken(&outbox, 99), Some((PartKind::Alive, vec![])));
    }

    #[test]
    fn a_snapshot_for_which_no_room_is_left_is_given_up() {
        let queued = Queued::default();
        let a = entry("a");
        let ids = |count: usize| (0..count as u32).map(|number| (number, Arc::clone(&a)));
        let full = Outbox::new(queued.clone());
        snapshot(&full, ids(MAX_QUEUED - FAIR_QUEUED), false);
        let other = Outbox::new(queued.clone());
        other.begin_snapshot(false);
        assert!(other.extend_snapshot(ids(FAIR_QUEUED)));
        assert!(!other.extend_snapshot(ids(FAIR_QUEUED + 1)));
        assert_eq!(queued.count(), MAX_QUEUED - FAIR_QUEUED);
        assert_eq!(taken(&other, 5), None);
        snapshot(&other, ids(1), false);
        assert_eq!(
            taken(&other, 5),
            Some((PartKind::SnapshotEnd, vec!["a".into()]))
        );
    }

    #[test]
    fn a_snapshot_that_is_cut_short_ends_before_the_next_one() {
        let outbox = Outbox::default();
        let [a, b] = [entry("aaaa"), entry("bbbb")];
        snapshot(&outbox, [(0, a), (1, Arc::clone(&b))], true);
        assert_eq!(
            taken(&outbox, 5),
            Some((PartKind::Snapshot, vec!["aaaa".into()]))
        );
        snapshot(&outbox, [(1, b)], true);
        assert_eq!(taken(&outbox, 5), Some((PartKind::SnapshotEnd, vec![])));
        assert_eq!(
            taken(&outbox, 5),
            Some((PartKind::SnapshotEnd, vec!["bbbb".into()]))
        );
        assert_eq!(taken(&outbox, 5), None);
    }

    #[test]
    fn all_outboxes_share_a_limit_and_each_has_some_room() {
        let queued = Queued::default();
        let a = entry("a");
        let ids = |count: u32| (0..count).map(|number| (number, Arc::clone(&a)));
        let full = Outbox::new(queued.clone());
        snapshot(&full, ids(MAX_QUEUED as u32), false);
        let other = Outbox::new(queued.clone());
        assert!(!other.has_room(FAIR_QUEUED + 1) && other.has_room(FAIR_QUEUED));
        snapshot(&other, ids(FAIR_QUEUED as u32 - 1), false);
        assert!(other.push(900, &a) && other.push(900, &a));
        assert!(!other.push(901, &a));
        assert_eq!(queued.count(), MAX_QUEUED);
        assert_eq!(taken(&other, 5), None);
        drop(full);
        assert_eq!(queued.count(), 0);
        assert!(other.has_room(MAX_QUEUED));
    }
}
