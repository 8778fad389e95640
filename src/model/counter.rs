//! Increments: what to add to a number, within which bounds, and what came of it.

use std::time::SystemTime;

use super::{invalid::Invalid, settings::Limits, ttl::Ttl};
use crate::proto;

/// What an Increment does with the expiry of a number that is marked already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TtlPolicy {
    /// The time to live starts anew.
    Restart,
    /// The expiry stays: only a new number gets the time to live.
    Keep,
}

/// What to add, and within which bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Increment {
    /// What to add.
    pub delta: i64,
    /// How long the number lives.
    pub ttl: Ttl,
    /// Whether `ttl` applies to a number that is marked already.
    pub policy: TtlPolicy,
    min: Option<i64>,
    max: Option<i64>,
}

/// What an increment makes of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The new number.
    To(i64),
    /// The result would be past a bound, so the number stays.
    OutOfBounds,
    /// The result would not fit into 64 bits, and no bound is set on that side.
    Overflow,
}

/// A number after an increment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// Whether the number was changed.
    pub applied: bool,
    /// The number as it is now; 0 if nothing is marked.
    pub value: i64,
    /// When the number expires, if it does.
    pub expire_time: Option<SystemTime>,
}

impl Increment {
    /// Checks the request of an Increment.
    pub fn parse(request: &proto::IncrementRequest, limits: &Limits) -> Result<Self, Invalid> {
        let policy = match request.ttl_policy.try_into() {
            Ok(proto::TtlPolicy::Unspecified | proto::TtlPolicy::Restart) => TtlPolicy::Restart,
            Ok(proto::TtlPolicy::Keep) => TtlPolicy::Keep,
            Err(_) => return Err(Invalid::TtlPolicy),
        };
        let (min, max) = (request.min, request.max);
        if let (Some(min), Some(max)) = (min, max)
            && min > max
        {
            return Err(Invalid::Range);
        }
        Ok(Self {
            delta: request.delta.unwrap_or(1),
            ttl: Ttl::parse(request.ttl, limits)?,
            policy,
            min,
            max,
        })
    }

    /// What the increment makes of `number`.
    pub fn step(&self, number: i64) -> Step {
        let result = i128::from(number) + i128::from(self.delta);
        if self.min.is_some_and(|min| result < i128::from(min))
            || self.max.is_some_and(|max| result > i128::from(max))
        {
            return Step::OutOfBounds;
        }
        i64::try_from(result).map_or(Step::Overflow, Step::To)
    }

    /// The least and the greatest number that the increment changes. They may be beyond 64 bits.
    pub fn range(&self) -> (i128, i128) {
        let before = |result: i64| i128::from(result) - i128::from(self.delta);
        let min = before(self.min.unwrap_or(i64::MIN));
        let max = before(self.max.unwrap_or(i64::MAX));
        (min, max)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        default_ttl: Duration::from_secs(60),
        max_ttl: Duration::from_secs(60),
        max_batch: 1,
        max_value_bytes: 1,
        max_reply_bytes: 1,
        max_request_bytes: 100,
    };

    fn increment(delta: i64, min: Option<i64>, max: Option<i64>) -> Increment {
        let request = proto::IncrementRequest {
            delta: Some(delta),
            min,
            max,
            ..Default::default()
        };
        Increment::parse(&request, &LIMITS).expect("valid")
    }

    #[test]
    fn a_bound_on_the_side_of_the_overflow_takes_its_place() {
        let (top, bottom) = (i64::MAX, i64::MIN);
        assert_eq!(increment(1, None, None).step(top), Step::Overflow);
        assert_eq!(increment(1, None, Some(top)).step(top), Step::OutOfBounds);
        assert_eq!(increment(1, Some(0), None).step(top), Step::Overflow);
        assert_eq!(increment(-1, None, None).step(bottom), Step::Overflow);
        assert_eq!(
            increment(-1, Some(bottom), None).step(bottom),
            Step::OutOfBounds
        );
        assert_eq!(
            increment(-1, Some(bottom), None).step(bottom + 1),
            Step::To(bottom)
        );
    }

    proptest! {
        #[test]
        fn the_range_has_exactly_the_numbers_that_change(
            delta: i64, min: Option<i64>, max: Option<i64>, number: i64,
        ) {
            prop_assume!(min.zip(max).is_none_or(|(min, max)| min <= max));
            let increment = increment(delta, min, max);
            let (least, greatest) = increment.range();
            let changes = (least..=greatest).contains(&i128::from(number));
            prop_assert_eq!(changes, matches!(increment.step(number), Step::To(_)));
        }
    }
}
