//! Settings: flags and environment variables, parsed as raw arguments, then checked into a
//! [`Config`] that the rest of the program trusts.
//!
//! Every flag `--x-y` can be given as `DYNDATA_X_Y`; the Redis URL's variable is `REDIS_URL`.
//! A flag's name, default, documentation, check and place in the summary stand together: those of
//! the server itself here, the others by what they are about in the modules below.

mod limits;
mod redis;
mod security;
mod values;

use std::{
    fmt, fmt::Write as _, ops::RangeInclusive, os::unix::net::SocketAddr, path::PathBuf,
    time::Duration,
};

use clap::Parser;
use thiserror::Error;

pub(crate) use self::values::readable;
pub use self::values::{
    AdminListen, ConnectionAge, KeyFormat, ListenAddr, LogFormat, RedisMode, Reflection,
};
use self::{limits::LimitArgs, redis::StoreArgs, security::SecurityArgs};
pub(crate) use self::{
    limits::{ConnectionLimits, LimitsConfig},
    redis::{RedisConfig, StoreConfig},
    security::SecurityConfig,
};

/// The settings of `dyndata serve` as given, before they are checked together.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    /// Where to serve gRPC: IP:PORT, localhost:PORT, or unix:/path
    #[arg(
        long,
        env = "DYNDATA_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:50051"
    )]
    listen: ListenAddr,

    #[command(flatten)]
    security: SecurityArgs,

    /// Where to serve /metrics, /livez and /readyz over HTTP: IP:PORT, localhost:PORT, or off
    #[arg(
        long,
        env = "DYNDATA_ADMIN_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:9464"
    )]
    admin_listen: AdminListen,

    #[command(flatten)]
    store: StoreArgs,

    /// Event loops, each a thread with its own Redis connection [default: number of cores]
    #[arg(long, env = "DYNDATA_WORKERS", value_name = "COUNT")]
    workers: Option<usize>,

    #[command(flatten)]
    limits: LimitArgs,

    /// How long to serve on after SIGTERM or SIGINT, with health NOT_SERVING, before the drain
    /// begins; a second signal ends this delay
    #[arg(long, env = "DYNDATA_SHUTDOWN_DELAY", value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    shutdown_delay: Duration,

    /// How long running calls may take to finish in the drain; another signal ends it at once
    #[arg(long, env = "DYNDATA_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "20s", value_parser = humantime::parse_duration)]
    drain_timeout: Duration,

    /// How to write the log; RUST_LOG filters it
    #[arg(
        long,
        env = "DYNDATA_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    log_format: LogFormat,
}

impl ServeArgs {
    /// Serves on a socket that listens at `addr` already, whatever `--listen` says.
    pub fn listen_at(&mut self, addr: ListenAddr) {
        self.listen = addr;
    }
}

/// Checked settings: every combination of them can be served.
#[derive(Debug, Clone)]
pub struct Config {
    pub(crate) listen: ListenAddr,
    pub(crate) security: SecurityConfig,
    pub(crate) admin_listen: AdminListen,
    pub(crate) store: StoreConfig,
    pub(crate) workers: usize,
    pub(crate) limits: LimitsConfig,
    pub(crate) shutdown_delay: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) log_format: LogFormat,
}

/// Why there is no [`Config`].
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A flag or variable could not be parsed, or help was asked for.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// A setting has a value that cannot be served.
    #[error("--{setting}: {reason}")]
    Invalid {
        /// The flag, without its dashes.
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl Config {
    /// Parses flags as `dyndata serve` does (without a program name), environment included.
    pub fn parse_from<I, T>(args: I) -> Result<Self, ConfigError>
    where
        I: IntoIterator<Item = T>,
        T: Into<std::ffi::OsString> + Clone,
    {
        #[derive(Parser)]
        #[command(name = "dyndata serve", no_binary_name = true)]
        struct Arguments {
            #[command(flatten)]
            serve: ServeArgs,
        }
        Arguments::try_parse_from(args)?.serve.try_into()
    }

    /// How the log is to be written.
    pub fn log_format(&self) -> LogFormat {
        self.log_format
    }

    /// The settings in force, one `name = value` a line, secrets redacted.
    pub fn summary(&self) -> String {
        let Self {
            listen,
            security,
            admin_listen,
            store,
            workers,
            limits,
            shutdown_delay,
            drain_timeout,
            log_format,
        } = self;
        let mut lines = Lines::default();
        lines.add("listen", listen);
        security.summarize(&mut lines);
        lines.add("admin-listen", admin_listen);
        store.summarize(&mut lines);
        lines.add("workers", workers);
        limits.summarize(&mut lines);
        lines.add_duration("shutdown-delay", *shutdown_delay);
        lines.add_duration("drain-timeout", *drain_timeout);
        lines.add("log-format", log_format);
        lines.0
    }
}

impl TryFrom<ServeArgs> for Config {
    type Error = ConfigError;

    fn try_from(args: ServeArgs) -> Result<Self, ConfigError> {
        let ServeArgs {
            listen,
            security,
            admin_listen,
            store,
            workers,
            limits,
            shutdown_delay,
            drain_timeout,
            log_format,
        } = args;
        let up_to_an_hour = Duration::ZERO..=Duration::from_secs(3600);
        within("shutdown-delay", shutdown_delay, up_to_an_hour.clone())?;
        within("drain-timeout", drain_timeout, up_to_an_hour)?;
        let workers = workers.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
        });
        check(
            "workers",
            (1..=1024).contains(&workers),
            "must be from 1 to 1024",
        )?;
        check_listeners(&listen, admin_listen)?;
        Ok(Self {
            security: SecurityConfig::check(security, &listen)?,
            listen,
            admin_listen,
            store: store.try_into()?,
            workers,
            limits: limits.try_into()?,
            shutdown_delay,
            drain_timeout,
            log_format,
        })
    }
}

/// Finds what the system would refuse when the sockets are bound.
fn check_listeners(listen: &ListenAddr, admin_listen: AdminListen) -> Result<(), ConfigError> {
    match (listen, admin_listen) {
        (ListenAddr::Unix(path), _) => check(
            "listen",
            SocketAddr::from_pathname(path).is_ok(),
            "the path is longer than that of a unix socket may be (107 bytes on Linux)",
        ),
        (ListenAddr::Tcp(listen), AdminListen::Tcp(admin)) => {
            let is_same_host = listen.ip() == admin.ip()
                || listen.is_ipv4() == admin.is_ipv4()
                    && (listen.ip().is_unspecified() || admin.ip().is_unspecified());
            check(
                "admin-listen",
                !(is_same_host && listen.port() == admin.port() && listen.port() != 0),
                "is where --listen serves gRPC already",
            )
        }
        (ListenAddr::Tcp(_), AdminListen::Off) => Ok(()),
    }
}

fn invalid(setting: &'static str, reason: impl fmt::Display) -> ConfigError {
    ConfigError::Invalid {
        setting,
        reason: reason.to_string(),
    }
}

fn check(setting: &'static str, holds: bool, reason: &str) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(invalid(setting, reason))
}

fn within(
    setting: &'static str,
    value: Duration,
    range: RangeInclusive<Duration>,
) -> Result<(), ConfigError> {
    let (min, max) = (range.start(), range.end());
    let reason = format!("must be from {} to {}", readable(*min), readable(*max));
    check(setting, range.contains(&value), &reason)
}

/// One `name = value` a line.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: impl fmt::Display) {
        // Writing to a String cannot fail.
        _ = writeln!(self.0, "{name} = {value}");
    }

    fn add_duration(&mut self, name: &str, value: Duration) {
        self.add(name, readable(value));
    }

    fn add_file(&mut self, name: &str, value: Option<&PathBuf>) {
        if let Some(file) = value {
            self.add(name, file.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(args: &[&str]) -> String {
        match Config::parse_from(args) {
            Ok(config) => panic!("accepted {args:?}: {config:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_setting_out_of_range_is_refused_by_name() {
        for args in [
            ["--default-ttl", "25h"],
            ["--max-ttl", "0s"],
            ["--max-batch", "0"],
            ["--max-value-bytes", "0"],
            ["--memory-max-entries", "0"],
            ["--key-prefix", ""],
            ["--workers", "0"],
            ["--redis-timeout", "2m"],
            ["--drain-timeout", "2h"],
            ["--shutdown-delay", "2h"],
            ["--redis-password-file", "/nowhere"],
            ["--redis-url", "http://localhost"],
            ["--redis-url", ""],
            ["--listen", "localhost"],
            ["--listen", "db.example:50051"],
            ["--listen", "unix:"],
            ["--key-format", "pickle"],
        ] {
            let message = rejected(&args);
            assert!(message.contains(args[0]), "{args:?}: {message}");
        }
    }

    #[test]
    fn what_the_system_would_refuse_to_bind_is_refused() {
        let at_most = format!("unix:/{}", "p".repeat(106));
        for (listen, admin, refused) in [
            ("127.0.0.1:7", "127.0.0.1:7", true),
            ("127.0.0.1:7", "localhost:7", true),
            ("127.0.0.1:7", "0.0.0.0:7", true),
            ("[::1]:7", "[::]:7", true),
            ("127.0.0.1:7", "[::1]:7", false),
            ("127.0.0.1:7", "127.0.0.2:7", false),
            ("127.0.0.1:7", "127.0.0.1:8", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("127.0.0.1:7", "off", false),
            (&at_most, "off", false),
            (&format!("{at_most}p"), "off", true),
        ] {
            let checked = Config::parse_from(["--listen", listen, "--admin-listen", admin]);
            assert_eq!(checked.is_err(), refused, "{listen}, {admin}: {checked:?}");
        }
    }

    #[test]
    fn sentinels_are_asked_for_a_master_with_a_name() {
        let sentinel = ["--redis-url=redis://s:26379", "--redis-mode=sentinel"];
        let message = rejected(&[&sentinel[..], &["--redis-sentinel-master="]].concat());
        assert!(message.contains("--redis-sentinel-master"), "{message}");
    }

    #[test]
    fn reflection_is_for_known_callers_only_if_callers_are_known() {
        let message = rejected(&["--reflection", "authenticated"]);
        assert!(message.contains("--reflection"), "{message}");
    }

    #[test]
    fn a_year_is_printed_in_days() {
        for setting in ["--max-ttl", "--max-connection-age"] {
            let message = rejected(&[setting, "366days"]);
            assert!(message.ends_with(" to 365days"), "{message}");
            let config = Config::parse_from([setting, "365days"]).expect("a year is allowed");
            let line = format!("{} = 365days", setting.trim_start_matches('-'));
            assert!(config.summary().contains(&line), "{}", config.summary());
        }
        for (seconds, text) in [
            (90, "1m 30s"),
            (86_400, "1day"),
            (3_000_000, "34days 17h 20m"),
        ] {
            let duration = Duration::from_secs(seconds);
            assert_eq!(readable(duration), text);
            assert_eq!(humantime::parse_duration(text), Ok(duration));
        }
    }

    #[test]
    fn a_password_is_in_no_output() {
        for url in [
            "redis://:canary@localhost:6379/0",
            "rediss://user:canary@localhost",
            "unix:///run/redis.sock?db=1&user=u&pass=canary",
            "redis://localhost/0?password=canary",
            "redis://localhost:port/canary",
            "nonsense:canary@",
        ] {
            let text = match Config::parse_from(["--redis-url", url]) {
                Ok(config) => format!("{}{config:?}", config.summary()),
                Err(error) => format!("{error}{error:?}"),
            };
            assert!(!text.contains("canary"), "{url}: {text}");
        }
    }
}
