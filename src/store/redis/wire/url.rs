//! The Redis URL: parsed and checked once, and never printed with its password.
//!
//! Exactly these forms are accepted, and `docs/operations.md` lists them:
//!
//! - `redis://[[user]:password@]host[:port][/db]`, and the same with `rediss://` for TLS;
//! - `unix:///path[?db=…&user=…&pass=…]`.
//!
//! The redis crate accepts more and ignores what it does not know. That would mislead: with `?db=3`
//! on a TCP address we would serve database 0, and every key of database 3 would read as not
//! marked. So a URL with anything else in it is refused. Errors never quote what may be a piece of
//! a password.

use std::fmt;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, RedisConnectionInfo};

const FORMS: &str = "expected redis://[[user]:password@]host[:port][/db], rediss://… or unix:///path[?db=&user=&pass=]";
/// Query keys of other Redis clients. An error may name these. Anything else may be a piece of a
/// password that was not percent-encoded.
const KNOWN_KEYS: &[&str] = &[
    "client_name",
    "connect_timeout",
    "database",
    "db",
    "insecure",
    "max_connections",
    "pass",
    "password",
    "protocol",
    "socket_timeout",
    "ssl",
    "ssl_ca_certs",
    "ssl_cert_reqs",
    "timeout",
    "tls",
    "user",
    "username",
];

/// A checked Redis URL. `Display` and `Debug` show it without the password.
#[derive(Clone)]
pub(crate) struct RedisUrl(ConnectionInfo);

impl RedisUrl {
    /// Parses `redis://`, `rediss://` or `unix://`. Ignores white space at both ends. The error
    /// does not repeat the URL.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        let url = url.trim();
        if url.is_empty() {
            return Err("is empty; unset it to serve from the embedded store".to_owned());
        }
        if url.contains(char::is_control) {
            return Err("has a control character in it".to_owned());
        }
        match url.split_once("://") {
            Some(("redis" | "rediss", rest)) => check_tcp(rest)?,
            Some(("unix", rest)) => check_unix(rest)?,
            Some((scheme @ ("valkey" | "valkeys" | "redis+unix" | "valkey+unix"), _)) => {
                return Err(format!("{scheme}:// is not supported; {FORMS}"));
            }
            Some(_) | None => return Err(FORMS.to_owned()),
        }
        let info = url
            .into_connection_info()
            .map_err(|error| format!("{error}; {FORMS}"))?;
        if !info.addr().is_supported() {
            return Err(format!("this kind of address is not supported; {FORMS}"));
        }
        if let ConnectionAddr::Tcp(_, 0) | ConnectionAddr::TcpTls { port: 0, .. } = info.addr() {
            return Err("port 0 is not a port of a server".to_owned());
        }
        Ok(Self(info))
    }

    /// User, password and database.
    pub(crate) fn identity(&self) -> &RedisConnectionInfo {
        self.0.redis_settings()
    }

    /// The address of the server.
    pub(crate) fn addr(&self) -> ConnectionAddr {
        self.0.addr().clone()
    }

    /// Whether the URL asks for TLS.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.0.addr(), ConnectionAddr::TcpTls { .. })
    }

    /// The database number.
    pub(crate) fn db(&self) -> i64 {
        self.0.redis_settings().db()
    }

    /// Whether a user is named.
    pub(crate) fn has_user(&self) -> bool {
        self.0.redis_settings().username().is_some()
    }

    /// Whether the URL itself holds a password.
    pub(crate) fn has_password(&self) -> bool {
        self.0.redis_settings().password().is_some()
    }
}

/// One or more Redis URLs: one Redis, some nodes of a cluster, or sentinels. The first URL has the
/// user, the password, the database and the use of TLS for all.
#[derive(Debug, Clone)]
pub(crate) struct RedisUrls {
    first: RedisUrl,
    others: Vec<RedisUrl>,
}

impl RedisUrls {
    /// Parses a single URL, which may have commas in it.
    pub(crate) fn parse_one(url: &str) -> Result<Self, String> {
        RedisUrl::parse(url).map(|first| Self {
            first,
            others: Vec::new(),
        })
    }

    /// Parses a list of URLs with commas between them. The error does not repeat the URLs.
    pub(crate) fn parse(list: &str) -> Result<Self, String> {
        let mut urls = list.split(',').enumerate().map(|(place, url)| {
            RedisUrl::parse(url)
                .map_err(|reason| format!("URL {} of the list: {reason}", place + 1))
        });
        // A list that is split has at least one part.
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

    /// The first URL. There always is one.
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

    pub(crate) fn addrs(&self) -> Vec<ConnectionAddr> {
        self.iter().map(RedisUrl::addr).collect()
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
        let db = settings.db();
        let (user, has_password) = (settings.username(), settings.password().is_some());
        // A user without a password may be a password that was put in the wrong place.
        let user = user.map(|user| if has_password { user } else { "***" });
        let scheme = if self.is_tls() { "rediss" } else { "redis" };
        match self.0.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                write!(f, "{scheme}://{}", user.unwrap_or_default())?;
                if has_password {
                    f.write_str(":***")?;
                }
                if user.is_some() || has_password {
                    f.write_str("@")?;
                }
                // An IPv6 address.
                if host.contains(':') {
                    write!(f, "[{host}]:{port}/{db}")
                } else {
                    write!(f, "{host}:{port}/{db}")
                }
            }
            addr => {
                write!(f, "unix://{addr}?db={db}")?;
                if let Some(user) = user {
                    write!(f, "&user={user}")?;
                }
                if has_password {
                    f.write_str("&pass=***")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Checks what follows `redis://`. After host and port, only a database is allowed.
fn check_tcp(rest: &str) -> Result<(), String> {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let host = authority.rsplit('@').next().unwrap_or_default();
    if host.contains(',') {
        return Err("a list of URLs needs --redis-mode sentinel or cluster".to_owned());
    }
    if tail.contains('@') {
        return Err(
            "user and password must be percent-encoded: / is %2F, ? is %3F, # is %23, @ is %40"
                .to_owned(),
        );
    }
    let tail = without_fragment(tail)?;
    let (path, query) = match tail.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (tail, None),
    };
    if let Some(query) = query {
        let key = query.split(['=', '&']).next().unwrap_or_default();
        return Err(unsupported(key, 1));
    }
    match path.strip_prefix('/') {
        None | Some("") => Ok(()),
        Some(db) if db.bytes().all(|byte| byte.is_ascii_digit()) => check_db(db),
        Some(_) => Err(format!(
            "only the number of a database may stand after the host; {FORMS}"
        )),
    }
}

/// Checks what follows `unix://`: a path, and a query that may have database, user and password.
fn check_unix(rest: &str) -> Result<(), String> {
    if !rest.starts_with('/') {
        return Err(format!(
            "unix:// has no host; user and password are ?user= and ?pass= after the path; {FORMS}"
        ));
    }
    let rest = without_fragment(rest)?;
    let Some((_, query)) = rest.split_once('?') else {
        return Ok(());
    };
    if query.contains('+') {
        return Err("in a query, + must be written as %2B and a space as %20".to_owned());
    }
    let mut seen = Vec::new();
    for (place, pair) in query.split('&').enumerate() {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if !matches!(key, "db" | "user" | "pass") {
            return Err(unsupported(key, place + 1));
        }
        if value.is_empty() {
            return Err(format!("?{key} has no value"));
        }
        if seen.contains(&key) {
            return Err(format!("?{key} is given twice"));
        }
        if key == "db" {
            check_db(value).map_err(|reason| format!("?db: {reason}"))?;
        }
        seen.push(key);
    }
    Ok(())
}

fn check_db(db: &str) -> Result<(), String> {
    let is_number = db.bytes().all(|byte| byte.is_ascii_digit());
    match db.parse::<i32>() {
        Ok(_) if is_number => Ok(()),
        Ok(_) | Err(_) => Err("the database must be a number from 0 on".to_owned()),
    }
}

fn without_fragment(text: &str) -> Result<&str, String> {
    match text.split_once('#') {
        None => Ok(text),
        Some((_, "insecure")) => {
            Err("#insecure is not supported: certificates are always checked".to_owned())
        }
        Some(_) => Err("a # is not supported; in a path or password it is %23".to_owned()),
    }
}

/// The error for a part of a query.
fn unsupported(key: &str, place: usize) -> String {
    if KNOWN_KEYS.contains(&key) {
        format!("?{key} is not supported here; {FORMS}")
    } else {
        format!("part {place} of the query is not supported; {FORMS}")
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
                "unix:///run/redis.sock?db=3&pass=***",
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
    fn an_invalid_redis_url_is_refused_without_repeating_it() {
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
