//! The fan-out of Watch: many watchers of some processes learn of the changes that another process
//! makes.
//!
//! Every watcher watches some of the ids. Marks come at a fixed rate, and one in ten of them expires
//! soon. At the end, what each watcher knows must be what Redis holds.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use peer::proto::{
    MarkRequest, WatchRequest, WatchResponse, dyn_data_client::DynDataClient, entry, mark_request,
};
use tokio::{
    task::{JoinSet, LocalSet},
    time,
};
use tonic::transport::Channel;

use crate::{
    keys::KeySet,
    load::{CALL_LIMIT, new_histogram, runtime, wait_until_due, within},
};

pub const WATCHERS: usize = 1_000;
/// How many ids each watcher watches.
pub const IDS_EACH: usize = 100;
/// Marks a second.
pub const RATE: usize = 2_000;

const CONNECTIONS: usize = 10;
/// How long most values live, and those that expire in the run.
const LONG: Duration = Duration::from_secs(300);
const SHORT: Duration = Duration::from_millis(300);
/// After the last Mark: values expire, and their watchers learn of it.
const REST: Duration = Duration::from_secs(3);

/// What the watchers saw.
pub struct Outcome<P> {
    pub marks: usize,
    pub events: u64,
    /// From the acknowledgement of a Mark to its event, in nanoseconds.
    pub changes: Histogram<u64>,
    /// From the expiry of a value to its event.
    pub expiries: Histogram<u64>,
    /// What each watcher knows at the end.
    pub known: Vec<HashMap<String, i64>>,
    /// The results of the probe at the first Mark and after the last.
    pub before: P,
    pub after: P,
}

/// What the tasks of a run share. All of them run on one thread.
struct Shared {
    keys: Vec<String>,
    /// When the Mark that wrote a value was acknowledged. The values are 0, 1, 2 and so on.
    acknowledged: RefCell<Vec<Option<Instant>>>,
    /// When the value of an id expires, if it is one of those that do in the run.
    expiry: RefCell<HashMap<String, SystemTime>>,
    events: Cell<u64>,
    changes: RefCell<Histogram<u64>>,
    expiries: RefCell<Histogram<u64>>,
}

/// Marks ids on one process for `duration`, while [`WATCHERS`] clients watch on the others together.
pub fn run<P>(
    marking: SocketAddr,
    watching: &[SocketAddr],
    keys: &KeySet,
    duration: Duration,
    mut probe: impl FnMut() -> Result<P>,
) -> Result<Outcome<P>> {
    let marks = RATE * duration.as_millis() as usize / 1000;
    let shared = Rc::new(Shared {
        keys: keys.ids().to_vec(),
        acknowledged: RefCell::new(vec![None; marks]),
        expiry: RefCell::default(),
        events: Cell::default(),
        changes: RefCell::new(new_histogram()?),
        expiries: RefCell::new(new_histogram()?),
    });
    let tasks = LocalSet::new();
    let run = tasks.run_until(async {
        let mut known = Vec::new();
        let mut streams = JoinSet::new();
        let mut clients = Vec::new();
        for target in watching {
            clients.extend(connect(*target).await?);
        }
        let watching = clients.iter().cycle().take(WATCHERS);
        for (number, mut client) in watching.cloned().enumerate() {
            let ids = ids_of(&shared.keys, number);
            let request = WatchRequest {
                ids,
                ..Default::default()
            };
            let mut messages = client.watch(request).await?.into_inner();
            let state = Rc::new(RefCell::new(HashMap::new()));
            known.push(Rc::clone(&state));
            let shared = Rc::clone(&shared);
            streams.spawn_local(async move {
                while let Some(message) = messages.message().await? {
                    shared.see(message, &mut state.borrow_mut());
                }
                anyhow::Ok(())
            });
        }
        time::sleep(REST).await;
        shared.changes.borrow_mut().reset();
        shared.events.set(0);
        let before = probe()?;
        let clients = connect(marking).await?;
        let mut calls = JoinSet::new();
        let start = time::Instant::now();
        for number in 0..marks {
            wait_until_due(start, number, RATE).await;
            let (client, shared) = (clients[number % CONNECTIONS].clone(), Rc::clone(&shared));
            calls.spawn_local(async move { shared.mark(client, number).await });
            while let Some(done) = calls.try_join_next() {
                done??;
            }
        }
        while let Some(done) = calls.join_next().await {
            done??;
        }
        let after = probe()?;
        time::sleep(REST).await;
        // A stream that has ended early has an error.
        if let Some(ended) = streams.try_join_next() {
            ended??;
            ensure!(false, "a watch ended");
        }
        streams.abort_all();
        let known = known.iter().map(|state| state.take()).collect();
        anyhow::Ok((known, before, after))
    });
    let limit = duration + 4 * CALL_LIMIT;
    let (known, before, after) = runtime()?.block_on(within(limit, run))?;
    Ok(Outcome {
        marks,
        events: shared.events.get(),
        changes: shared.changes.borrow().clone(),
        expiries: shared.expiries.borrow().clone(),
        known,
        before,
        after,
    })
}

/// The ids that a watcher watches. Together, the watchers have each id about equally often.
pub fn ids_of(keys: &[String], watcher: usize) -> Vec<String> {
    let ids = keys.iter().cycle().skip(watcher * IDS_EACH % keys.len());
    ids.take(IDS_EACH).cloned().collect()
}

async fn connect(target: SocketAddr) -> Result<Vec<DynDataClient<Channel>>> {
    let mut clients = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        clients.push(DynDataClient::connect(format!("http://{target}")).await?);
    }
    Ok(clients)
}

impl Shared {
    async fn mark(&self, mut client: DynDataClient<Channel>, number: usize) -> Result<()> {
        let id = &self.keys[fastrand::usize(..self.keys.len())];
        let ttl = if number.is_multiple_of(10) {
            SHORT
        } else {
            LONG
        };
        self.expiry.borrow_mut().remove(id);
        let request = MarkRequest {
            id: id.clone(),
            value: Some(mark_request::Value::IntValue(number as i64)),
            ttl: prost_types::Duration::try_from(ttl).ok(),
            ..Default::default()
        };
        let response = client.mark(request).await?.into_inner();
        self.acknowledged.borrow_mut()[number] = Some(Instant::now());
        if ttl == SHORT {
            let time = response.expire_time.context("no expire time")?;
            let time = SystemTime::try_from(time)?;
            self.expiry.borrow_mut().insert(id.clone(), time);
        }
        Ok(())
    }

    fn see(&self, message: WatchResponse, known: &mut HashMap<String, i64>) {
        let now = Instant::now();
        for entry in message.entries {
            self.events.set(self.events.get() + 1);
            match entry.value {
                Some(entry::Value::IntValue(value)) => {
                    let acknowledged = self.acknowledged.borrow();
                    if let Some(acknowledged) = acknowledged.get(value as usize) {
                        // An event may come before the acknowledgement.
                        let lag = acknowledged.map_or(Duration::ZERO, |at| now - at);
                        let lag = lag.as_nanos() as u64;
                        self.changes.borrow_mut().saturating_record(lag);
                    }
                    known.insert(entry.id, value);
                }
                _ => {
                    if let Some(expiry) = self.expiry.borrow().get(&entry.id) {
                        let lag = SystemTime::now().duration_since(*expiry);
                        let lag = lag.unwrap_or_default().as_nanos() as u64;
                        self.expiries.borrow_mut().saturating_record(lag);
                    }
                    known.remove(&entry.id);
                }
            }
        }
    }
}
