//! Mark, Get and BatchGet on Redis. [`Store`](crate::store::Store) documents them.
//!
//! A Mark is one atomic `SET key value PX ttl`, so that no crash leaves a value that never expires.

use std::{slice, time::SystemTime};

use bytes::Bytes;

use super::{
    entry::{self, Pairing},
    layout::{self, KeyLayout},
    servers::{cluster::Cluster, effect::Effect, link::Link},
    store::{RedisStore, Servers},
    wire::{
        commands::{Commands, argument},
        failure,
        resp::{Replies, Reply},
    },
};
use crate::{
    model::{ExpireTime, Found, Id, Namespace, Ttl, Value},
    store::failure::{StoreError, WriteError},
};

/// What Redis adds to a value in its reply: the other replies of a transaction, or an error.
const OVERHEAD_PER_ID: usize = 128;

impl RedisStore {
    pub(crate) async fn mark(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        value: &Value<'_>,
        ttl: Ttl,
    ) -> Result<SystemTime, WriteError> {
        if self.is_indexed(namespace) {
            // Boxed, so that the future of other Marks has no room for this.
            return Box::pin(self.mark_indexed(namespace, id, value, ttl)).await;
        }
        // Read before Redis starts to count, so that the promise is never later than the expiry.
        let expire_time = SystemTime::now() + ttl.as_duration();
        let reply = self.request(Effect::Write, namespace, id, |commands| {
            write_set(&self.layout, namespace, id, value, ttl, commands);
        });
        match Replies::new(&reply.await?).next() {
            Some(Reply::Status(b"OK")) => Ok(expire_time),
            reply => Err(failure::refused("SET", reply)),
        }
    }

    pub(crate) async fn get<T>(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        expire_time: ExpireTime,
        see: impl FnOnce(Option<Found<'_>>) -> T,
    ) -> Result<T, StoreError> {
        match expire_time {
            ExpireTime::Omit => {
                let reply = self.request(Effect::Read, namespace, id, |commands| {
                    entry::write_get(&self.layout, namespace, id, commands);
                });
                entry::value("GET", Replies::new(&reply.await?).next()).map(see)
            }
            ExpireTime::Include => {
                let mut pairing = Pairing::Transaction;
                loop {
                    // Read before Redis answers, so that no expire time is later than the expiry.
                    let asked = SystemTime::now();
                    let reply = self.request(Effect::Read, namespace, id, |commands| {
                        let id = slice::from_ref(&id);
                        entry::write_get_with_expiry(
                            &self.layout,
                            namespace,
                            id,
                            pairing,
                            commands,
                        );
                    });
                    match entry::one_pair(pairing, &reply.await?, asked) {
                        Err(StoreError::OutOfMemory) if pairing == Pairing::Transaction => {
                            pairing = Pairing::Twice;
                        }
                        found => return found.map(see),
                    }
                }
            }
        }
    }

    pub(crate) async fn batch_get<'a>(
        &self,
        namespace: Namespace<'_>,
        ids: &[Id<'a>],
        expire_time: ExpireTime,
        max_bytes: usize,
        mut see: impl FnMut(Id<'a>, Option<Found<'_>>),
    ) -> Result<(), StoreError> {
        let see_all = |found: Vec<Option<Found<'_>>>| {
            for (id, found) in ids.iter().zip(found) {
                see(*id, found);
            }
        };
        // Checked before anything is copied out of the reply.
        let check = |bytes: usize| {
            if bytes > max_bytes + ids.len() * OVERHEAD_PER_ID {
                return Err(StoreError::TooLarge { max: max_bytes });
            }
            Ok(())
        };
        match (&self.servers, expire_time) {
            (Servers::One(link), ExpireTime::Omit) => {
                let reply = self.multi_get(link, namespace, ids).await?;
                check(reply.len())?;
                let mut replies = Replies::new(&reply);
                match replies.next() {
                    Some(Reply::Array(length)) if length == ids.len() => {
                        for id in ids {
                            see(*id, entry::value("MGET", replies.next())?);
                        }
                        Ok(())
                    }
                    reply => Err(failure::unexpected("MGET", reply)),
                }
            }
            (Servers::One(link), ExpireTime::Include) => {
                let mut pairing = Pairing::Transaction;
                loop {
                    let asked = SystemTime::now();
                    let reply = link.request(Effect::Read, |commands| {
                        for ids in ids.chunks(entry::IDS_PER_TRANSACTION) {
                            entry::write_get_with_expiry(
                                &self.layout,
                                namespace,
                                ids,
                                pairing,
                                commands,
                            );
                        }
                    });
                    let reply = reply.await?;
                    check(reply.len())?;
                    match entry::all_pairs(ids.len(), pairing, &reply, asked) {
                        Err(StoreError::OutOfMemory) if pairing == Pairing::Transaction => {
                            pairing = Pairing::Twice;
                        }
                        found => return found.map(see_all),
                    }
                }
            }
            (Servers::Cluster(cluster), expire_time) => {
                let mut pairing = Pairing::Transaction;
                loop {
                    let asked = SystemTime::now();
                    // Boxed, so that the future of a call to a single server has no room for this.
                    let each = self.get_each(cluster, namespace, ids, expire_time, pairing);
                    let replies = Box::pin(each).await?;
                    check(replies.iter().map(Bytes::len).sum())?;
                    let found = replies.iter().map(|reply| {
                        entry::or_another_type(match expire_time {
                            ExpireTime::Omit => entry::value("GET", Replies::new(reply).next()),
                            ExpireTime::Include => entry::one_pair(pairing, reply, asked),
                        })
                    });
                    match found.collect() {
                        Err(StoreError::OutOfMemory) if pairing == Pairing::Transaction => {
                            pairing = Pairing::Twice;
                        }
                        found => return found.map(see_all),
                    }
                }
            }
        }
    }

    async fn multi_get(
        &self,
        link: &Link,
        namespace: Namespace<'_>,
        ids: &[Id<'_>],
    ) -> Result<Bytes, StoreError> {
        let reply = link.request(Effect::Read, |commands| {
            let out = commands.command(1 + ids.len());
            argument(out, b"MGET");
            self.layout.write_keys(namespace, ids, out);
        });
        Ok(reply.await?)
    }

    /// Sends a GET or a transaction for each id. A cluster does not serve an MGET over several
    /// slots, and one slot that moves would fail all of it.
    async fn get_each(
        &self,
        cluster: &Cluster,
        namespace: Namespace<'_>,
        ids: &[Id<'_>],
        expire_time: ExpireTime,
        pairing: Pairing,
    ) -> Result<Vec<Bytes>, StoreError> {
        let slots: Vec<_> = ids.iter().map(|id| self.slot(namespace, *id)).collect();
        let each = match (expire_time, pairing) {
            (ExpireTime::Omit, _) => 1,
            // Of MULTI, GET, PTTL and EXEC.
            (ExpireTime::Include, Pairing::Transaction) => 4,
            (ExpireTime::Include, Pairing::Twice) => 3,
        };
        let replies =
            cluster.request_each(
                Effect::Read,
                &slots,
                each,
                |item, commands| match expire_time {
                    ExpireTime::Omit => {
                        entry::write_get(&self.layout, namespace, ids[item], commands)
                    }
                    ExpireTime::Include => {
                        let id = slice::from_ref(&ids[item]);
                        entry::write_get_with_expiry(
                            &self.layout,
                            namespace,
                            id,
                            pairing,
                            commands,
                        );
                    }
                },
            );
        let replies = replies.await?.into_iter();
        replies.map(|reply| Ok(reply?)).collect()
    }
}

/// Writes `SET key value PX ttl`.
pub(super) fn write_set(
    layout: &KeyLayout,
    namespace: Namespace<'_>,
    id: Id<'_>,
    value: &Value<'_>,
    ttl: Ttl,
    commands: &mut Commands<'_>,
) {
    let out = commands.encoded(b"*5\r\n$3\r\nSET\r\n");
    layout.write_key(namespace, id, out);
    layout::write_value(value, out);
    out.extend_from_slice(b"$2\r\nPX\r\n");
    argument(out, itoa::Buffer::new().format(ttl.as_millis()).as_bytes());
}
