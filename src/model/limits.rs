//! The limits of requests.

use std::time::Duration;

/// The limits that settings can move.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The time to live of a Mark that names none.
    pub default_ttl: Duration,
    /// The longest time to live that a Mark may ask for.
    pub max_ttl: Duration,
    /// The most ids in one BatchGet.
    pub max_batch: usize,
    /// The most bytes in a string or bytes value.
    pub max_value_bytes: usize,
    /// The most bytes in one reply.
    pub max_reply_bytes: usize,
}
