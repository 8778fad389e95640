//! Where values are kept: which Redis, how it is spoken to and how keys look in it; or the embedded
//! store.

use std::{path::PathBuf, time::Duration};

use super::{ConfigError, KeyFormat, Lines, RedisMode, check, invalid, values::Secret, within};
use crate::store::redis::{RedisTlsFiles, RedisUrls};

/// The flags as given.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct StoreArgs {
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

    /// Authorities for the certificate of a Redis behind rediss://, as PEM [default: the system's]
    #[arg(long, env = "DYNDATA_REDIS_TLS_CA", value_name = "FILE")]
    redis_tls_ca: Option<PathBuf>,

    /// Client certificate for Redis, as PEM; with --redis-tls-key
    #[arg(
        long,
        env = "DYNDATA_REDIS_TLS_CERT",
        value_name = "FILE",
        requires = "redis_tls_key"
    )]
    redis_tls_cert: Option<PathBuf>,

    /// Private key of the client certificate for Redis, as PEM
    #[arg(
        long,
        env = "DYNDATA_REDIS_TLS_KEY",
        value_name = "FILE",
        requires = "redis_tls_cert"
    )]
    redis_tls_key: Option<PathBuf>,

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
    pub(crate) tls: RedisTlsFiles,
    pub(crate) timeout: Duration,
    pub(crate) key_prefix: String,
    pub(crate) key_format: KeyFormat,
}

impl TryFrom<StoreArgs> for StoreConfig {
    type Error = ConfigError;

    fn try_from(args: StoreArgs) -> Result<Self, ConfigError> {
        let StoreArgs {
            redis_url,
            redis_mode,
            redis_sentinel_master,
            redis_password_file,
            redis_tls_ca,
            redis_tls_cert,
            redis_tls_key,
            redis_timeout,
            memory_max_entries,
            key_prefix,
            key_format,
        } = args;
        let timeouts = Duration::from_millis(1)..=Duration::from_secs(60);
        within("redis-timeout", redis_timeout, timeouts)?;
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

        let tls = RedisTlsFiles {
            ca: redis_tls_ca,
            client: redis_tls_cert.zip(redis_tls_key),
        };
        let Some(Secret(url)) = redis_url else {
            const NO_URL: &str = "there is no --redis-url that it could belong to";
            check("redis-password-file", redis_password_file.is_none(), NO_URL)?;
            check("redis-mode", redis_mode == RedisMode::Standalone, NO_URL)?;
            check("redis-tls-ca", tls.ca.is_none(), NO_URL)?;
            check("redis-tls-cert", tls.client.is_none(), NO_URL)?;
            return Ok(Self::Memory {
                max_entries: memory_max_entries,
            });
        };
        let urls = match redis_mode {
            RedisMode::Standalone => RedisUrls::parse_one(&url),
            RedisMode::Sentinel | RedisMode::Cluster => RedisUrls::parse(&url),
        };
        let urls = urls.map_err(|reason| invalid("redis-url", reason))?;
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
        check(
            "redis-sentinel-master",
            redis_mode != RedisMode::Sentinel || !redis_sentinel_master.is_empty(),
            "the sentinels know no master without a name",
        )?;
        if let Some(file) = &redis_password_file {
            check(
                "redis-password-file",
                !urls.first().has_password(),
                "the Redis URL has a password too; give only one of them",
            )?;
            std::fs::read_to_string(file).map_err(|error| {
                invalid(
                    "redis-password-file",
                    format!("cannot read {}: {error}", file.display()),
                )
            })?;
        }
        check(
            "redis-url",
            !urls.first().has_user()
                || urls.first().has_password()
                || redis_password_file.is_some(),
            "a user needs a password, in the URL or in --redis-password-file",
        )?;
        if urls.first().is_tls() {
            tls.load()
                .map_err(|error| invalid("redis-tls-ca, --redis-tls-cert", error))?;
        } else {
            const NO_TLS: &str = "the Redis URL is not rediss://, so there is no TLS";
            check("redis-tls-ca", tls.ca.is_none(), NO_TLS)?;
            check("redis-tls-cert", tls.client.is_none(), NO_TLS)?;
        }
        Ok(Self::Redis(Box::new(RedisConfig {
            urls,
            mode: redis_mode,
            sentinel_master: redis_sentinel_master,
            password_file: redis_password_file,
            tls,
            timeout: redis_timeout,
            key_prefix,
            key_format,
        })))
    }
}

impl StoreConfig {
    pub(super) fn summarize(&self, lines: &mut Lines) {
        let redis = match self {
            Self::Memory { max_entries } => {
                lines.add("redis-url", "(unset: embedded store)");
                lines.add("memory-max-entries", max_entries);
                return;
            }
            Self::Redis(redis) => redis,
        };
        let RedisConfig {
            urls,
            mode,
            sentinel_master,
            password_file,
            tls: RedisTlsFiles { ca, client },
            timeout,
            key_prefix,
            key_format,
        } = &**redis;
        lines.add("redis-url", urls);
        lines.add("redis-mode", mode);
        if let RedisMode::Sentinel = mode {
            lines.add("redis-sentinel-master", sentinel_master);
        }
        lines.add_file("redis-password-file", password_file.as_ref());
        lines.add_file("redis-tls-ca", ca.as_ref());
        if let Some((cert, key)) = client {
            lines.add_file("redis-tls-cert", Some(cert));
            lines.add_file("redis-tls-key", Some(key));
        }
        lines.add_duration("redis-timeout", *timeout);
        lines.add("key-prefix", key_prefix);
        lines.add("key-format", key_format);
    }
}
