//! The calls that the server answers: parse the request into domain types, check that the caller
//! may make the call, ask the store, reply. One file for each family of calls.
//!
//! Knows nothing of Redis, sockets or HTTP/2: a request comes in as the bytes of its message, and a
//! reply goes out as the bytes of its own.

mod batches;
mod conditional;
mod context;
pub(crate) mod health;
pub(crate) mod message;
mod presence;
pub(crate) mod reflection;
pub(crate) mod values;
pub(crate) mod watch;

pub(crate) use self::context::{CallContext, Service, WriteStarted};
