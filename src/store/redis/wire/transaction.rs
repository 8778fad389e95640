//! Transactions of two commands that write, and whether Redis has executed them.
//!
//! The replies are `+OK` to MULTI, `+QUEUED` or an error to each command, and to EXEC an array or an
//! error. Redis executes nothing if it answers MULTI with `+OK` and EXEC with an error, or each of
//! the four with an error. In all other cases it has executed something, or may have: a Redis user
//! who may not use MULTI, for example, has each command executed alone.

use bytes::Bytes;

use super::{
    commands::Commands,
    failure,
    resp::{Replies, Reply, Scanner},
};
use crate::store::failure::{StoreError, WriteError};

/// How many commands a transaction has.
const COMMANDS: usize = 2;
/// How many replies a transaction has.
pub(crate) const REPLIES: usize = COMMANDS + 2;

/// Writes a transaction of the two commands that `write` writes.
pub(crate) fn write(commands: &mut Commands<'_>, write: impl FnOnce(&mut Commands<'_>)) {
    let before = commands.replies();
    commands.transaction(write);
    debug_assert_eq!(commands.replies() - before, REPLIES);
}

/// The results of the two commands, if Redis has executed them. The first may be an error of which
/// the caller knows that it means no harm: a script that Redis does not know.
pub(crate) fn results(mut reply: Bytes) -> Result<Bytes, WriteError> {
    let mut replies = Replies::new(&reply);
    if let Err(first) = replies.executed(COMMANDS) {
        return Err(match is_refused(&reply) {
            true => failure::refused("MULTI", first),
            false => WriteError::unknown(failure::unexpected("MULTI", first)),
        });
    }
    for result in [replies.next(), replies.next()] {
        match result {
            Some(Reply::Error(line)) if !line.starts_with(b"NOSCRIPT") => {
                // The other command has been executed.
                return Err(WriteError::unknown(failure::classify(line)));
            }
            _ => {}
        }
    }
    let unexpected = WriteError::unknown(StoreError::Unexpected);
    let queued = Scanner::new(REPLIES - 1).scan(&reply).ok().flatten();
    let results = queued.ok_or(unexpected)? + ARRAY_OF_TWO.len();
    Ok(reply.split_off(results))
}

/// How EXEC's reply begins.
const ARRAY_OF_TWO: &[u8] = b"*2\r\n";

/// Whether Redis has certainly executed none of several transactions.
pub(crate) fn are_refused(mut reply: &[u8]) -> bool {
    while !reply.is_empty() {
        let Some(length) = Scanner::new(REPLIES).scan(reply).ok().flatten() else {
            return false;
        };
        let (transaction, rest) = reply.split_at(length);
        if !is_refused(transaction) {
            return false;
        }
        reply = rest;
    }
    true
}

/// Whether Redis has certainly not executed a transaction.
fn is_refused(reply: &[u8]) -> bool {
    let is_error = |reply: &Reply<'_>| matches!(reply, Reply::Error(_));
    let mut replies = Replies::new(reply);
    match replies.next() {
        Some(Reply::Status(b"OK")) => replies.nth(COMMANDS).as_ref().is_some_and(is_error),
        Some(Reply::Error(_)) => replies.all(|reply| is_error(&reply)),
        _ => false,
    }
}

/// The first error among the replies to the first of several transactions. It says why Redis refused
/// it, while EXEC may only say that there was an error.
pub(crate) fn first_error(reply: &[u8]) -> Option<&[u8]> {
    let mut replies = Replies::new(reply).take(REPLIES);
    replies.find_map(|reply| match reply {
        Reply::Error(line) => Some(line),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_was_executed_or_refused_or_nobody_knows() {
        let executed = |results: &'static str| Ok(Bytes::from(results));
        let refused = |error| Err(WriteError::not_executed(error));
        let unknown = |error| Err(WriteError::unknown(error));
        for (reply, expected) in [
            (
                "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n:1\r\n",
                executed("+OK\r\n:1\r\n"),
            ),
            (
                "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n-NOSCRIPT x\r\n+PONG\r\n",
                executed("-NOSCRIPT x\r\n+PONG\r\n"),
            ),
            (
                "+OK\r\n-READONLY no\r\n-READONLY no\r\n-EXECABORT Transaction discarded\r\n",
                refused(StoreError::ReadOnly),
            ),
            (
                "+OK\r\n+QUEUED\r\n+QUEUED\r\n-EXECABORT Transaction discarded because of: READONLY no\r\n",
                refused(StoreError::ReadOnly),
            ),
            (
                "+OK\r\n+QUEUED\r\n+QUEUED\r\n-TRYAGAIN later\r\n",
                refused(StoreError::Busy),
            ),
            (
                "+OK\r\n+QUEUED\r\n-NOPERM zadd\r\n-EXECABORT Transaction discarded\r\n",
                refused(StoreError::Auth),
            ),
            (
                "-NOAUTH no\r\n-NOAUTH no\r\n-NOAUTH no\r\n-NOAUTH no\r\n",
                refused(StoreError::Auth),
            ),
            (
                "-NOPERM multi\r\n+OK\r\n:1\r\n-ERR EXEC without MULTI\r\n",
                unknown(StoreError::Auth),
            ),
            (
                "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n-WRONGTYPE x\r\n",
                unknown(StoreError::WrongType),
            ),
            (
                "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n-OOM no\r\n+PONG\r\n",
                unknown(StoreError::OutOfMemory),
            ),
            (
                "+OK\r\n+QUEUED\r\n+QUEUED\r\n*-1\r\n",
                unknown(StoreError::Unexpected),
            ),
            (
                "+PONG\r\n+PONG\r\n+PONG\r\n+PONG\r\n",
                unknown(StoreError::Unexpected),
            ),
        ] {
            assert_eq!(results(Bytes::from(reply)), expected, "{reply}");
            let is_refused = expected
                == expected
                    .clone()
                    .map_err(|it| WriteError::not_executed(it.error))
                && expected.is_err();
            assert_eq!(are_refused(reply.as_bytes()), is_refused, "{reply}");
            let twice = [reply, reply].concat();
            assert_eq!(are_refused(twice.as_bytes()), is_refused, "{reply}");
        }
    }

    #[test]
    fn one_executed_transaction_is_enough_to_have_written() {
        let refused = "+OK\r\n-READONLY no\r\n-READONLY no\r\n-EXECABORT no\r\n";
        let executed = "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n:1\r\n";
        assert!(!are_refused([refused, executed].concat().as_bytes()));
        assert!(!are_refused([executed, refused].concat().as_bytes()));
        assert_eq!(first_error(refused.as_bytes()), Some(&b"READONLY no"[..]));
        assert_eq!(first_error([executed, refused].concat().as_bytes()), None);
    }
}
