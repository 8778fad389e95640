//! The errors of a request that breaks the contract.

use std::time::Duration;

use thiserror::Error;

use crate::setting::readable;

/// What is wrong with a request. Messages contain lengths and limits, but nothing that the caller
/// sent.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Invalid {
    /// The id is empty.
    #[error("id must not be empty")]
    IdEmpty,
    /// The id has too many bytes.
    #[error("id has {bytes} bytes; at most {max} are allowed")]
    IdTooLong {
        /// The length of the id, in bytes.
        bytes: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// The id contains a control character.
    #[error("id has a control character at byte {at}")]
    IdControl {
        /// The position of the character, in bytes from the start of the id.
        at: usize,
    },
    /// The namespace is not of the allowed form.
    #[error(
        "namespace of {bytes} bytes is not allowed; it must be empty or match [a-z0-9][a-z0-9_-]{{0,62}}"
    )]
    Namespace {
        /// The length of the namespace, in bytes.
        bytes: usize,
    },
    /// The time to live is outside what the server allows.
    #[error("ttl must be from 1ms to {}", readable(*max))]
    TtlOutOfRange {
        /// The longest time to live allowed.
        max: Duration,
    },
    /// The oneof `value` is unset.
    #[error("value must be set: one of int_value, string_value, bytes_value")]
    ValueMissing,
    /// The value has too many bytes.
    #[error("value has {bytes} bytes; at most {max} are allowed (max-value-bytes)")]
    ValueTooLarge {
        /// The field of the value: `string_value` or `bytes_value`.
        field: &'static str,
        /// The length of the value, in bytes.
        bytes: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// The batch has no item.
    #[error("{field} must not be empty")]
    BatchEmpty {
        /// The field that holds the items: `ids` or `marks`.
        field: &'static str,
    },
    /// A Watch names too many ids.
    #[error("ids has {items} entries; at most {max} are allowed (max-watch-ids)")]
    WatchTooLarge {
        /// The number of ids.
        items: usize,
        /// The limit.
        max: usize,
    },
    /// The batch has too many items.
    #[error("{field} has {items} entries; at most {max} are allowed (max-batch)")]
    BatchTooLarge {
        /// The field that holds the items: `ids` or `marks`.
        field: &'static str,
        /// The number of items.
        items: usize,
        /// The limit.
        max: usize,
    },
    /// One id of a batch is invalid.
    #[error("ids[{index}]: {source}")]
    BatchId {
        /// The position of the id in the request.
        index: usize,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// One item of a BatchMark is invalid.
    #[error("marks[{index}]: {source}")]
    BatchMark {
        /// The position of the item in the request.
        index: usize,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// A condition is false, or has no value to compare with.
    #[error("{field} must be {}", if *field == "if_equal" { "a value" } else { "true, or unset" })]
    Condition {
        /// The field: `if_absent`, `if_present` or `if_equal`.
        field: &'static str,
    },
    /// The policy is none of those that the contract has.
    #[error("ttl_policy must be TTL_POLICY_RESTART, TTL_POLICY_KEEP or unset")]
    TtlPolicy,
    /// The bounds of a counter leave no number.
    #[error("min must not be greater than max")]
    Range,
    /// The size of a page is negative.
    #[error("page_size must not be negative")]
    PageSize,
    /// The token of a page is not one of ours, or belongs to another namespace.
    #[error("page_token must be the next_page_token of the page before, or empty")]
    PageToken,
    /// A Watch names neither ids nor all, or both.
    #[error("exactly one of ids and all must be set")]
    WatchTarget,
}
