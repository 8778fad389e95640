//! Every error of a call, and the only mapping from errors to gRPC statuses.
//!
//! Each status has a `google.rpc.ErrorInfo` with the domain [`DOMAIN`] and a reason that programs
//! can switch on. An error about a field also has a `BadRequest`. Messages contain names of fields,
//! lengths and limits, but never a value. Error texts of Redis, addresses and credentials go only to
//! the log.
//!
//! The error of a write says in `ErrorInfo.metadata["outcome"]` whether the write may have taken
//! effect: see `Outcome`. This also decides what the status says about retries:
//!
//! | error | `RetryInfo` | `grpc-retry-pushback-ms` |
//! |---|---|---|
//! | a MarkIf or Increment with an unknown outcome | no | -1: do not retry |
//! | another write with an unknown outcome | no | absent: the retry policy of the caller decides |
//! | `OVERLOADED`, `WATCH_LIMIT` | yes | a delay that grows with the attempts of the caller |
//! | another temporary error | yes | absent: the caller uses its own growing backoff |
//! | a permanent UNAVAILABLE or RESOURCE_EXHAUSTED | no | -1: do not retry |
//! | all others | no | absent |
//!
//! A pushback replaces the backoff of a gRPC client, and resets its growth. So only an overloaded
//! server sends one. In all other cases the backoff of the client is better.

use std::{collections::HashMap, time::Duration};

use http::{HeaderMap, HeaderName};
use thiserror::Error;
use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    auth::Refusal,
    codec::fields::Malformed,
    decimal,
    model::Invalid,
    store::{Outcome, StoreError, WriteError},
};

/// The `ErrorInfo` domain of every error of this service.
pub const DOMAIN: &str = "dyndata";
/// The key of the [`Outcome`] in the metadata of `ErrorInfo`.
const OUTCOME: &str = "outcome";

/// Why a call failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The request breaks the contract.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The request is not a protobuf message of the right type.
    #[error("the request message could not be decoded")]
    MessageMalformed,
    /// The server has no such method.
    #[error("there is no such method")]
    Unimplemented,
    /// The content type names a message format that the server does not have.
    #[error("the messages have to be protobuf: application/grpc or application/grpc+proto")]
    FormatUnsupported,
    /// A health check names a service that the server does not have.
    #[error("there is no such service")]
    ServiceUnknown,
    /// The request is compressed.
    #[error("compressed messages are not supported")]
    CompressionUnsupported,
    /// The request is larger than the largest valid request.
    #[error("the request message is too large; at most {max} bytes are allowed")]
    MessageTooLarge {
        /// The limit, in bytes.
        max: usize,
    },
    /// The `grpc-timeout` header breaks the format of gRPC.
    #[error("the grpc-timeout header is not 1 to 8 digits and a unit (H, M, S, m, u, n)")]
    TimeoutInvalid,
    /// The deadline of the caller, or the `--max-deadline` of the server, has passed.
    #[error("the deadline has passed")]
    DeadlineExceeded,
    /// A limit on the work in flight is reached.
    #[error("too many calls are in flight; try again later")]
    Overloaded,
    /// The namespace has no index, so nobody can count, list or watch all of its ids.
    #[error("the namespace is not indexed (indexed-namespaces)")]
    NotIndexed,
    /// A limit on watches is reached.
    #[error("too many watches, watched namespaces, ids or values; try again later")]
    WatchLimit,
    /// The server ends a stream because it shuts down, or because the connection is too old.
    #[error("the server is shutting down, or closes this connection")]
    ShuttingDown,
    /// Access control refuses the call.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store could not read, or the reply is too large.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store could not write.
    #[error(transparent)]
    Write(#[from] WriteError),
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

    /// Whether a write that failed with this error may have taken effect. `asked` says whether the
    /// store was asked to write.
    pub(crate) fn outcome(&self, asked: bool) -> Outcome {
        match self {
            Self::Write(failed) => failed.outcome,
            // A panic can happen before or after the write.
            Self::Internal => Outcome::Unknown,
            _ if asked => Outcome::Unknown,
            _ => Outcome::NotExecuted,
        }
    }

    fn contract(&self) -> Contract {
        // When to retry. A reconnect takes tens of milliseconds. An error that a person has to fix
        // takes longer.
        const SOON: Option<Duration> = Some(Duration::from_millis(100));
        const LATER: Option<Duration> = Some(Duration::from_secs(1));
        let (code, reason, retry_after) = match self {
            Self::Invalid(invalid) => (Code::InvalidArgument, invalid_reason(invalid), None),
            Self::MessageMalformed => (Code::InvalidArgument, "MESSAGE_MALFORMED", None),
            Self::CompressionUnsupported => (Code::Unimplemented, "COMPRESSION_UNSUPPORTED", None),
            Self::Unimplemented | Self::FormatUnsupported => {
                (Code::Unimplemented, "UNIMPLEMENTED", None)
            }
            Self::ServiceUnknown => (Code::NotFound, "SERVICE_UNKNOWN", None),
            Self::MessageTooLarge { .. } => (Code::ResourceExhausted, "MESSAGE_TOO_LARGE", None),
            Self::TimeoutInvalid => (Code::InvalidArgument, "TIMEOUT_INVALID", None),
            Self::DeadlineExceeded => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED", None),
            Self::Overloaded => (Code::ResourceExhausted, "OVERLOADED", SOON),
            Self::NotIndexed => (Code::FailedPrecondition, "NOT_INDEXED", None),
            Self::WatchLimit => (Code::ResourceExhausted, "WATCH_LIMIT", SOON),
            Self::ShuttingDown => (Code::Unavailable, "SHUTTING_DOWN", SOON),
            Self::Refused(Refusal::Unauthenticated) => {
                (Code::Unauthenticated, "UNAUTHENTICATED", None)
            }
            Self::Refused(Refusal::PermissionDenied) => {
                (Code::PermissionDenied, "PERMISSION_DENIED", None)
            }
            Self::Store(store) | Self::Write(WriteError { error: store, .. }) => {
                let (code, retry_after) = match store {
                    StoreError::Unavailable
                    | StoreError::Timeout
                    | StoreError::Busy
                    | StoreError::ReadOnly => (Code::Unavailable, SOON),
                    StoreError::Misconfigured | StoreError::Auth => (Code::Unavailable, LATER),
                    StoreError::OutOfMemory
                    | StoreError::Full { .. }
                    | StoreError::TooLarge { .. } => (Code::ResourceExhausted, None),
                    StoreError::WrongType | StoreError::NotAnInteger => {
                        (Code::FailedPrecondition, None)
                    }
                    StoreError::CounterOverflow => (Code::OutOfRange, None),
                    StoreError::Unexpected => (Code::Internal, None),
                };
                (code, store.reason().name(), retry_after)
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
        Invalid::BatchMark { source, .. } => invalid_reason(source),
        Invalid::Condition { .. } => "CONDITION_INVALID",
        Invalid::TtlPolicy => "TTL_POLICY_INVALID",
        Invalid::Range => "RANGE_INVALID",
        Invalid::PageSize => "PAGE_SIZE_INVALID",
        Invalid::PageToken => "PAGE_TOKEN_INVALID",
        Invalid::WatchTarget => "WATCH_TARGET_INVALID",
        Invalid::Namespace { .. } => "NAMESPACE_INVALID",
        Invalid::TtlOutOfRange { .. } => "TTL_OUT_OF_RANGE",
        Invalid::ValueMissing => "VALUE_MISSING",
        Invalid::ValueTooLarge { .. } => "VALUE_TOO_LARGE",
        Invalid::BatchEmpty { .. } => "BATCH_EMPTY",
        Invalid::BatchTooLarge { .. } | Invalid::WatchTooLarge { .. } => "BATCH_TOO_LARGE",
    }
}

/// The proto name of the invalid field, for `BadRequest`.
fn invalid_field(invalid: &Invalid) -> String {
    match invalid {
        Invalid::IdEmpty | Invalid::IdTooLong { .. } | Invalid::IdControl { .. } => "id".to_owned(),
        Invalid::BatchId { index, .. } => format!("ids[{index}]"),
        Invalid::Namespace { .. } => "namespace".to_owned(),
        Invalid::TtlOutOfRange { .. } => "ttl".to_owned(),
        Invalid::ValueMissing => "value".to_owned(),
        Invalid::ValueTooLarge { field, .. } => (*field).to_owned(),
        Invalid::BatchEmpty { field } | Invalid::BatchTooLarge { field, .. } => (*field).to_owned(),
        Invalid::BatchMark { index, source } => format!("marks[{index}].{}", invalid_field(source)),
        Invalid::Condition { field } => (*field).to_owned(),
        Invalid::TtlPolicy => "ttl_policy".to_owned(),
        Invalid::Range => "min".to_owned(),
        Invalid::PageSize => "page_size".to_owned(),
        Invalid::PageToken => "page_token".to_owned(),
        Invalid::WatchTarget | Invalid::WatchTooLarge { .. } => "ids".to_owned(),
    }
}

impl Error {
    /// The status that a caller gets.
    pub(crate) fn into_status(self, call: FailedCall) -> Status {
        let FailedCall {
            outcome,
            counts_again,
            previous_attempts,
        } = call;
        let Contract {
            code,
            reason,
            retry_after,
        } = self.contract();
        let retry_after = match outcome {
            // A retry may overwrite a newer value. Only the caller knows whether that matters.
            Some(Outcome::Unknown) => None,
            Some(Outcome::NotExecuted) | None => {
                retry_after.map(|delay| grown(delay, previous_attempts))
            }
        };
        let message = self.to_string();
        let mut details = ErrorDetails::new();
        let metadata = outcome.map(|outcome| (OUTCOME.to_owned(), outcome.name().to_owned()));
        details.set_error_info(reason, DOMAIN, HashMap::from_iter(metadata));
        if let Self::Invalid(invalid) = &self {
            details.add_bad_request_violation(invalid_field(invalid), &message);
        }
        if retry_after.is_some() {
            details.set_retry_info(retry_after);
        }
        let mut status = Status::with_error_details(code, message, details);
        let pushback = match retry_after {
            Some(delay) if matches!(self, Self::Overloaded | Self::WatchLimit) => {
                // Plus or minus a half, so that clients that were refused together do not retry
                // together.
                let millis = delay.mul_f64(0.5 + fastrand::f64()).as_millis();
                Some(i64::try_from(millis).unwrap_or(i64::MAX))
            }
            Some(_) => None,
            // A second execution would have a second effect.
            None if outcome == Some(Outcome::Unknown) => counts_again.then_some(-1),
            // The code alone would look to a retry policy as if the error could pass.
            None => matches!(code, Code::Unavailable | Code::ResourceExhausted).then_some(-1),
        };
        if let Some(pushback) = pushback {
            let metadata = status.metadata_mut();
            metadata.insert("grpc-retry-pushback-ms", pushback.into());
        }
        if let Self::CompressionUnsupported = self {
            status.metadata_mut().insert(
                "grpc-accept-encoding",
                MetadataValue::from_static("identity"),
            );
        }
        status
    }
}

/// The status of a call that does not write.
impl From<Malformed> for Error {
    fn from(_: Malformed) -> Self {
        Self::MessageMalformed
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        error.into_status(FailedCall::default())
    }
}

/// What the status of an error depends on besides the error.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FailedCall {
    /// The outcome of a write. `None` for a call that only reads.
    pub(crate) outcome: Option<Outcome>,
    /// Whether a second execution has a second effect: no retry policy may repeat the call if its
    /// outcome is unknown.
    pub(crate) counts_again: bool,
    /// How often the caller's retry policy has sent the call before.
    pub(crate) previous_attempts: u32,
}

/// How often a caller's retry policy has sent a call before, as the caller says.
pub(crate) fn previous_attempts(headers: &HeaderMap) -> u32 {
    /// A constant, because a text is checked at each use.
    const ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
    let attempts = headers.get(ATTEMPTS);
    let attempts = attempts.and_then(|attempts| decimal::unsigned(attempts.as_bytes()));
    attempts.map_or(0, |attempts| u32::try_from(attempts).unwrap_or(0))
}

/// Doubles a delay for each previous attempt, like the usual backoff of gRPC clients.
fn grown(delay: Duration, previous_attempts: u32) -> Duration {
    /// gRPC clients attempt a call at most five times.
    const MAX_DOUBLINGS: u32 = 4;
    delay * (1 << previous_attempts.min(MAX_DOUBLINGS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_of(error: Error, outcome: Option<Outcome>) -> (Status, Option<i64>, bool) {
        let call = FailedCall {
            outcome,
            ..FailedCall::default()
        };
        let status = error.into_status(call);
        let pushback = status.metadata().get("grpc-retry-pushback-ms");
        let pushback = pushback.map(|value| value.to_str().expect("ASCII"));
        let pushback = pushback.map(|value| value.parse().expect("a number"));
        let has_retry_info = status.get_details_retry_info().is_some();
        let info = status.get_details_error_info().expect("an ErrorInfo");
        assert_eq!(info.domain, DOMAIN);
        let named = info.metadata.get("outcome").map(String::as_str);
        assert_eq!(named, outcome.map(Outcome::name));
        (status, pushback, has_retry_info)
    }

    #[test]
    fn every_error_has_the_code_reason_and_retry_rule_of_the_contract() {
        /// What the status says about retries, if the call had no effect.
        enum Retry {
            Yes,
            /// Yes, after the pushback.
            Later,
            No,
            /// No, although the code alone would allow it.
            Never,
        }
        let row = |error: Error, code, reason, retry| (error, code, reason, retry);
        let store = |error: StoreError| Error::from(error);
        let (unavailable, exhausted) = (Code::Unavailable, Code::ResourceExhausted);
        #[rustfmt::skip]
        let rows = || [
            row(store(StoreError::Unavailable), unavailable, "BACKEND_UNAVAILABLE", Retry::Yes),
            row(store(StoreError::Timeout), unavailable, "BACKEND_TIMEOUT", Retry::Yes),
            row(store(StoreError::Busy), unavailable, "BACKEND_BUSY", Retry::Yes),
            row(store(StoreError::ReadOnly), unavailable, "BACKEND_READONLY", Retry::Yes),
            row(store(StoreError::Misconfigured), unavailable, "BACKEND_MISCONFIGURED", Retry::Yes),
            row(store(StoreError::Auth), unavailable, "BACKEND_AUTH", Retry::Yes),
            row(store(StoreError::OutOfMemory), exhausted, "BACKEND_OUT_OF_MEMORY", Retry::Never),
            row(store(StoreError::Full { max: 1 }), exhausted, "BACKEND_OUT_OF_MEMORY", Retry::Never),
            row(store(StoreError::TooLarge { max: 1 }), exhausted, "REPLY_TOO_LARGE", Retry::Never),
            row(store(StoreError::WrongType), Code::FailedPrecondition, "WRONG_TYPE", Retry::No),
            row(store(StoreError::Unexpected), Code::Internal, "INTERNAL", Retry::No),
            row(Error::Overloaded, exhausted, "OVERLOADED", Retry::Later),
            row(Error::WatchLimit, exhausted, "WATCH_LIMIT", Retry::Later),
            row(Error::NotIndexed, Code::FailedPrecondition, "NOT_INDEXED", Retry::No),
            row(Invalid::PageSize.into(), Code::InvalidArgument, "PAGE_SIZE_INVALID", Retry::No),
            row(Invalid::PageToken.into(), Code::InvalidArgument, "PAGE_TOKEN_INVALID", Retry::No),
            row(Invalid::WatchTarget.into(), Code::InvalidArgument, "WATCH_TARGET_INVALID", Retry::No),
            row(Error::MessageTooLarge { max: 1 }, exhausted, "MESSAGE_TOO_LARGE", Retry::Never),
            row(Error::MessageMalformed, Code::InvalidArgument, "MESSAGE_MALFORMED", Retry::No),
            row(Error::TimeoutInvalid, Code::InvalidArgument, "TIMEOUT_INVALID", Retry::No),
            row(Invalid::ValueMissing.into(), Code::InvalidArgument, "VALUE_MISSING", Retry::No),
            row(Error::CompressionUnsupported, Code::Unimplemented, "COMPRESSION_UNSUPPORTED", Retry::No),
            row(Error::DeadlineExceeded, Code::DeadlineExceeded, "DEADLINE_EXCEEDED", Retry::No),
            row(Refusal::Unauthenticated.into(), Code::Unauthenticated, "UNAUTHENTICATED", Retry::No),
            row(Refusal::PermissionDenied.into(), Code::PermissionDenied, "PERMISSION_DENIED", Retry::No),
            row(Error::Internal, Code::Internal, "INTERNAL", Retry::No),
        ];
        // Reads, and writes that had no effect, have the same rules.
        for outcome in [None, Some(Outcome::NotExecuted)] {
            for (error, code, reason, retry) in rows() {
                let (status, pushback, has_retry_info) = status_of(error, outcome);
                assert_eq!(status.code(), code, "{reason}");
                let info = status.get_details_error_info().expect("an ErrorInfo");
                assert_eq!(info.reason, reason);
                let may_pass = matches!(retry, Retry::Yes | Retry::Later);
                assert_eq!(has_retry_info, may_pass, "{reason}");
                match retry {
                    Retry::Yes | Retry::No => assert_eq!(pushback, None, "{reason}"),
                    Retry::Later => assert!(pushback.is_some_and(|ms| ms > 0), "{reason}"),
                    Retry::Never => assert_eq!(pushback, Some(-1), "{reason}"),
                }
            }
        }
        // For a write that may have taken effect, the policy of the caller decides.
        for (error, _, reason, _) in rows() {
            let (_, pushback, has_retry_info) = status_of(error, Some(Outcome::Unknown));
            assert_eq!((pushback, has_retry_info), (None, false), "{reason}");
        }
    }

    #[test]
    fn no_policy_repeats_what_may_count_twice() {
        for error in [
            Error::DeadlineExceeded,
            WriteError::unknown(StoreError::Timeout).into(),
            Error::Internal,
        ] {
            let call = FailedCall {
                outcome: Some(Outcome::Unknown),
                counts_again: true,
                ..FailedCall::default()
            };
            let status = error.into_status(call);
            let pushback = status.metadata().get("grpc-retry-pushback-ms");
            assert_eq!(pushback.map(|value| value.as_bytes()), Some(&b"-1"[..]));
            assert!(status.get_details_retry_info().is_none());
        }
    }

    #[test]
    fn a_write_has_an_effect_at_most_if_the_store_was_asked() {
        for asked in [false, true] {
            for outcome in [Outcome::NotExecuted, Outcome::Unknown] {
                let error = StoreError::Unavailable;
                let failed = WriteError { error, outcome };
                assert_eq!(Error::from(failed).outcome(asked), outcome);
            }
            assert_eq!(Error::Internal.outcome(asked), Outcome::Unknown);
        }
        for error in [Error::DeadlineExceeded, Error::Overloaded] {
            assert_eq!(error.outcome(false), Outcome::NotExecuted);
            assert_eq!(error.outcome(true), Outcome::Unknown);
        }
    }

    #[test]
    fn the_pushback_of_an_overloaded_server_grows_with_the_attempts() {
        let attempts = |text: &'static str| {
            let value = http::HeaderValue::from_static(text);
            let name = HeaderName::from_static("grpc-previous-rpc-attempts");
            previous_attempts(&HeaderMap::from_iter([(name, value)]))
        };
        for (text, least, most) in [
            ("", 50, 150),
            ("nonsense", 50, 150),
            ("1", 100, 300),
            ("2", 200, 600),
            ("3", 400, 1_200),
            ("4", 800, 2_400),
            ("4294967295", 800, 2_400),
        ] {
            for _ in 0..20 {
                let status = Error::Overloaded.into_status(FailedCall {
                    previous_attempts: attempts(text),
                    ..FailedCall::default()
                });
                let pushback = status.metadata().get("grpc-retry-pushback-ms");
                let pushback = pushback.expect("a pushback").to_str().expect("ASCII");
                let pushback = pushback.parse::<i64>().expect("a number");
                assert!((least..=most).contains(&pushback), "{text}: {pushback}");
            }
        }
        assert_eq!(previous_attempts(&HeaderMap::new()), 0);
    }
}
