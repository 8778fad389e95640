//! Watching ids: one task of the process knows what the watched ids hold, and tells the watchers.
//!
//! The task runs on the first thread and owns the [`table`]. A [`ChangeFeed`](crate::store::ChangeFeed)
//! of the store says which ids may have changed, and the task reads these ids again. What it reads
//! goes to the [`outbox`] of each watcher of the id. The stream of the watcher, which runs on the
//! thread of its worker, empties the outbox.
//!
//! | module | what it has |
//! |---|---|
//! | [`hub`] | the workers' access: opens watches, counts them |
//! | [`outbox`] | what one watcher has not been sent yet |
//! | [`end`] | why a watch ends, or is not opened |
//! | [`table`] | what follows when the store says something, or when something was read |
//! | [`watched`] | what is watched, and by whom |
//! | [`watches`] | one watch, and how far it is |
//! | [`ids`] | the ids, and which of them have to be read |
//! | [`pending`], [`steps`] | adding and removing many ids, a piece at a time |
//! | [`snapshots`] | making snapshots, a piece at a time, and waiting for room |
//! | [`places`] | the namespaces of the table, and the parts of the store |
//! | [`task`] | the task: requests of workers, changes, reads, timers |
//! | [`counts`] | what the metrics show |
//! | [`settings`] | the limits |
//!
//! Watching is level-triggered. A change only says that an id has to be read; what counts is the
//! value that the read finds. These rules make sure that the last value is always seen:
//!
//! - The dirty mark of an id is cleared when the read is sent, never on its reply. A change that
//!   comes while the read is on its way marks the id again.
//! - An id whose read fails stays dirty.
//! - After a gap in the feed, every id is read again, and its watchers get a new snapshot.
//! - Timers find expiries, because a store need not tell them in time. A timer never decides: it
//!   only has the id read.
//! - Every id is read again at least once in [`table::REREAD`], for the changes that a store does
//!   not tell at all.
//!
//! Knows neither Redis nor gRPC. The crossing of threads is the one exemption from the rule that a
//! call stays on its thread.

mod counts;
mod end;
mod hub;
mod ids;
mod outbox;
mod pending;
mod places;
pub(crate) mod settings;
mod snapshots;
mod steps;
mod table;
mod task;
mod watched;
mod watches;

pub(crate) use self::{
    counts::WatchCounts,
    end::WatchEnd,
    hub::{Target, WatchHub, Watcher},
    outbox::{Part, PartKind},
    task::WatchTask,
};
