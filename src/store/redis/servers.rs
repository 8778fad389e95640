//! The servers behind a Redis URL: one Redis, the master that sentinels name, or a cluster.
//!
//! | module | what it has |
//! |---|---|
//! | [`link`](mod@link) | one supervised connection, shared by the calls of one worker |
//! | [`links`] | how many links there are and how they are, for the metrics |
//! | [`effect`] | what a request does to Redis |
//! | [`backoff`] | the pauses between attempts to connect |
//! | [`place`] | where a link leads: to a fixed address, or to the master |
//! | [`sentinel`] | which server is the master now |
//! | [`cluster`] | which node has which key, and a link to each master |
//! | [`survey`] | asks several servers at once |
//! | [`task`] | tasks that end with their owner |

pub(super) mod backoff;
pub(super) mod cluster;
pub(super) mod effect;
pub(super) mod link;
pub(super) mod links;
pub(super) mod place;
pub(super) mod sentinel;
mod survey;
pub(super) mod task;
