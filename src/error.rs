//! Every way a call can fail, and the one mapping to a gRPC status.
//!
//! Each status carries a `google.rpc.ErrorInfo` with the domain [`DOMAIN`] and a reason that
//! programs can switch on; errors about a field add `BadRequest`, errors that may be retried add
//! `RetryInfo`. Messages name fields, lengths and limits, never a value; the store's own words,
//! addresses and credentials stay in the log.

use std::{collections::HashMap, time::Duration};

use thiserror::Error;
use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{model::Invalid, store::StoreError};

/// The `ErrorInfo` domain of every error of this service.
pub const DOMAIN: &str = "dyndata";

/// Why a call failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The request breaks the contract.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The request is not a protobuf message of the right type.
    #[error("the request message could not be decoded")]
    MessageMalformed,
    /// The request is compressed.
    #[error("compressed messages are not supported")]
    CompressionUnsupported,
    /// The request is larger than any valid one can be.
    #[error("the request message is too large; at most {max} bytes are allowed")]
    MessageTooLarge {
        /// The limit, in bytes.
        max: usize,
    },
    /// The `grpc-timeout` header is not of the form that gRPC gives it.
    #[error("the grpc-timeout header is not 1 to 8 digits and a unit (H, M, S, m, u, n)")]
    TimeoutInvalid,
    /// The caller's time is up, or the longest that the server gives to a call.
    #[error("the deadline has passed")]
    DeadlineExceeded,
    /// There is more work in flight than the server takes on.
    #[error("too many calls are in flight; try again later")]
    Overloaded,
    /// The caller did not say who it is, or nobody knows it.
    #[error("missing or unknown credentials")]
    Unauthenticated,
    /// The caller is known, and may not do this.
    #[error("the caller is not allowed to do this in this namespace")]
    PermissionDenied,
    /// The store could not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A handler panicked.
    #[error("internal error")]
    Internal,
}

/// One row of the status contract.
struct Contract {
    code: Code,
    reason: &'static str,
    retry_after: Option<Duration>,
}

impl Error {
    /// The gRPC code, and the reason that programs can switch on.
    pub(crate) fn code_and_reason(&self) -> (Code, &'static str) {
        let Contract { code, reason, .. } = self.contract();
        (code, reason)
    }

    fn contract(&self) -> Contract {
        // The delays suggest when the cause may have passed: a reconnect takes tens of
        // milliseconds, what needs a person takes longer.
        const SOON: Option<Duration> = Some(Duration::from_millis(100));
        const LATER: Option<Duration> = Some(Duration::from_secs(1));
        let (code, reason, retry_after) = match self {
            Self::Invalid(invalid) => (Code::InvalidArgument, invalid_reason(invalid), None),
            Self::MessageMalformed => (Code::InvalidArgument, "MESSAGE_MALFORMED", None),
            Self::CompressionUnsupported => (Code::Unimplemented, "COMPRESSION_UNSUPPORTED", None),
            Self::MessageTooLarge { .. } => (Code::ResourceExhausted, "MESSAGE_TOO_LARGE", None),
            Self::TimeoutInvalid => (Code::InvalidArgument, "TIMEOUT_INVALID", None),
            Self::DeadlineExceeded => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED", None),
            Self::Overloaded => (Code::ResourceExhausted, "OVERLOADED", SOON),
            Self::Unauthenticated => (Code::Unauthenticated, "UNAUTHENTICATED", None),
            Self::PermissionDenied => (Code::PermissionDenied, "PERMISSION_DENIED", None),
            Self::Store(store) => {
                let (code, retry_after) = match store {
                    StoreError::Unavailable
                    | StoreError::Timeout
                    | StoreError::Busy
                    | StoreError::ReadOnly => (Code::Unavailable, SOON),
                    StoreError::Misconfigured | StoreError::Auth => (Code::Unavailable, LATER),
                    StoreError::OutOfMemory
                    | StoreError::Full { .. }
                    | StoreError::TooLarge { .. } => (Code::ResourceExhausted, None),
                    StoreError::WrongType => (Code::FailedPrecondition, None),
                    StoreError::Unexpected => (Code::Internal, None),
                };
                (code, store.reason(), retry_after)
            }
            Self::Internal => (Code::Internal, "INTERNAL", None),
        };
        Contract {
            code,
            reason,
            retry_after,
        }
    }
}

fn invalid_reason(invalid: &Invalid) -> &'static str {
    match invalid {
        Invalid::IdEmpty
        | Invalid::IdTooLong { .. }
        | Invalid::IdControl { .. }
        | Invalid::BatchId { .. } => "ID_INVALID",
        Invalid::Namespace { .. } => "NAMESPACE_INVALID",
        Invalid::TtlOutOfRange { .. } => "TTL_OUT_OF_RANGE",
        Invalid::ValueMissing => "VALUE_MISSING",
        Invalid::ValueTooLarge { .. } => "VALUE_TOO_LARGE",
        Invalid::BatchEmpty => "BATCH_EMPTY",
        Invalid::BatchTooLarge { .. } => "BATCH_TOO_LARGE",
    }
}

/// The field that `BadRequest` blames, by its proto name.
fn invalid_field(invalid: &Invalid) -> String {
    match invalid {
        Invalid::IdEmpty | Invalid::IdTooLong { .. } | Invalid::IdControl { .. } => "id".to_owned(),
        Invalid::BatchId { index, .. } => format!("ids[{index}]"),
        Invalid::Namespace { .. } => "namespace".to_owned(),
        Invalid::TtlOutOfRange { .. } => "ttl".to_owned(),
        Invalid::ValueMissing => "value".to_owned(),
        Invalid::ValueTooLarge { field, .. } => (*field).to_owned(),
        Invalid::BatchEmpty | Invalid::BatchTooLarge { .. } => "ids".to_owned(),
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let Contract {
            code,
            reason,
            retry_after,
        } = error.contract();
        let message = error.to_string();
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, DOMAIN, HashMap::new());
        if let Error::Invalid(invalid) = &error {
            details.add_bad_request_violation(invalid_field(invalid), &message);
        }
        if retry_after.is_some() {
            details.set_retry_info(retry_after);
        }
        let mut status = Self::with_error_details(code, message, details);
        // What gRPC clients with a retry policy obey (gRFC A6): when to come again, or that there
        // is no point in it, which a code alone does not say.
        let pushback = match retry_after {
            // Give or take a half, so that those who were refused together do not come together.
            Some(delay) => i64::try_from(delay.mul_f64(0.5 + fastrand::f64()).as_millis()),
            None => Ok(-1),
        };
        let pushback = pushback.unwrap_or(i64::MAX);
        if matches!(code, Code::Unavailable | Code::ResourceExhausted) {
            status
                .metadata_mut()
                .insert("grpc-retry-pushback-ms", pushback.into());
        }
        if let Error::CompressionUnsupported = error {
            status.metadata_mut().insert(
                "grpc-accept-encoding",
                MetadataValue::from_static("identity"),
            );
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_store_error_has_its_row_of_the_status_contract() {
        let rows = [
            (
                StoreError::Unavailable,
                Code::Unavailable,
                "BACKEND_UNAVAILABLE",
                true,
            ),
            (
                StoreError::Timeout,
                Code::Unavailable,
                "BACKEND_TIMEOUT",
                true,
            ),
            (StoreError::Busy, Code::Unavailable, "BACKEND_BUSY", true),
            (
                StoreError::ReadOnly,
                Code::Unavailable,
                "BACKEND_READONLY",
                true,
            ),
            (
                StoreError::Misconfigured,
                Code::Unavailable,
                "BACKEND_MISCONFIGURED",
                true,
            ),
            (StoreError::Auth, Code::Unavailable, "BACKEND_AUTH", true),
            (
                StoreError::OutOfMemory,
                Code::ResourceExhausted,
                "BACKEND_OUT_OF_MEMORY",
                false,
            ),
            (
                StoreError::Full { max: 1 },
                Code::ResourceExhausted,
                "BACKEND_OUT_OF_MEMORY",
                false,
            ),
            (
                StoreError::WrongType,
                Code::FailedPrecondition,
                "WRONG_TYPE",
                false,
            ),
            (StoreError::Unexpected, Code::Internal, "INTERNAL", false),
        ];
        for (error, code, reason, retry) in rows {
            let status = Status::from(Error::from(error));
            assert_eq!(status.code(), code, "{reason}");
            let info = status
                .get_details_error_info()
                .map(|info| (info.domain, info.reason));
            assert_eq!(info, Some((DOMAIN.to_owned(), reason.to_owned())));
            assert_eq!(status.get_details_retry_info().is_some(), retry, "{reason}");
            let pushback = status.metadata().get("grpc-retry-pushback-ms");
            let pushback = pushback.map(|value| value.to_str().expect("ASCII").parse::<i64>());
            match (code, retry) {
                (Code::Unavailable | Code::ResourceExhausted, true) => {
                    assert!(
                        pushback.is_some_and(|ms| ms.is_ok_and(|ms| ms > 0)),
                        "{reason}"
                    );
                }
                (Code::ResourceExhausted, false) => assert_eq!(pushback, Some(Ok(-1)), "{reason}"),
                _ => assert_eq!(pushback, None, "{reason}"),
            }
        }
    }
}
