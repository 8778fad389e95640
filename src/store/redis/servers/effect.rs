//! What a request does to Redis.

/// What a request does to Redis. This decides whether it may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The request changes nothing.
    Read,
    /// The request changes what Redis holds. Each of its replies is that of a command.
    Write,
    /// The request changes what Redis holds, in transactions of two commands each.
    Transactions,
}
