//! Values, and the result of a read.

use std::time::SystemTime;

use super::{id::Id, invalid::Invalid, settings::Limits};
use crate::proto;

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

    /// About how much room the value takes in a reply, in bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Int(_) => size_of::<i64>(),
            Self::String(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
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

/// Whether a read also returns the expire time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpireTime {
    /// Only the value.
    Omit,
    /// The value and its expire time, which costs a second Redis command for each key.
    Include,
}

impl From<bool> for ExpireTime {
    fn from(include: bool) -> Self {
        if include { Self::Include } else { Self::Omit }
    }
}

/// The value of an id in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The value.
    pub value: Value,
    /// When the value expires. `None` if the read did not ask, or if the value never expires.
    pub expire_time: Option<SystemTime>,
}

/// The entry of a reply: an id with its value, if it has one.
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

/// A point in time as a protobuf message, cut to whole milliseconds, the unit of Redis.
pub fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    /// The last second of the year 9999. A later protobuf `Timestamp` is not valid, but another
    /// program can give a key a later expiry.
    const LAST: i64 = 253_402_300_799;
    // Only a broken clock is before 1970.
    let since_epoch = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    prost_types::Timestamp {
        seconds: i64::try_from(since_epoch.as_secs()).map_or(LAST, |seconds| seconds.min(LAST)),
        nanos: i32::try_from(since_epoch.subsec_millis() * 1_000_000).unwrap_or(0),
    }
}
