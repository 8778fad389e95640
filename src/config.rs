//! Settings: flags and environment variables, parsed as raw arguments, then checked into a
//! [`Config`] that the rest of the program trusts.
//!
//! Every flag `--x-y` can be given as `DYNDATA_X_Y`; the Redis URL's variable is `REDIS_URL`.
//! A flag's name, parsing, default and documentation stand together in [`ServeArgs`].

mod values;

use std::{fmt, fmt::Write as _, path::PathBuf, time::Duration};

use clap::Parser;
use thiserror::Error;

pub use self::values::{AdminListen, ConnectionAge, KeyFormat, ListenAddr, LogFormat, RedisMode};
use crate::{model::Limits, store::redis::RedisUrls};

/// The settings of `dyndata serve` as given, before they are checked together.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    /// Where to serve gRPC: a TCP address, or unix:/path
    #[arg(
        long,
        env = "DYNDATA_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:50051"
    )]
    listen: ListenAddr,

    /// Where to serve /metrics, /livez and /readyz over HTTP: a TCP address, or off
    #[arg(
        long,
        env = "DYNDATA_ADMIN_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:9464"
    )]
    admin_listen: AdminListen,

    /// Redis to keep the data in: redis://, rediss:// or unix://, with user, password, database.
    /// Unset: the embedded store, for this process alone and lost on exit
    #[arg(long, env = "REDIS_URL", value_name = "URL", hide_env_values = true)]
    redis_url: Option<Secret>,

    /// What the Redis URL leads to. For sentinel and cluster it may be a list of URLs, with commas
    /// between: of the sentinels, or of some nodes of the cluster
    #[arg(
        long,
        env = "DYNDATA_REDIS_MODE",
        value_name = "MODE",
        default_value = "standalone"
    )]
    redis_mode: RedisMode,

    /// The name under which the sentinels know the master
    #[arg(
        long,
        env = "DYNDATA_REDIS_SENTINEL_MASTER",
        value_name = "NAME",
        default_value = "mymaster"
    )]
    redis_sentinel_master: String,

    /// File with the Redis password, instead of a password in the URL; read at every connect
    #[arg(long, env = "DYNDATA_REDIS_PASSWORD_FILE", value_name = "FILE")]
    redis_password_file: Option<PathBuf>,

    /// How long one store operation may take, reconnects included
    #[arg(long, env = "DYNDATA_REDIS_TIMEOUT", value_name = "DURATION", default_value = "500ms", value_parser = humantime::parse_duration)]
    redis_timeout: Duration,

    /// The most entries in the embedded store; a Mark beyond it is refused
    #[arg(
        long,
        env = "DYNDATA_MEMORY_MAX_ENTRIES",
        value_name = "COUNT",
        default_value_t = 1_000_000
    )]
    memory_max_entries: usize,

    /// Event loops, each a thread with its own Redis connection [default: number of cores]
    #[arg(long, env = "DYNDATA_WORKERS", value_name = "COUNT")]
    workers: Option<usize>,

    /// What every Redis key starts with
    #[arg(
        long,
        env = "DYNDATA_KEY_PREFIX",
        value_name = "PREFIX",
        default_value = "dyn_data"
    )]
    key_prefix: String,

    /// How an id in the empty namespace becomes a Redis key
    #[arg(
        long,
        env = "DYNDATA_KEY_FORMAT",
        value_name = "FORMAT",
        default_value = "plain"
    )]
    key_format: KeyFormat,

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

    /// How old a connection may become before its client is asked for a new one, give or take a
    /// tenth, so that load spreads anew behind a TCP balancer; or off
    #[arg(
        long,
        env = "DYNDATA_MAX_CONNECTION_AGE",
        value_name = "DURATION",
        default_value = "off"
    )]
    max_connection_age: ConnectionAge,

    /// How long running calls may take to finish after SIGTERM or SIGINT
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

/// Checked settings: every combination of them can be served.
#[derive(Debug, Clone)]
pub struct Config {
    pub(crate) listen: ListenAddr,
    pub(crate) admin_listen: AdminListen,
    pub(crate) store: StoreConfig,
    pub(crate) workers: usize,
    pub(crate) limits: Limits,
    pub(crate) max_deadline: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_connection_age: ConnectionAge,
    pub(crate) drain_timeout: Duration,
    pub(crate) log_format: LogFormat,
}

/// Which store, with its own settings.
#[derive(Debug, Clone)]
pub(crate) enum StoreConfig {
    /// The embedded store.
    Memory {
        /// The most entries it takes.
        max_entries: usize,
    },
    /// Redis.
    Redis(Box<RedisConfig>),
}

/// How to reach Redis and how to lay out keys in it.
#[derive(Debug, Clone)]
pub(crate) struct RedisConfig {
    pub(crate) urls: RedisUrls,
    pub(crate) mode: RedisMode,
    pub(crate) sentinel_master: String,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) timeout: Duration,
    pub(crate) key_prefix: String,
    pub(crate) key_format: KeyFormat,
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
            admin_listen,
            store,
            workers,
            limits:
                Limits {
                    default_ttl,
                    max_ttl,
                    max_batch,
                    max_value_bytes,
                },
            max_deadline,
            max_in_flight,
            max_connections,
            max_connection_age,
            drain_timeout,
            log_format,
        } = self;
        let mut lines = Lines::default();
        lines.add("listen", listen);
        lines.add("admin-listen", admin_listen);
        match store {
            StoreConfig::Memory { max_entries } => {
                lines.add("redis-url", "(unset: embedded store)");
                lines.add("memory-max-entries", max_entries);
            }
            StoreConfig::Redis(redis) => {
                let RedisConfig {
                    urls,
                    mode,
                    sentinel_master,
                    password_file,
                    timeout,
                    key_prefix,
                    key_format,
                } = &**redis;
                lines.add("redis-url", urls);
                lines.add("redis-mode", mode);
                if let RedisMode::Sentinel = mode {
                    lines.add("redis-sentinel-master", sentinel_master);
                }
                if let Some(file) = password_file {
                    lines.add("redis-password-file", file.display());
                }
                lines.add("redis-timeout", humantime::format_duration(*timeout));
                lines.add("key-prefix", key_prefix);
                lines.add("key-format", key_format);
            }
        }
        lines.add("workers", workers);
        lines.add("default-ttl", humantime::format_duration(*default_ttl));
        lines.add("max-ttl", humantime::format_duration(*max_ttl));
        lines.add("max-batch", max_batch);
        lines.add("max-value-bytes", max_value_bytes);
        lines.add("max-deadline", humantime::format_duration(*max_deadline));
        lines.add("max-in-flight", max_in_flight);
        lines.add("max-connections", max_connections);
        lines.add("max-connection-age", max_connection_age);
        lines.add("drain-timeout", humantime::format_duration(*drain_timeout));
        lines.add("log-format", log_format);
        lines.0
    }
}

impl TryFrom<ServeArgs> for Config {
    type Error = ConfigError;

    fn try_from(args: ServeArgs) -> Result<Self, ConfigError> {
        let ServeArgs {
            listen,
            admin_listen,
            redis_url,
            redis_mode,
            redis_sentinel_master,
            redis_password_file,
            redis_timeout,
            memory_max_entries,
            workers,
            key_prefix,
            key_format,
            default_ttl,
            max_ttl,
            max_batch,
            max_value_bytes,
            max_deadline,
            max_in_flight,
            max_connections,
            max_connection_age,
            drain_timeout,
            log_format,
        } = args;

        const MILLISECOND: Duration = Duration::from_millis(1);
        const SECOND: Duration = Duration::from_secs(1);
        const MINUTE: Duration = Duration::from_secs(60);
        const HOUR: Duration = Duration::from_secs(3600);
        const YEAR: Duration = Duration::from_secs(365 * 86_400);

        within("redis-timeout", redis_timeout, MILLISECOND, MINUTE)?;
        within("max-ttl", max_ttl, MILLISECOND, YEAR)?;
        within("default-ttl", default_ttl, MILLISECOND, max_ttl)?;
        within("max-deadline", max_deadline, MILLISECOND, HOUR)?;
        check(
            "max-in-flight",
            (1..=1_000_000).contains(&max_in_flight),
            "must be from 1 to 1000000",
        )?;
        check(
            "max-connections",
            (1..=1_000_000).contains(&max_connections),
            "must be from 1 to 1000000",
        )?;
        if let ConnectionAge::Max(age) = max_connection_age {
            within("max-connection-age", age, SECOND, YEAR)?;
        }
        within("drain-timeout", drain_timeout, Duration::ZERO, HOUR)?;
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
        check(
            "memory-max-entries",
            memory_max_entries > 0,
            "must be at least 1",
        )?;
        check(
            "key-prefix",
            (1..=128).contains(&key_prefix.len()) && !key_prefix.chars().any(char::is_control),
            "must be 1 to 128 bytes without control characters",
        )?;
        let workers = workers.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
        });
        check(
            "workers",
            (1..=1024).contains(&workers),
            "must be from 1 to 1024",
        )?;

        let store = match redis_url {
            None => {
                check(
                    "redis-password-file",
                    redis_password_file.is_none(),
                    "there is no --redis-url that it could belong to",
                )?;
                check(
                    "redis-mode",
                    redis_mode == RedisMode::Standalone,
                    "there is no --redis-url that it could belong to",
                )?;
                StoreConfig::Memory {
                    max_entries: memory_max_entries,
                }
            }
            Some(Secret(url)) => {
                let urls = match redis_mode {
                    RedisMode::Standalone => RedisUrls::parse_one(&url),
                    RedisMode::Sentinel | RedisMode::Cluster => RedisUrls::parse(&url),
                };
                let urls = urls.map_err(|reason| ConfigError::Invalid {
                    setting: "redis-url",
                    reason,
                })?;
                check(
                    "redis-url",
                    redis_mode == RedisMode::Standalone || urls.are_tcp(),
                    "sentinels and nodes of a cluster have TCP addresses",
                )?;
                check(
                    "redis-url",
                    redis_mode != RedisMode::Cluster || urls.first().db() == 0,
                    "a cluster has no database but 0",
                )?;
                if let Some(file) = &redis_password_file {
                    check(
                        "redis-password-file",
                        !urls.first().has_password(),
                        "the Redis URL has a password too; give only one of them",
                    )?;
                    std::fs::read_to_string(file).map_err(|error| ConfigError::Invalid {
                        setting: "redis-password-file",
                        reason: format!("cannot read {}: {error}", file.display()),
                    })?;
                }
                StoreConfig::Redis(Box::new(RedisConfig {
                    urls,
                    mode: redis_mode,
                    sentinel_master: redis_sentinel_master,
                    password_file: redis_password_file,
                    timeout: redis_timeout,
                    key_prefix,
                    key_format,
                }))
            }
        };

        Ok(Self {
            listen,
            admin_listen,
            store,
            workers,
            limits: Limits {
                default_ttl,
                max_ttl,
                max_batch,
                max_value_bytes,
            },
            max_deadline,
            max_in_flight,
            max_connections,
            max_connection_age,
            drain_timeout,
            log_format,
        })
    }
}

/// A setting that may hold a password: it has no way to be printed. It is parsed after clap is
/// done, because clap's messages repeat the values that they complain about.
#[derive(Clone)]
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

fn check(setting: &'static str, holds: bool, reason: &str) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::Invalid {
        setting,
        reason: reason.to_owned(),
    })
}

fn within(
    setting: &'static str,
    value: Duration,
    min: Duration,
    max: Duration,
) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::Invalid {
        setting,
        reason: format!(
            "must be from {} to {}",
            humantime::format_duration(min),
            humantime::format_duration(max)
        ),
    })
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: impl fmt::Display) {
        // Writing to a String cannot fail.
        _ = writeln!(self.0, "{name} = {value}");
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
            ["--redis-password-file", "/nowhere"],
            ["--redis-url", "http://localhost"],
            ["--redis-url", ""],
            ["--listen", "localhost"],
            ["--listen", "unix:"],
            ["--key-format", "pickle"],
        ] {
            let message = rejected(&args);
            assert!(message.contains(args[0]), "{args:?}: {message}");
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
