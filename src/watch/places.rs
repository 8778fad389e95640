//! The namespaces of the table, and the parts of the store.

use tokio::time::Instant;

use crate::store::{Parts, StoreError};

/// How many namespaces a process watches at a time. Each costs Redis time for every write.
pub(super) const MAX_NAMESPACES: usize = 32;

/// A namespace that is watched, or was.
#[derive(Debug)]
pub(super) struct WatchedNamespace {
    pub(super) name: String,
    /// Whether its changes are noticed.
    pub(super) is_tracked: bool,
    /// How many watches it has.
    pub(super) watches: usize,
    /// How many of its ids are in the table.
    pub(super) ids: usize,
    /// The watches of the whole namespace.
    pub(super) all: Vec<u32>,
    /// Only for watches of the whole namespace.
    pub(super) listing: Listing,
    /// When the ids were listed the last time.
    pub(super) listed_at: Instant,
    /// How many ids have to be read before the snapshot of the whole namespace is complete.
    pub(super) awaited: usize,
}

/// Whether the table has every id of a namespace that has a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listing {
    /// The ids have to be listed.
    Needed,
    /// The ids are being listed, or those that were listed are being added.
    Running,
    Done,
}

impl WatchedNamespace {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            is_tracked: false,
            watches: 0,
            ids: 0,
            all: Vec::new(),
            listing: Listing::Needed,
            listed_at: Instant::now(),
            awaited: 0,
        }
    }

    /// Whether everything about the whole namespace is known.
    pub(super) fn is_complete(&self) -> bool {
        self.is_tracked && self.listing == Listing::Done && self.awaited == 0
    }
}

/// The namespaces by their numbers.
#[derive(Debug, Default)]
pub(super) struct Namespaces(pub(super) Vec<WatchedNamespace>);

impl Namespaces {
    /// The number of a namespace, which is added if there is room for it. The place of a namespace
    /// without watches is taken if there is no other.
    pub(super) fn place(&mut self, name: &str) -> Option<usize> {
        if let Some(number) = self.find(name) {
            return Some(number);
        }
        if self.0.len() < MAX_NAMESPACES {
            self.0.push(WatchedNamespace::new(name));
            return Some(self.0.len() - 1);
        }
        let number = self.0.iter().position(|namespace| namespace.watches == 0)?;
        self.0[number] = WatchedNamespace::new(name);
        Some(number)
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|namespace| namespace.name == name)
    }

    pub(super) fn names(&self) -> Vec<String> {
        let names = self.0.iter().map(|namespace| namespace.name.clone());
        names.collect()
    }
}

/// Whether changes in a part of the store are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PartState {
    /// Not yet.
    Starting,
    Up,
    /// Not any more, or not since the last attempt.
    Down(StoreError),
}

/// The parts of the store.
#[derive(Debug)]
pub(super) struct PartStates(Vec<PartState>);

impl PartStates {
    pub(super) fn new(parts: usize) -> Self {
        Self(vec![PartState::Starting; parts])
    }

    pub(super) fn get(&self, part: u16) -> PartState {
        let state = self.0.get(usize::from(part));
        state.copied().unwrap_or(PartState::Starting)
    }

    pub(super) fn set(&mut self, parts: &Parts, to: PartState) {
        for (part, state) in self.0.iter_mut().enumerate() {
            if u16::try_from(part).is_ok_and(|part| parts.contain(part)) {
                *state = to;
            }
        }
    }

    /// The worst state of all parts.
    pub(super) fn of_all(&self) -> PartState {
        let down = self
            .0
            .iter()
            .find(|state| matches!(state, PartState::Down(_)));
        let starting = || self.0.iter().find(|state| **state == PartState::Starting);
        down.or_else(starting).copied().unwrap_or(PartState::Up)
    }
}
