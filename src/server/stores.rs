//! Opens the stores of the workers: one embedded store for all, or a Redis store for each.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::{
    metrics::Reading,
    store::{
        ChangeFeed, LinkState, Store, StoreStatus,
        memory::{MemoryChanges, MemoryStore, SWEEP_INTERVAL},
        redis::{Links, RedisChanges, RedisStore, settings::RedisSettings},
        settings::StoreSettings,
    },
};

/// Makes the stores of the workers.
pub(crate) enum Stores {
    Memory {
        store: Arc<MemoryStore>,
        status: StoreStatus,
    },
    Redis {
        settings: Box<RedisSettings>,
        status: StoreStatus,
        links: Links,
    },
}

/// Opens the store of one worker. To be called on the worker's thread, which then runs the tasks of
/// the store.
pub(crate) type OpenStore = Box<dyn FnOnce() -> Store + Send>;

impl Stores {
    /// Opens the embedded store, or prepares to connect to Redis.
    pub(crate) fn open(
        settings: &StoreSettings,
        workers: usize,
        background: &mut JoinSet<()>,
    ) -> Self {
        match settings {
            StoreSettings::Memory {
                max_entries,
                indexed,
            } => {
                let store = Arc::new(MemoryStore::new(*max_entries, indexed.clone()));
                let swept = Arc::clone(&store);
                background.spawn(async move {
                    loop {
                        tokio::time::sleep(SWEEP_INTERVAL).await;
                        swept.sweep();
                    }
                });
                Self::Memory {
                    store,
                    status: StoreStatus::new(1, LinkState::Up),
                }
            }
            StoreSettings::Redis(redis) => Self::Redis {
                settings: redis.clone(),
                status: StoreStatus::new(workers, connecting()),
                links: Links::default(),
            },
        }
    }

    pub(crate) fn status(&self) -> &StoreStatus {
        match self {
            Self::Memory { status, .. } | Self::Redis { status, .. } => status,
        }
    }

    pub(crate) fn for_worker(&self, number: usize) -> OpenStore {
        match self {
            Self::Memory { store, .. } => {
                let store = Arc::clone(store);
                Box::new(move || Store::Memory(store))
            }
            Self::Redis {
                settings,
                status,
                links,
            } => {
                let (settings, status) = (settings.clone(), status.clone());
                let links = links.clone();
                Box::new(move || Store::Redis(RedisStore::start(&settings, number, status, &links)))
            }
        }
    }

    /// The feed of changes for watches. To be called once.
    pub(crate) fn changes(&self) -> ChangeFeed {
        match self {
            Self::Memory { store, .. } => ChangeFeed::Memory(MemoryChanges::new(Arc::clone(store))),
            Self::Redis { settings, .. } => ChangeFeed::Redis(RedisChanges::new(settings)),
        }
    }

    /// The metrics of the store.
    pub(crate) fn readings(&self) -> Vec<Reading> {
        let status = self.status().subscribe();
        let sweeps = || Arc::clone(&self.status().sweeps);
        let (swept, failed) = (sweeps(), sweeps());
        let mut readings = vec![
            Reading::gauge(
                "dyndata_store_up",
                "1 while the store can be used by every worker, 0 otherwise",
                move || i64::from(*status.borrow() == LinkState::Up),
            ),
            Reading::counter(
                "dyndata_index_swept_ids",
                "Number of ids that this process has removed from the indexes in Redis after their expiry",
                move || swept.removed(),
            ),
            Reading::counter(
                "dyndata_index_sweep_failures",
                "Number of sweeps of an index in Redis that failed",
                move || failed.failures(),
            ),
        ];
        readings.extend(self.links());
        readings.extend(self.indexed_ids());
        readings.extend(self.clocks());
        if let Self::Memory { store, .. } = self {
            let store = Arc::clone(store);
            readings.push(Reading::gauge(
                "dyndata_memory_entries",
                "Entries in the embedded store, including expired ones that are not swept yet",
                move || i64::try_from(store.len()).unwrap_or(i64::MAX),
            ));
        }
        readings
    }

    /// How many links to the store there are. The embedded store counts as one that is always up.
    fn links(&self) -> [Reading; 3] {
        let links = match self {
            Self::Memory { .. } => None,
            Self::Redis { links, .. } => Some(links.clone()),
        };
        let count = |read: fn(&Links) -> usize| {
            let links = links.clone();
            move || i64::try_from(links.as_ref().map_or(1, read)).unwrap_or(i64::MAX)
        };
        let (all, up) = (count(Links::count), count(Links::up));
        [
            Reading::gauge(
                "dyndata_store_links",
                "Number of links to the store that this process should have: one for each worker, in a cluster one to each master for each worker",
                all,
            ),
            Reading::gauge(
                "dyndata_store_links_up",
                "Number of links to the store that are up",
                up,
            ),
            Reading::counter(
                "dyndata_store_connects",
                "Number of connections to the store that have been made",
                move || links.as_ref().map_or(0, Links::connects),
            ),
        ]
    }

    /// How many ids are marked in each indexed namespace, if there are any. With Redis, the sweep has
    /// counted them, so that a scrape does not ask Redis.
    fn indexed_ids(&self) -> Option<Reading> {
        let read: Box<dyn Fn() -> Vec<(String, u64)> + Send + Sync> = match self {
            Self::Memory { store, .. } if store.has_indexes() => {
                let store = Arc::clone(store);
                Box::new(move || store.counts())
            }
            Self::Redis {
                settings, status, ..
            } if !settings.indexed.is_empty() => {
                let sweeps = Arc::clone(&status.sweeps);
                Box::new(move || sweeps.marked())
            }
            Self::Memory { .. } | Self::Redis { .. } => return None,
        };
        Some(Reading::gauges(
            "dyndata_indexed_ids",
            "Number of ids that are marked in each indexed namespace",
            "namespace",
            read,
        ))
    }

    /// How well the clocks of the Redis servers are known, if anybody uses them.
    fn clocks(&self) -> Vec<Reading> {
        let links = match self {
            Self::Redis {
                settings, links, ..
            } if !settings.indexed.is_empty() => links,
            Self::Memory { .. } | Self::Redis { .. } => return Vec::new(),
        };
        let (known, error, offset) = (links.clone(), links.clone(), links.clone());
        vec![
            Reading::gauge(
                "dyndata_store_clocks_known",
                "Number of links to Redis that know the clock of their server well enough to use it",
                move || i64::try_from(known.clocks_known()).unwrap_or(i64::MAX),
            ),
            Reading::gauge_seconds_if_known(
                "dyndata_store_clock_error_seconds",
                "How wrong the worst of these estimates of a clock can be, in seconds",
                move || error.clock_error(),
            ),
            Reading::gauge_seconds_if_known(
                "dyndata_store_clock_offset_seconds",
                "How far the clock of Redis is ahead of the clock of this machine, in seconds",
                move || offset.clock_offset(),
            ),
        ]
    }
}

/// The state of a link that has not tried to connect yet.
pub(crate) fn connecting() -> LinkState {
    LinkState::Down("redis: connecting".to_owned())
}
