//! Settings of requests: times to live, and sizes of values, batches and replies.

use std::time::Duration;

use crate::setting::{SettingError, Summary, check, duration_within, within};

/// The flags as given.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Values")]
pub(crate) struct RequestArgs {
    /// Time to live of a value, unless the call sets one
    #[arg(long, env = "DYNDATA_DEFAULT_TTL", value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    default_ttl: Duration,

    /// Longest time to live that a call may set
    #[arg(long, env = "DYNDATA_MAX_TTL", value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    max_ttl: Duration,

    /// Most ids or items in one call
    #[arg(
        long,
        env = "DYNDATA_MAX_BATCH",
        value_name = "COUNT",
        default_value_t = 1000
    )]
    max_batch: usize,

    /// Most bytes of a string or bytes value
    #[arg(
        long,
        env = "DYNDATA_MAX_VALUE_BYTES",
        value_name = "BYTES",
        default_value_t = 65_536
    )]
    max_value_bytes: usize,

    /// Most bytes of one reply; gRPC clients accept as many by default
    #[arg(
        long,
        env = "DYNDATA_MAX_REPLY_BYTES",
        value_name = "BYTES",
        default_value_t = 4 << 20
    )]
    max_reply_bytes: usize,

    /// Most bytes of one request; most calls have a smaller limit, which follows from what they may
    /// carry
    #[arg(
        long,
        env = "DYNDATA_MAX_REQUEST_BYTES",
        value_name = "BYTES",
        default_value_t = 4 << 20
    )]
    max_request_bytes: usize,
}

/// Limits of requests and their replies.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The time to live of a value, unless the call sets one.
    pub default_ttl: Duration,
    /// The longest time to live that a call may set.
    pub max_ttl: Duration,
    /// The most ids or items in one call.
    pub max_batch: usize,
    /// The most bytes of a string or bytes value.
    pub max_value_bytes: usize,
    /// The most bytes of one reply.
    pub max_reply_bytes: usize,
    /// The most bytes of one request.
    pub max_request_bytes: usize,
}

impl TryFrom<RequestArgs> for Limits {
    type Error = SettingError;

    fn try_from(args: RequestArgs) -> Result<Self, SettingError> {
        const MILLISECOND: Duration = Duration::from_millis(1);
        const YEAR: Duration = Duration::from_secs(365 * 86_400);
        let RequestArgs {
            default_ttl,
            max_ttl,
            max_batch,
            max_value_bytes,
            max_reply_bytes,
            max_request_bytes,
        } = args;
        duration_within("max-ttl", max_ttl, MILLISECOND..=YEAR)?;
        duration_within("default-ttl", default_ttl, MILLISECOND..=max_ttl)?;
        within("max-batch", max_batch, 1..=100_000)?;
        within("max-value-bytes", max_value_bytes, 1..=16 << 20)?;
        // A Get of the largest value must fit.
        check(
            "max-reply-bytes",
            (max_value_bytes + 1024..=1 << 30).contains(&max_reply_bytes),
            "must be from 1024 more than max-value-bytes to 1073741824",
        )?;
        // A MarkIf can carry two values.
        check(
            "max-request-bytes",
            (2 * max_value_bytes + 1024..=1 << 30).contains(&max_request_bytes),
            "must be from 1024 more than twice max-value-bytes to 1073741824",
        )?;
        Ok(Self {
            default_ttl,
            max_ttl,
            max_batch,
            max_value_bytes,
            max_reply_bytes,
            max_request_bytes,
        })
    }
}

impl Limits {
    pub(crate) fn summarize(&self, summary: &mut Summary) {
        let Self {
            default_ttl,
            max_ttl,
            max_batch,
            max_value_bytes,
            max_reply_bytes,
            max_request_bytes,
        } = self;
        summary.add_duration("default-ttl", *default_ttl);
        summary.add_duration("max-ttl", *max_ttl);
        summary.add("max-batch", max_batch);
        summary.add("max-value-bytes", max_value_bytes);
        summary.add("max-reply-bytes", max_reply_bytes);
        summary.add("max-request-bytes", max_request_bytes);
    }
}
