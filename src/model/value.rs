//! Values, and the result of a read.

use std::{borrow::Cow, time::SystemTime};

use super::{id::Id, invalid::Invalid, settings::Limits};
use crate::proto;

/// A value: what callers store and read. It may be a part of a request, or of a reply of Redis, and
/// is not copied out of it then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// A signed 64-bit number.
    Int(i64),
    /// UTF-8 text.
    String(Cow<'a, str>),
    /// Opaque bytes.
    Bytes(Cow<'a, [u8]>),
}

impl<'a> Value<'a> {
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

    /// The same value, without a copy of its bytes.
    pub fn borrowed(&self) -> Value<'_> {
        match self {
            Self::Int(int) => Value::Int(*int),
            Self::String(text) => Value::String(Cow::Borrowed(text)),
            Self::Bytes(bytes) => Value::Bytes(Cow::Borrowed(bytes)),
        }
    }

    /// The value with bytes of its own.
    pub fn into_owned(self) -> Value<'static> {
        match self {
            Self::Int(int) => Value::Int(int),
            Self::String(text) => Value::String(text.into_owned().into()),
            Self::Bytes(bytes) => Value::Bytes(bytes.into_owned().into()),
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

/// Converts from and to each oneof of the contract that holds a value.
macro_rules! on_the_wire {
    ($($wire:path),* $(,)?) => {
        $(impl From<$wire> for Value<'_> {
            fn from(value: $wire) -> Self {
                use $wire as Wire;
                match value {
                    Wire::IntValue(int) => Self::Int(int),
                    Wire::StringValue(text) => Self::String(text.into()),
                    Wire::BytesValue(bytes) => Self::Bytes(bytes.into()),
                }
            }
        }

        impl From<Value<'_>> for $wire {
            fn from(value: Value<'_>) -> Self {
                match value {
                    Value::Int(int) => Self::IntValue(int),
                    Value::String(text) => Self::StringValue(text.into_owned()),
                    Value::Bytes(bytes) => Self::BytesValue(bytes.into_owned()),
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
pub struct Found<'a> {
    /// The value.
    pub value: Value<'a>,
    /// When the value expires. `None` if the read did not ask, or if the value never expires.
    pub expire_time: Option<SystemTime>,
}

/// The entry of a reply: an id with its value, if it has one.
pub fn entry(id: Id<'_>, found: Option<Found<'_>>) -> proto::Entry {
    let (value, expire_time) = match found {
        Some(Found { value, expire_time }) => (Some(value.into()), expire_time.map(timestamp)),
        None => (None, None),
    };
    proto::Entry {
        id: id.as_str().to_owned(),
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
