//! Random ids, and their values.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

/// Number of random ids in a run.
pub const IDS: usize = 10_000;

/// Number of different batches of random ids.
const BATCHES: usize = 100;

/// Random ids of nine digits. The value of an id is computed from the id and a salt, so that a reply
/// can be checked without a table.
pub struct KeySet {
    ids: Vec<String>,
    salt: u64,
}

impl KeySet {
    /// Different ids, which no other set of this process has. Otherwise a call that writes could
    /// change what another call expects to read.
    pub fn random(count: usize) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Three digits tell the sets apart.
        let set = 100 + NEXT.fetch_add(1, Relaxed).min(899);
        let mut found = HashSet::with_capacity(count);
        let mut ids = Vec::with_capacity(count);
        while ids.len() < count {
            let number = fastrand::u32(..1_000_000);
            if found.insert(number) {
                ids.push(format!("{set}{number:06}"));
            }
        }
        Self { ids, salt: 0 }
    }

    /// The same ids with other values.
    pub fn resalted(&self) -> Self {
        Self {
            ids: self.ids.clone(),
            salt: fastrand::u64(1..),
        }
    }

    pub fn ids(&self) -> &[String] {
        &self.ids
    }

    /// The value of an id.
    pub fn value(&self, id: &str) -> i64 {
        // FNV-1a.
        let hash = id
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325 ^ self.salt, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        (hash % 1_000_000) as i64
    }

    /// Batches of random ids. An id may be in several of them.
    pub fn random_batches(&self, size: usize) -> Vec<Vec<String>> {
        let batch = |_| (0..size).map(|_| self.ids[fastrand::usize(..self.ids.len())].clone());
        (0..BATCHES).map(|index| batch(index).collect()).collect()
    }
}
