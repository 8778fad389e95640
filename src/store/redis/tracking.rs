//! Says which keys of Redis change, with Redis's client-side caching: a connection on which Redis
//! pushes the name of each key of some prefixes that changes (CLIENT TRACKING ON BCAST).
//!
//! The connection exists only while somebody watches. It also subscribes to a channel that nobody
//! uses. Without the subscription, a process that stops reading would make Redis's memory grow
//! without bound. With it, Redis closes the connection at its limit for such clients, 32 MB.
//!
//! Values are read on another connection, which does not track. It leads to the same server as the
//! first one, and both end together: a value that was read before a change must come from the
//! server that tells the change.
//!
//! Redis does not tell everything. It tells expiries late, and nothing after SWAPDB or while it is
//! cut off from those who have replaced it. [`tracker`] asks for the role of the server every
//! second, and who watches reads again now and then.
//!
//! | module | what it has |
//! |---|---|
//! | [`tracker`] | the task that keeps both connections |
//! | [`subscription`] | the connection on which Redis pushes |
//! | [`nodes`] | the task that has a tracker for each master of a cluster |
//! | [`reads`] | reads of many keys with their times to live |
//!
//! Source: <https://redis.io/docs/latest/develop/reference/client-side-caching/>

mod nodes;
mod reads;
mod subscription;
mod tracker;

use std::sync::Arc;

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

pub(crate) use self::reads::RedisReader;
use self::{
    nodes::NodeTrackers,
    tracker::{Told, Tracker},
};
use super::{
    layout::KeyLayout,
    servers::{
        cluster::{Cluster, slot},
        links::Links,
        place::Place,
        sentinel::Sentinels,
        task::AbortOnDrop,
    },
    settings::{RedisMode, RedisSettings},
    wire::connect::Connector,
};
use crate::{
    model::{Id, Namespace},
    store::changes::ChangeEvent,
};

/// How many events may wait. Beyond that, what Redis pushes waits in the socket.
const EVENTS: usize = 64;

/// The feed of changes of a Redis.
#[derive(Debug)]
pub(crate) struct RedisChanges {
    servers: Box<RedisSettings>,
    layout: KeyLayout,
    running: Option<Running>,
}

/// What there is while the feed runs.
#[derive(Debug)]
struct Running {
    namespaces: watch::Sender<Arc<[String]>>,
    told: mpsc::Receiver<(u64, Told)>,
    reader: Option<RedisReader>,
    _task: AbortOnDrop,
}

impl RedisChanges {
    pub(crate) fn new(settings: &RedisSettings) -> Self {
        Self {
            layout: KeyLayout {
                prefix: settings.key_prefix.clone(),
                format: settings.key_format,
                indexed: settings.indexed.clone(),
            },
            servers: Box::new(settings.clone()),
            running: None,
        }
    }

    pub(crate) fn key(&self, namespace: Namespace<'_>, id: Id<'_>) -> Vec<u8> {
        self.layout.key(namespace, id)
    }

    pub(crate) fn id_of<'a>(&self, key: &'a [u8]) -> Option<(&'a str, &'a str)> {
        self.layout.indexed_id(key)
    }

    /// The slot of a key, in a cluster.
    pub(crate) fn part(&self, key: &[u8]) -> u16 {
        match self.servers.mode {
            RedisMode::Standalone | RedisMode::Sentinel => 0,
            RedisMode::Cluster => slot(key),
        }
    }

    pub(crate) fn parts(&self) -> usize {
        match self.servers.mode {
            RedisMode::Standalone | RedisMode::Sentinel => 1,
            RedisMode::Cluster => Cluster::SLOTS,
        }
    }

    /// To be called on the runtime that is to run the connections.
    pub(crate) fn track(&mut self, namespaces: Arc<[String]>) {
        if namespaces.is_empty() {
            self.running = None;
        } else if let Some(running) = &self.running {
            running.namespaces.send_replace(namespaces);
        } else {
            self.running = Some(self.start(namespaces));
        }
    }

    fn start(&self, namespaces: Arc<[String]>) -> Running {
        let (namespaces, followed) = watch::channel(namespaces);
        let (tell, told) = mpsc::channel(EVENTS);
        let task = self.spawn(followed, tell);
        Running {
            namespaces,
            told,
            reader: None,
            _task: AbortOnDrop(task.abort_handle()),
        }
    }

    fn spawn(
        &self,
        namespaces: watch::Receiver<Arc<[String]>>,
        tell: mpsc::Sender<(u64, Told)>,
    ) -> JoinHandle<()> {
        let RedisSettings {
            urls,
            mode,
            sentinel_master,
            password_file,
            tls,
            timeout,
            ..
        } = &*self.servers;
        let connector = Connector::new(urls.first(), password_file.clone(), tls.clone());
        let layout = self.layout.clone();
        let place = match mode {
            RedisMode::Standalone => Place::at(connector, urls.first().addr()),
            RedisMode::Sentinel => {
                let sentinels = Sentinels::new(urls.addrs(), sentinel_master.clone());
                Place::of_master(connector, sentinels)
            }
            RedisMode::Cluster => {
                // Health and metrics are about the links of the workers.
                let (report, links) = (Box::new(|_| {}), Links::default());
                let cluster =
                    Cluster::start(connector.clone(), urls.addrs(), *timeout, report, links);
                let nodes =
                    NodeTrackers::new(cluster, connector, layout, *timeout, namespaces, tell);
                return tokio::spawn(nodes.run());
            }
        };
        let tracker = Tracker::new(place, layout, *timeout, namespaces, (0, tell));
        tokio::spawn(tracker.run())
    }

    /// Cancel-safe.
    pub(crate) async fn next(&mut self) -> ChangeEvent {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        loop {
            match running.told.recv().await {
                Some((_, Told::Event(event))) => return event,
                Some((_, Told::Reader(reader))) => running.reader = reader,
                // The task never ends before its owner.
                None => return std::future::pending().await,
            }
        }
    }

    pub(crate) fn reader(&self) -> Option<RedisReader> {
        self.running.as_ref()?.reader.clone()
    }
}
