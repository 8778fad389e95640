//! Connections to Redis, from the URL to the reply to one command.
//!
//! | module | what it has |
//! |---|---|
//! | [`url`] | Redis URLs: checked once, shown without their passwords |
//! | [`connect`] | sockets, and connections that are ready for calls |
//! | [`handshake`] | the first commands on a connection: credentials, database, PING |
//! | [`ping`] | PINGs and what their replies say about the server |
//! | [`pipe`] | many calls at once on one connection |
//! | [`clock`] | an estimate of the server's clock |
//! | [`commands`] | commands in the protocol |
//! | [`resp`] | replies in the protocol |
//! | [`transaction`] | transactions that write, and whether Redis has executed them |
//! | [`failure`] | why there is no connection, and what error replies mean |
//! | [`tls`] | TLS to Redis |

pub(super) mod clock;
pub(super) mod commands;
pub(super) mod connect;
pub(super) mod failure;
mod handshake;
pub(super) mod ping;
pub(super) mod pipe;
pub(super) mod resp;
pub(super) mod tls;
pub(super) mod transaction;
pub(super) mod url;
