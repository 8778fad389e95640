//! Settings of the Redis store: where Redis is, how to talk to it, and the layout of keys.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::wire::{tls::RedisTlsFiles, url::RedisUrls};
use crate::{
    model::IndexedNamespaces,
    setting::{SettingError, Summary, check, duration_within},
};

/// What the Redis URL names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RedisMode {
    /// One server
    Standalone,
    /// Sentinels, which know the address of the master
    Sentinel,
    /// Nodes of a Redis Cluster
    Cluster,
}

impl fmt::Display for RedisMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Standalone => "standalone",
            Self::Sentinel => "sentinel",
            Self::Cluster => "cluster",
        })
    }
}

/// How an id in the empty namespace becomes a Redis key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum KeyFormat {
    /// The id as it is: `dyn_data/42`
    Plain,
    /// Python's repr of the id's bytes: `dyn_data/b'42'`
    PythonBytes,
}

impl fmt::Display for KeyFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::PythonBytes => "python-bytes",
        })
    }
}

/// The flags as given.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Redis")]
pub(crate) struct RedisArgs {
    /// Redis for the data: redis://, rediss:// (TLS) or unix://, with user, password, database.
    /// Unset: the embedded store, whose data only this process has and loses on exit
    #[arg(long, env = "REDIS_URL", value_name = "URL", hide_env_values = true)]
    redis_url: Option<Secret>,

    /// What the Redis URL names. For sentinel and cluster it may be a list of URLs with commas: those
    /// of the sentinels, or of some nodes of the cluster
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

    /// File with the Redis password, instead of a password in the URL. Read at every connect
    #[arg(long, env = "DYNDATA_REDIS_PASSWORD_FILE", value_name = "FILE")]
    redis_password_file: Option<PathBuf>,

    /// PEM file with the authorities that sign Redis's certificate; for rediss://. Read at every
    /// connect [default: the system's]
    #[arg(long, env = "DYNDATA_REDIS_TLS_CA", value_name = "FILE")]
    redis_tls_ca: Option<PathBuf>,

    /// PEM file with the client certificate for Redis; with --redis-tls-key
    #[arg(
        long,
        env = "DYNDATA_REDIS_TLS_CERT",
        value_name = "FILE",
        requires = "redis_tls_key"
    )]
    redis_tls_cert: Option<PathBuf>,

    /// PEM file with the private key of the client certificate for Redis
    #[arg(
        long,
        env = "DYNDATA_REDIS_TLS_KEY",
        value_name = "FILE",
        requires = "redis_tls_cert"
    )]
    redis_tls_key: Option<PathBuf>,

    /// Time limit of one store operation, reconnects included
    #[arg(long, env = "DYNDATA_REDIS_TIMEOUT", value_name = "DURATION", default_value = "500ms", value_parser = humantime::parse_duration)]
    redis_timeout: Duration,

    /// Start of every Redis key
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

/// Settings of the Redis store.
#[derive(Debug, Clone)]
pub(crate) struct RedisSettings {
    pub(crate) urls: RedisUrls,
    pub(crate) mode: RedisMode,
    pub(crate) sentinel_master: String,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) tls: RedisTlsFiles,
    pub(crate) timeout: Duration,
    pub(crate) key_prefix: String,
    pub(crate) key_format: KeyFormat,
    pub(crate) indexed: IndexedNamespaces,
}

impl RedisSettings {
    /// Checks the flags. None if no Redis is named.
    pub(crate) fn check(
        args: RedisArgs,
        indexed: &IndexedNamespaces,
    ) -> Result<Option<Self>, SettingError> {
        let RedisArgs {
            redis_url,
            redis_mode,
            redis_sentinel_master,
            redis_password_file,
            redis_tls_ca,
            redis_tls_cert,
            redis_tls_key,
            redis_timeout,
            key_prefix,
            key_format,
        } = args;
        let timeouts = Duration::from_millis(1)..=Duration::from_secs(60);
        duration_within("redis-timeout", redis_timeout, timeouts)?;
        check(
            "key-prefix",
            (1..=128).contains(&key_prefix.len()) && !key_prefix.chars().any(char::is_control),
            "must be 1 to 128 bytes without control characters",
        )?;
        // Otherwise a part of the prefix would decide about the slots of the keys in a cluster.
        check(
            "key-prefix",
            indexed.is_empty() || !key_prefix.contains(['{', '}']),
            "must have no braces if there are --indexed-namespaces",
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
            return Ok(None);
        };
        let urls = match redis_mode {
            RedisMode::Standalone => RedisUrls::parse_one(&url),
            RedisMode::Sentinel | RedisMode::Cluster => RedisUrls::parse(&url),
        };
        let urls = urls.map_err(|reason| SettingError::new("redis-url", reason))?;
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
        check_credentials(&urls, redis_password_file.as_deref())?;
        check_tls(&urls, &tls)?;
        Ok(Some(Self {
            urls,
            mode: redis_mode,
            sentinel_master: redis_sentinel_master,
            password_file: redis_password_file,
            tls,
            timeout: redis_timeout,
            key_prefix,
            key_format,
            indexed: indexed.clone(),
        }))
    }

    pub(crate) fn summarize(&self, summary: &mut Summary) {
        let Self {
            urls,
            mode,
            sentinel_master,
            password_file,
            tls: RedisTlsFiles { ca, client },
            timeout,
            key_prefix,
            key_format,
            // Belongs to both stores.
            indexed: _,
        } = self;
        summary.add("redis-url", urls);
        summary.add("redis-mode", mode);
        if let RedisMode::Sentinel = mode {
            summary.add("redis-sentinel-master", sentinel_master);
        }
        summary.add_file("redis-password-file", password_file.as_ref());
        summary.add_file("redis-tls-ca", ca.as_ref());
        if let Some((cert, key)) = client {
            summary.add_file("redis-tls-cert", Some(cert));
            summary.add_file("redis-tls-key", Some(key));
        }
        summary.add_duration("redis-timeout", *timeout);
        summary.add("key-prefix", key_prefix);
        summary.add("key-format", key_format);
    }
}

/// Checks that there is exactly one password where one is needed.
fn check_credentials(urls: &RedisUrls, password_file: Option<&Path>) -> Result<(), SettingError> {
    if let Some(file) = password_file {
        check(
            "redis-password-file",
            !urls.first().has_password(),
            "the Redis URL has a password too; give only one of them",
        )?;
        std::fs::read_to_string(file).map_err(|error| {
            SettingError::new(
                "redis-password-file",
                format!("cannot read {}: {error}", file.display()),
            )
        })?;
    }
    check(
        "redis-url",
        !urls.first().has_user() || urls.first().has_password() || password_file.is_some(),
        "a user needs a password, in the URL or in --redis-password-file",
    )
}

/// Checks that the certificate files can be used, and that there is TLS to use them for.
fn check_tls(urls: &RedisUrls, tls: &RedisTlsFiles) -> Result<(), SettingError> {
    if urls.first().is_tls() {
        tls.load()
            .map_err(|error| SettingError::new("redis-tls-ca, --redis-tls-cert", error))?;
    } else {
        const NO_TLS: &str = "the Redis URL is not rediss://, so there is no TLS";
        check("redis-tls-ca", tls.ca.is_none(), NO_TLS)?;
        check("redis-tls-cert", tls.client.is_none(), NO_TLS)?;
    }
    Ok(())
}

/// A setting that may contain a password, and that cannot be printed. Our own code parses it after
/// clap is done, because clap repeats a bad value in its error message.
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
