//! How much of everything: values, calls, connections.

use std::time::Duration;

use super::{ConfigError, ConnectionAge, Lines, check, within};
use crate::model::Limits;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// The flags as given.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct LimitArgs {
    /// The time to live of a Mark that names none
    #[arg(long, env = "DYNDATA_DEFAULT_TTL", value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    default_ttl: Duration,

    /// The longest time to live that a Mark may ask for
    #[arg(long, env = "DYNDATA_MAX_TTL", value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    max_ttl: Duration,

    /// The most ids in one BatchGet
    #[arg(
        long,
        env = "DYNDATA_MAX_BATCH",
        value_name = "COUNT",
        default_value_t = 1000
    )]
    max_batch: usize,

    /// The most bytes in a string or bytes value
    #[arg(
        long,
        env = "DYNDATA_MAX_VALUE_BYTES",
        value_name = "BYTES",
        default_value_t = 65_536
    )]
    max_value_bytes: usize,

    /// The most bytes in one reply; what clients take unless told otherwise
    #[arg(
        long,
        env = "DYNDATA_MAX_REPLY_BYTES",
        value_name = "BYTES",
        default_value_t = 4 << 20
    )]
    max_reply_bytes: usize,

    /// The longest that a call may take, whatever deadline its caller sets
    #[arg(long, env = "DYNDATA_MAX_DEADLINE", value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    max_deadline: Duration,

    /// The most calls in flight in one worker; what is beyond is refused at once
    #[arg(
        long,
        env = "DYNDATA_MAX_IN_FLIGHT",
        value_name = "COUNT",
        default_value_t = 1024
    )]
    max_in_flight: usize,

    /// The most open connections; what is beyond is closed at once
    #[arg(
        long,
        env = "DYNDATA_MAX_CONNECTIONS",
        value_name = "COUNT",
        default_value_t = 10_000
    )]
    max_connections: usize,

    /// The most open connections from one address; what is beyond is closed at once
    #[arg(
        long,
        env = "DYNDATA_MAX_CONNECTIONS_PER_PEER",
        value_name = "COUNT",
        default_value_t = 1000
    )]
    max_connections_per_peer: usize,

    /// The most calls that one connection may have in flight
    #[arg(
        long,
        env = "DYNDATA_MAX_CONCURRENT_STREAMS",
        value_name = "COUNT",
        default_value_t = 256
    )]
    max_concurrent_streams: u32,

    /// The most bytes in the headers of one call
    #[arg(
        long,
        env = "DYNDATA_MAX_HEADER_BYTES",
        value_name = "BYTES",
        default_value_t = 16 * 1024
    )]
    max_header_bytes: u32,

    /// How long a client may take nothing of a reply before its stream is reset
    #[arg(long, env = "DYNDATA_SEND_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    send_timeout: Duration,

    /// How long a connection may be silent before it is asked for a sign of life
    #[arg(long, env = "DYNDATA_KEEPALIVE_INTERVAL", value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    keepalive_interval: Duration,

    /// How old a connection may become before its client is asked for a new one, give or take a
    /// tenth, so that load spreads anew behind a TCP balancer; or off
    #[arg(
        long,
        env = "DYNDATA_MAX_CONNECTION_AGE",
        value_name = "DURATION",
        default_value = "off"
    )]
    max_connection_age: ConnectionAge,
}

/// The limits of a server.
#[derive(Debug, Clone)]
pub(crate) struct LimitsConfig {
    pub(crate) requests: Limits,
    pub(crate) max_deadline: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_connections_per_peer: usize,
    pub(crate) connection: ConnectionLimits,
}

/// The limits of one connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionLimits {
    pub(crate) max_concurrent_streams: u32,
    pub(crate) max_header_bytes: u32,
    pub(crate) send_timeout: Duration,
    pub(crate) keepalive_interval: Duration,
    pub(crate) max_age: ConnectionAge,
}

impl TryFrom<LimitArgs> for LimitsConfig {
    type Error = ConfigError;

    fn try_from(args: LimitArgs) -> Result<Self, ConfigError> {
        let LimitArgs {
            default_ttl,
            max_ttl,
            max_batch,
            max_value_bytes,
            max_reply_bytes,
            max_deadline,
            max_in_flight,
            max_connections,
            max_connections_per_peer,
            max_concurrent_streams,
            max_header_bytes,
            send_timeout,
            keepalive_interval,
            max_connection_age,
        } = args;
        within("max-ttl", max_ttl, MILLISECOND..=YEAR)?;
        within("default-ttl", default_ttl, MILLISECOND..=max_ttl)?;
        within("max-deadline", max_deadline, MILLISECOND..=HOUR)?;
        within("send-timeout", send_timeout, MILLISECOND..=HOUR)?;
        within("keepalive-interval", keepalive_interval, SECOND..=HOUR)?;
        if let ConnectionAge::Max(age) = max_connection_age {
            within("max-connection-age", age, SECOND..=YEAR)?;
        }
        for (setting, value) in [
            ("max-in-flight", max_in_flight),
            ("max-connections", max_connections),
            ("max-connections-per-peer", max_connections_per_peer),
        ] {
            check(
                setting,
                (1..=1_000_000).contains(&value),
                "must be from 1 to 1000000",
            )?;
        }
        check(
            "max-batch",
            (1..=100_000).contains(&max_batch),
            "must be from 1 to 100000",
        )?;
        check(
            "max-value-bytes",
            (1..=16 << 20).contains(&max_value_bytes),
            "must be from 1 to 16777216",
        )?;
        // A Get of any value that may be marked must fit.
        check(
            "max-reply-bytes",
            (max_value_bytes + 1024..=1 << 30).contains(&max_reply_bytes),
            "must be from 1024 more than max-value-bytes to 1073741824",
        )?;
        check(
            "max-concurrent-streams",
            (1..=100_000).contains(&max_concurrent_streams),
            "must be from 1 to 100000",
        )?;
        check(
            "max-header-bytes",
            (1024..=1 << 20).contains(&max_header_bytes),
            "must be from 1024 to 1048576",
        )?;
        Ok(Self {
            requests: Limits {
                default_ttl,
                max_ttl,
                max_batch,
                max_value_bytes,
                max_reply_bytes,
            },
            max_deadline,
            max_in_flight,
            max_connections,
            max_connections_per_peer,
            connection: ConnectionLimits {
                max_concurrent_streams,
                max_header_bytes,
                send_timeout,
                keepalive_interval,
                max_age: max_connection_age,
            },
        })
    }
}

impl LimitsConfig {
    pub(super) fn summarize(&self, lines: &mut Lines) {
        let Self {
            requests:
                Limits {
                    default_ttl,
                    max_ttl,
                    max_batch,
                    max_value_bytes,
                    max_reply_bytes,
                },
            max_deadline,
            max_in_flight,
            max_connections,
            max_connections_per_peer,
            connection:
                ConnectionLimits {
                    max_concurrent_streams,
                    max_header_bytes,
                    send_timeout,
                    keepalive_interval,
                    max_age,
                },
        } = self;
        lines.add_duration("default-ttl", *default_ttl);
        lines.add_duration("max-ttl", *max_ttl);
        lines.add("max-batch", max_batch);
        lines.add("max-value-bytes", max_value_bytes);
        lines.add("max-reply-bytes", max_reply_bytes);
        lines.add_duration("max-deadline", *max_deadline);
        lines.add("max-in-flight", max_in_flight);
        lines.add("max-connections", max_connections);
        lines.add("max-connections-per-peer", max_connections_per_peer);
        lines.add("max-concurrent-streams", max_concurrent_streams);
        lines.add("max-header-bytes", max_header_bytes);
        lines.add_duration("send-timeout", *send_timeout);
        lines.add_duration("keepalive-interval", *keepalive_interval);
        lines.add("max-connection-age", max_age);
    }
}
