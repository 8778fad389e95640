//! The Redis URL: parsed and checked once, and never printed with its password.

use std::fmt;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _};

/// A checked Redis URL. `Display` and `Debug` show it without the password.
#[derive(Clone)]
pub(crate) struct RedisUrl(ConnectionInfo);

impl RedisUrl {
    /// Parses `redis://`, `rediss://` or `unix://`. The error does not repeat the URL.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        const FORMS: &str = "expected redis://[[user]:password@]host[:port][/db], rediss://… or unix:///path[?db=&user=&pass=]";
        if url.is_empty() {
            return Err("is empty; unset it to serve from the embedded store".to_owned());
        }
        let info = url
            .into_connection_info()
            .map_err(|error| format!("{error}; {FORMS}"))?;
        if !info.addr().is_supported() {
            return Err(format!("this kind of address is not supported; {FORMS}"));
        }
        if let ConnectionAddr::TcpTls { insecure: true, .. } = info.addr() {
            return Err("#insecure is not supported: certificates are always checked".to_owned());
        }
        Ok(Self(info))
    }

    pub(super) fn connection_info(&self) -> ConnectionInfo {
        self.0.clone()
    }

    /// Whether the URL itself holds a password.
    pub(crate) fn has_password(&self) -> bool {
        self.0.redis_settings().password().is_some()
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = self.0.redis_settings();
        let credentials = match (settings.username(), settings.password()) {
            (Some(user), Some(_)) => format!("{user}:***@"),
            (None, Some(_)) => ":***@".to_owned(),
            // A password that was put where the user belongs is still a password.
            (Some(_), None) => "***@".to_owned(),
            (None, None) => String::new(),
        };
        let db = settings.db();
        match self.0.addr() {
            ConnectionAddr::Unix(path) => {
                write!(f, "unix://{credentials}{}?db={db}", path.display())
            }
            addr @ ConnectionAddr::TcpTls { .. } => write!(f, "rediss://{credentials}{addr}/{db}"),
            addr => write!(f, "redis://{credentials}{addr}/{db}"),
        }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (url, shown) in [
            ("redis://localhost", "redis://localhost:6379/0"),
            (
                "redis://:secret@localhost:1/2",
                "redis://:***@localhost:1/2",
            ),
            ("rediss://user:secret@host", "rediss://user:***@host:6379/0"),
            ("redis://secret@host", "redis://***@host:6379/0"),
            (
                "unix:///run/redis.sock?db=3&pass=secret",
                "unix://:***@/run/redis.sock?db=3",
            ),
        ] {
            let parsed = RedisUrl::parse(url).map(|url| url.to_string());
            assert_eq!(parsed.as_deref(), Ok(shown), "{url}");
        }
    }

    #[test]
    fn what_is_no_redis_url_is_refused_without_repeating_it() {
        for url in [
            "",
            "localhost:6379",
            "http://secret",
            "redis://",
            "redis://h/secret",
            "rediss://secret/#insecure",
        ] {
            let error = RedisUrl::parse(url).expect_err(url);
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
