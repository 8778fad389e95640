//! The `grpc-timeout` header.
//!
//! Source: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests>

use std::time::Duration;

use http::HeaderMap;

use crate::error::Error;

/// How long the caller is willing to wait, if it says so: 1 to 8 digits and a unit.
pub(super) fn grpc_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    match headers.get("grpc-timeout") {
        None => Ok(None),
        Some(value) => parse(value.as_bytes())
            .map(Some)
            .ok_or(Error::TimeoutInvalid),
    }
}

fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) {
        return None;
    }
    let mut amount: u64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        amount = amount * 10 + u64::from(digit - b'0');
    }
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_unit_is_known_and_nothing_else() {
        for (value, duration) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("250m", Some(Duration::from_millis(250))),
            ("0u", Some(Duration::ZERO)),
            ("7n", Some(Duration::from_nanos(7))),
            ("", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("123456789S", None),
            ("-1S", None),
            ("1.5S", None),
            (" 1S", None),
        ] {
            assert_eq!(parse(value.as_bytes()), duration, "{value}");
        }
    }

    proptest! {
        #[test]
        fn no_value_makes_it_panic(value in any::<Vec<u8>>()) {
            _ = parse(&value);
        }
    }
}
