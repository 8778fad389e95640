//! What the sweeps of the indexes in Redis have done and found. `/metrics` shows it.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::model::{INDEX_SHARDS, Namespace};

/// What the sweeps of all indexes have done and found.
#[derive(Debug, Default)]
pub(crate) struct Sweeps {
    removed: AtomicU64,
    failures: AtomicU64,
    /// For each namespace, how many ids are marked in each of its shards. A shard without a number
    /// has not been swept yet, or its last sweep has failed.
    marked: Mutex<BTreeMap<String, [Option<u64>; INDEX_SHARDS as usize]>>,
}

/// What one step of a sweep has done and found in a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Swept {
    /// How many expired ids it has removed.
    pub(crate) removed: u64,
    /// How many ids are marked.
    pub(crate) marked: u64,
}

impl Sweeps {
    /// Records a step in a shard of an index.
    pub(crate) fn record<E>(&self, namespace: Namespace<'_>, shard: u16, step: &Result<Swept, E>) {
        match step {
            Ok(swept) => self.removed.fetch_add(swept.removed, Ordering::Relaxed),
            Err(_) => self.failures.fetch_add(1, Ordering::Relaxed),
        };
        let mut marked = self.lock();
        let shards = marked
            .entry(namespace.as_str().to_owned())
            .or_insert([None; INDEX_SHARDS as usize]);
        if let Some(marked) = shards.get_mut(usize::from(shard)) {
            *marked = step.as_ref().ok().map(|swept| swept.marked);
        }
    }

    /// How many ids have been removed after their expiry.
    pub(crate) fn removed(&self) -> u64 {
        self.removed.load(Ordering::Relaxed)
    }

    /// How many steps have failed.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// How many ids are marked in each namespace. There is no number for a namespace while one of its
    /// shards has none, because part of a sum would look as if ids had left.
    pub(crate) fn marked(&self) -> Vec<(String, u64)> {
        let marked = self.lock();
        let sums = marked.iter().filter_map(|(namespace, shards)| {
            let sum = shards.iter().copied().sum::<Option<u64>>()?;
            Some((namespace.clone(), sum))
        });
        sums.collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, [Option<u64>; INDEX_SHARDS as usize]>> {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_a_number_while_all_its_shards_have_one() {
        let sweeps = Sweeps::default();
        let namespace = Namespace::try_from("online").expect("valid");
        let found = |marked| Ok::<_, ()>(Swept { removed: 2, marked });
        for shard in 0..INDEX_SHARDS {
            assert_eq!(sweeps.marked(), []);
            sweeps.record(namespace, shard, &found(3));
        }
        assert_eq!(sweeps.marked(), [("online".to_owned(), 192)]);
        sweeps.record(namespace, 7, &found(4));
        assert_eq!(sweeps.marked(), [("online".to_owned(), 193)]);
        sweeps.record(namespace, 7, &Err(()));
        assert_eq!(sweeps.marked(), []);
        sweeps.record(namespace, 7, &found(0));
        assert_eq!(sweeps.marked(), [("online".to_owned(), 189)]);
        assert_eq!((sweeps.removed(), sweeps.failures()), (132, 1));
    }
}
