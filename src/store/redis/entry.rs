//! Reading what one id holds, with its expiry or without.
//!
//! A value and its expiry are read in one transaction, so that they belong together.
//! `docs/performance.md` has what that costs.

use std::time::{Duration, SystemTime};

use super::{
    layout::{self, KeyLayout},
    wire::{
        commands::{Commands, argument},
        failure,
        resp::{Replies, Reply},
    },
};
use crate::{
    model::{Found, Id, Namespace},
    store::failure::StoreError,
};

/// How many ids of a batch are read in one transaction. Redis serves nobody else meanwhile.
pub(super) const IDS_PER_TRANSACTION: usize = 100;

/// How to read a value and its expiry so that they belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairing {
    /// In a transaction.
    Transaction,
    /// With GET, PTTL, and GET again: the expiry belongs to the value if both GETs agree. This is
    /// for a Redis that has no memory left. It refuses transactions, and serves the same commands
    /// alone.
    Twice,
}

/// Writes GET and the key of an id.
pub(super) fn write_get(
    layout: &KeyLayout,
    namespace: Namespace<'_>,
    id: Id<'_>,
    commands: &mut Commands<'_>,
) {
    let out = commands.encoded(b"*2\r\n$3\r\nGET\r\n");
    layout.write_key(namespace, id, out);
}

/// Writes GET and PTTL for each id, all of them in one transaction. Without the transaction,
/// another program's write between the two would pair a value with the expiry of another.
pub(super) fn write_get_with_expiry(
    layout: &KeyLayout,
    namespace: Namespace<'_>,
    ids: &[Id<'_>],
    pairing: Pairing,
    commands: &mut Commands<'_>,
) {
    let pair = |id: Id<'_>, commands: &mut Commands<'_>| {
        write_get(layout, namespace, id, commands);
        let out = commands.command(2);
        argument(out, b"PTTL");
        layout.write_key(namespace, id, out);
    };
    match pairing {
        Pairing::Transaction => commands.transaction(|commands| {
            for id in ids {
                pair(*id, commands);
            }
        }),
        Pairing::Twice => {
            for id in ids {
                pair(*id, commands);
                write_get(layout, namespace, *id, commands);
            }
        }
    }
}

/// Checks that Redis executed a transaction that reads `ids` values and their expiries.
fn executed(ids: usize, pairing: Pairing, replies: &mut Replies<'_>) -> Result<(), StoreError> {
    if pairing == Pairing::Twice {
        return Ok(());
    }
    let executed = replies.executed(2 * ids);
    executed.map_err(|reply| failure::unexpected("EXEC", reply))
}

/// What one id holds, and until when. The commands were sent after `asked`.
pub(super) fn one_pair(
    pairing: Pairing,
    reply: &[u8],
    asked: SystemTime,
) -> Result<Option<Found<'_>>, StoreError> {
    let mut replies = Replies::new(reply);
    executed(1, pairing, &mut replies)?;
    value_with_expiry(pairing, &mut replies, asked)
}

/// What each id of a batch holds, and until when.
pub(super) fn all_pairs(
    ids: usize,
    pairing: Pairing,
    reply: &[u8],
    asked: SystemTime,
) -> Result<Vec<Option<Found<'_>>>, StoreError> {
    let mut replies = Replies::new(reply);
    let mut found = Vec::with_capacity(ids);
    while found.len() < ids {
        let together = IDS_PER_TRANSACTION.min(ids - found.len());
        executed(together, pairing, &mut replies)?;
        for _ in 0..together {
            let pair = value_with_expiry(pairing, &mut replies, asked);
            found.push(or_another_type(pair)?);
        }
    }
    Ok(found)
}

/// What a batch says of a key of another type: no value, as MGET does.
pub(super) fn or_another_type(
    found: Result<Option<Found<'_>>, StoreError>,
) -> Result<Option<Found<'_>>, StoreError> {
    match found {
        Err(StoreError::WrongType) => Ok(None),
        found => found,
    }
}

/// What GET and PTTL of one key found. They were sent after `asked`.
fn value_with_expiry<'a>(
    pairing: Pairing,
    replies: &mut Replies<'a>,
    asked: SystemTime,
) -> Result<Option<Found<'a>>, StoreError> {
    let found = value("GET", replies.next());
    // Read in any case, so that the next reply is the next key's.
    let time_to_live = replies.next();
    let again = (pairing == Pairing::Twice).then(|| value("GET", replies.next()));
    let found = found?;
    if let Some(again) = again {
        let Some(again) = again? else {
            return Ok(None);
        };
        if found.as_ref().map(|found| &found.value) != Some(&again.value) {
            // Another write came between the two GETs. The caller may try again.
            return Err(StoreError::Busy);
        }
    }
    match time_to_live {
        // The value expired between GET and PTTL.
        Some(Reply::Int(-2)) => Ok(None),
        Some(Reply::Int(-1)) => Ok(found),
        Some(Reply::Int(millis)) => Ok(found.map(|found| Found {
            expire_time: u64::try_from(millis)
                .ok()
                .map(|millis| asked + Duration::from_millis(millis)),
            ..found
        })),
        reply => Err(failure::unexpected("PTTL", reply)),
    }
}

/// What GET or MGET found under one key.
pub(super) fn value<'a>(
    command: &'static str,
    reply: Option<Reply<'a>>,
) -> Result<Option<Found<'a>>, StoreError> {
    match reply {
        Some(Reply::Nil) => Ok(None),
        Some(Reply::Bulk(stored)) => Ok(Some(Found {
            value: layout::decode(stored),
            expire_time: None,
        })),
        reply => Err(failure::unexpected(command, reply)),
    }
}
