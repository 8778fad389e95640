//! The task that owns the table of watched ids.
//!
//! It runs on the first thread for as long as the process serves. While nobody watches, it waits
//! for a request and the feed is stopped.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    hub::{WatchHub, WatchRequest},
    ids::BatchItem,
    settings::WatchSettings,
    table::Table,
    watched::MAX_IDS,
};
use crate::{
    log_limit::LogLimit,
    store::{ChangeEvent, ChangeFeed, Reading, StoreError},
};

/// How many ids are read at a time.
const BATCH: usize = 500;
/// The time between two reads. Changes that come meanwhile are read together.
const PAUSE: Duration = Duration::from_millis(5);
/// The time to the next read after one that failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);
/// How often watchers are told that nothing is missing. A bit less than ten seconds, because the
/// feed says so once a second.
const ALIVE_INTERVAL: Duration = Duration::from_millis(9_500);
/// How long the feed goes on after the last watch. So a caller who begins and ends watches all the
/// time does not make the store connect all the time.
const LINGER: Duration = Duration::from_secs(1);
/// How often snapshots that wait for room are tried.
const ROOM_INTERVAL: Duration = Duration::from_millis(20);
/// How often ids that are gone are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The task. To be run once.
#[derive(Debug)]
pub(crate) struct WatchTask {
    requests: mpsc::UnboundedReceiver<WatchRequest>,
    feed: ChangeFeed,
    table: Table,
    /// What the feed tracks.
    tracked: Vec<String>,
    /// Since when nobody watches, while the feed goes on.
    idle_since: Option<Instant>,
    reads: Reads,
    /// The listing of a namespace that is on its way.
    listing: Option<Listing>,
    /// When the next one may be sent.
    next_listing: Instant,
    next_alive: Instant,
    /// When the snapshots that wait for room are tried.
    next_room: Instant,
    next_sweep: Instant,
}

/// The reads of ids, one batch at a time.
#[derive(Debug)]
struct Reads {
    /// The batch that is on its way.
    running: Option<Batch>,
    /// When the next one may be sent.
    next: Instant,
}

type Listed = Result<Vec<Box<str>>, StoreError>;

struct Listing {
    namespace: String,
    ids: Pin<Box<dyn Future<Output = Listed> + Send>>,
}

struct Batch {
    items: Vec<BatchItem>,
    sent: Instant,
    readings: Pin<Box<dyn Future<Output = Vec<Reading>> + Send>>,
}

impl WatchTask {
    /// The task, and the hub through which the workers reach it.
    pub(crate) fn new(
        settings: WatchSettings,
        max_reply_bytes: usize,
        feed: ChangeFeed,
    ) -> (Self, WatchHub) {
        let (hub, requests) = WatchHub::new(settings);
        let counts = Arc::clone(&hub.counts);
        let now = Instant::now();
        let task = Self {
            requests,
            table: Table::new(feed.parts(), max_reply_bytes, counts),
            feed,
            tracked: Vec::new(),
            idle_since: None,
            reads: Reads {
                running: None,
                next: now,
            },
            listing: None,
            next_listing: now,
            next_alive: now,
            next_room: now,
            next_sweep: now,
        };
        (task, hub)
    }

    /// Serves until the last hub and the last watcher are gone.
    pub(crate) async fn run(mut self) {
        loop {
            let wake = self.next_wake();
            let (takes_requests, has_work) =
                (!self.table.is_adding_or_removing(), self.table.has_work());
            tokio::select! {
                request = self.requests.recv(), if takes_requests => {
                    let Some(request) = request else { return };
                    self.serve(request);
                }
                event = self.feed.next() => self.take_in(event),
                (batch, readings) = self.reads.ended() => self.end_read(batch, readings),
                (namespace, ids) = listed(&mut self.listing) => self.end_listing(&namespace, ids),
                () = sleep_until(wake), if !self.is_stopped() => {}
                () = std::future::ready(()), if has_work => {}
            }
            self.advance();
            if self.table.has_work() {
                self.table.work(&self.feed, Instant::now());
                // The worker of this thread comes next.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Whether the feed has stopped and nobody watches.
    fn is_stopped(&self) -> bool {
        // The last ids may have been removed since the feed was looked after.
        self.table.is_idle() && self.idle_since.is_none() && self.tracked.is_empty()
    }

    /// When there is something to do without a request or an event.
    fn next_wake(&self) -> Instant {
        if let Some(since) = self.idle_since {
            return since + LINGER;
        }
        let mut wake = self.next_sweep;
        if let Some(due) = self.table.next_due() {
            wake = wake.min(due);
        }
        if !self.table.is_clean() && self.reads.running.is_none() {
            wake = wake.min(self.reads.next);
        }
        if self.table.has_waiting() {
            wake = wake.min(self.next_room);
        }
        if self.listing.is_none() && self.table.to_list().is_some() {
            wake = wake.min(self.next_listing);
        }
        wake
    }

    fn serve(&mut self, request: WatchRequest) {
        match request {
            WatchRequest::Open(open) => {
                if self.table.is_idle() {
                    self.next_alive = Instant::now() + ALIVE_INTERVAL;
                }
                self.table.open(open);
            }
            WatchRequest::Close(outbox) => self.table.close(&outbox),
        }
    }

    fn take_in(&mut self, event: ChangeEvent) {
        let now = Instant::now();
        match event {
            ChangeEvent::Began { parts, namespaces } => {
                static LOG: LogLimit = LogLimit::new();
                if let Some(unlogged) = LOG.admit() {
                    tracing::info!(unlogged, "noticing changes; reading what is watched");
                }
                self.listing = None;
                self.table.began(&parts, &namespaces, now);
                self.reads.next = now;
            }
            ChangeEvent::Tracking { namespaces } => self.table.tracking(&namespaces, now),
            ChangeEvent::Lost { parts, error } => {
                static LOG: LogLimit = LogLimit::new();
                if let Some(unlogged) = LOG.admit() {
                    tracing::warn!(%error, unlogged, "changes are not noticed; watches get a new snapshot later");
                }
                self.listing = None;
                self.table.lost(&parts, error, now);
            }
            ChangeEvent::Changed(keys) => self.table.changed(&keys, &self.feed, now),
            ChangeEvent::AllChanged(parts) => {
                static LOG: LogLimit = LogLimit::new();
                if let Some(unlogged) = LOG.admit() {
                    tracing::info!(
                        unlogged,
                        "everything may have changed; reading what is watched"
                    );
                }
                self.table.mark_all(&parts, now);
            }
            ChangeEvent::Complete => {
                if now >= self.next_alive {
                    self.table.ask_alive();
                }
            }
        }
    }

    fn end_read(&mut self, batch: Batch, readings: Vec<Reading>) {
        let Batch { items, sent, .. } = batch;
        if let Some(error) = self.table.readings(items, readings, sent) {
            static LOG: LogLimit = LogLimit::new();
            if let Some(unlogged) = LOG.admit() {
                tracing::warn!(%error, unlogged, "cannot read watched ids; trying again");
            }
            self.reads.next = Instant::now() + PAUSE_AFTER_FAILURE;
        }
    }

    fn end_listing(&mut self, namespace: &str, ids: Listed) {
        if let Err(error) = &ids {
            static LOG: LogLimit = LogLimit::new();
            if let Some(unlogged) = LOG.admit() {
                tracing::warn!(%error, unlogged, "cannot list a watched namespace; trying again");
            }
            self.next_listing = Instant::now() + PAUSE_AFTER_FAILURE;
        }
        self.table.listed(namespace, ids);
    }

    fn list(&mut self, now: Instant) {
        if self.listing.is_some() || now < self.next_listing {
            return;
        }
        let (Some(namespace), Some(reader)) = (self.table.to_list(), self.feed.reader()) else {
            return;
        };
        let namespace = namespace.to_owned();
        self.table.listing(&namespace);
        self.listing = Some(Listing {
            ids: Box::pin(reader.list(namespace.clone(), MAX_IDS)),
            namespace,
        });
    }

    /// Does what is due.
    fn advance(&mut self) {
        self.follow_table();
        if self.table.is_idle() {
            return;
        }
        let now = Instant::now();
        self.table.mark_due(now);
        if self.reads.running.is_none() {
            if self.table.tell_alive() {
                self.next_alive = now + ALIVE_INTERVAL;
            }
            if !self.table.is_clean() && now >= self.reads.next {
                self.read(now);
            }
        }
        self.list(now);
        if self.table.has_waiting() && now >= self.next_room {
            self.table.try_waiting();
            self.next_room = now + ROOM_INTERVAL;
        }
        if now >= self.next_sweep {
            self.table.sweep(now);
            self.next_sweep = now + SWEEP_INTERVAL;
        }
    }

    /// Lets the feed track what the table has.
    fn follow_table(&mut self) {
        if self.table.is_idle() {
            let now = Instant::now();
            let has_namespaces = !self.tracked.is_empty() || !self.table.namespaces().is_empty();
            if has_namespaces && now - *self.idle_since.get_or_insert(now) >= LINGER {
                self.idle_since = None;
                self.tracked.clear();
                self.feed.track(Arc::default());
                self.table.reset(self.feed.parts());
                self.reads.running = None;
                self.listing = None;
            }
            return;
        }
        self.idle_since = None;
        let namespaces = self.table.namespaces();
        if namespaces != self.tracked {
            self.feed.track(namespaces.clone().into());
            self.tracked = namespaces;
        }
    }

    fn read(&mut self, now: Instant) {
        // The ids stay dirty while there is nobody to ask.
        let Some(reader) = self.feed.reader() else {
            self.reads.next = now + PAUSE_AFTER_FAILURE;
            return;
        };
        let items = self.table.take_dirty(BATCH);
        if items.is_empty() {
            return;
        }
        let keys = items.iter().map(|item| Arc::clone(&item.key)).collect();
        self.reads.next = now + PAUSE;
        self.reads.running = Some(Batch {
            items,
            sent: now,
            readings: Box::pin(reader.read(keys)),
        });
    }
}

/// Waits for the listing that is on its way, if there is one. Cancel-safe.
async fn listed(listing: &mut Option<Listing>) -> (String, Listed) {
    let Some(running) = listing else {
        return std::future::pending().await;
    };
    let ids = running.ids.as_mut().await;
    let namespace = std::mem::take(&mut running.namespace);
    *listing = None;
    (namespace, ids)
}

impl Reads {
    /// Waits for the batch that is on its way, if there is one. Cancel-safe.
    async fn ended(&mut self) -> (Batch, Vec<Reading>) {
        let Some(batch) = &mut self.running else {
            return std::future::pending().await;
        };
        let readings = batch.readings.as_mut().await;
        match self.running.take() {
            Some(batch) => (batch, readings),
            None => std::future::pending().await,
        }
    }
}

impl std::fmt::Debug for Listing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listing")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch")
            .field("items", &self.items.len())
            .finish_non_exhaustive()
    }
}
