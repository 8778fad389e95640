//! Times to live.

use std::time::Duration;

use super::{invalid::Invalid, settings::Limits};

/// A time to live: a positive whole number of milliseconds within the server's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ttl {
    millis: u64,
}

impl Ttl {
    /// Checks the ttl of a Mark. Fractions of a millisecond are dropped, so that a value never lives
    /// longer than its caller asked for.
    pub fn parse(ttl: Option<prost_types::Duration>, limits: &Limits) -> Result<Self, Invalid> {
        let out_of_range = Invalid::TtlOutOfRange {
            max: limits.max_ttl,
        };
        let Some(ttl) = ttl else {
            return Ok(Self::from_limit(limits.default_ttl));
        };
        let (Ok(seconds), Ok(nanos @ 0..1_000_000_000)) =
            (u64::try_from(ttl.seconds), u32::try_from(ttl.nanos))
        else {
            return Err(out_of_range);
        };
        let ttl = Duration::new(seconds, nanos);
        if ttl < Duration::from_millis(1) || ttl > limits.max_ttl {
            return Err(out_of_range);
        }
        Ok(Self::from_limit(ttl))
    }

    fn from_limit(ttl: Duration) -> Self {
        Self {
            millis: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Milliseconds.
    pub fn as_millis(self) -> u64 {
        self.millis
    }

    /// As a duration.
    pub fn as_duration(self) -> Duration {
        Duration::from_millis(self.millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        default_ttl: Duration::from_secs(60),
        max_ttl: Duration::from_secs(86_400),
        max_batch: 3,
        max_value_bytes: 8,
        max_reply_bytes: 100,
        max_request_bytes: 100,
    };

    fn ttl(seconds: i64, nanos: i32) -> Result<u64, Invalid> {
        Ttl::parse(Some(prost_types::Duration { seconds, nanos }), &LIMITS).map(Ttl::as_millis)
    }

    #[test]
    fn ttl_takes_its_range_and_nothing_else() {
        assert_eq!(Ttl::parse(None, &LIMITS).map(Ttl::as_millis), Ok(60_000));
        assert_eq!(ttl(0, 1_000_000), Ok(1));
        assert_eq!(ttl(0, 1_999_999), Ok(1));
        assert_eq!(ttl(86_400, 0), Ok(86_400_000));
        for (seconds, nanos) in [
            (0, 0),
            (0, 999_999),
            (86_400, 1),
            (-1, 0),
            (1, -1),
            (-1, -1),
            (0, 1_000_000_000),
            (i64::MAX, 999_999_999),
            (i64::MIN, i32::MIN),
        ] {
            assert!(ttl(seconds, nanos).is_err(), "{seconds} s {nanos} ns");
        }
    }
}
