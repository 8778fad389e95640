//! The kinds of calls.

use std::time::Duration;

use crate::keys::IDS;

/// Number of ids that Unmark and BatchUnmark find marked in one cell. When a cell has used them up,
/// its further calls find nothing.
const REMOVABLE: usize = 300_000;

/// Number of ids that Count and List find.
pub const PRESENT: usize = 1_000;
/// An indexed namespace.
pub const INDEXED: &str = "indexed";

/// One kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Get,
    Mark,
    /// A BatchGet of this many ids.
    BatchGet(usize),
    /// A BatchMark of this many ids.
    BatchMark(usize),
    /// A MarkIf with `if_equal`, which holds.
    MarkIf,
    /// A Touch of this many ids, which are all marked.
    Touch(usize),
    /// An Increment without bounds.
    Increment,
    /// An Increment as a rate limit uses it: with `max`, which is not reached, and
    /// `TTL_POLICY_KEEP`.
    Limit,
    /// An Unmark of an id that is marked.
    Unmark,
    /// A BatchUnmark of this many ids, which are all marked.
    BatchUnmark(usize),
    /// A Mark in an indexed namespace.
    MarkIndexed,
    /// A Count of [`PRESENT`] ids.
    Count,
    /// A List of [`PRESENT`] ids, which are one page.
    List,
}

impl Operation {
    pub fn path(self) -> &'static str {
        match self {
            Self::Get => "/dyndata.v1.DynData/Get",
            Self::Mark | Self::MarkIndexed => "/dyndata.v1.DynData/Mark",
            Self::BatchGet(_) => "/dyndata.v1.DynData/BatchGet",
            Self::BatchMark(_) => "/dyndata.v1.DynData/BatchMark",
            Self::MarkIf => "/dyndata.v1.DynData/MarkIf",
            Self::Touch(_) => "/dyndata.v1.DynData/Touch",
            Self::Increment | Self::Limit => "/dyndata.v1.DynData/Increment",
            Self::Unmark => "/dyndata.v1.DynData/Unmark",
            Self::BatchUnmark(_) => "/dyndata.v1.DynData/BatchUnmark",
            Self::Count => "/dyndata.v1.DynData/Count",
            Self::List => "/dyndata.v1.DynData/List",
        }
    }

    /// A Redis command that each call runs, with its name in `INFO commandstats`, and how often.
    /// Redis counts the commands in scripts too.
    pub fn redis_commands(self) -> (&'static str, u64) {
        match self {
            Self::Get => ("get", 1),
            Self::Mark | Self::MarkIf => ("set", 1),
            Self::BatchGet(_) => ("mget", 1),
            Self::BatchMark(size) => ("set", size as u64),
            Self::Touch(size) => ("getex", size as u64),
            Self::Increment | Self::Limit => ("incrby", 1),
            Self::Unmark => ("del", 1),
            Self::BatchUnmark(size) => ("del", size as u64),
            Self::MarkIndexed => ("zadd", 1),
            // One for each shard.
            Self::Count => ("zcount", 64),
            Self::List => ("zscan", 64),
        }
    }

    /// Number of different ids in one cell.
    pub fn ids(self) -> usize {
        match self {
            Self::Count | Self::List => PRESENT,
            _ if self.removes() => REMOVABLE,
            _ => IDS,
        }
    }

    /// The namespace of the ids.
    pub fn namespace(self) -> &'static str {
        match self {
            Self::MarkIndexed | Self::Count | Self::List => INDEXED,
            _ => "",
        }
    }

    /// True if the calls expect that their ids are marked, and change that.
    pub fn needs_values(self) -> bool {
        matches!(self, Self::MarkIf | Self::Touch(_)) || self.removes()
    }

    /// True if the calls remove what they find. They cannot repeat one request, as h2load does.
    pub fn removes(self) -> bool {
        matches!(self, Self::Unmark | Self::BatchUnmark(_))
    }

    /// The measured time of a cell, in our own generator.
    pub fn duration(self) -> Duration {
        match self {
            // As long as the marked ids last.
            Self::BatchUnmark(_) => Duration::from_millis(250),
            _ => Duration::from_millis(800),
        }
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Get => f.pad("Get"),
            Self::Mark => f.pad("Mark"),
            Self::BatchGet(size) => f.pad(&format!("BatchGet({size})")),
            Self::BatchMark(size) => f.pad(&format!("BatchMark({size})")),
            Self::MarkIf => f.pad("MarkIf"),
            Self::Touch(size) => f.pad(&format!("Touch({size})")),
            Self::Increment => f.pad("Increment"),
            Self::Limit => f.pad("Increment, max"),
            Self::Unmark => f.pad("Unmark"),
            Self::BatchUnmark(size) => f.pad(&format!("BatchUnmark({size})")),
            Self::MarkIndexed => f.pad("Mark, indexed"),
            Self::Count => f.pad(&format!("Count({PRESENT})")),
            Self::List => f.pad(&format!("List({PRESENT})")),
        }
    }
}
