//! The embedded store: values in this process, for development and for single-node use.
//!
//! The embedded store behaves as Redis does: a Mark replaces the whole value, and a value is gone
//! at the instant at which it expires. It is bounded: a Mark of a new id beyond the limit is
//! refused, and no entry is ever evicted early.
//!
//! [`shards`] holds the entries and removes expired ones, and [`values`] has the calls. [`changes`]
//! says which entries change, with what [`change_log`] notes. [`key`] is what an entry is found by.
//!
//! Absent: persistence, replication, sharing between processes.

mod change_log;
mod changes;
mod clocks;
mod key;
mod shards;
mod values;

pub(crate) use self::{
    changes::{MemoryChanges, MemoryReader},
    shards::{MemoryStore, SWEEP_INTERVAL},
};
