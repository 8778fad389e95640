//! The workers' access to the watches of the process.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::mpsc;

use super::{
    counts::WatchCounts,
    end::{WatchEnd, WatchLimit},
    outbox::{Outbox, Part, Queued},
    settings::WatchSettings,
};
use crate::{
    model::{Id, Namespace},
    store::StoreError,
};

/// How many ids may wait for the task before further requests are refused.
const MAX_WAITING_IDS: usize = 100_000;

/// Opens watches. Clones belong to the same process.
#[derive(Debug, Clone)]
pub(crate) struct WatchHub {
    /// Each watch sends two requests, and the places bound the watches. So the channel is bounded,
    /// too.
    requests: mpsc::UnboundedSender<WatchRequest>,
    places: Arc<AtomicUsize>,
    /// How many ids there are in requests that the task has not taken.
    waiting_ids: Arc<AtomicUsize>,
    queued: Queued,
    settings: WatchSettings,
    pub(crate) counts: Arc<WatchCounts>,
}

/// What to watch.
#[derive(Debug)]
pub(crate) enum Target {
    /// These ids, which are valid.
    Ids(Vec<String>),
    /// Every id of the namespace.
    All,
}

/// A request to the task of the table.
#[derive(Debug)]
pub(super) enum WatchRequest {
    Open(OpenWatch),
    Close(Arc<Outbox>),
}

/// A watch to be opened.
#[derive(Debug)]
pub(super) struct OpenWatch {
    pub(super) namespace: String,
    pub(super) target: Target,
    pub(super) outbox: Arc<Outbox>,
    pub(super) place: WatchPlace,
    /// For as long as the request waits.
    pub(super) waiting: WaitingIds,
}

/// Ids that wait for the task.
#[derive(Debug)]
pub(super) struct WaitingIds {
    all: Arc<AtomicUsize>,
    ids: usize,
}

impl Drop for WaitingIds {
    fn drop(&mut self) {
        self.all.fetch_sub(self.ids, Ordering::Relaxed);
    }
}

/// The place of one watch, until the table has removed the watch.
#[derive(Debug)]
pub(super) struct WatchPlace(Arc<AtomicUsize>);

impl Drop for WatchPlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl WatchHub {
    /// Returns the hub, and where its requests come out.
    pub(super) fn new(settings: WatchSettings) -> (Self, mpsc::UnboundedReceiver<WatchRequest>) {
        let (requests, received) = mpsc::unbounded_channel();
        let hub = Self {
            requests,
            places: Arc::default(),
            waiting_ids: Arc::default(),
            queued: Queued::default(),
            settings,
            counts: Arc::default(),
        };
        (hub, received)
    }

    /// The most ids that one watch may have.
    pub(crate) fn max_ids(&self) -> usize {
        self.settings.max_watch_ids
    }

    /// Opens a watch.
    pub(crate) fn open(
        &self,
        namespace: Namespace<'_>,
        target: Target,
    ) -> Result<Watcher, WatchEnd> {
        if let Target::Ids(ids) = &target {
            debug_assert!(ids.iter().all(|id| Id::try_from(id.as_str()).is_ok()));
        }
        let place = self.take_place()?;
        let waiting = self.wait(&target)?;
        let outbox = Arc::new(Outbox::new(self.queued.clone()));
        let open = OpenWatch {
            namespace: namespace.as_str().to_owned(),
            target,
            outbox: Arc::clone(&outbox),
            place,
            waiting,
        };
        let sent = self.requests.send(WatchRequest::Open(open));
        // Without its task, the server is ending.
        sent.map_err(|_| WatchEnd::Store(StoreError::Unavailable))?;
        Ok(Watcher {
            outbox,
            requests: self.requests.clone(),
        })
    }

    /// Counts the ids of a request. Refuses them if too many wait already, because each takes
    /// memory until the task looks at it.
    fn wait(&self, target: &Target) -> Result<WaitingIds, WatchLimit> {
        let ids = match target {
            Target::Ids(ids) => ids.len(),
            Target::All => 0,
        };
        let before = self.waiting_ids.fetch_add(ids, Ordering::Relaxed);
        let waiting = WaitingIds {
            all: Arc::clone(&self.waiting_ids),
            ids,
        };
        match before {
            0..=MAX_WAITING_IDS => Ok(waiting),
            _ => Err(WatchLimit::Waiting {
                max: MAX_WAITING_IDS,
            }),
        }
    }

    fn take_place(&self) -> Result<WatchPlace, WatchLimit> {
        let max = self.settings.max_watches;
        let taken = self
            .places
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |places| {
                (places < max).then_some(places + 1)
            });
        match taken {
            Ok(_) => Ok(WatchPlace(Arc::clone(&self.places))),
            Err(_) => Err(WatchLimit::Watches { max }),
        }
    }
}

/// One watch, for the stream that tells its caller. Dropping it closes the watch.
#[derive(Debug)]
pub(crate) struct Watcher {
    outbox: Arc<Outbox>,
    requests: mpsc::UnboundedSender<WatchRequest>,
}

impl Watcher {
    /// What to say next. A part with more than one entry has up to `max_bytes` of entries. Waits
    /// until there is something to say. Cancel-safe.
    pub(crate) async fn next(&self, max_bytes: usize) -> Result<Part, WatchEnd> {
        self.outbox.next(max_bytes).await
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Without its task, there is no table to remove it from.
        _ = self
            .requests
            .send(WatchRequest::Close(Arc::clone(&self.outbox)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_wait_are_bounded_and_leave_room_again() {
        let settings = WatchSettings {
            max_watches: 100,
            max_watch_ids: MAX_WAITING_IDS,
        };
        let (hub, mut requests) = WatchHub::new(settings);
        let namespace = Namespace::try_from("on").expect("valid");
        let open = |ids: usize| {
            let ids = (0..ids).map(|number| number.to_string());
            hub.open(namespace, Target::Ids(ids.collect()))
        };
        let first = open(MAX_WAITING_IDS).expect("has room");
        let second = open(1).expect("has room");
        let refused = WatchLimit::Waiting {
            max: MAX_WAITING_IDS,
        };
        assert_eq!(open(1).err(), Some(refused.into()));
        // The task has taken a request.
        drop(requests.try_recv().expect("a request"));
        let third = open(1).expect("has room");
        drop((first, second, third));
    }
}
