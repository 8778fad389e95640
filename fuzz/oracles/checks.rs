//! Checks that several oracles share.

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::error::{DOMAIN, Error};

/// Stands for a secret. An input may have it, but nothing that is shown of the input may.
pub(super) const CANARY: &str = "c4n4ry";

/// Checks that the error of a call has a code and a reason of the contract, and nothing of the
/// call's input.
pub(crate) fn check_refusal(error: Error) {
    let status = Status::from(error);
    assert!(!matches!(status.code(), Code::Ok | Code::Unknown));
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!(info.domain, DOMAIN);
    assert!(!info.reason.is_empty());
    // Message, details and metadata.
    check_silence(&format!("{status:?}"));
}

/// Checks that a text for a caller or for the log has no secret.
pub(crate) fn check_silence(shown: &str) {
    assert!(!shown.contains(CANARY), "{shown}");
}
