//! Decimal numbers in what a peer sends.
//!
//! `str::parse` would first have to check for UTF-8, which costs more than the number itself.

/// Reads 1 to 19 ASCII digits. Returns `None` for anything else: a sign or a space, too.
pub(crate) fn unsigned(digits: &[u8]) -> Option<u64> {
    if !(1..=19).contains(&digits.len()) {
        return None;
    }
    // 19 digits always fit into a u64.
    let mut number: u64 = 0;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number * 10 + u64::from(digit);
    }
    Some(number)
}

/// As [`unsigned`], after a minus sign if the number is negative. Returns `None` for a number that
/// an `i64` cannot hold.
pub(crate) fn signed(text: &[u8]) -> Option<i64> {
    match text {
        [b'-', digits @ ..] => 0_i64.checked_sub_unsigned(unsigned(digits)?),
        digits => i64::try_from(unsigned(digits)?).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::{signed, unsigned};

    #[test]
    fn numbers_are_read_to_their_limits_and_nothing_else_is_read() {
        for (text, number) in [
            ("0", Some(0)),
            ("42", Some(42)),
            ("007", Some(7)),
            ("-1", Some(-1)),
            ("-0", Some(0)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("-9223372036854775809", None),
            ("00000000000000000001", None),
            ("", None),
            ("-", None),
            ("+1", None),
            ("--1", None),
            (" 1", None),
            ("1 ", None),
            ("1.5", None),
            ("1:", None),
            ("1/", None),
        ] {
            assert_eq!(signed(text.as_bytes()), number, "{text:?}");
        }
        assert_eq!(
            unsigned(b"9999999999999999999"),
            Some(9_999_999_999_999_999_999)
        );
        assert_eq!(unsigned(b"-1"), None);
    }
}
