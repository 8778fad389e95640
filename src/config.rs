//! The settings of `dyndata serve`, collected from the parts that they set.
//!
//! Each part of the server has a file `settings.rs` with its flags, their help and defaults, their
//! checks and their lines of the summary. This module only puts the parts together, and checks them
//! against each other. The result is a [`Config`], which the rest of the program trusts.
//!
//! Every flag `--x-y` can be given as `DYNDATA_X_Y`; the variable of the Redis URL is `REDIS_URL`.

use clap::Parser;
use thiserror::Error;

pub use crate::{
    auth::settings::Reflection,
    server::{
        listen::settings::{AdminListen, ListenAddr},
        settings::ConnectionAge,
    },
    setting::SettingError,
    store::redis::settings::{KeyFormat, RedisMode},
    telemetry::LogFormat,
};
use crate::{
    auth::settings::{AccessArgs, AccessSettings},
    model::{Limits, settings::RequestArgs},
    server::{
        listen::settings::{ListenArgs, ListenSettings},
        settings::{ServerArgs, ServerSettings},
    },
    setting::{Summary, check},
    store::settings::{StoreArgs, StoreSettings},
    telemetry::LogArgs,
    watch::settings::{WatchArgs, WatchSettings},
};

/// The settings as given, before they are checked.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    listen: ListenArgs,

    #[command(flatten)]
    access: AccessArgs,

    #[command(flatten)]
    store: StoreArgs,

    #[command(flatten)]
    requests: RequestArgs,

    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    watches: WatchArgs,

    #[command(flatten)]
    log: LogArgs,
}

impl ServeArgs {
    /// Replaces the address of `--listen` by that of a socket that is already open.
    pub fn listen_at(&mut self, addr: ListenAddr) {
        self.listen.listen = addr;
    }
}

/// Checked settings: every combination of them can be served.
#[derive(Debug, Clone)]
pub struct Config {
    pub(crate) listen: ListenSettings,
    pub(crate) access: AccessSettings,
    pub(crate) store: StoreSettings,
    pub(crate) requests: Limits,
    pub(crate) server: ServerSettings,
    pub(crate) watches: WatchSettings,
    pub(crate) log_format: LogFormat,
}

/// Why there is no [`Config`].
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A flag or variable could not be parsed, or help was asked for.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// A setting has a value that cannot be served.
    #[error(transparent)]
    Invalid(#[from] SettingError),
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

    /// The format of the log.
    pub fn log_format(&self) -> LogFormat {
        self.log_format
    }

    /// The settings in force, one `name = value` a line, without secrets.
    pub fn summary(&self) -> String {
        let Self {
            listen,
            access,
            store,
            requests,
            server,
            watches,
            log_format,
        } = self;
        let mut summary = Summary::default();
        listen.summarize(&mut summary);
        access.summarize(&mut summary);
        store.summarize(&mut summary);
        requests.summarize(&mut summary);
        server.summarize(&mut summary);
        watches.summarize(&mut summary);
        summary.add("log-format", log_format);
        summary.into_text()
    }
}

impl TryFrom<ServeArgs> for Config {
    type Error = ConfigError;

    fn try_from(args: ServeArgs) -> Result<Self, ConfigError> {
        let ServeArgs {
            listen,
            access,
            store,
            requests,
            server,
            watches,
            log: LogArgs { log_format },
        } = args;
        let config = Self {
            listen: listen.try_into()?,
            access: access.try_into()?,
            store: store.try_into()?,
            requests: requests.try_into()?,
            server: server.try_into()?,
            watches: watches.try_into()?,
            log_format,
        };
        config.check_access()?;
        Ok(config)
    }
}

impl Config {
    /// Checks that access control and TLS are enough for where the server listens.
    fn check_access(&self) -> Result<(), SettingError> {
        let Self { listen, access, .. } = self;
        let knows_callers = access.file.is_some() || listen.asks_for_client_certificates();
        check(
            "reflection",
            knows_callers || access.reflection != Reflection::Authenticated,
            "there is neither --access-file nor --tls-client-ca, so nobody is authenticated",
        )?;
        if listen.grpc.is_local() || access.insecure {
            return Ok(());
        }
        check(
            "listen",
            knows_callers,
            "other hosts could read and write everything here; say who may with \
             --access-file or --tls-client-ca (or allow it with --insecure)",
        )?;
        check(
            "listen",
            listen.tls.is_some(),
            "tokens and values would cross the network in the clear; set --tls-cert and \
             --tls-key (or allow it with --insecure)",
        )
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
