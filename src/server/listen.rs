//! The gRPC listener: its socket, and TLS on the connections that it accepts.

pub(crate) mod socket;
pub(crate) mod tls;
