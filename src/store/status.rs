//! Whether the store can be used. Each worker's store reports it, and health reads it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::sweeps::Sweeps;

/// The state of the store for each worker, and of the store as a whole. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct StoreStatus {
    workers: Arc<Mutex<Vec<LinkState>>>,
    /// What the sweeps of indexes have done.
    pub(crate) sweeps: Arc<Sweeps>,
    summary: watch::Sender<LinkState>,
}

/// Whether the store, or one link to it, is up. If it is down, the reason is a text for the people
/// who run the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkState {
    Up,
    Down(String),
}

impl StoreStatus {
    /// The status for `workers` workers, with the store in the `initial` state for each.
    pub(crate) fn new(workers: usize, initial: LinkState) -> Self {
        Self {
            summary: watch::Sender::new(initial.clone()),
            workers: Arc::new(Mutex::new(vec![initial; workers])),
            sweeps: Arc::default(),
        }
    }

    /// Records the state of the store for worker number `worker`.
    pub(crate) fn set(&self, worker: usize, state: LinkState) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = workers.get_mut(worker) {
            *slot = state;
        }
        // A worker whose store is down fails its calls. So the store is up if it is for every worker.
        let summary = workers
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

    /// Follows the state of the store as a whole.
    pub(crate) fn subscribe(&self) -> watch::Receiver<LinkState> {
        self.summary.subscribe()
    }
}
