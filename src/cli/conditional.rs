//! The commands that decide by what is marked: `unmark`, `mark-if` and `incr`.

use std::{ffi::OsString, time::Duration};

use clap::Args;

use super::{
    error::CliError,
    render::{ValueType, time, typed, value_text, wire_duration},
    target::Target,
};
use crate::proto::{
    self, IncrementRequest, MarkIfRequest, TtlPolicy, UnmarkRequest, mark_if_request::Condition,
};

/// The arguments of `unmark`.
#[derive(Debug, Args)]
pub struct Unmark {
    /// The id to remove
    id: String,
    /// Remove the value only if it is equal to this one, in type and bytes
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    if_equal: Option<OsString>,
    /// The type of the value to compare with
    #[arg(long = "type", value_name = "TYPE", requires = "if_equal")]
    value_type: Option<ValueType>,
    #[command(flatten)]
    target: Box<Target>,
}

impl Unmark {
    pub(super) async fn run(self) -> Result<(), CliError> {
        let Self {
            id,
            if_equal,
            value_type,
            target,
        } = self;
        let if_equal = if_equal.map(|value| equal_to(value, value_type));
        let request = UnmarkRequest {
            namespace: target.namespace.clone(),
            id,
            if_equal: if_equal.transpose()?,
        };
        let mut client = target.client().await?;
        let request = target.request(request)?;
        let reply = client.unmark(request).await?.into_inner();
        let text = match reply.removed {
            true => "removed",
            false => "not removed",
        };
        target.print("UnmarkResponse", &reply, text)
    }
}

/// The arguments of `mark-if`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("condition").multiple(false))]
pub struct MarkIf {
    /// What the value is about
    id: String,
    /// The value; an integer is stored as an int unless --type says otherwise
    #[arg(allow_negative_numbers = true)]
    value: OsString,
    /// Write only if nothing is marked
    #[arg(long, group = "condition")]
    if_absent: bool,
    /// Write only if something is marked
    #[arg(long, group = "condition")]
    if_present: bool,
    /// Write only if an equal value is marked, in type and bytes
    #[arg(
        long,
        value_name = "VALUE",
        group = "condition",
        allow_negative_numbers = true
    )]
    if_equal: Option<OsString>,
    /// How long the value lives, such as 30s or 500ms [default: the server's --default-ttl]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// The type to store, and of the value to compare with
    #[arg(long = "type", value_name = "TYPE")]
    value_type: Option<ValueType>,
    #[command(flatten)]
    target: Box<Target>,
}

impl MarkIf {
    pub(super) async fn run(self) -> Result<(), CliError> {
        let Self {
            id,
            value,
            if_absent,
            if_present,
            if_equal,
            ttl,
            value_type,
            target,
        } = self;
        let condition = match (if_absent, if_present, if_equal) {
            (true, _, _) => Some(Condition::IfAbsent(true)),
            (_, true, _) => Some(Condition::IfPresent(true)),
            (_, _, Some(value)) => Some(Condition::IfEqual(equal_to(value, value_type)?)),
            (false, false, None) => None,
        };
        let request = MarkIfRequest {
            namespace: target.namespace.clone(),
            id,
            value: Some(typed(value, value_type)?.into()),
            ttl: ttl.map(wire_duration).transpose()?,
            condition,
        };
        let mut client = target.client().await?;
        let request = target.request(request)?;
        let reply = client.mark_if(request).await?.into_inner();
        let previous = reply.previous.as_ref().map(value_text).unwrap_or_default();
        let text = match reply.applied {
            true => format!(
                "expires {}, previously {previous}",
                time(reply.expire_time.as_ref())
            ),
            false => format!("not written, still {previous}"),
        };
        target.print("MarkIfResponse", &reply, &text)
    }
}

/// The arguments of `incr`.
#[derive(Debug, Args)]
pub struct Incr {
    /// The id of the number
    id: String,
    /// What to add
    #[arg(default_value_t = 1, allow_negative_numbers = true)]
    delta: i64,
    /// How long the number lives, such as 30s or 500ms [default: the server's --default-ttl]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// Keep the expiry of a number that is marked already
    #[arg(long)]
    keep_ttl: bool,
    /// The least result to write
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    min: Option<i64>,
    /// The greatest result to write
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    max: Option<i64>,
    #[command(flatten)]
    target: Box<Target>,
}

impl Incr {
    pub(super) async fn run(self) -> Result<(), CliError> {
        let Self {
            id,
            delta,
            ttl,
            keep_ttl,
            min,
            max,
            target,
        } = self;
        let policy = match keep_ttl {
            true => TtlPolicy::Keep,
            false => TtlPolicy::Restart,
        };
        let request = IncrementRequest {
            namespace: target.namespace.clone(),
            id,
            delta: Some(delta),
            ttl: ttl.map(wire_duration).transpose()?,
            ttl_policy: policy.into(),
            min,
            max,
        };
        let mut client = target.client().await?;
        let request = target.request(request)?;
        let reply = client.increment(request).await?.into_inner();
        let text = match reply.applied {
            true => reply.value.to_string(),
            false => format!(
                "not written, still {}, expires {}",
                reply.value,
                time(reply.expire_time.as_ref())
            ),
        };
        target.print("IncrementResponse", &reply, &text)
    }
}

fn equal_to(value: OsString, value_type: Option<ValueType>) -> Result<proto::Value, CliError> {
    let kind = Some(typed(value, value_type)?.into());
    Ok(proto::Value { kind })
}
