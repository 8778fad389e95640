//! BatchMark, BatchUnmark and Touch on Redis: one command for each id, all of them in one pipeline,
//! and in a cluster in one pipeline for each node. [`Store`](crate::store::Store) documents them.

use std::time::SystemTime;

use bytes::Bytes;

use super::{
    layout,
    servers::effect::Effect,
    store::{RedisStore, Servers},
    values,
    wire::{
        commands::{Commands, argument},
        failure,
        resp::{Replies, Reply},
    },
};
use crate::{
    model::{Found, Id, MarkItem, Namespace, Ttl},
    store::failure::{Outcome, StoreError, WriteError},
};

impl RedisStore {
    pub(crate) async fn batch_mark(
        &self,
        namespace: Namespace<'_>,
        items: &[MarkItem<'_>],
    ) -> Result<(), WriteError> {
        let replies = if self.is_indexed(namespace) {
            Box::pin(self.batch_mark_indexed(namespace, items)).await?
        } else {
            let ids = items.iter().map(|item| item.id);
            let replies = self.write_each(namespace, ids, |at, commands| {
                let MarkItem { id, value, ttl } = &items[at];
                values::write_set(&self.layout, namespace, *id, value, *ttl, commands);
            });
            replies.await?
        };
        let mut tally = Tally::default();
        replies.read(|reply| {
            tally.add(reply.and_then(|reply| match reply {
                Some(Reply::Status(b"OK")) => Ok(()),
                reply => Err(failure::refused("SET", reply)),
            }));
        });
        tally.end()
    }

    pub(crate) async fn batch_unmark(
        &self,
        namespace: Namespace<'_>,
        ids: &[Id<'_>],
    ) -> Result<usize, WriteError> {
        let replies = if self.is_indexed(namespace) {
            Box::pin(self.batch_unmark_indexed(namespace, ids)).await?
        } else {
            let replies = self.write_each(namespace, ids.iter().copied(), |at, commands| {
                let out = commands.command(2);
                argument(out, b"DEL");
                self.layout.write_key(namespace, ids[at], out);
            });
            replies.await?
        };
        let mut tally = Tally::default();
        let mut removed = 0;
        replies.read(|reply| {
            tally.add(reply.and_then(|reply| match reply {
                Some(Reply::Int(count @ (0 | 1))) => {
                    removed += usize::from(count == 1);
                    Ok(())
                }
                reply => Err(failure::refused("DEL", reply)),
            }));
        });
        tally.end()?;
        Ok(removed)
    }

    pub(crate) async fn touch<'a>(
        &self,
        namespace: Namespace<'_>,
        ids: &[Id<'a>],
        ttl: Ttl,
        max_bytes: usize,
        mut see: impl FnMut(Id<'a>, Option<Found<'_>>),
    ) -> Result<(), WriteError> {
        // Read before Redis starts to count, so that the promise is never later than the expiry.
        let expire_time = SystemTime::now() + ttl.as_duration();
        let replies = if self.is_indexed(namespace) {
            Box::pin(self.touch_indexed(namespace, ids, ttl)).await?
        } else {
            let replies = self.write_each(namespace, ids.iter().copied(), |at, commands| {
                let out = commands.command(4);
                argument(out, b"GETEX");
                self.layout.write_key(namespace, ids[at], out);
                argument(out, b"PX");
                argument(out, itoa::Buffer::new().format(ttl.as_millis()).as_bytes());
            });
            replies.await?
        };
        let mut tally = Tally::default();
        let mut bytes = 0;
        let mut unseen = ids.iter();
        replies.read(|reply| {
            let found = reply.and_then(|reply| match reply {
                Some(Reply::Nil) => Ok(None),
                Some(Reply::Bulk(stored)) => {
                    bytes += stored.len();
                    if bytes > max_bytes {
                        // The value is touched, so the outcome is unknown.
                        return Err(WriteError::unknown(StoreError::TooLarge { max: max_bytes }));
                    }
                    Ok(Some(Found {
                        value: layout::decode(stored),
                        expire_time: Some(expire_time),
                    }))
                }
                reply => match failure::refused("GETEX", reply) {
                    // A list or a hash is not touched, and has no value.
                    failed if failed.error == StoreError::WrongType => Ok(None),
                    failed => Err(failed),
                },
            });
            tally.add(found.as_ref().map(|_| ()).map_err(|failed| *failed));
            if let Some(id) = unseen.next() {
                see(*id, found.ok().flatten());
            }
        });
        tally.end()
    }

    /// Sends one command for each id.
    async fn write_each<'a>(
        &self,
        namespace: Namespace<'_>,
        ids: impl Iterator<Item = Id<'a>>,
        encode: impl Fn(usize, &mut Commands<'_>),
    ) -> Result<EachReply, WriteError> {
        match &self.servers {
            Servers::One(link) => {
                let count = ids.count();
                let reply = link.request(Effect::Write, |commands| {
                    for at in 0..count {
                        encode(at, commands);
                    }
                });
                Ok(EachReply::Together(count, reply.await?))
            }
            Servers::Cluster(cluster) => {
                let slots: Vec<_> = ids.map(|id| self.slot(namespace, id)).collect();
                let replies = Box::pin(cluster.request_each(Effect::Write, &slots, 1, encode));
                let replies = replies.await.map_err(WriteError::not_executed)?;
                Ok(EachReply::Apart(replies))
            }
        }
    }
}

/// One reply for each id.
pub(super) enum EachReply {
    /// From one server: so many replies in a row.
    Together(usize, Bytes),
    /// From the nodes of a cluster.
    Apart(Vec<Result<Bytes, WriteError>>),
}

impl EachReply {
    /// Reads the replies in the order of the ids.
    fn read(self, mut read: impl FnMut(Result<Option<Reply<'_>>, WriteError>)) {
        match self {
            Self::Together(count, reply) => {
                let mut replies = Replies::new(&reply);
                (0..count).for_each(|_| read(Ok(replies.next())));
            }
            Self::Apart(replies) => replies.into_iter().for_each(|reply| match reply {
                Ok(reply) => read(Ok(Replies::new(&reply).next())),
                Err(failed) => read(Err(failed)),
            }),
        }
    }
}

/// What became of the writes of a batch.
#[derive(Debug, Default)]
struct Tally {
    /// Whether a write was executed, or may have been.
    executed: bool,
    failure: Option<StoreError>,
}

impl Tally {
    fn add(&mut self, result: Result<(), WriteError>) {
        match result {
            Ok(()) => self.executed = true,
            Err(failed) => {
                self.executed |= failed.outcome == Outcome::Unknown;
                self.failure.get_or_insert(failed.error);
            }
        }
    }

    /// Fails if one write did. The outcome is `NotExecuted` only if no write was executed.
    fn end(self) -> Result<(), WriteError> {
        match (self.failure, self.executed) {
            (None, _) => Ok(()),
            (Some(error), true) => Err(WriteError::unknown(error)),
            (Some(error), false) => Err(WriteError::not_executed(error)),
        }
    }
}
