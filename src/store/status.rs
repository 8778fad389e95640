//! Whether the store can be used. The store's links report it, and health reads it.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::watch;

use super::sweeps::Sweeps;

/// The state of all links to the store, and of the store as a whole. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct StoreStatus {
    links: Arc<Mutex<Vec<LinkState>>>,
    /// How often a link has come up.
    connects: Arc<AtomicU64>,
    /// What the sweeps of indexes have done.
    pub(crate) sweeps: Arc<Sweeps>,
    summary: watch::Sender<LinkState>,
}

/// Whether a link is up. If it is down, the reason is a text for the people who run the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkState {
    Up,
    Down(String),
}

impl StoreStatus {
    /// The status of `links` links, each of them in the `initial` state.
    pub(crate) fn new(links: usize, initial: LinkState) -> Self {
        Self {
            summary: watch::Sender::new(initial.clone()),
            links: Arc::new(Mutex::new(vec![initial; links])),
            connects: Arc::default(),
            sweeps: Arc::default(),
        }
    }

    /// Records the state of link number `link`.
    pub(crate) fn set(&self, link: usize, state: LinkState) {
        let mut links = self.lock();
        if let Some(slot) = links.get_mut(link) {
            if *slot != LinkState::Up && state == LinkState::Up {
                self.connects.fetch_add(1, Ordering::Relaxed);
            }
            *slot = state;
        }
        // A worker fails its calls while its link is down. So the store is up if every link is.
        let summary = links
            .iter()
            .find(|state| **state != LinkState::Up)
            .unwrap_or(&LinkState::Up);
        self.summary.send_if_modified(|current| {
            let changed = current != summary;
            if changed {
                current.clone_from(summary);
            }
            changed
        });
    }

    /// Number of links that this process should have.
    pub(crate) fn links(&self) -> usize {
        self.lock().len()
    }

    /// Number of links that are up.
    pub(crate) fn links_up(&self) -> usize {
        let links = self.lock();
        let up = links.iter().filter(|state| **state == LinkState::Up);
        up.count()
    }

    /// How often a link has come up.
    pub(crate) fn connects(&self) -> u64 {
        self.connects.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<LinkState>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the state of the store as a whole.
    pub(crate) fn subscribe(&self) -> watch::Receiver<LinkState> {
        self.summary.subscribe()
    }
}
