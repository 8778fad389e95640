//! The servers behind a Redis URL: one Redis, the master that sentinels name, or a cluster.

pub(super) mod cluster;
pub(super) mod link;
pub(super) mod sentinel;
mod survey;
