//! Settings of the store: Redis, or the embedded store.

use super::redis::settings::{RedisArgs, RedisSettings};
use crate::{
    model::IndexedNamespaces,
    setting::{SettingError, Summary, check},
};

/// The flags as given.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct StoreArgs {
    #[command(flatten)]
    redis: RedisArgs,

    /// Most entries in the embedded store; further ids are refused
    #[arg(
        long,
        env = "DYNDATA_MEMORY_MAX_ENTRIES",
        value_name = "COUNT",
        default_value_t = 1_000_000,
        help_heading = "Embedded store"
    )]
    memory_max_entries: usize,

    /// Namespaces in which Count, List and Watch of all ids work: at most 32, with commas, and not
    /// the empty one. The store keeps an index of their ids, which makes writes there cost more. All
    /// processes must have the same list: indexed namespaces have other Redis keys, which no other
    /// program may write. To index a namespace, choose a new name, or stop all its writers, restart
    /// every process with the setting, and let the writers mark everything again
    #[arg(
        long,
        env = "DYNDATA_INDEXED_NAMESPACES",
        value_name = "NAMESPACES",
        value_delimiter = ',',
        help_heading = "Presence"
    )]
    indexed_namespaces: Vec<String>,
}

/// Which store, with its own settings.
#[derive(Debug, Clone)]
pub(crate) enum StoreSettings {
    /// The embedded store.
    Memory {
        /// The most entries it takes.
        max_entries: usize,
        /// The namespaces that are indexed.
        indexed: IndexedNamespaces,
    },
    /// Redis.
    Redis(Box<RedisSettings>),
}

impl TryFrom<StoreArgs> for StoreSettings {
    type Error = SettingError;

    fn try_from(args: StoreArgs) -> Result<Self, SettingError> {
        let StoreArgs {
            redis,
            memory_max_entries,
            indexed_namespaces,
        } = args;
        let indexed = IndexedNamespaces::parse(&indexed_namespaces)
            .map_err(|reason| SettingError::new("indexed-namespaces", reason))?;
        check(
            "memory-max-entries",
            memory_max_entries > 0,
            "must be at least 1",
        )?;
        Ok(match RedisSettings::check(redis, &indexed)? {
            Some(redis) => Self::Redis(Box::new(redis)),
            None => Self::Memory {
                max_entries: memory_max_entries,
                indexed,
            },
        })
    }
}

impl StoreSettings {
    pub(crate) fn summarize(&self, summary: &mut Summary) {
        match self {
            Self::Memory {
                max_entries,
                indexed,
            } => {
                summary.add("redis-url", "(unset: embedded store)");
                summary.add("memory-max-entries", max_entries);
                summarize_indexed(indexed, summary);
            }
            Self::Redis(redis) => {
                redis.summarize(summary);
                summarize_indexed(&redis.indexed, summary);
            }
        }
    }
}

fn summarize_indexed(indexed: &IndexedNamespaces, summary: &mut Summary) {
    if !indexed.is_empty() {
        let names: Vec<_> = indexed.names().collect();
        summary.add("indexed-namespaces", names.join(","));
    }
}
