//! The Redis store. Each worker has its own.
//!
//! | module | what it has |
//! |---|---|
//! | [`values`] | the commands of Mark, Get and BatchGet |
//! | [`layout`] | keys and values as other programs see them |
//! | [`servers`] | supervised links to one Redis, to the master that sentinels name, or to a cluster |
//! | [`wire`] | connections: sockets, TLS, handshake, pipelining, the protocol, the errors |
//!
//! Nothing else in this crate uses the redis crate.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod layout;
mod servers;
mod values;
mod wire;

pub(crate) use self::{
    values::RedisStore,
    wire::{tls::RedisTlsFiles, url::RedisUrls},
};
