//! The gRPC listener: accepts connections, limits them, and sets up TLS.

pub(crate) mod accept;
pub(crate) mod peers;
pub(crate) mod settings;
pub(crate) mod socket;
pub(crate) mod tls;
