//! When a MarkIf writes, and what it found.

use std::time::SystemTime;

use super::{invalid::Invalid, settings::Limits, value::Value};
use crate::proto;

/// What has to hold for a MarkIf to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition<'a> {
    /// Nothing: the call always writes.
    Always,
    /// No value is marked.
    Absent,
    /// A value is marked.
    Present,
    /// A value is marked, and it is equal to this one in type and bytes.
    Equal(Value<'a>),
}

impl Condition<'_> {
    /// Checks the condition of a MarkIf.
    pub fn parse(
        condition: Option<proto::mark_if_request::Condition>,
        limits: &Limits,
    ) -> Result<Self, Invalid> {
        use proto::mark_if_request::Condition as Wire;
        match condition {
            None => Ok(Self::Always),
            Some(Wire::IfAbsent(true)) => Ok(Self::Absent),
            Some(Wire::IfPresent(true)) => Ok(Self::Present),
            Some(Wire::IfAbsent(false)) => Err(Invalid::Condition { field: "if_absent" }),
            Some(Wire::IfPresent(false)) => Err(Invalid::Condition {
                field: "if_present",
            }),
            Some(Wire::IfEqual(value)) => Ok(Self::Equal(equal_to(value, limits)?)),
        }
    }

    /// Whether the condition holds for what is marked.
    pub fn holds(&self, marked: Option<&Value<'_>>) -> bool {
        match self {
            Self::Always => true,
            Self::Absent => marked.is_none(),
            Self::Present => marked.is_some(),
            Self::Equal(value) => marked == Some(value),
        }
    }
}

/// Checks the value of an `if_equal`.
pub fn equal_to(value: proto::Value, limits: &Limits) -> Result<Value<'static>, Invalid> {
    let value: Value<'static> = value
        .kind
        .ok_or(Invalid::Condition { field: "if_equal" })?
        .into();
    value.check_size(limits).map_err(|error| match error {
        Invalid::ValueTooLarge { bytes, max, .. } => Invalid::ValueTooLarge {
            field: "if_equal",
            bytes,
            max,
        },
        error => error,
    })?;
    Ok(value)
}

/// What a MarkIf did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkedIf<'a> {
    /// When the new value expires. `None` if the condition did not hold: then nothing has changed.
    pub expire_time: Option<SystemTime>,
    /// What was marked before.
    pub previous: Option<Value<'a>>,
}
