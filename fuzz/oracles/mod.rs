//! The oracles of fuzzing: one function for each parser of what others send. Each takes any bytes,
//! must not panic, and asserts what holds for all inputs.
//!
//! The tests below give them random bytes, and bytes that look valid. `fuzz/fuzz_targets` has a
//! libFuzzer target for each. This module is a part of the crate dyndata, because it needs private
//! items, but only in tests and in builds for fuzzing.

pub(crate) mod checks;
pub(crate) mod codec;

use std::{sync::LazyLock, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};

use self::checks::{CANARY, check_refusal, check_silence};
pub use crate::store::redis::fuzzing::{
    redis_error, redis_replies, redis_urls, request, stored_value,
};
use crate::{
    auth::{Access, AccessError},
    config::Config,
    error::Error,
    server::call::deadline,
};

const SHA256_OF_CANARY: &str = "d35388817a2d5f8cf2c3d07b4eb8766c2d5a2b3836d68504cfc47d07af319b9b";

/// Maximum number of settings in one input. Each takes some time.
const MAX_SETTINGS: usize = 8;

/// `grpc-timeout`: a header that is accepted means what the grammar says. All others are refused.
pub fn grpc_timeout(data: &[u8]) {
    let value = header(data);
    let expected = timeout(&String::from_utf8_lossy(value.as_bytes()));
    let headers = HeaderMap::from_iter([(HeaderName::from_static("grpc-timeout"), value)]);
    match deadline::grpc_timeout(&headers) {
        Ok(timeout) => assert_eq!(timeout, expected),
        Err(Error::DeadlineExceeded) => assert_eq!(expected, Some(Duration::ZERO)),
        Err(error) => {
            assert_eq!(expected, None);
            check_refusal(error);
        }
    }
}

/// A second, slow reader of `grpc-timeout`.
fn timeout(value: &str) -> Option<Duration> {
    let units = [
        ("H", Duration::from_secs(3600)),
        ("M", Duration::from_secs(60)),
        ("S", Duration::from_secs(1)),
        ("m", Duration::from_millis(1)),
        ("u", Duration::from_micros(1)),
        ("n", Duration::from_nanos(1)),
    ];
    let (digits, unit) = units
        .iter()
        .find_map(|(letter, unit)| Some((value.strip_suffix(letter)?, *unit)))?;
    let is_number =
        (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| unit * digits.parse().expect("at most 8 digits"))
}

/// `authorization`: only the right token is accepted.
pub fn authorization(data: &[u8]) {
    static ACCESS: LazyLock<Access> = LazyLock::new(|| {
        Access::parse(&format!(
            "[[caller]]\nname = \"a\"\ntoken_sha256 = \"{SHA256_OF_CANARY}\"\n\
             allow = [\"read\"]\nnamespaces = [\"*\"]\n"
        ))
        .expect("valid")
    });
    let value = header(data);
    let is_token = value
        .as_bytes()
        .split_at_checked(b"Bearer ".len())
        .is_some_and(|(scheme, token)| {
            scheme.eq_ignore_ascii_case(b"Bearer ") && token == CANARY.as_bytes()
        });
    let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
    match ACCESS.identify(&headers, &[]) {
        Ok(_) => assert!(is_token),
        Err(error) => {
            assert!(!is_token);
            check_refusal(error.into());
        }
    }
}

/// The access file: a file that is accepted lets nobody in without credentials. The error about a
/// file that is refused quotes nothing of it but a caller's name.
pub fn access_file(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    match Access::parse(text) {
        Ok(access) => assert!(access.identify(&HeaderMap::new(), &[]).is_err()),
        Err(error) => {
            let shown = error.to_string();
            assert!(!shown.is_empty() && !shown.contains(char::is_control));
            if !matches!(error, AccessError::Caller { .. }) {
                check_silence(&shown);
            }
        }
    }
}

/// Settings, one `name=value` a line: they are refused with a reason, or their summary can be given
/// as settings again and has the same summary.
pub fn settings(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let given: Vec<String> = text
        .lines()
        .filter(|line| !reads_files(line))
        .take(MAX_SETTINGS)
        .map(|line| format!("--{line}"))
        .collect();
    let config = match Config::parse_from(&given) {
        Ok(config) => config,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let summary = config.summary();
    let shown = summary.split_terminator('\n').filter_map(|line| {
        match line.split_once(" = ").expect("name = value") {
            // The summary shows the URL without its password.
            ("redis-url", _) => given
                .iter()
                .find(|given| given.starts_with("--redis-url="))
                .cloned(),
            ("insecure", "true") => Some("--insecure".to_owned()),
            ("insecure", _) => None,
            (name, value) => Some(format!("--{name}={value}")),
        }
    });
    let again = Config::parse_from(shown).map(|config| config.summary());
    assert_eq!(again.expect("what is in force can be given"), summary);
}

/// Whether a setting makes the checks open files. TLS to Redis reads the system's authorities.
fn reads_files(line: &str) -> bool {
    let (name, value) = line.split_once('=').unwrap_or((line, ""));
    ["-file", "-ca", "-cert", "-key"]
        .iter()
        .any(|end| name.ends_with(end))
        || value.contains("rediss")
}

/// A header of these bytes, without those that HTTP does not allow.
fn header(data: &[u8]) -> HeaderValue {
    let allowed: Vec<u8> = data
        .iter()
        .copied()
        .filter(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f))
        .collect();
    HeaderValue::from_bytes(&allowed).expect("only bytes that are allowed")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::proto::{BatchGetRequest, MarkRequest, mark_request::Value};

    /// Any bytes, or text that gets further into the parser.
    fn bytes_or(pattern: &'static str) -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![any::<Vec<u8>>(), pattern.prop_map(String::into_bytes)]
    }

    /// Any bytes, or a request that may be valid.
    fn message() -> impl Strategy<Value = Vec<u8>> {
        let namespace = "(c4n4ry)?[a-z0-9/_-]{0,4}";
        let id = "(c4n4ry)?[a-z:/'\"\\\\é\u{7}]{0,6}";
        let value = prop_oneof![
            any::<i64>().prop_map(Value::IntValue),
            "(c4n4ry){0,20}".prop_map(Value::StringValue),
            any::<Vec<u8>>().prop_map(Value::BytesValue),
        ];
        let ttl = (-1..4000i64, any::<i32>())
            .prop_map(|(seconds, nanos)| prost_types::Duration { seconds, nanos });
        let mark = (
            namespace,
            id,
            prop::option::of(value),
            prop::option::of(ttl),
        )
            .prop_map(|(namespace, id, value, ttl)| MarkRequest {
                namespace,
                id,
                ttl,
                value,
            });
        let batch_get =
            (namespace, prop::collection::vec(id, 0..12)).prop_map(|(namespace, ids)| {
                BatchGetRequest {
                    namespace,
                    ids,
                    include_expire_time: false,
                }
            });
        prop_oneof![
            any::<Vec<u8>>(),
            mark.prop_map(|mark| mark.encode_to_vec()),
            batch_get.prop_map(|batch_get| batch_get.encode_to_vec()),
        ]
    }

    proptest! {
        #[test]
        fn fuzz_request(data in message()) {
            request(&data);
        }

        #[test]
        fn fuzz_stored_value(data in bytes_or("([sb]:)?-?[0-9]{0,20}.{0,4}")) {
            stored_value(&data);
        }

        #[test]
        fn fuzz_redis_error(data in bytes_or("[A-Z]{0,12} ?(c4n4ry)?.{0,40}")) {
            redis_error(&data);
        }

        #[test]
        fn fuzz_redis_replies(data in bytes_or("([-+:$*]-?[0-9]{0,2}\r?\n?){0,8}")) {
            redis_replies(&data);
        }

        #[test]
        fn fuzz_redis_urls(data in bytes_or("[a-z0-9@:/?&=%,.#\\[\\]-]{0,30}")) {
            redis_urls(&data);
        }

        #[test]
        fn fuzz_grpc_timeout(data in bytes_or("[0-9]{0,9}[HMSmunhs]?")) {
            grpc_timeout(&data);
        }

        #[test]
        fn fuzz_authorization(data in bytes_or("([Bb]earer|Basic|) {0,2}(c4n4ry)?[ -~]{0,2}")) {
            authorization(&data);
        }

        #[test]
        fn fuzz_access_file(data in bytes_or(
            "(\\[\\[caller\\]\\]\n)?((name|token_sha256|certificate|allow|namespaces|c4n4ry) = \
             (\"c4n4ry\"|\"spiffe://h\"|\\[\"(read|c4n4ry|\\*)\"\\]|[\\[\"a-f0-9\\]*]{0,20})\n){0,6}"
        )) {
            access_file(&data);
        }

        #[test]
        fn fuzz_settings(
            settings in prop::collection::vec(
                (
                    prop::sample::select(&[
                        "listen", "admin-listen", "insecure", "redis-url", "redis-mode",
                        "redis-sentinel-master", "redis-timeout", "key-prefix", "key-format",
                        "default-ttl", "max-ttl", "max-batch", "max-value-bytes", "max-deadline",
                        "max-connection-age", "workers", "reflection", "log-format",
                    ][..]),
                    "([0-9]{1,5}(ms|s|m|h)?|[0-9a-z:/.*-]{0,12}|\\PC{0,8}|off|unix:/a|redis://a:1/2)",
                )
                    .prop_map(|(name, value)| format!("{name}={value}")),
                1..3,
            ),
        ) {
            super::settings(settings.join("\n").as_bytes());
        }
    }
}
