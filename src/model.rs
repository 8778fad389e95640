//! The domain: ids, namespaces, values and times to live, each valid by construction.
//!
//! The wire's messages are parsed into these types once, at the edge of the service; everything
//! behind it trusts them. Nothing here knows Redis or gRPC status codes.

use std::time::{Duration, SystemTime};

use thiserror::Error;

use crate::{config::readable, proto};

/// The longest id, in bytes of UTF-8.
pub const MAX_ID_BYTES: usize = 256;
/// The longest namespace, in characters (all of them ASCII).
pub const MAX_NAMESPACE_BYTES: usize = 63;

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

/// What is wrong with a request. Says lengths and limits, never what the caller sent.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Invalid {
    /// The id is empty.
    #[error("id must not be empty")]
    IdEmpty,
    /// The id has too many bytes.
    #[error("id has {bytes} bytes; at most {MAX_ID_BYTES} are allowed")]
    IdTooLong {
        /// The length of the id, in bytes.
        bytes: usize,
    },
    /// The id contains a control character.
    #[error("id has a control character at byte {at}")]
    IdControl {
        /// Its position, in bytes from the start of the id.
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
        /// The field that holds it: `string_value` or `bytes_value`.
        field: &'static str,
        /// The length of the value, in bytes.
        bytes: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// The batch names no id.
    #[error("ids must not be empty")]
    BatchEmpty,
    /// The batch names too many ids.
    #[error("ids has {ids} entries; at most {max} are allowed (max-batch)")]
    BatchTooLarge {
        /// The number of ids.
        ids: usize,
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
}

/// What a value is about: 1 to 256 bytes of UTF-8 without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Id(String);

impl Id {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Id {
    type Error = Invalid;

    fn try_from(id: String) -> Result<Self, Invalid> {
        check_id(&id)?;
        Ok(Self(id))
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

fn check_id(id: &str) -> Result<(), Invalid> {
    let bytes = id.len();
    if bytes == 0 {
        return Err(Invalid::IdEmpty);
    }
    if bytes > MAX_ID_BYTES {
        return Err(Invalid::IdTooLong { bytes });
    }
    // Almost every id is printable ASCII, which one pass over the bytes settles.
    if id.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Ok(());
    }
    match id.char_indices().find(|(_, c)| c.is_control()) {
        Some((at, _)) => Err(Invalid::IdControl { at }),
        None => Ok(()),
    }
}

/// Keeps the ids of different applications apart: empty, or `[a-z0-9][a-z0-9_-]{0,62}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Namespace(String);

impl Namespace {
    /// The namespace as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the namespace without a name.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<String> for Namespace {
    type Error = Invalid;

    fn try_from(namespace: String) -> Result<Self, Invalid> {
        let valid = namespace.len() <= MAX_NAMESPACE_BYTES
            && namespace.bytes().enumerate().all(|(at, byte)| match byte {
                b'a'..=b'z' | b'0'..=b'9' => true,
                b'_' | b'-' => at > 0,
                _ => false,
            });
        if valid {
            Ok(Self(namespace))
        } else {
            Err(Invalid::Namespace {
                bytes: namespace.len(),
            })
        }
    }
}

/// The ids of one BatchGet: at least one, at most `max_batch`, each of them valid.
#[derive(Debug)]
pub struct Batch(Vec<Id>);

impl Batch {
    /// Checks the ids of a request; they are moved, not copied.
    pub fn parse(ids: Vec<String>, limits: &Limits) -> Result<Self, Invalid> {
        if ids.is_empty() {
            return Err(Invalid::BatchEmpty);
        }
        if ids.len() > limits.max_batch {
            return Err(Invalid::BatchTooLarge {
                ids: ids.len(),
                max: limits.max_batch,
            });
        }
        for (index, id) in ids.iter().enumerate() {
            check_id(id).map_err(|source| Invalid::BatchId {
                index,
                source: Box::new(source),
            })?;
        }
        // Same layout, so this reuses the allocation.
        Ok(Self(ids.into_iter().map(Id).collect()))
    }

    /// The ids, in the order of the request.
    pub fn ids(&self) -> &[Id] {
        &self.0
    }

    /// The ids, in the order of the request.
    pub fn into_ids(self) -> Vec<Id> {
        self.0
    }
}

/// A value: what callers store and read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A signed 64-bit number.
    Int(i64),
    /// UTF-8 text.
    String(String),
    /// Opaque bytes.
    Bytes(Vec<u8>),
}

impl Value {
    /// Checks the value of a Mark.
    pub fn parse(
        value: Option<proto::mark_request::Value>,
        limits: &Limits,
    ) -> Result<Self, Invalid> {
        use proto::mark_request::Value as Wire;
        let max = limits.max_value_bytes;
        let check = |field, bytes| {
            if bytes > max {
                Err(Invalid::ValueTooLarge { field, bytes, max })
            } else {
                Ok(())
            }
        };
        match value.ok_or(Invalid::ValueMissing)? {
            Wire::IntValue(int) => Ok(Self::Int(int)),
            Wire::StringValue(text) => {
                check("string_value", text.len())?;
                Ok(Self::String(text))
            }
            Wire::BytesValue(bytes) => {
                check("bytes_value", bytes.len())?;
                Ok(Self::Bytes(bytes))
            }
        }
    }
}

impl From<Value> for proto::entry::Value {
    fn from(value: Value) -> Self {
        match value {
            Value::Int(int) => Self::IntValue(int),
            Value::String(text) => Self::StringValue(text),
            Value::Bytes(bytes) => Self::BytesValue(bytes),
        }
    }
}

/// A time to live: a positive whole number of milliseconds within the server's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ttl {
    millis: u64,
}

impl Ttl {
    /// Checks the ttl of a Mark. Fractions of a millisecond are dropped, so that a value never
    /// outlives what was asked for.
    pub fn parse(ttl: Option<prost_types::Duration>, limits: &Limits) -> Result<Self, Invalid> {
        let out_of_range = Invalid::TtlOutOfRange {
            max: limits.max_ttl,
        };
        let Some(ttl) = ttl else {
            return Ok(Self::from_limit(limits.default_ttl));
        };
        let (Ok(seconds), Ok(nanos @ 0..1_000_000_000)) =
            (u64::try_from(ttl.seconds), u32::try_from(ttl.nanos))
        else {
            return Err(out_of_range);
        };
        let ttl = Duration::new(seconds, nanos);
        if ttl < Duration::from_millis(1) || ttl > limits.max_ttl {
            return Err(out_of_range);
        }
        Ok(Self::from_limit(ttl))
    }

    fn from_limit(ttl: Duration) -> Self {
        Self {
            millis: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Milliseconds.
    pub fn as_millis(self) -> u64 {
        self.millis
    }

    /// As a duration.
    pub fn as_duration(self) -> Duration {
        Duration::from_millis(self.millis)
    }
}

/// Whether a read shall say when the value expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpireTime {
    /// Only the value.
    Omit,
    /// The value and its expiry, for the price of a second command per key.
    Include,
}

impl From<bool> for ExpireTime {
    fn from(include: bool) -> Self {
        if include { Self::Include } else { Self::Omit }
    }
}

/// What a store found under an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The value.
    pub value: Value,
    /// When it will be gone, if asked for and if it ever will.
    pub expire_time: Option<SystemTime>,
}

impl Value {
    /// About how much room it takes in a reply.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Int(_) => size_of::<i64>(),
            Self::String(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

/// The entry of a reply: the id, and what was found under it.
pub fn entry(id: Id, found: Option<Found>) -> proto::Entry {
    let (value, expire_time) = match found {
        Some(Found { value, expire_time }) => (Some(value.into()), expire_time.map(timestamp)),
        None => (None, None),
    };
    proto::Entry {
        id: id.into(),
        value,
        expire_time,
    }
}

/// A point in time on the wire, cut to whole milliseconds, which is what Redis counts in.
pub fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    /// The last second of the year 9999, beyond which a protobuf `Timestamp` is not valid. Another
    /// program can give a key a later expiry.
    const LAST: i64 = 253_402_300_799;
    // A clock before 1970 is a broken clock; 1970 is then as good an answer as any.
    let since_epoch = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    prost_types::Timestamp {
        seconds: i64::try_from(since_epoch.as_secs()).map_or(LAST, |seconds| seconds.min(LAST)),
        nanos: i32::try_from(since_epoch.subsec_millis() * 1_000_000).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        default_ttl: Duration::from_secs(60),
        max_ttl: Duration::from_secs(86_400),
        max_batch: 3,
        max_value_bytes: 8,
        max_reply_bytes: 100,
    };

    fn ttl(seconds: i64, nanos: i32) -> Result<u64, Invalid> {
        Ttl::parse(Some(prost_types::Duration { seconds, nanos }), &LIMITS).map(Ttl::as_millis)
    }

    #[test]
    fn ttl_takes_its_range_and_nothing_else() {
        assert_eq!(Ttl::parse(None, &LIMITS).map(Ttl::as_millis), Ok(60_000));
        assert_eq!(ttl(0, 1_000_000), Ok(1));
        assert_eq!(ttl(0, 1_999_999), Ok(1));
        assert_eq!(ttl(86_400, 0), Ok(86_400_000));
        for (seconds, nanos) in [
            (0, 0),
            (0, 999_999),
            (86_400, 1),
            (-1, 0),
            (1, -1),
            (-1, -1),
            (0, 1_000_000_000),
            (i64::MAX, 999_999_999),
            (i64::MIN, i32::MIN),
        ] {
            assert!(ttl(seconds, nanos).is_err(), "{seconds} s {nanos} ns");
        }
    }

    #[test]
    fn ids_are_measured_in_bytes() {
        assert!(Id::try_from("é".repeat(128)).is_ok());
        assert_eq!(
            Id::try_from("é".repeat(129)),
            Err(Invalid::IdTooLong { bytes: 258 })
        );
        assert_eq!(Id::try_from(String::new()), Err(Invalid::IdEmpty));
    }

    proptest! {
        #[test]
        fn an_id_is_valid_exactly_when_the_contract_says_so(id in any::<String>()) {
            let expected = (1..=256).contains(&id.len()) && !id.chars().any(char::is_control);
            prop_assert_eq!(Id::try_from(id).is_ok(), expected);
        }

        #[test]
        fn a_valid_namespace_is_taken(namespace in "([a-z0-9][a-z0-9_-]{0,62})?") {
            prop_assert!(Namespace::try_from(namespace).is_ok());
        }

        #[test]
        fn an_invalid_namespace_is_refused(namespace in "[A-Z/:.é _-][a-z]{0,5}|[a-z0-9]{64,70}|[a-z]+[/: .A-Z]") {
            prop_assert!(Namespace::try_from(namespace).is_err());
        }
    }
}
