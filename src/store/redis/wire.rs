//! Connections to Redis, from the URL to the reply of one command.

pub(super) mod connect;
pub(super) mod failure;
pub(super) mod pipe;
pub(super) mod resp;
pub(super) mod tls;
pub(super) mod url;
