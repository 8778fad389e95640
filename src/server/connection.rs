//! One client's connection.

pub(super) mod http2_socket;
