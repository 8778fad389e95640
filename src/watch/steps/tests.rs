//! The table while its work is done in steps: writes, reads, gaps and requests come in between.

use std::{
    collections::{BTreeMap, HashSet},
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use tokio::{sync::mpsc, time::Instant};

use super::{ADD, MAX_IDS};
use crate::{
    model::{Id, IndexedNamespaces, Namespace, Value},
    proto::{WatchResponse, entry},
    store::{
        ChangeFeed, Parts, Reading, StoreError,
        memory::{MemoryChanges, MemoryStore},
    },
    watch::{
        PartKind, Target, WatchHub, Watcher, hub::WatchRequest, ids::BatchItem,
        settings::WatchSettings, table::Table,
    },
};

const NAME: &str = "on";
const OTHER: &str = "other";

fn namespace() -> Namespace<'static> {
    Namespace::try_from(NAME).expect("a valid name")
}

fn tracked() -> [String; 2] {
    [NAME, OTHER].map(str::to_owned)
}

/// A table, and what plays the store and the task.
struct Fixture {
    table: Table,
    feed: ChangeFeed,
    hub: WatchHub,
    requests: mpsc::UnboundedReceiver<WatchRequest>,
    held: BTreeMap<String, i64>,
    /// Values are texts of this length instead, if it is not 0.
    text_bytes: usize,
    is_up: bool,
    /// A read that is on its way, with what it has found.
    read: Option<(Vec<BatchItem>, Vec<Reading>)>,
    /// A listing that is on its way, with what it has found.
    listing: Option<(String, Vec<Box<str>>)>,
}

impl Fixture {
    fn new() -> Self {
        let store = Arc::new(MemoryStore::new(1, IndexedNamespaces::default()));
        let settings = WatchSettings {
            max_watches: 100,
            max_watch_ids: 100_000,
        };
        let (hub, requests) = WatchHub::new(settings);
        let mut fixture = Self {
            table: Table::new(1, 4 << 20, Arc::clone(&hub.counts)),
            feed: ChangeFeed::Memory(MemoryChanges::new(store)),
            hub,
            requests,
            held: BTreeMap::new(),
            text_bytes: 0,
            is_up: false,
            read: None,
            listing: None,
        };
        fixture.begin();
        fixture
    }

    fn begin(&mut self) {
        self.table.began(&Parts::All, &tracked(), Instant::now());
        self.is_up = true;
    }

    fn lose(&mut self) {
        self.listing = None;
        let (parts, error) = (Parts::All, StoreError::Unavailable);
        self.table.lost(&parts, error, Instant::now());
        self.is_up = false;
    }

    fn open(&self, target: Target) -> Watching {
        self.open_in(NAME, target)
    }

    fn open_in(&self, name: &str, target: Target) -> Watching {
        let namespace = Namespace::try_from(name).expect("a valid name");
        let watcher = self.hub.open(namespace, target).expect("has a place");
        Watching {
            watcher,
            known: BTreeMap::new(),
            snapshot: None,
            snapshots: 0,
            has_ended: false,
        }
    }

    fn write(&mut self, id: &str, value: Option<i64>) {
        match value {
            Some(value) => _ = self.held.insert(id.to_owned(), value),
            None => _ = self.held.remove(id),
        }
        if self.is_up {
            let key = self.feed.key(namespace(), Id::try_from(id).expect("valid"));
            let keys = [Bytes::from(key)];
            self.table.changed(&keys, &self.feed, Instant::now());
        }
    }

    /// Takes a request if the task would, and does a step of the work. Returns whether there was
    /// anything to do.
    fn turn(&mut self) -> bool {
        let mut is_busy = self.table.has_work();
        if !self.table.is_adding_or_removing()
            && let Ok(request) = self.requests.try_recv()
        {
            is_busy = true;
            match request {
                WatchRequest::Open(open) => {
                    self.table.open(open);
                    self.table.tracking(&tracked(), Instant::now());
                }
                WatchRequest::Close(outbox) => self.table.close(&outbox),
            }
        }
        if self.table.has_work() {
            self.table.work(&self.feed, Instant::now());
        }
        is_busy
    }

    /// Ends the read that is on its way, or sends one. Returns whether there was anything to do.
    fn read(&mut self) -> bool {
        if let Some((batch, readings)) = self.read.take() {
            self.table.readings(batch, readings, Instant::now());
            return true;
        }
        if !self.is_up {
            return false;
        }
        let batch = self.table.take_dirty(200);
        let readings = batch.iter().map(|item| {
            let (_, id) = self.feed.id_of(&item.key).expect("a key of an id");
            let value = self.held.get(id.as_str());
            let value = value.map(|value| match self.text_bytes {
                0 => Value::Int(*value),
                length => Value::String(format!("{value:0length$}").into()),
            });
            Ok(value.map(|value| (value, None)))
        });
        let readings = readings.collect();
        self.read = (!batch.is_empty()).then_some((batch, readings));
        self.read.is_some()
    }

    /// Ends the listing that is on its way, or sends one. Returns whether there was anything to do.
    fn list(&mut self) -> bool {
        if let Some((name, ids)) = self.listing.take() {
            self.table.listed(&name, Ok(ids));
            return true;
        }
        let Some(name) = self.table.to_list().map(str::to_owned) else {
            return false;
        };
        self.table.listing(&name);
        let ids = self.held.keys().map(|id| id.as_str().into());
        self.listing = Some((name, ids.collect()));
        true
    }

    /// Goes on until there is nothing to do.
    fn settle(&mut self) {
        while self.turn() | self.read() | self.list() {}
    }

    /// How long ids have waited to be read, in whole seconds.
    fn waited(&self) -> u64 {
        let waited = self.hub.counts.oldest_wait_millis.load(Ordering::Relaxed);
        Duration::from_millis(waited).as_secs()
    }

    fn watched_ids(&self) -> usize {
        let ids = &self.hub.counts.ids;
        ids.load(Ordering::Relaxed).try_into().expect("fits")
    }
}

/// A caller who keeps what it was told.
struct Watching {
    watcher: Watcher,
    known: BTreeMap<String, i64>,
    snapshot: Option<BTreeMap<String, i64>>,
    snapshots: usize,
    has_ended: bool,
}

impl Watching {
    /// Takes what there is, or only one part of it. Returns how many parts came.
    fn hear(&mut self, most: usize) -> usize {
        let mut parts = 0;
        while parts < most {
            let mut context = Context::from_waker(Waker::noop());
            let next = pin!(self.watcher.next(10_000));
            let Poll::Ready(part) = next.poll(&mut context) else {
                break;
            };
            let Ok(part) = part else {
                self.has_ended = true;
                break;
            };
            parts += 1;
            let message = WatchResponse::decode(part.entries.concat().as_slice());
            let entries = message.expect("entries").entries;
            let is_change = part.kind == PartKind::Changes;
            assert!(!is_change || self.snapshots > 0 && self.snapshot.is_none());
            let known = match is_change {
                true => &mut self.known,
                false => self.snapshot.get_or_insert_default(),
            };
            for entry in entries {
                match entry.value {
                    Some(entry::Value::IntValue(value)) => _ = known.insert(entry.id, value),
                    _ => _ = known.remove(&entry.id),
                }
            }
            if part.kind == PartKind::SnapshotEnd {
                self.known = self.snapshot.take().expect("a snapshot");
                self.snapshots += 1;
            }
        }
        parts
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

#[test]
fn a_watch_of_more_ids_than_a_step_is_opened_changed_and_closed_in_between() {
    let mut fixture = Fixture::new();
    let mut ids = names(3 * ADD);
    ids.extend(names(10));
    for id in &ids {
        fixture.write(id, Some(1));
    }
    let mut watching = fixture.open(Target::Ids(ids.clone()));
    fixture.turn();
    assert_eq!(fixture.watched_ids(), ADD, "a step");
    while fixture.read() {}
    // One id that has been read, and one that is not there yet.
    fixture.write("5", Some(2));
    fixture.write(&(2 * ADD).to_string(), Some(2));
    fixture.turn();
    while fixture.read() {}
    assert_eq!(watching.hear(9), 0, "the snapshot has to wait for all ids");
    fixture.settle();
    watching.hear(usize::MAX);
    assert_eq!((watching.snapshots, &watching.known), (1, &fixture.held));
    fixture.write("7", None);
    fixture.settle();
    watching.hear(usize::MAX);
    assert_eq!((watching.snapshots, &watching.known), (1, &fixture.held));

    // The next watch has the number of the one that ends.
    drop(watching);
    let mut next = fixture.open(Target::Ids(names(20)));
    fixture.turn();
    assert!(fixture.watched_ids() > 0, "a step");
    fixture.write("8", Some(3));
    fixture.read();
    assert_eq!(next.hear(9), 0);
    fixture.settle();
    next.hear(usize::MAX);
    assert_eq!((next.snapshots, next.known.len()), (1, 19));
    assert_eq!(fixture.watched_ids(), 20);
    drop(next);
    fixture.settle();
    assert_eq!(fixture.watched_ids(), 0);
}

#[test]
fn what_changes_while_a_snapshot_of_all_ids_is_made_arrives() {
    let mut fixture = Fixture::new();
    for id in names(20_000) {
        fixture.write(&id, Some(1));
    }
    let mut first = fixture.open(Target::All);
    fixture.settle();
    first.hear(usize::MAX);
    assert_eq!((first.snapshots, &first.known), (1, &fixture.held));
    // It has a low number in the table, because ids are listed in this order.
    fixture.write("10", None);
    fixture.settle();

    let mut second = fixture.open(Target::All);
    assert!(fixture.turn() && fixture.table.has_work(), "a piece");
    for id in ["10", "4", "19999", "new"] {
        fixture.write(id, Some(9));
    }
    fixture.write("5", None);
    while fixture.read() {}
    assert_eq!(second.hear(9), 0);
    fixture.settle();
    for watching in [&mut first, &mut second] {
        watching.hear(usize::MAX);
        assert_eq!((watching.snapshots, &watching.known), (1, &fixture.held));
    }
    drop((first, second));
    fixture.settle();
    assert_eq!(fixture.watched_ids(), 0);
}

/// A listing that began while nobody was there to notice new ids does not count.
#[test]
fn a_watch_that_begins_during_a_listing_for_another_one_misses_nothing() {
    let mut fixture = Fixture::new();
    fixture.write("a", Some(1));
    let first = fixture.open(Target::All);
    fixture.turn();
    assert!(fixture.list(), "a listing begins");
    drop(first);
    fixture.turn();
    fixture.write("b", Some(1));
    let mut second = fixture.open(Target::All);
    fixture.settle();
    second.hear(usize::MAX);
    assert_eq!(second.known, fixture.held);
}

#[test]
fn whatever_comes_between_the_steps_watchers_end_up_with_what_is_held() {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut agreed = 0;
    for _ in 0..20 {
        let mut fixture = Fixture::new();
        let ids = names(4 * ADD);
        let mut all = Vec::new();
        let mut some = Vec::new();
        for _ in 0..random.usize(50..400) {
            match random.u32(..100) {
                0..35 => _ = fixture.turn(),
                35..55 => _ = fixture.read(),
                55..65 => _ = fixture.list(),
                65..75 => {
                    for _ in 0..random.usize(..300) {
                        let value = random.bool().then(|| random.i64(..5));
                        fixture.write(&ids[random.usize(..ids.len())], value);
                    }
                }
                75..80 => all.push(fixture.open(Target::All)),
                80..85 => {
                    let first = random.usize(..ids.len());
                    let last = random.usize(first..ids.len());
                    let ids = &ids[first..=last];
                    some.push((ids, fixture.open(Target::Ids(ids.to_vec()))));
                }
                85..88 if !all.is_empty() => _ = all.swap_remove(random.usize(..all.len())),
                88..91 if !some.is_empty() => _ = some.swap_remove(random.usize(..some.len())),
                91 => fixture.table.mark_all(&Parts::All, Instant::now()),
                92 => fixture
                    .table
                    .sweep(Instant::now() + Duration::from_secs(61)),
                93 => fixture.lose(),
                94..97 if !fixture.is_up => fixture.begin(),
                _ => {
                    for watching in all.iter_mut().chain(some.iter_mut().map(|(_, it)| it)) {
                        watching.hear(random.usize(..3));
                    }
                }
            }
        }
        if !fixture.is_up {
            fixture.begin();
        }
        fixture.settle();
        let watches = all.iter_mut().map(|watching| (ids.as_slice(), watching));
        let watches = watches.chain(some.iter_mut().map(|(ids, watching)| (*ids, watching)));
        for (ids, watching) in watches {
            watching.hear(usize::MAX);
            // A watch that has no snapshot yet ends with a gap.
            assert!(watching.snapshots > 0 || watching.has_ended, "seed {seed}");
            if !watching.has_ended {
                let mut held = fixture.held.clone();
                let ids: HashSet<_> = ids.iter().collect();
                held.retain(|id, _| ids.contains(id));
                assert_eq!(watching.known, held, "seed {seed}");
                agreed += 1;
            }
        }
        drop((all, some));
        fixture.settle();
        assert_eq!(fixture.watched_ids(), 0, "seed {seed}");
    }
    assert!(agreed > 20, "{agreed} watches, seed {seed}");
}

#[test]
fn a_watch_that_is_being_removed_takes_no_ids_from_others() {
    let mut fixture = Fixture::new();
    let mut all = fixture.open(Target::All);
    fixture.settle();
    let many = fixture.open(Target::Ids(names(MAX_IDS)));
    fixture.settle();
    assert_eq!(fixture.watched_ids(), MAX_IDS);
    drop(many);
    let Ok(WatchRequest::Close(outbox)) = fixture.requests.try_recv() else {
        panic!("no request");
    };
    fixture.table.close(&outbox);
    fixture.write("new", Some(1));
    fixture.settle();
    all.hear(usize::MAX);
    assert!(!all.has_ended);
    assert_eq!(all.known, fixture.held);
}

#[test]
fn a_watch_that_is_being_removed_takes_no_bytes_from_others() {
    let mut fixture = Fixture::new();
    fixture.text_bytes = 60_000;
    for id in names(1_150) {
        fixture.write(&id, Some(1));
    }
    // 60 MB, and 9 MB, which are too many.
    let mut first = fixture.open(Target::Ids(names(1_000)));
    fixture.settle();
    let mut second = fixture.open(Target::Ids(names(1_150).split_off(1_000)));
    fixture.turn();
    fixture.write("5", Some(2));
    // One batch has all ids of the second watch, and one of the first.
    assert!(fixture.read() && fixture.read());
    second.hear(9);
    first.hear(9);
    assert!(second.has_ended && !first.has_ended);
    fixture.write("6", Some(3));
    assert!(!fixture.read(), "nothing is read before there is room");
    fixture.settle();
    first.hear(usize::MAX);
    assert!(!first.has_ended);
}

/// Both namespaces hold the same ids here.
#[test]
fn a_small_namespace_does_not_wait_for_the_snapshots_of_large_ones() {
    let mut fixture = Fixture::new();
    for id in names(10) {
        fixture.write(&id, Some(1));
    }
    // Together, these watchers have not read 495,000 ids.
    let large: Vec<_> = (0..6)
        .map(|_| {
            let watching = fixture.open(Target::Ids(names(99_000)));
            fixture.settle();
            watching
        })
        .collect();
    let mut small = fixture.open_in(OTHER, Target::All);
    fixture.settle();
    small.hear(usize::MAX);
    assert_eq!(small.known, fixture.held);
    let heard: Vec<_> = large
        .into_iter()
        .map(|mut watching| watching.hear(1))
        .collect();
    assert_eq!(heard, [1, 1, 1, 1, 1, 0], "there was no room for the last");
}

/// Watchers hear late, or not at all, while this time grows. An alert is about it.
#[tokio::test(start_paused = true)]
async fn the_time_that_ids_wait_grows_until_everything_is_known_again() {
    let mut fixture = Fixture::new();
    let mut watching = fixture.open(Target::Ids(names(3)));
    fixture.settle();
    let waits = async |fixture: &mut Fixture| {
        tokio::time::advance(Duration::from_secs(1)).await;
        fixture.table.sweep(Instant::now());
        fixture.waited()
    };
    assert_eq!(waits(&mut fixture).await, 0);
    fixture.write("0", Some(1));
    assert_eq!(waits(&mut fixture).await, 1);
    fixture.settle();
    assert_eq!(waits(&mut fixture).await, 0);
    // Changes are not noticed. Nobody knows which ids have to be read.
    fixture.lose();
    assert_eq!(waits(&mut fixture).await, 1);
    fixture.lose();
    assert_eq!(waits(&mut fixture).await, 2);
    // They are noticed again, and nothing is read yet. Then they are lost once more.
    fixture.begin();
    assert_eq!(waits(&mut fixture).await, 3);
    fixture.lose();
    fixture.begin();
    fixture.settle();
    assert_eq!(waits(&mut fixture).await, 0);
    watching.hear(usize::MAX);
    assert_eq!(watching.known, fixture.held);
}

#[tokio::test(start_paused = true)]
async fn nothing_waits_once_nobody_watches() {
    let mut fixture = Fixture::new();
    let watching = fixture.open(Target::All);
    fixture.settle();
    fixture.write("0", Some(1));
    tokio::time::advance(Duration::from_secs(5)).await;
    fixture.table.sweep(Instant::now());
    assert_eq!(fixture.waited(), 5);
    drop(watching);
    fixture.settle();
    fixture.table.reset(1);
    assert_eq!(fixture.waited(), 0);
}
