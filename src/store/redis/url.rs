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

    /// Whether TLS is spoken.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.0.addr(), ConnectionAddr::TcpTls { .. })
    }

    /// The database number.
    pub(crate) fn db(&self) -> i64 {
        self.0.redis_settings().db()
    }

    /// Whether the URL itself holds a password.
    pub(crate) fn has_password(&self) -> bool {
        self.0.redis_settings().password().is_some()
    }
}

/// One or more Redis URLs: of the nodes of a cluster, or of sentinels. User, password, database
/// and the use of TLS are those of the first.
#[derive(Debug, Clone)]
pub(crate) struct RedisUrls {
    first: RedisUrl,
    others: Vec<RedisUrl>,
}

impl RedisUrls {
    /// A single URL, which may have commas in it.
    pub(crate) fn parse_one(url: &str) -> Result<Self, String> {
        RedisUrl::parse(url).map(|first| Self {
            first,
            others: Vec::new(),
        })
    }

    /// Parses a list of URLs with commas between. The error does not repeat them.
    pub(crate) fn parse(list: &str) -> Result<Self, String> {
        let mut urls = list.split(',').map(str::trim).map(RedisUrl::parse);
        let first = urls.next().unwrap_or_else(|| RedisUrl::parse(""))?;
        let others = urls.collect::<Result<Vec<_>, _>>()?;
        for other in &others {
            if other.is_tls() != first.is_tls() {
                return Err("either all URLs are rediss:// or none is".to_owned());
            }
            let (mine, its) = (first.0.redis_settings(), other.0.redis_settings());
            let agree = [
                its.username().is_none() || its.username() == mine.username(),
                its.password().is_none() || its.password() == mine.password(),
                its.db() == 0 || its.db() == mine.db(),
            ];
            if agree.contains(&false) {
                return Err(
                    "user, password and database are those of the first URL; the others may only repeat them"
                        .to_owned(),
                );
            }
        }
        Ok(Self { first, others })
    }

    /// The first, of which there always is one.
    pub(crate) fn first(&self) -> &RedisUrl {
        &self.first
    }

    fn iter(&self) -> impl Iterator<Item = &RedisUrl> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Whether all of them are TCP addresses.
    pub(crate) fn are_tcp(&self) -> bool {
        self.iter()
            .all(|url| !matches!(url.0.addr(), ConnectionAddr::Unix(_)))
    }

    pub(super) fn addrs(&self) -> Vec<ConnectionAddr> {
        self.iter().map(|url| url.0.addr().clone()).collect()
    }
}

impl fmt::Display for RedisUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.first, f)?;
        for other in &self.others {
            write!(f, ",{other}")?;
        }
        Ok(())
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
    fn a_list_shares_what_its_first_url_says() {
        let shown = |list: &str| RedisUrls::parse(list).map(|urls| urls.to_string());
        assert_eq!(
            shown("redis://:secret@a:1/2, redis://b:2").as_deref(),
            Ok("redis://:***@a:1/2,redis://b:2/0")
        );
        for list in [
            "redis://a,rediss://b",
            "redis://a,redis://:secret@b",
            "redis://a/1,redis://b/2",
            "redis://a,",
            "",
        ] {
            let error = RedisUrls::parse(list).expect_err(list);
            assert!(!error.contains("secret"), "{error}");
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
