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
    /// Checks the value that a request wants to store.
    pub fn parse(value: Option<impl Into<Self>>, limits: &Limits) -> Result<Self, Invalid> {
        let value = value.ok_or(Invalid::ValueMissing)?.into();
        value.check_size(limits)?;
        Ok(value)
    }

    pub(super) fn check_size(&self, limits: &Limits) -> Result<(), Invalid> {
        let (field, bytes) = match self {
            Self::Int(_) => return Ok(()),
            Self::String(text) => ("string_value", text.len()),
            Self::Bytes(bytes) => ("bytes_value", bytes.len()),
        };
        let max = limits.max_value_bytes;
        if bytes > max {
            return Err(Invalid::ValueTooLarge { field, bytes, max });
        }
        Ok(())
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

/// Converts from and to each oneof of the contract that holds a value.
macro_rules! on_the_wire {
    ($($wire:path),* $(,)?) => {
        $(impl From<$wire> for Value {
            fn from(value: $wire) -> Self {
                use $wire as Wire;
                match value {
                    Wire::IntValue(int) => Self::Int(int),
                    Wire::StringValue(text) => Self::String(text),
                    Wire::BytesValue(bytes) => Self::Bytes(bytes),
                }
            }
        }

        impl From<Value> for $wire {
            fn from(value: Value) -> Self {
                match value {
                    Value::Int(int) => Self::IntValue(int),
                    Value::String(text) => Self::StringValue(text),
                    Value::Bytes(bytes) => Self::BytesValue(bytes),
                }
            }
        })*
    };
}

on_the_wire! {
    proto::mark_request::Value,
    proto::mark_if_request::Value,
    proto::batch_mark_request::item::Value,
    proto::value::Kind,
    proto::entry::Value,
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
