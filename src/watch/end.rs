//! Why a watch ends, or is not opened.

use thiserror::Error;

use crate::store::StoreError;

/// Why a watch ends.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WatchEnd {
    #[error(transparent)]
    Limit(#[from] WatchLimit),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The limit of watches that is reached.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WatchLimit {
    #[error("this process has as many watches as it may have: {max} (max-watches)")]
    Watches { max: usize },
    #[error("this process watches as many ids as it may watch: {max}")]
    Ids { max: usize },
    #[error("as many ids wait to be watched as may wait: {max}; try again")]
    Waiting { max: usize },
    #[error("this process watches as many namespaces as it may watch: {max}")]
    Namespaces { max: usize },
    #[error("the values that this process watches have more than {max} bytes")]
    ValueBytes { max: usize },
}

/// What a bug of this program looks like to a caller.
pub(super) const UNEXPECTED: WatchEnd = WatchEnd::Store(StoreError::Unexpected);
