//! The Redis store. Each worker has its own.
//!
//! | module | what it has |
//! |---|---|
//! | [`store`] | one worker's [`RedisStore`]: starts it, sends a request to the right server |
//! | [`values`] | Mark, Get and BatchGet |
//! | [`batches`] | BatchMark, BatchUnmark and Touch: pipelines |
//! | [`scripted`] | Unmark, MarkIf and Increment: scripts, whose texts are in `scripts/` |
//! | [`indexed`] | what writes only in indexed namespaces do |
//! | [`presence`] | Count and List |
//! | [`sweep`] | removes from the indexes what has expired |
//! | [`script`] | how a script is called |
//! | [`entry`] | reading what one id holds, with its expiry or without |
//! | [`layout`] | keys and values as other programs see them |
//! | [`tracking`] | says which keys change, and reads them, for watches |
//! | [`settings`] | where Redis is, how to talk to it, the layout of keys |
//! | [`servers`] | supervised links to one Redis, to the master behind sentinels, or to a cluster |
//! | [`wire`] | connections: sockets, TLS, handshake, pipelining, the protocol, the errors |
//!
//! Nothing else in this crate uses the redis crate.

mod batches;
mod entry;
#[cfg(any(test, fuzzing))]
#[path = "../../fuzz/oracles/redis.rs"]
pub(crate) mod fuzzing;
mod indexed;
mod layout;
mod presence;
mod script;
mod scripted;
mod servers;
pub(crate) mod settings;
mod store;
mod sweep;
mod tracking;
mod values;
mod wire;

pub(crate) use self::{
    servers::links::Links,
    store::RedisStore,
    tracking::{RedisChanges, RedisReader},
};
