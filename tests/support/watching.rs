//! A caller of Watch, who keeps what it was told.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use dyndata::proto::{
    WatchRequest, WatchResponse, dyn_data_client::DynDataClient, entry, watch_response::Kind,
};
use tonic::{Status, Streaming, transport::Channel};

use super::PATIENCE;

/// A stream of Watch, and what it has told so far.
#[derive(Debug)]
pub struct Watching {
    stream: Streaming<WatchResponse>,
    /// The ids and their values. An id without a value is here only if it was told.
    pub known: BTreeMap<String, Option<entry::Value>>,
    /// What the parts of a snapshot have told that is not complete.
    snapshot: Option<BTreeMap<String, Option<entry::Value>>>,
    /// How many snapshots were complete.
    pub snapshots: usize,
    /// How many messages there were.
    pub messages: usize,
    /// How many times it was said that nothing is missing.
    pub alive: usize,
}

/// A request for some ids.
pub fn ids(namespace: &str, ids: impl IntoIterator<Item = impl ToString>) -> WatchRequest {
    WatchRequest {
        namespace: namespace.to_owned(),
        ids: ids.into_iter().map(|id| id.to_string()).collect(),
        all: false,
    }
}

/// A request for all ids.
pub fn all(namespace: &str) -> WatchRequest {
    WatchRequest {
        namespace: namespace.to_owned(),
        ids: Vec::new(),
        all: true,
    }
}

impl Watching {
    pub async fn start(
        client: &mut DynDataClient<Channel>,
        request: impl tonic::IntoRequest<WatchRequest>,
    ) -> Result<Self, Status> {
        let stream = client.watch(request).await?.into_inner();
        Ok(Self {
            stream,
            known: BTreeMap::new(),
            snapshot: None,
            snapshots: 0,
            messages: 0,
            alive: 0,
        })
    }

    /// Starts, and waits for the first snapshot.
    pub async fn begin(
        client: &mut DynDataClient<Channel>,
        request: impl tonic::IntoRequest<WatchRequest>,
    ) -> Self {
        let mut watching = Self::start(client, request).await.expect("begins");
        watching.snapshot().await;
        watching
    }

    /// The next message, as it came.
    pub async fn message(&mut self) -> Result<WatchResponse, Status> {
        let message = self.stream.message().await?;
        let message = message.expect("a watch has no good end");
        self.messages += 1;
        let entries = || {
            message
                .entries
                .iter()
                .map(|entry| (entry.id.clone(), entry.value.clone()))
        };
        match message.kind() {
            kind @ (Kind::Snapshot | Kind::SnapshotEnd) => {
                self.snapshot.get_or_insert_default().extend(entries());
                if kind == Kind::SnapshotEnd {
                    self.known = self.snapshot.take().expect("has parts");
                    self.snapshots += 1;
                }
            }
            Kind::Changes => {
                assert!(self.snapshot.is_none(), "changes within a snapshot");
                assert!(!message.entries.is_empty(), "changes without an entry");
                self.known.extend(entries());
            }
            Kind::Alive => {
                assert!(message.entries.is_empty(), "{message:?}");
                self.alive += 1;
            }
            Kind::Unspecified => panic!("never sent: {message:?}"),
        }
        assert!(
            message
                .entries
                .iter()
                .all(|entry| entry.expire_time.is_none())
        );
        Ok(message)
    }

    /// Waits for the next complete snapshot.
    pub async fn snapshot(&mut self) {
        let before = self.snapshots;
        self.until("a snapshot", |watching| watching.snapshots > before)
            .await;
    }

    /// Takes messages until a condition holds.
    pub async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        self.within(PATIENCE, what, holds).await;
    }

    /// Takes messages until a condition holds, for at most this time.
    pub async fn within(&mut self, time: Duration, what: &str, holds: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            let left = time.saturating_sub(start.elapsed());
            match tokio::time::timeout(left, self.message()).await {
                Ok(message) => _ = message.expect("the watch goes on"),
                Err(_) => panic!("never happened: {what}; known: {:?}", self.known),
            }
        }
    }

    /// Waits until an id has a value, or none.
    pub async fn sees(&mut self, id: &str, value: Option<entry::Value>) {
        let what = format!("{id} is {value:?}");
        self.until(&what, |watching| watching.known.get(id) == Some(&value))
            .await;
    }

    /// Checks that nothing is told for a while, but for that nothing is missing.
    pub async fn hears_nothing(&mut self, time: Duration) {
        let start = Instant::now();
        let mut left = time;
        while let Ok(message) = tokio::time::timeout(left, self.message()).await {
            let message = message.expect("the watch goes on");
            assert!(message.kind() == Kind::Alive, "told: {message:?}");
            left = time.saturating_sub(start.elapsed());
        }
    }

    /// Waits for the error that ends the watch.
    pub async fn ends(&mut self) -> Status {
        let start = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(start.elapsed());
            match tokio::time::timeout(left, self.message()).await {
                Ok(Ok(_)) => {}
                Ok(Err(status)) => return status,
                Err(_) => panic!("the watch does not end"),
            }
        }
    }

    /// The ids that have values, with these.
    pub fn present(&self) -> BTreeMap<String, entry::Value> {
        let known = self.known.iter();
        let present = known.filter_map(|(id, value)| Some((id.clone(), value.clone()?)));
        present.collect()
    }
}
