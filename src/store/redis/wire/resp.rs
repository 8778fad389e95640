//! Replies in the Redis protocol, RESP2, and what the connection that tracks changes needs of RESP3:
//! pushes, maps and the null of its own. They are read in two steps.
//!
//! [`Scanner`] finds where a reply ends, so that the connection can cut the reply out of its input in
//! one piece. [`Replies`] then reads that piece in place. Neither allocates or recurses.
//! `docs/performance.md` has what other parsers cost.
//!
//! Source: <https://redis.io/docs/latest/develop/reference/protocol-spec/>

use thiserror::Error;

use crate::decimal;

/// Maximum length of a line outside of a bulk string. The longest that Redis sends are error
/// messages, which are much shorter.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// Maximum length of a bulk string: Redis's own default limit (`proto-max-bulk-len`), 512 MiB.
const MAX_BULK_BYTES: usize = 512 << 20;

/// What the peer sent is not RESP2.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("not a Redis reply: {0}")]
pub(crate) struct ProtocolError(&'static str);

/// Finds the end of a number of replies, however the input is cut into pieces. Each scan goes on
/// where the last one stopped, so a large reply in many pieces costs no more than one in a single
/// piece.
#[derive(Debug)]
pub(crate) struct Scanner {
    /// How many bytes belong to complete values.
    at: usize,
    /// How many values are still to come, including those in arrays.
    missing: usize,
}

impl Scanner {
    /// Looks for the end of the first `replies` replies.
    pub(crate) fn new(replies: usize) -> Self {
        Self {
            at: 0,
            missing: replies,
        }
    }

    /// Scans the input so far, which is given from its start. Returns the length of the replies
    /// once all of them are there.
    pub(crate) fn scan(&mut self, input: &[u8]) -> Result<Option<usize>, ProtocolError> {
        while self.missing > 0 {
            let Some((head, after_head)) = head(input, self.at)? else {
                return Ok(None);
            };
            match head {
                Head::Error(_) | Head::Status(_) | Head::Int(_) | Head::Nil => {
                    self.at = after_head;
                }
                Head::Bulk(length) => {
                    let end = after_head + length + 2;
                    if input.len() < end {
                        return Ok(None);
                    }
                    self.at = end;
                }
                Head::Array(length) | Head::Push(length) => {
                    self.missing += length;
                    self.at = after_head;
                }
            }
            self.missing -= 1;
        }
        Ok(Some(self.at))
    }
}

/// The first line of a value.
enum Head<'a> {
    Status(&'a [u8]),
    Error(&'a [u8]),
    Int(i64),
    Nil,
    Bulk(usize),
    Array(usize),
    Push(usize),
}

/// The head of the value at `at`, and where the head ends. Returns `None` if it is not all there.
#[inline]
fn head(input: &[u8], at: usize) -> Result<Option<(Head<'_>, usize)>, ProtocolError> {
    let rest = &input[at..];
    // Almost every value is one of these.
    match rest {
        [b'+', b'O', b'K', b'\r', b'\n', ..] => {
            return Ok(Some((Head::Status(&rest[1..3]), at + 5)));
        }
        [b'$', b'-', b'1', b'\r', b'\n', ..] => return Ok(Some((Head::Nil, at + 5))),
        [b'$', ones @ b'0'..=b'9', b'\r', b'\n', ..] => {
            return Ok(Some((Head::Bulk(digit(*ones)), at + 4)));
        }
        [
            b'$',
            tens @ b'0'..=b'9',
            ones @ b'0'..=b'9',
            b'\r',
            b'\n',
            ..,
        ] => {
            let length = 10 * digit(*tens) + digit(*ones);
            return Ok(Some((Head::Bulk(length), at + 5)));
        }
        [b'$', line @ ..] => {
            if let Some((length, after)) = short_length(line) {
                return Ok(Some((Head::Bulk(length), at + 1 + after)));
            }
        }
        _ => {}
    }
    any_head(rest).map(|head| head.map(|(head, length)| (head, at + length)))
}

/// The head at the start of `rest`, whatever it is, and its length.
fn any_head(rest: &[u8]) -> Result<Option<(Head<'_>, usize)>, ProtocolError> {
    let Some(&kind) = rest.first() else {
        return Ok(None);
    };
    let Some(end) = memchr::memchr(b'\r', rest) else {
        return if rest.len() > MAX_LINE_BYTES {
            Err(ProtocolError("a line without end"))
        } else {
            Ok(None)
        };
    };
    match rest.get(end + 1) {
        None => return Ok(None),
        Some(b'\n') => {}
        Some(_) => return Err(ProtocolError("a line that does not end in CRLF")),
    }
    // A value that begins with the line end has no type.
    let line = rest.get(1..end).unwrap_or_default();
    let head = match kind {
        b'+' => Head::Status(line),
        b'-' => Head::Error(line),
        b':' => Head::Int(number(line)?),
        b'$' => match number(line)? {
            -1 => Head::Nil,
            length => Head::Bulk(size(length, MAX_BULK_BYTES)?),
        },
        b'*' => match number(line)? {
            -1 => Head::Nil,
            length => Head::Array(size(length, u32::MAX as usize)?),
        },
        // RESP3. A server uses it only on a connection that has asked for it.
        b'>' => Head::Push(size(number(line)?, u32::MAX as usize)?),
        // Names and values.
        b'%' => Head::Array(2 * size(number(line)?, u32::MAX as usize)?),
        b'_' if line.is_empty() => Head::Nil,
        _ => return Err(ProtocolError("a value of unknown type")),
    };
    Ok(Some((head, end + 2)))
}

fn digit(ascii: u8) -> usize {
    usize::from(ascii - b'0')
}

/// The length of a bulk string, and where its line ends, if it has up to six digits.
#[inline]
fn short_length(line: &[u8]) -> Option<(usize, usize)> {
    let mut length = 0;
    for (at, byte) in line.iter().take(7).enumerate() {
        match byte {
            b'0'..=b'9' if at < 6 => length = 10 * length + digit(*byte),
            b'\r' if at > 0 && line.get(at + 1) == Some(&b'\n') => return Some((length, at + 2)),
            _ => return None,
        }
    }
    None
}

fn number(line: &[u8]) -> Result<i64, ProtocolError> {
    decimal::signed(line).ok_or(ProtocolError("a number that cannot be read"))
}

fn size(length: i64, max: usize) -> Result<usize, ProtocolError> {
    usize::try_from(length)
        .ok()
        .filter(|length| *length <= max)
        .ok_or(ProtocolError("a length out of range"))
}

/// One value of a reply, in place. The elements of an array follow it as values of their own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply<'a> {
    Status(&'a [u8]),
    Error(&'a [u8]),
    Int(i64),
    Nil,
    Bulk(&'a [u8]),
    Array(usize),
    /// What the server says by itself. Its elements follow as those of an array do.
    Push(usize),
}

impl<'a> Reply<'a> {
    /// The text of a string, if it is UTF-8.
    pub(crate) fn text(&self) -> Option<&'a str> {
        match self {
            Self::Status(bytes) | Self::Bulk(bytes) => std::str::from_utf8(bytes).ok(),
            Self::Error(_) | Self::Int(_) | Self::Nil | Self::Array(_) | Self::Push(_) => None,
        }
    }

    /// The number, also one that is written as a string.
    pub(crate) fn number(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Status(bytes) | Self::Bulk(bytes) => decimal::signed(bytes),
            Self::Error(_) | Self::Nil | Self::Array(_) | Self::Push(_) => None,
        }
    }
}

/// Reads complete replies value by value.
#[derive(Debug)]
pub(crate) struct Replies<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Replies<'a> {
    /// Reads input that a [`Scanner`] has found to be complete.
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0 }
    }

    /// Passes over the next `values` values, with all that is in them.
    pub(crate) fn pass(&mut self, values: usize) {
        let mut missing = values;
        while missing > 0
            && let Some(reply) = self.next()
        {
            missing -= 1;
            if let Reply::Array(length) | Reply::Push(length) = reply {
                missing += length;
            }
        }
    }

    /// Reads the replies to a transaction of `commands` commands up to their results. What comes
    /// next is one result for each. If Redis refused the transaction, returns the first error
    /// reply: it says why, while EXEC only says that there was an error.
    pub(crate) fn executed(&mut self, commands: usize) -> Result<(), Option<Reply<'a>>> {
        match self.next() {
            Some(Reply::Status(b"OK")) => {}
            reply => return Err(reply),
        }
        for _ in 0..commands {
            match self.next() {
                Some(Reply::Status(b"QUEUED")) => {}
                reply => return Err(reply),
            }
        }
        match self.next() {
            Some(Reply::Array(length)) if length == commands => Ok(()),
            reply => Err(reply),
        }
    }
}

impl<'a> Iterator for Replies<'a> {
    type Item = Reply<'a>;

    fn next(&mut self) -> Option<Reply<'a>> {
        let (head, after_head) = head(self.input, self.at).ok().flatten()?;
        self.at = after_head;
        Some(match head {
            Head::Status(line) => Reply::Status(line),
            Head::Error(line) => Reply::Error(line),
            Head::Int(int) => Reply::Int(int),
            Head::Nil => Reply::Nil,
            Head::Array(length) => Reply::Array(length),
            Head::Push(length) => Reply::Push(length),
            Head::Bulk(length) => {
                // With the line end, which may be what is missing.
                let end = after_head + length + 2;
                let bytes = self.input.get(after_head..end)?;
                self.at = end;
                Reply::Bulk(&bytes[..length])
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use redis::Value;

    use super::*;
    use crate::store::redis::wire::commands::{Commands, argument, array_length};

    fn wire(value: &Value, out: &mut Vec<u8>) {
        match value {
            Value::Nil => out.extend_from_slice(b"$-1\r\n"),
            Value::Int(int) => out.extend_from_slice(format!(":{int}\r\n").as_bytes()),
            Value::BulkString(bytes) => argument(out, bytes),
            Value::SimpleString(text) => out.extend_from_slice(format!("+{text}\r\n").as_bytes()),
            Value::Array(values) => {
                array_length(out, values.len());
                for value in values {
                    wire(value, out);
                }
            }
            other => panic!("not generated: {other:?}"),
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Nil),
            any::<i64>().prop_map(Value::Int),
            any::<Vec<u8>>().prop_map(Value::BulkString),
            "[a-zA-NP-Z ]{1,10}".prop_map(Value::SimpleString),
        ];
        leaf.prop_recursive(3, 32, 8, |inner| {
            prop::collection::vec(inner, 0..8).prop_map(Value::Array)
        })
    }

    fn read(replies: &mut Replies<'_>) -> Value {
        match replies.next().expect("complete") {
            Reply::Status(line) => Value::SimpleString(String::from_utf8_lossy(line).into()),
            Reply::Error(line) => panic!("not generated: {line:?}"),
            Reply::Int(int) => Value::Int(int),
            Reply::Nil => Value::Nil,
            Reply::Bulk(bytes) => Value::BulkString(bytes.to_vec()),
            Reply::Array(length) => Value::Array((0..length).map(|_| read(replies)).collect()),
            Reply::Push(length) => panic!("not generated: a push of {length}"),
        }
    }

    proptest! {
        /// The redis crate's parser is the reference.
        #[test]
        fn replies_read_as_the_redis_crate_reads_them(values in prop::collection::vec(value(), 1..4)) {
            let mut bytes = Vec::new();
            for value in &values {
                wire(value, &mut bytes);
            }
            let mut reference = redis::Parser::new();
            let mut rest = bytes.as_slice();
            let mut replies = Replies::new(&bytes);
            for _ in &values {
                prop_assert_eq!(read(&mut replies), reference.parse_value(&mut rest).expect("valid"));
            }
            prop_assert_eq!(replies.next(), None);
        }

        #[test]
        fn the_end_is_found_however_the_input_is_cut(
            values in prop::collection::vec(value(), 1..4),
            piece in 1..40usize,
        ) {
            let mut bytes = Vec::new();
            for value in &values {
                wire(value, &mut bytes);
            }
            let length = bytes.len();
            bytes.extend_from_slice(b":1\r\n");
            let mut scanner = Scanner::new(values.len());
            let mut seen = 0;
            let found = loop {
                seen = (seen + piece).min(bytes.len());
                if let Some(found) = scanner.scan(&bytes[..seen]).expect("valid") {
                    break found;
                }
                prop_assert!(seen < bytes.len(), "never found");
            };
            prop_assert_eq!(found, length);
        }
    }

    #[test]
    fn a_transaction_is_read_up_to_what_its_commands_gave() {
        let mut out = Vec::new();
        let mut commands = Commands::new(&mut out);
        commands.transaction(|commands| commands.whole(&[b"PTTL", b"k"]));
        assert_eq!(commands.replies(), 3);
        let text = "*1\r\n$5\r\nMULTI\r\n*2\r\n$4\r\nPTTL\r\n$1\r\nk\r\n*1\r\n$4\r\nEXEC\r\n";
        assert_eq!(out, text.as_bytes());

        let mut replies = Replies::new(b"+OK\r\n+QUEUED\r\n*1\r\n:7\r\n:8\r\n");
        assert_eq!(replies.executed(1), Ok(()));
        assert_eq!(replies.next(), Some(Reply::Int(7)));
        for (refused, why) in [
            (
                "-NOPERM no\r\n-NOPERM no\r\n-ERR EXEC without MULTI\r\n",
                "NOPERM no",
            ),
            (
                "+OK\r\n-LOADING wait\r\n-EXECABORT Transaction discarded because of previous errors.\r\n",
                "LOADING wait",
            ),
            ("+OK\r\n+QUEUED\r\n-MOVED 1 h:1\r\n", "MOVED 1 h:1"),
        ] {
            let mut replies = Replies::new(refused.as_bytes());
            let why = Some(Reply::Error(why.as_bytes()));
            assert_eq!(replies.executed(1), Err(why), "{refused}");
        }
        assert_eq!(Replies::new(b"+OK\r\n").executed(1), Err(None));
    }

    #[test]
    fn what_tracking_needs_of_resp3_is_read() {
        let input = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n>2\r\n$10\r\ninvalidate\r\n_\r\n%1\r\n$5\r\nproto\r\n:3\r\n";
        assert_eq!(Scanner::new(3).scan(input), Ok(Some(input.len())));
        let replies: Vec<_> = Replies::new(input).collect();
        let invalidate = || Reply::Bulk(b"invalidate");
        let expected = [
            Reply::Push(2),
            invalidate(),
            Reply::Array(1),
            Reply::Bulk(b"k"),
            Reply::Push(2),
            invalidate(),
            Reply::Nil,
            Reply::Array(2),
            Reply::Bulk(b"proto"),
            Reply::Int(3),
        ];
        assert_eq!(replies, expected);
    }

    #[test]
    fn incomplete_input_ends_the_replies() {
        for input in [
            &b"$1\r\n5"[..],
            b"$1\r\n5\r",
            b"$0\r\n",
            b"$-1\r\n$2\r\n5\r",
        ] {
            assert!(Replies::new(input).count() <= 2, "{input:?}");
        }
    }

    #[test]
    fn input_that_is_not_resp_is_refused() {
        for input in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"$9999999999999\r\n",
            b"$-2\r\n",
            b"*-2\r\n",
            b":1a\r\n",
            b":\r\n",
            b"+OK\r+",
            b"\r\n",
        ] {
            assert!(Scanner::new(1).scan(input).is_err(), "{input:?}");
        }
    }
}
