//! Settings of Watch: how many watches a process has, and how many ids.

use crate::setting::{SettingError, Summary, within};

/// The flags as given.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Watches")]
pub(crate) struct WatchArgs {
    /// Most open watches of this process; further ones are refused at once
    #[arg(
        long,
        env = "DYNDATA_MAX_WATCHES",
        value_name = "COUNT",
        default_value_t = 1000
    )]
    max_watches: usize,

    /// Most ids in one watch
    #[arg(
        long,
        env = "DYNDATA_MAX_WATCH_IDS",
        value_name = "COUNT",
        default_value_t = 10_000
    )]
    max_watch_ids: usize,
}

/// The limits of watches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WatchSettings {
    /// The most open watches of the process.
    pub(crate) max_watches: usize,
    /// The most ids in one watch.
    pub(crate) max_watch_ids: usize,
}

impl TryFrom<WatchArgs> for WatchSettings {
    type Error = SettingError;

    fn try_from(args: WatchArgs) -> Result<Self, SettingError> {
        let WatchArgs {
            max_watches,
            max_watch_ids,
        } = args;
        within("max-watches", max_watches, 1..=10_000)?;
        within("max-watch-ids", max_watch_ids, 1..=100_000)?;
        Ok(Self {
            max_watches,
            max_watch_ids,
        })
    }
}

impl WatchSettings {
    pub(crate) fn summarize(&self, summary: &mut Summary) {
        let Self {
            max_watches,
            max_watch_ids,
        } = self;
        summary.add("max-watches", max_watches);
        summary.add("max-watch-ids", max_watch_ids);
    }
}
