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
//! | [`reads`] | reads of many keys with their times to live |
//!
//! Source: <https://redis.io/docs/latest/develop/reference/client-side-caching/>

mod reads;
mod subscription;
mod tracker;

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};

pub(crate) use self::reads::RedisReader;
use self::tracker::{Told, Tracker};
use super::{
    layout::KeyLayout,
    servers::{place::Place, sentinel::Sentinels, task::AbortOnDrop},
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
    timeout: Duration,
    running: Option<Running>,
}

/// What there is while the feed runs.
#[derive(Debug)]
struct Running {
    namespaces: watch::Sender<Arc<[String]>>,
    told: mpsc::Receiver<Told>,
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
            timeout: settings.timeout,
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

    pub(crate) fn part(&self, _key: &[u8]) -> u16 {
        0
    }

    pub(crate) fn parts(&self) -> usize {
        1
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
        let tracker = Tracker::new(
            self.place(),
            self.layout.clone(),
            self.timeout,
            followed,
            tell,
        );
        let task = tokio::spawn(tracker.run());
        Running {
            namespaces,
            told,
            reader: None,
            _task: AbortOnDrop(task.abort_handle()),
        }
    }

    fn place(&self) -> Place {
        let RedisSettings {
            urls,
            mode,
            sentinel_master,
            password_file,
            tls,
            ..
        } = &*self.servers;
        let connector = Connector::new(urls.first(), password_file.clone(), tls.clone());
        match mode {
            RedisMode::Sentinel => {
                let sentinels = Sentinels::new(urls.addrs(), sentinel_master.clone());
                Place::of_master(connector, sentinels)
            }
            RedisMode::Standalone | RedisMode::Cluster => Place::at(connector, urls.first().addr()),
        }
    }

    /// Cancel-safe.
    pub(crate) async fn next(&mut self) -> ChangeEvent {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        loop {
            match running.told.recv().await {
                Some(Told::Event(event)) => return event,
                Some(Told::Reader(reader)) => running.reader = reader,
                // The task never ends before its owner.
                None => return std::future::pending().await,
            }
        }
    }

    pub(crate) fn reader(&self) -> Option<RedisReader> {
        self.running.as_ref()?.reader.clone()
    }
}
