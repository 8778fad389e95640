//! One worker's Redis store: its servers, and how keys look in them.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    layout::KeyLayout,
    servers::{
        cluster::{self, Cluster},
        effect::Effect,
        link::Link,
        links::Links,
        place::Place,
        sentinel::Sentinels,
        task::AbortOnDrop,
    },
    settings::{RedisMode, RedisSettings},
    sweep,
    wire::{commands::Commands, connect::Connector},
};
use crate::{
    model::{Id, Namespace},
    store::{failure::WriteError, status::StoreStatus},
};

/// One worker's access to Redis. Clones share its links. Dropping the last one ends its tasks.
#[derive(Debug, Clone)]
pub(crate) struct RedisStore {
    pub(super) servers: Servers,
    pub(super) layout: KeyLayout,
    /// The task that sweeps the indexes. One worker has it.
    sweep: Option<Arc<AbortOnDrop>>,
}

#[derive(Debug, Clone)]
pub(super) enum Servers {
    /// One server that has all keys.
    One(Link),
    /// Several servers that share the keys.
    Cluster(Cluster),
}

impl RedisStore {
    /// Starts to connect on the current runtime, and reports to `status` as worker number `worker`.
    /// Calls fail at once while there is no connection. The links are some of `links`, for the
    /// metrics.
    pub(crate) fn start(
        settings: &RedisSettings,
        worker: usize,
        status: StoreStatus,
        links: &Links,
    ) -> Self {
        let RedisSettings {
            urls,
            mode,
            sentinel_master,
            password_file,
            tls,
            timeout,
            key_prefix,
            key_format,
            indexed,
        } = settings;
        let connector = Connector::new(urls.first(), password_file.clone(), tls.clone());
        // Only writes in indexed namespaces name times.
        let connector = connector.estimating_clock(!indexed.is_empty());
        let sweep_status = status.clone();
        let report = Box::new(move |state| status.set(worker, state));
        let servers = match mode {
            RedisMode::Standalone => Servers::One(Link::start(
                Place::at(connector, urls.first().addr()),
                *timeout,
                report,
                links,
            )),
            RedisMode::Sentinel => {
                let sentinels = Sentinels::new(urls.addrs(), sentinel_master.clone());
                Servers::One(Link::start(
                    Place::of_master(connector, sentinels),
                    *timeout,
                    report,
                    links,
                ))
            }
            RedisMode::Cluster => {
                let (seeds, links) = (urls.addrs(), links.clone());
                Servers::Cluster(Cluster::start(connector, seeds, *timeout, report, links))
            }
        };
        let mut store = Self {
            servers,
            layout: KeyLayout {
                prefix: key_prefix.clone(),
                format: *key_format,
                indexed: indexed.clone(),
            },
            sweep: None,
        };
        if worker == 0 && !indexed.is_empty() {
            let task = tokio::spawn(sweep::run(store.clone(), sweep_status));
            store.sweep = Some(Arc::new(AbortOnDrop(task.abort_handle())));
        }
        store
    }

    /// Whether a namespace has an index of its ids.
    pub(crate) fn is_indexed(&self, namespace: Namespace<'_>) -> bool {
        self.layout.indexed.contains(namespace)
    }

    /// Sends one unit about one id: a command or a transaction.
    pub(super) async fn request(
        &self,
        effect: Effect,
        namespace: Namespace<'_>,
        id: Id<'_>,
        encode: impl Fn(&mut Commands<'_>),
    ) -> Result<Bytes, WriteError> {
        // Not with `request_at`: a future that is handed on takes up twice its size.
        match &self.servers {
            Servers::One(link) => link.request(effect, encode).await,
            Servers::Cluster(cluster) => {
                // Boxed, so that the future of a call to a single server has no room for this.
                Box::pin(cluster.request(effect, self.slot(namespace, id), encode)).await
            }
        }
    }

    /// Sends one unit about keys of one slot.
    pub(super) async fn request_at(
        &self,
        effect: Effect,
        slot: impl Fn() -> u16,
        encode: impl Fn(&mut Commands<'_>),
    ) -> Result<Bytes, WriteError> {
        match &self.servers {
            Servers::One(link) => link.request(effect, encode).await,
            Servers::Cluster(cluster) => {
                // Boxed, so that the future of a call to a single server has no room for this.
                Box::pin(cluster.request(effect, slot(), encode)).await
            }
        }
    }

    pub(super) fn slot(&self, namespace: Namespace<'_>, id: Id<'_>) -> u16 {
        cluster::slot(&self.layout.key(namespace, id))
    }
}
