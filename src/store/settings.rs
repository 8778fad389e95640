//! Settings of the store: Redis, or the embedded store.

use super::redis::settings::{RedisArgs, RedisSettings};
use crate::setting::{SettingError, Summary, check};

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
}

/// Which store, with its own settings.
#[derive(Debug, Clone)]
pub(crate) enum StoreSettings {
    /// The embedded store.
    Memory {
        /// The most entries it takes.
        max_entries: usize,
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
        } = args;
        check(
            "memory-max-entries",
            memory_max_entries > 0,
            "must be at least 1",
        )?;
        Ok(match RedisSettings::check(redis)? {
            Some(redis) => Self::Redis(Box::new(redis)),
            None => Self::Memory {
                max_entries: memory_max_entries,
            },
        })
    }
}

impl StoreSettings {
    pub(crate) fn summarize(&self, summary: &mut Summary) {
        match self {
            Self::Memory { max_entries } => {
                summary.add("redis-url", "(unset: embedded store)");
                summary.add("memory-max-entries", max_entries);
            }
            Self::Redis(redis) => redis.summarize(summary),
        }
    }
}
