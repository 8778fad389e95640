//! Text in what a peer sends.

use ascii::AsAsciiStr;

/// The text, if the bytes are UTF-8. Most texts are short and ASCII. `str::from_utf8` looks at the
/// bytes of those one by one, while the check for ASCII takes eight and more at a time.
#[inline]
pub(crate) fn from_utf8(bytes: &[u8]) -> Option<&str> {
    match bytes.as_ascii_str() {
        Ok(text) => Some(text.as_str()),
        Err(_) => std::str::from_utf8(bytes).ok(),
    }
}

/// Whether all bytes are ASCII and none is a control character.
#[inline]
pub(crate) fn is_printable_ascii(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks();
    let words = words.iter().all(|word| is_printable_word(*word));
    words && rest.iter().all(|byte| (b' '..0x7f).contains(byte))
}

/// As [`is_printable_ascii`], for eight bytes at once.
#[inline]
fn is_printable_word(word: [u8; 8]) -> bool {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const HIGH_BITS: u64 = 0x80 * EACH;
    let word = u64::from_ne_bytes(word);
    // Each byte is at most 0x7f if `word` is ASCII. Then no sum and no difference reaches the next
    // byte: DEL becomes 0x80, and a byte that is at least a space keeps the high bit.
    let ascii = word & !HIGH_BITS;
    let at_least_space = (ascii | HIGH_BITS) - u64::from(b' ') * EACH;
    let beyond_tilde = ascii + EACH;
    (word | beyond_tilde | !at_least_space) & HIGH_BITS == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_byte_is_judged_alike_at_each_place() {
        for byte in 0..=u8::MAX {
            for length in 1..20 {
                for at in 0..length {
                    let mut text = vec![b'a'; length];
                    text[at] = byte;
                    assert_eq!(
                        is_printable_ascii(&text),
                        (0x20..0x7f).contains(&byte),
                        "{text:?}"
                    );
                }
            }
        }
    }

    proptest! {
        #[test]
        fn text_is_what_the_standard_library_says(
            bytes in prop_oneof![any::<Vec<u8>>(), ".{0,20}".prop_map(String::into_bytes)],
        ) {
            prop_assert_eq!(from_utf8(&bytes), std::str::from_utf8(&bytes).ok());
        }

        #[test]
        fn printable_is_what_the_standard_library_says(bytes in "[ -~]{0,40}|[\\x00-\\x7f]{0,40}|.{0,30}") {
            let expected = bytes.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
            prop_assert_eq!(is_printable_ascii(bytes.as_bytes()), expected);
        }
    }
}
