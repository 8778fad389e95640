//! Settings of the server: worker threads, limits of calls and connections, shutdown.

use std::{fmt, str::FromStr, time::Duration};

use crate::setting::{SettingError, Summary, duration_within, readable, within};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// The longest age of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionAge {
    /// About this age.
    Max(Duration),
    /// No limit.
    Off,
}

impl FromStr for ConnectionAge {
    type Err = humantime::DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            _ => humantime::parse_duration(text).map(Self::Max),
        }
    }
}

impl fmt::Display for ConnectionAge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Max(age) => readable(*age).fmt(f),
            Self::Off => f.write_str("off"),
        }
    }
}

/// The flags as given.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Process")]
pub(crate) struct ServerArgs {
    /// Number of worker threads, each with its own event loop and Redis connection
    /// [default: number of cores]
    #[arg(long, env = "DYNDATA_WORKERS", value_name = "COUNT")]
    workers: Option<usize>,

    /// How long to go on serving after SIGTERM or SIGINT, with health NOT_SERVING, before the drain
    /// begins; a second signal ends this delay
    #[arg(long, env = "DYNDATA_SHUTDOWN_DELAY", value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    shutdown_delay: Duration,

    /// How long running calls may take to finish in the drain; another signal ends the drain at once
    #[arg(long, env = "DYNDATA_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "20s", value_parser = humantime::parse_duration)]
    drain_timeout: Duration,

    #[command(flatten)]
    limits: LimitArgs,
}

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Calls and connections")]
struct LimitArgs {
    /// Longest duration of a call, even if its caller sets a later deadline. The request message must
    /// be complete after 3 s
    #[arg(long, env = "DYNDATA_MAX_DEADLINE", value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    max_deadline: Duration,

    /// Most calls in flight in one worker, counted from when their message is complete; further calls
    /// are refused at once
    #[arg(
        long,
        env = "DYNDATA_MAX_IN_FLIGHT",
        value_name = "COUNT",
        default_value_t = 1024
    )]
    max_in_flight: usize,

    /// Most open connections; further connections are closed at once
    #[arg(
        long,
        env = "DYNDATA_MAX_CONNECTIONS",
        value_name = "COUNT",
        default_value_t = 10_000
    )]
    max_connections: usize,

    /// Most open connections from one IP address, or from one IPv6 /64; further connections are closed
    /// at once
    #[arg(
        long,
        env = "DYNDATA_MAX_CONNECTIONS_PER_PEER",
        value_name = "COUNT",
        default_value_t = 1000
    )]
    max_connections_per_peer: usize,

    /// Most calls in flight on one connection
    #[arg(
        long,
        env = "DYNDATA_MAX_CONCURRENT_STREAMS",
        value_name = "COUNT",
        default_value_t = 256
    )]
    max_concurrent_streams: u32,

    /// Most bytes in the headers of one call; beyond them the answer is HTTP 431, which gRPC clients
    /// report as UNKNOWN
    #[arg(
        long,
        env = "DYNDATA_MAX_HEADER_BYTES",
        value_name = "BYTES",
        default_value_t = 16 * 1024
    )]
    max_header_bytes: u32,

    /// How long a client may leave a reply unread before its stream is reset
    #[arg(long, env = "DYNDATA_SEND_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    send_timeout: Duration,

    /// How long a connection may be silent before the server pings its client
    #[arg(long, env = "DYNDATA_KEEPALIVE_INTERVAL", value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    keepalive_interval: Duration,

    /// Longest age of a connection, give or take a tenth, or off. Older connections get a GOAWAY,
    /// so that load spreads again behind a TCP balancer
    #[arg(
        long,
        env = "DYNDATA_MAX_CONNECTION_AGE",
        value_name = "DURATION",
        default_value = "off"
    )]
    max_connection_age: ConnectionAge,
}

/// Settings of the server.
#[derive(Debug, Clone)]
pub(crate) struct ServerSettings {
    pub(crate) workers: usize,
    pub(crate) shutdown_delay: Duration,
    pub(crate) drain_timeout: Duration,
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

impl TryFrom<ServerArgs> for ServerSettings {
    type Error = SettingError;

    fn try_from(args: ServerArgs) -> Result<Self, SettingError> {
        let ServerArgs {
            workers,
            shutdown_delay,
            drain_timeout,
            limits:
                LimitArgs {
                    max_deadline,
                    max_in_flight,
                    max_connections,
                    max_connections_per_peer,
                    max_concurrent_streams,
                    max_header_bytes,
                    send_timeout,
                    keepalive_interval,
                    max_connection_age,
                },
        } = args;
        let workers = workers.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
        });
        duration_within("shutdown-delay", shutdown_delay, Duration::ZERO..=HOUR)?;
        duration_within("drain-timeout", drain_timeout, Duration::ZERO..=HOUR)?;
        duration_within("max-deadline", max_deadline, MILLISECOND..=HOUR)?;
        duration_within("send-timeout", send_timeout, MILLISECOND..=HOUR)?;
        duration_within("keepalive-interval", keepalive_interval, SECOND..=HOUR)?;
        if let ConnectionAge::Max(age) = max_connection_age {
            duration_within("max-connection-age", age, SECOND..=YEAR)?;
        }
        within("workers", workers, 1..=1024)?;
        for (setting, value) in [
            ("max-in-flight", max_in_flight),
            ("max-connections", max_connections),
            ("max-connections-per-peer", max_connections_per_peer),
        ] {
            within(setting, value, 1..=1_000_000)?;
        }
        within(
            "max-concurrent-streams",
            max_concurrent_streams,
            1..=100_000,
        )?;
        within("max-header-bytes", max_header_bytes, 1024..=1 << 20)?;
        Ok(Self {
            workers,
            shutdown_delay,
            drain_timeout,
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

impl ServerSettings {
    pub(crate) fn summarize(&self, summary: &mut Summary) {
        let Self {
            workers,
            shutdown_delay,
            drain_timeout,
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
        summary.add("workers", workers);
        summary.add_duration("shutdown-delay", *shutdown_delay);
        summary.add_duration("drain-timeout", *drain_timeout);
        summary.add_duration("max-deadline", *max_deadline);
        summary.add("max-in-flight", max_in_flight);
        summary.add("max-connections", max_connections);
        summary.add("max-connections-per-peer", max_connections_per_peer);
        summary.add("max-concurrent-streams", max_concurrent_streams);
        summary.add("max-header-bytes", max_header_bytes);
        summary.add_duration("send-timeout", *send_timeout);
        summary.add_duration("keepalive-interval", *keepalive_interval);
        summary.add("max-connection-age", max_age);
    }
}
