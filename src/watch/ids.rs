//! The ids of the table: which of them are dirty, and when each is to be read again.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use slab::Slab;
use tokio::time::Instant;

use super::outbox::SharedEntry;
use crate::store::Parts;

/// One watched id.
#[derive(Debug)]
pub(super) struct WatchedId {
    /// Where the store keeps it.
    pub(super) key: Arc<[u8]>,
    pub(super) id: Box<str>,
    /// The number of its namespace in the table.
    pub(super) namespace: usize,
    pub(super) part: u16,
    /// What it holds, as far as is known.
    pub(super) entry: Arc<SharedEntry>,
    /// The watches that name this id.
    pub(super) watchers: Vec<u32>,
    /// Whether it has been read since changes of its part are noticed.
    pub(super) is_known: bool,
    /// Whether the snapshots of its whole namespace wait for it.
    pub(super) is_awaited: bool,
    dirty: Option<Dirty>,
    /// Whether a read is on its way.
    is_being_read: bool,
    /// Goes up when earlier reads stop to count.
    generation: u32,
    /// When the timer has it read again.
    due: Option<Instant>,
}

impl WatchedId {
    pub(super) fn new(key: Arc<[u8]>, id: &str, namespace: usize, part: u16) -> Self {
        Self {
            key,
            id: id.into(),
            namespace,
            part,
            entry: Arc::default(),
            watchers: Vec::new(),
            is_known: false,
            is_awaited: false,
            dirty: None,
            is_being_read: false,
            generation: 0,
            due: None,
        }
    }

    /// Whether nothing is to be read, and no read is on its way.
    pub(super) fn is_settled(&self) -> bool {
        self.is_known && self.dirty.is_none() && !self.is_being_read
    }
}

/// Why an id has to be read, and since when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dirty {
    pub(super) since: Instant,
    /// Whether the store said that the id may have changed.
    pub(super) is_pushed: bool,
}

/// An id that is being read.
#[derive(Debug)]
pub(super) struct BatchItem {
    pub(super) number: u32,
    pub(super) key: Arc<[u8]>,
    pub(super) dirty: Dirty,
    generation: u32,
}

/// All watched ids.
#[derive(Debug, Default)]
pub(super) struct Ids {
    slots: Slab<WatchedId>,
    by_key: HashMap<Arc<[u8]>, u32>,
    /// The ids to read, the oldest mark first. An id whose mark has been taken away may still be
    /// here, and is passed over.
    queue: VecDeque<u32>,
    /// How many marks there have been.
    marks: u64,
    timers: BTreeSet<(Instant, u32)>,
}

impl Ids {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn find(&self, key: &[u8]) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    pub(super) fn get(&self, number: u32) -> Option<&WatchedId> {
        self.slots.get(number as usize)
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut WatchedId> {
        self.slots.get_mut(number as usize)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &WatchedId)> {
        // There are far fewer ids than a u32 can count.
        self.slots.iter().map(|(number, id)| (number as u32, id))
    }

    /// The ids with these numbers.
    pub(super) fn range(&self, numbers: Range<usize>) -> impl Iterator<Item = (u32, &WatchedId)> {
        numbers.filter_map(|number| Some((number as u32, self.slots.get(number)?)))
    }

    /// All numbers are less than this.
    pub(super) fn range_end(&self) -> usize {
        self.slots.capacity()
    }

    /// Adds an id that is not there.
    pub(super) fn insert(&mut self, id: WatchedId) -> u32 {
        let key = Arc::clone(&id.key);
        let number = self.slots.insert(id) as u32;
        self.by_key.insert(key, number);
        number
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<WatchedId> {
        let id = self.slots.try_remove(number as usize)?;
        self.by_key.remove(&id.key);
        if let Some(due) = id.due {
            self.timers.remove(&(due, number));
        }
        Some(id)
    }

    /// Marks an id as dirty.
    pub(super) fn mark(&mut self, number: u32, dirty: Dirty) {
        let Some(id) = self.slots.get_mut(number as usize) else {
            return;
        };
        match &mut id.dirty {
            Some(marked) => marked.is_pushed |= dirty.is_pushed,
            None => {
                id.dirty = Some(dirty);
                self.queue.push_back(number);
                self.marks += 1;
            }
        }
    }

    /// Marks an id as dirty of which the store has said nothing.
    pub(super) fn mark_unpushed(&mut self, number: u32, now: Instant) {
        let dirty = Dirty {
            since: now,
            is_pushed: false,
        };
        self.mark(number, dirty);
    }

    /// Takes up to `max` dirty ids to be read now. Clears their marks, so that a change which comes
    /// while they are read marks them again.
    pub(super) fn take_dirty(&mut self, max: usize) -> Vec<BatchItem> {
        let mut batch = Vec::new();
        while batch.len() < max
            && let Some(number) = self.queue.pop_front()
        {
            let Some(id) = self.slots.get_mut(number as usize) else {
                continue;
            };
            let Some(dirty) = id.dirty.take() else {
                continue;
            };
            id.is_being_read = true;
            batch.push(BatchItem {
                number,
                key: Arc::clone(&id.key),
                dirty,
                generation: id.generation,
            });
        }
        batch
    }

    /// A read has ended. Returns the id, unless the read does not count any more.
    pub(super) fn end_read(&mut self, item: &BatchItem) -> Option<&mut WatchedId> {
        let id = self.slots.get_mut(item.number as usize)?;
        if !Arc::ptr_eq(&id.key, &item.key) {
            return None;
        }
        id.is_being_read = false;
        (id.generation == item.generation).then_some(id)
    }

    pub(super) fn is_clean(&self) -> bool {
        self.queue.is_empty()
    }

    /// Since when the first id of the queue has waited.
    pub(super) fn oldest_mark(&self) -> Option<Instant> {
        let first = self.queue.front()?;
        let dirty = self.slots.get(*first as usize)?.dirty?;
        Some(dirty.since)
    }

    /// The number of the last mark.
    pub(super) fn last_mark(&self) -> u64 {
        self.marks
    }

    /// Whether all marks up to number `mark` have been taken.
    pub(super) fn has_taken(&self, mark: u64) -> bool {
        self.marks - self.queue.len() as u64 >= mark
    }

    /// Makes all ids of these parts unknown, and lets reads that are on their way not count.
    /// Returns those that were known or awaited.
    pub(super) fn forget(&mut self, parts: &Parts) -> Vec<u32> {
        let mut forgotten = Vec::new();
        for (number, id) in &mut self.slots {
            if !parts.contain(id.part) {
                continue;
            }
            id.generation = id.generation.wrapping_add(1);
            id.dirty = None;
            if let Some(due) = id.due.take() {
                self.timers.remove(&(due, number as u32));
            }
            if id.is_known || id.is_awaited {
                forgotten.push(number as u32);
            }
        }
        let slots = &self.slots;
        self.queue.retain(|number| {
            let id = slots.get(*number as usize);
            id.is_some_and(|id| id.dirty.is_some())
        });
        forgotten
    }

    /// Awaits the ids of a namespace that are not known. Returns how many are newly awaited.
    pub(super) fn await_unknown(&mut self, namespace: usize) -> usize {
        let mut more = 0;
        for (_, id) in &mut self.slots {
            if id.namespace == namespace && !id.is_known && !id.is_awaited {
                id.is_awaited = true;
                more += 1;
            }
        }
        more
    }

    /// Has an id read at `due`, instead of when it was to be read before.
    pub(super) fn schedule(&mut self, number: u32, due: Instant) {
        if let Some(id) = self.slots.get_mut(number as usize) {
            if let Some(before) = id.due.replace(due) {
                self.timers.remove(&(before, number));
            }
            self.timers.insert((due, number));
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// Marks the ids whose time has come.
    pub(super) fn mark_due(&mut self, now: Instant) {
        while let Some((due, number)) = self.timers.first().copied()
            && due <= now
        {
            self.timers.pop_first();
            if let Some(id) = self.slots.get_mut(number as usize) {
                id.due = None;
            }
            self.mark_unpushed(number, now);
        }
    }
}

/// When an id that was read at `sent` is to be read again: shortly after it expires, and in any
/// case after about `reread`.
pub(super) fn due(sent: Instant, time_to_live: Option<Duration>, reread: Duration) -> Instant {
    /// Redis may tell up to a millisecond too little.
    const AFTER_EXPIRY: Duration = Duration::from_millis(2);
    // Jitter, so that ids which were read together are not read together for ever.
    let reread = reread.mul_f64(0.9 + 0.1 * fastrand::f64());
    let time = time_to_live.map_or(reread, |left| reread.min(left + AFTER_EXPIRY));
    sent + time
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirty(is_pushed: bool) -> Dirty {
        Dirty {
            since: Instant::now(),
            is_pushed,
        }
    }

    fn ids(keys: &[&str]) -> Ids {
        let mut ids = Ids::default();
        for key in keys {
            ids.insert(WatchedId::new(key.as_bytes().into(), key, 0, 0));
        }
        ids
    }

    #[test]
    fn a_change_during_a_read_marks_again() {
        let mut ids = ids(&["a"]);
        ids.mark(0, dirty(true));
        ids.mark(0, dirty(true));
        let batch = ids.take_dirty(10);
        assert_eq!(batch.len(), 1);
        assert!(ids.is_clean() && ids.has_taken(ids.last_mark()));
        ids.mark(0, dirty(true));
        assert!(ids.end_read(&batch[0]).is_some());
        assert!(!ids.has_taken(ids.last_mark()));
        assert_eq!(ids.take_dirty(10).len(), 1);
    }

    #[test]
    fn a_read_from_before_a_gap_does_not_count() {
        let mut ids = ids(&["a", "b"]);
        ids.mark(0, dirty(true));
        ids.mark(1, dirty(true));
        let batch = ids.take_dirty(1);
        ids.forget(&Parts::All);
        assert!(ids.end_read(&batch[0]).is_none());
        assert!(ids.is_clean(), "the other mark is gone, too");
        ids.remove(0);
        let number = ids.insert(WatchedId::new(b"c".as_slice().into(), "c", 0, 0));
        assert_eq!(number, 0);
        assert!(ids.end_read(&batch[0]).is_none());
    }

    #[test]
    fn a_timer_marks_once_at_its_last_time() {
        let mut ids = ids(&["a"]);
        let now = Instant::now();
        let second = Duration::from_secs(1);
        ids.schedule(0, now + second);
        ids.schedule(0, now + 2 * second);
        ids.mark_due(now + second);
        assert!(ids.is_clean());
        ids.mark_due(now + 2 * second);
        assert_eq!(ids.take_dirty(10).len(), 1);
        assert_eq!(ids.next_due(), None);
    }
}
