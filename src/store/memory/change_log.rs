//! Which keys of the embedded store have changed.
//!
//! Each change of a watched namespace puts its key into a set, under the lock of the key's shard.
//! So whoever reads the key after taking it from the set sees this change or a later one. Expiries
//! are not noted: who reads a value learns when it expires.

use std::{
    collections::HashSet,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

use super::key::Key;
use crate::store::changes::{ChangeEvent, Parts};

/// The set has up to this many keys. Beyond that, every key counts as changed.
const MAX_KEYS: usize = 100_000;

/// The keys that have changed. Costs a change one atomic load while nothing is watched.
#[derive(Debug, Default)]
pub(super) struct ChangeLog {
    is_on: AtomicBool,
    changed: Mutex<Changed>,
    pub(super) wake: Notify,
}

#[derive(Debug, Default)]
struct Changed {
    namespaces: Arc<[String]>,
    keys: HashSet<Key>,
    /// Whether there were more keys than the set takes.
    all: bool,
}

impl ChangeLog {
    /// Notes a change. To be called with the lock of the key's shard, after the change. A change
    /// that was made before the log was on is seen by whoever reads the key after that.
    pub(super) fn note(&self, key: &Key) {
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        let mut changed = self.lock();
        let of_namespace = |name: &String| key.namespace() == name;
        if !changed.namespaces.iter().any(of_namespace) {
            return;
        }
        if changed.keys.len() < MAX_KEYS {
            changed.keys.insert(key.clone());
        } else {
            changed.all = true;
        }
        drop(changed);
        self.wake.notify_one();
    }

    /// Notes changes in these namespaces from now on.
    pub(super) fn follow(&self, namespaces: Arc<[String]>) {
        self.is_on.store(!namespaces.is_empty(), Ordering::Relaxed);
        let mut changed = self.lock();
        if namespaces.is_empty() {
            *changed = Changed::default();
        }
        changed.namespaces = namespaces;
    }

    /// What has changed since the last time.
    pub(super) fn take(&self) -> Option<ChangeEvent> {
        let mut changed = self.lock();
        let keys = mem::take(&mut changed.keys);
        if mem::take(&mut changed.all) {
            return Some(ChangeEvent::AllChanged(Parts::All));
        }
        let keys: Vec<_> = keys.iter().map(Key::to_bytes).collect();
        (!keys.is_empty()).then_some(ChangeEvent::Changed(keys))
    }

    fn lock(&self) -> MutexGuard<'_, Changed> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
