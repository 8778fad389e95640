//! How a call to a store fails, and whether a write that failed may take effect.

use thiserror::Error;

/// Why a store could not do what it was asked. The messages are for callers. What the store itself
/// said is logged where it happens.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum StoreError {
    /// There is no connection to the store.
    #[error("the data store is not reachable")]
    Unavailable,
    /// The store did not answer in time.
    #[error("the data store did not answer in time")]
    Timeout,
    /// The store is up, but cannot serve right now.
    #[error("the data store is busy")]
    Busy,
    /// The store is a replica.
    #[error("the data store does not take writes at the moment")]
    ReadOnly,
    /// The store refuses writes until somebody repairs it.
    #[error("the data store refuses writes because of its own state")]
    Misconfigured,
    /// The store does not accept this service's credentials.
    #[error("the data store does not accept this service's credentials")]
    Auth,
    /// The store has no memory left.
    #[error("the data store is out of memory")]
    OutOfMemory,
    /// The embedded store has as many entries as it may have.
    #[error("the embedded store is full: it has {max} entries (memory-max-entries)")]
    Full {
        /// The limit.
        max: usize,
    },
    /// The values that were asked for are too large together.
    #[error(
        "the values are too large for one reply; at most {max} bytes are allowed \
         (max-reply-bytes); ask for fewer ids"
    )]
    TooLarge {
        /// The limit, in bytes.
        max: usize,
    },
    /// The key holds a Redis type that is not a plain value.
    #[error("the key holds a data type that is not a value")]
    WrongType,
    /// An Increment found a string or bytes.
    #[error("the value is not a number")]
    NotAnInteger,
    /// An Increment would go past 64 bits.
    #[error("the number would not fit into 64 bits")]
    CounterOverflow,
    /// The store gave an answer that it never should give.
    #[error("the data store gave an unexpected answer")]
    Unexpected,
}

/// Makes [`StoreReason`] from a table of its variants and their names.
macro_rules! reasons {
    ($($reason:ident = $name:literal),* $(,)?) => {
        /// A [`StoreError`] as programs and metrics see it: the `reason` of an `ErrorInfo`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum StoreReason {
            $($reason),*
        }

        impl StoreReason {
            /// All reasons, in the order of their numbers.
            pub(crate) const ALL: &[Self] = &[$(Self::$reason),*];

            /// The reason as the contract spells it.
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => $name),*
                }
            }
        }
    };
}

reasons! {
    Unavailable = "BACKEND_UNAVAILABLE",
    Timeout = "BACKEND_TIMEOUT",
    Busy = "BACKEND_BUSY",
    ReadOnly = "BACKEND_READONLY",
    Misconfigured = "BACKEND_MISCONFIGURED",
    Auth = "BACKEND_AUTH",
    OutOfMemory = "BACKEND_OUT_OF_MEMORY",
    ReplyTooLarge = "REPLY_TOO_LARGE",
    WrongType = "WRONG_TYPE",
    NotAnInteger = "NOT_AN_INTEGER",
    CounterOverflow = "COUNTER_OVERFLOW",
    Internal = "INTERNAL",
}

impl StoreError {
    /// The reason that a caller is given.
    pub(crate) fn reason(self) -> StoreReason {
        match self {
            Self::Unavailable => StoreReason::Unavailable,
            Self::Timeout => StoreReason::Timeout,
            Self::Busy => StoreReason::Busy,
            Self::ReadOnly => StoreReason::ReadOnly,
            Self::Misconfigured => StoreReason::Misconfigured,
            Self::Auth => StoreReason::Auth,
            Self::OutOfMemory | Self::Full { .. } => StoreReason::OutOfMemory,
            Self::TooLarge { .. } => StoreReason::ReplyTooLarge,
            Self::WrongType => StoreReason::WrongType,
            Self::NotAnInteger => StoreReason::NotAnInteger,
            Self::CounterOverflow => StoreReason::CounterOverflow,
            Self::Unexpected => StoreReason::Internal,
        }
    }
}

/// Whether a write that failed may take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The write never takes effect.
    NotExecuted,
    /// The write has taken effect, takes effect once at some later time, or never does.
    Unknown,
}

impl Outcome {
    /// The outcome as the metadata of an `ErrorInfo` spell it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NotExecuted => "not_executed",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a write failed, and whether it may take effect all the same.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("{error}")]
pub struct WriteError {
    /// What went wrong.
    pub error: StoreError,
    /// Whether the write may take effect.
    pub outcome: Outcome,
}

impl WriteError {
    pub(crate) fn not_executed(error: StoreError) -> Self {
        Self {
            error,
            outcome: Outcome::NotExecuted,
        }
    }

    pub(crate) fn unknown(error: StoreError) -> Self {
        Self {
            error,
            outcome: Outcome::Unknown,
        }
    }
}

/// A read has no outcome.
impl From<WriteError> for StoreError {
    fn from(failed: WriteError) -> Self {
        failed.error
    }
}
