//! Watch: the values of some ids, and then every change.
//!
//! The stream of a watch waits for its [`Watcher`], which tells what has changed. It also follows
//! the access rules: a caller who has lost its right hears nothing more.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes};
use futures_util::stream::{self, Stream};
use tokio::{sync::watch, time::Instant};

use super::{
    context::{CallContext, Service},
    message::{PREFIX_BYTES, ReplyEncoder, decode, prefix},
};
use crate::{
    auth::{Access, Grant, Right},
    budget::CALL_BYTES,
    codec::fields::Fields,
    error::Error,
    log_limit::LogLimit,
    metrics::Recorder,
    model::{Id, Invalid, Namespace},
    proto::{WatchRequest, watch_response::Kind},
    watch::{Part, PartKind, Target, WatchEnd, Watcher},
};

/// A message with more than one entry has up to this many bytes of entries. Small enough that slow
/// watchers hold little memory.
const MAX_PART_BYTES: usize = 32 * 1024;
/// What a message has besides its entries.
const MESSAGE_OVERHEAD: usize = 16;
/// How long a message waits for room in the budget, and how often it tries.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);
const ROOM_INTERVAL: Duration = Duration::from_millis(20);

/// Begins a watch. `access` has the rules in force, if there are any.
pub(crate) fn watch(
    service: &Service,
    call: CallContext,
    message: Bytes,
    encoder: ReplyEncoder,
    access: Option<watch::Receiver<Access>>,
) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + 'static, Error> {
    check_count(&message, service.watches.max_ids())?;
    let WatchRequest {
        namespace,
        ids,
        all,
    } = decode(message)?;
    let name = Namespace::try_from(namespace.as_str())?;
    call.check_access(name)?;
    let target = match (ids.is_empty(), all) {
        (false, false) => Target::Ids(checked(ids)?),
        (true, true) if service.store.is_indexed(name) => Target::All,
        (true, true) => return Err(Error::NotIndexed),
        (true, false) | (false, true) => return Err(Invalid::WatchTarget.into()),
    };
    let recorder = Arc::clone(&service.recorder);
    let watcher = service.watches.open(name, target);
    let watcher = watcher.map_err(|why| ended(why, &recorder))?;
    let watching = Watching {
        watcher,
        namespace,
        grant: call.grant,
        rights: call.rpc.rights(),
        access,
        encoder,
        recorder,
    };
    Ok(stream::unfold(watching, |mut watching| async {
        Some((watching.next().await, watching))
    }))
}

/// Refuses a request with too many ids before it is decoded. Decoded, an empty id takes twelve times
/// as much memory as in the request.
fn check_count(message: &[u8], max: usize) -> Result<(), Error> {
    /// The number of the field `ids`.
    const IDS: u32 = 2;
    let mut fields = Fields::new(message);
    let mut items = 0;
    while let Some((number, _)) = fields.next().map_err(|_| Error::MessageMalformed)? {
        items += usize::from(number == IDS);
    }
    if items > max {
        return Err(Invalid::WatchTooLarge { items, max }.into());
    }
    Ok(())
}

/// Checks the ids of a request.
fn checked(ids: Vec<String>) -> Result<Vec<String>, Invalid> {
    for (index, id) in ids.iter().enumerate() {
        Id::try_from(id.as_str()).map_err(|source| Invalid::BatchId {
            index,
            source: Box::new(source),
        })?;
    }
    Ok(ids)
}

/// The stream of one watch.
struct Watching {
    watcher: Watcher,
    namespace: String,
    grant: Grant,
    rights: &'static [Right],
    access: Option<watch::Receiver<Access>>,
    encoder: ReplyEncoder,
    recorder: Arc<Recorder>,
}

impl Watching {
    /// The next message, or why there are no more.
    async fn next(&mut self) -> Result<Bytes, Error> {
        let max_bytes = self.encoder.max_reply_bytes - MESSAGE_OVERHEAD;
        let max_bytes = max_bytes.min(MAX_PART_BYTES);
        let part = loop {
            tokio::select! {
                biased;
                () = changed(&mut self.access) => self.check_access()?,
                part = self.watcher.next(max_bytes) => {
                    break part.map_err(|why| ended(why, &self.recorder))?;
                }
            }
        };
        let message = encode(&part, self.encoder.max_reply_bytes)?;
        self.wait_for_room(message.len()).await?;
        let reservation = self.encoder.budget.reserve(CALL_BYTES)?;
        reservation.hold(message)
    }

    /// Ends the watch if its caller may not see the namespace any more.
    fn check_access(&mut self) -> Result<(), Error> {
        let Some(access) = &mut self.access else {
            return Ok(());
        };
        let grant = access.borrow_and_update().renew(&self.grant)?;
        let namespace = Namespace::try_from(self.namespace.as_str())?;
        for right in self.rights {
            grant.check(*right, namespace)?;
        }
        self.grant = grant;
        Ok(())
    }

    /// Waits until the budget has room for a message. Other messages of this connection or worker
    /// that their clients do not read take the room, and soon end.
    async fn wait_for_room(&self, bytes: usize) -> Result<(), Error> {
        let deadline = Instant::now() + ROOM_TIMEOUT;
        loop {
            match self.encoder.budget.reserve(CALL_BYTES + bytes) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(ROOM_INTERVAL).await,
            }
        }
    }
}

/// Waits until the access rules have changed. Cancel-safe.
async fn changed(access: &mut Option<watch::Receiver<Access>>) {
    if let Some(access) = access
        && access.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// The bytes of a message with its prefix.
fn encode(part: &Part, max_reply_bytes: usize) -> Result<Vec<u8>, Error> {
    /// The key of the field `kind`: number 1, a varint.
    const KIND: u8 = 1 << 3;
    let kind = match part.kind {
        PartKind::Snapshot => Kind::Snapshot,
        PartKind::SnapshotEnd => Kind::SnapshotEnd,
        PartKind::Changes => Kind::Changes,
        PartKind::Alive => Kind::Alive,
    };
    let entries: usize = part.entries.iter().map(Bytes::len).sum();
    let length = 2 + entries;
    let mut message = Vec::with_capacity(PREFIX_BYTES + length);
    message.extend_from_slice(&prefix(length, max_reply_bytes)?);
    // Each kind has one byte.
    message.extend_from_slice(&[KIND, kind as u8]);
    for entry in &part.entries {
        message.put_slice(entry);
    }
    Ok(message)
}

/// The error of a watch that the table has ended or refused. It counts as an error of the store if it
/// is one: an alert is about a user of Redis who may not do something, and without the right to CLIENT
/// TRACKING nothing else fails.
fn ended(why: WatchEnd, recorder: &Recorder) -> Error {
    match why {
        WatchEnd::Limit(limit) => {
            static LOG: LogLimit = LogLimit::new();
            if let Some(unlogged) = LOG.admit() {
                tracing::warn!(%limit, unlogged, "a watch is refused or ended");
            }
            Error::WatchLimit
        }
        WatchEnd::Store(error) => {
            recorder.store_failed(error);
            error.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::{
        codec::replies::EntryField,
        model::{self, Found, Value},
        proto::WatchResponse,
    };

    #[test]
    fn a_message_is_as_prost_reads_it() {
        let found = || {
            Some(Found {
                value: Value::Int(-7),
                expire_time: None,
            })
        };
        let ids = [("a", found()), ("é", None)];
        let ids = ids.map(|(id, found)| (Id::try_from(id).expect("valid"), found));
        let encoded = |(id, found): &(Id<'_>, Option<Found<'_>>)| {
            let mut bytes = Vec::new();
            EntryField::new(*id, found.clone()).encode_for_watch(&mut bytes);
            bytes.into()
        };
        let part = Part {
            kind: PartKind::Changes,
            entries: ids.iter().map(encoded).collect(),
        };
        let message = encode(&part, 1000).expect("fits");
        let expected = WatchResponse {
            kind: Kind::Changes.into(),
            entries: ids.map(|(id, found)| model::entry(id, found)).into(),
        };
        assert_eq!(
            WatchResponse::decode(&message[PREFIX_BYTES..]).expect("valid"),
            expected
        );
        assert!(encode(&part, 10).is_err());
    }
}
