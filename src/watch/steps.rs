//! The pieces of work on many ids. Each takes about half a millisecond.
//!
//! Between two pieces, reads end and the store says what has changed, but no watch is opened or
//! closed. What keeps the table right meanwhile:
//!
//! - An id that is added is marked as dirty at once. A watch gets its snapshot after all of its ids
//!   have been read.
//! - No snapshot is made while ids are added. So each watch has all of its ids then.
//! - The number of a watch that has ended is not used again before all its ids are rid of it, because
//!   only a request opens a watch. The same holds for the number of a namespace.
//! - An id that nobody watches any more, and that is not removed yet, is kept like the others. So a
//!   watch that is opened later may use it.

use std::vec::IntoIter;

use tokio::time::Instant;

use super::{
    end::{UNEXPECTED, WatchEnd, WatchLimit},
    pending::{Addition, Removal},
    places::{Listing, PartState},
    watched::{MAX_IDS, Watched},
};
use crate::{
    model::{Id, Namespace},
    store::ChangeFeed,
};

/// How many ids are added in one piece.
pub(super) const ADD: usize = 512;
/// How many ids are removed, or looked at whether they have to be, in one piece.
pub(super) const REMOVE: usize = 1_024;

impl Watched {
    /// Does the next piece of the work on ids.
    pub(super) fn step(&mut self, feed: &ChangeFeed, now: Instant) {
        if let Some(removal) = self.pending.removals.pop_front() {
            if let Some(rest) = self.remove_some(removal) {
                self.pending.removals.push_front(rest);
            }
        } else if let Some(addition) = self.pending.additions.pop_front()
            && let Some(rest) = self.add_some(addition, feed, now)
        {
            self.pending.additions.push_front(rest);
        }
        self.count();
    }

    /// Returns what is left to remove.
    fn remove_some(&mut self, removal: Removal) -> Option<Removal> {
        match removal {
            Removal::OfWatch { watch, mut ids } => {
                for id in ids.by_ref().take(REMOVE) {
                    if let Some(watched) = self.ids.get_mut(id) {
                        watched.watchers.retain(|watcher| *watcher != watch);
                    }
                    self.remove_if_unwatched(id);
                }
                (ids.len() > 0).then_some(Removal::OfWatch { watch, ids })
            }
            Removal::OfNamespace { namespace, next } => {
                let end = next + REMOVE;
                let of_namespace = self.ids.range(next..end);
                let of_namespace = of_namespace.filter(|(_, id)| id.namespace == namespace);
                let numbers: Vec<_> = of_namespace.map(|(number, _)| number).collect();
                for number in numbers {
                    self.remove_if_unwatched(number);
                }
                (end < self.ids.range_end()).then_some(Removal::OfNamespace {
                    namespace,
                    next: end,
                })
            }
            Removal::Gone { mut ids } => {
                for number in ids.by_ref().take(REMOVE) {
                    self.remove_if_unwatched(number);
                    let id = self.ids.get(number);
                    if id.is_some_and(|id| id.watchers.is_empty() && !id.entry.lock().is_present) {
                        self.gone.push(number);
                    }
                }
                (ids.len() > 0).then_some(Removal::Gone { ids })
            }
        }
    }

    /// Returns what is left to add.
    fn add_some(
        &mut self,
        addition: Addition,
        feed: &ChangeFeed,
        now: Instant,
    ) -> Option<Addition> {
        match addition {
            Addition::OfWatch {
                watch,
                mut ids,
                waiting,
            } => {
                if !self.watches.contains(watch as usize) {
                    return None;
                }
                if let Err(why) = self.add_to_watch(watch, &mut ids, feed, now) {
                    self.end(watch, why);
                    return None;
                }
                if ids.len() > 0 {
                    return Some(Addition::OfWatch {
                        watch,
                        ids,
                        waiting,
                    });
                }
                self.go_live(watch);
            }
            Addition::Listed { namespace, mut ids } => {
                if let Err(why) = self.add_listed(namespace, &mut ids, feed, now) {
                    self.end_all(namespace, why);
                    return None;
                }
                if ids.len() > 0 {
                    return Some(Addition::Listed { namespace, ids });
                }
                let state = &mut self.namespaces.0[namespace];
                state.listing = Listing::Done;
                state.listed_at = now;
                state.awaited += self.ids.await_unknown(namespace);
                self.all_go_live(namespace);
            }
        }
        None
    }

    /// Adds the next ids of a new watch, each once.
    fn add_to_watch(
        &mut self,
        number: u32,
        names: &mut IntoIter<String>,
        feed: &ChangeFeed,
        now: Instant,
    ) -> Result<(), WatchEnd> {
        let of_watch = self
            .watches
            .get(number as usize)
            .ok_or(UNEXPECTED)?
            .namespace;
        let name = self.namespaces.0[of_watch].name.clone();
        // Both the namespace and the ids were checked before the request came here.
        let namespace = Namespace::try_from(name.as_str()).map_err(|_| UNEXPECTED)?;
        for name in names.take(ADD) {
            let id = Id::try_from(name.as_str()).map_err(|_| UNEXPECTED)?;
            let key = feed.key(namespace, id);
            let known = self.ids.find(&key);
            if known.is_none() && self.is_full() {
                return Err(WatchLimit::Ids { max: MAX_IDS }.into());
            }
            let part = feed.part(&key);
            let id = known.unwrap_or_else(|| self.add(key.into(), id, of_watch, part));
            let (Some(watch), Some(watched)) =
                (self.watches.get_mut(number as usize), self.ids.get_mut(id))
            else {
                return Err(UNEXPECTED);
            };
            // The request may name an id twice. Nobody else becomes a watcher meanwhile.
            if watched.watchers.last() == Some(&number) {
                continue;
            }
            watched.watchers.push(number);
            watch.ids.get_or_insert_default().push(id);
            if watched.is_known {
                continue;
            }
            watch.missing += 1;
            match self.parts.get(part) {
                PartState::Down(error) => return Err(error.into()),
                PartState::Up if self.namespaces.0[of_watch].is_tracked => {
                    self.ids.mark_unpushed(id, now);
                }
                PartState::Up | PartState::Starting => {}
            }
        }
        Ok(())
    }

    /// Adds the next ids that were listed in a namespace.
    fn add_listed(
        &mut self,
        number: usize,
        ids: &mut IntoIter<Box<str>>,
        feed: &ChangeFeed,
        now: Instant,
    ) -> Result<(), WatchEnd> {
        let name = self.namespaces.0[number].name.clone();
        let namespace = Namespace::try_from(name.as_str()).map_err(|_| UNEXPECTED)?;
        for id in ids.take(ADD) {
            // Another program may have written it.
            let Ok(id) = Id::try_from(&*id) else {
                continue;
            };
            let key = feed.key(namespace, id);
            if self.ids.find(&key).is_some() {
                continue;
            }
            if self.is_full() {
                return Err(WatchLimit::Ids { max: MAX_IDS }.into());
            }
            let part = feed.part(&key);
            let id = self.add(key.into(), id, number, part);
            self.ids.mark_unpushed(id, now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
