//! Values in Redis: the commands, over supervised links of each worker's own.
//!
//! A Mark is one atomic `SET key value PX ttl`, so that no crash leaves a value behind that never
//! expires. Where a value is read with its expiry, both are read in one transaction, so that they
//! belong together (`docs/performance.md` has what that costs).

use std::{
    slice,
    time::{Duration, SystemTime},
};

use bytes::Bytes;

use super::{
    layout::{self, KeyLayout},
    servers::{
        cluster::{self, Cluster},
        link::{Effect, Link},
        sentinel::Sentinels,
    },
    wire::{
        connect::Connector,
        failure,
        resp::{Commands, Replies, Reply, argument},
    },
};
use crate::{
    config::{RedisConfig, RedisMode},
    model::{ExpireTime, Found, Id, Namespace, Ttl, Value},
    store::{
        failure::{StoreError, WriteError},
        status::StoreStatus,
    },
};

/// What Redis adds to a value in its reply: the other replies of a transaction, or an error.
const OVERHEAD_PER_ID: usize = 128;
/// How many ids of a batch are read with their expiries in one transaction. Redis serves nobody
/// else meanwhile.
const IDS_PER_TRANSACTION: usize = 100;

/// How a value and its expiry are read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pairing {
    /// In a transaction.
    Transaction,
    /// GET, PTTL, and GET again: the expiry is that of the value if both GETs agree. For a Redis
    /// without memory, which refuses every command of a transaction and serves the same commands
    /// alone.
    Twice,
}

/// One worker's way to Redis. Clones share its links.
#[derive(Debug, Clone)]
pub(crate) struct RedisStore {
    servers: Servers,
    layout: KeyLayout,
}

#[derive(Debug, Clone)]
enum Servers {
    /// One that has everything.
    One(Link),
    /// Some that share it.
    Cluster(Cluster),
}

impl RedisStore {
    /// Starts to connect, on the current runtime, and reports to `status` as link number
    /// `worker`. Calls fail at once while there is no connection.
    pub(crate) fn start(config: &RedisConfig, worker: usize, status: StoreStatus) -> Self {
        let RedisConfig {
            urls,
            mode,
            sentinel_master,
            password_file,
            tls,
            timeout,
            key_prefix,
            key_format,
        } = config;
        let connector = Connector::to(urls.first(), password_file.clone(), tls.clone());
        let report = Box::new(move |state| status.set(worker, state));
        let servers = match mode {
            RedisMode::Standalone => Servers::One(Link::start(connector, *timeout, report)),
            RedisMode::Sentinel => {
                let sentinels = Sentinels::new(urls.addrs(), sentinel_master.clone());
                Servers::One(Link::start(connector.through(sentinels), *timeout, report))
            }
            RedisMode::Cluster => {
                Servers::Cluster(Cluster::start(connector, urls.addrs(), *timeout, report))
            }
        };
        Self {
            servers,
            layout: KeyLayout {
                prefix: key_prefix.clone(),
                format: *key_format,
            },
        }
    }

    pub(crate) async fn mark(
        &self,
        namespace: &Namespace,
        id: &Id,
        value: &Value,
        ttl: Ttl,
    ) -> Result<SystemTime, WriteError> {
        // Taken before Redis starts to count, so that the promise is never later than the expiry.
        let expire_time = SystemTime::now() + ttl.as_duration();
        let reply = self.request(Effect::Write, namespace, id, |commands| {
            let out = commands.command(5);
            argument(out, b"SET");
            self.layout.write_key(namespace, id, out);
            layout::write_value(value, out);
            argument(out, b"PX");
            argument(out, itoa::Buffer::new().format(ttl.as_millis()).as_bytes());
        });
        match Replies::new(&reply.await?).next() {
            Some(Reply::Status(b"OK")) => Ok(expire_time),
            reply => Err(refused("SET", reply)),
        }
    }

    pub(crate) async fn get(
        &self,
        namespace: &Namespace,
        id: &Id,
        expire_time: ExpireTime,
    ) -> Result<Option<Found>, StoreError> {
        match expire_time {
            ExpireTime::Omit => {
                let reply = self.request(Effect::Read, namespace, id, |commands| {
                    self.write_get(namespace, id, commands);
                });
                value("GET", Replies::new(&reply.await?).next())
            }
            ExpireTime::Include => {
                let mut pairing = Pairing::Transaction;
                loop {
                    // Taken before Redis answers, so that no expire time is later than the expiry.
                    let asked = SystemTime::now();
                    let reply = self.request(Effect::Read, namespace, id, |commands| {
                        let id = slice::from_ref(id);
                        self.write_get_with_expiry(namespace, id, pairing, commands);
                    });
                    match one_pair(pairing, &reply.await?, asked) {
                        Err(StoreError::OutOfMemory) if pairing == Pairing::Transaction => {
                            pairing = Pairing::Twice;
                        }
                        found => return found,
                    }
                }
            }
        }
    }

    pub(crate) async fn batch_get(
        &self,
        namespace: &Namespace,
        ids: &[Id],
        expire_time: ExpireTime,
        max_bytes: usize,
    ) -> Result<Vec<Option<Found>>, StoreError> {
        // Looked at before anything is copied out of it. Redis adds some bytes to each value.
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
                        ids.iter().map(|_| value("MGET", replies.next())).collect()
                    }
                    reply => Err(failed("MGET", reply)),
                }
            }
            (Servers::One(link), ExpireTime::Include) => {
                let mut pairing = Pairing::Transaction;
                loop {
                    let asked = SystemTime::now();
                    let reply = link.request(Effect::Read, |commands| {
                        for ids in ids.chunks(IDS_PER_TRANSACTION) {
                            self.write_get_with_expiry(namespace, ids, pairing, commands);
                        }
                    });
                    let reply = reply.await?;
                    check(reply.len())?;
                    match all_pairs(ids.len(), pairing, &reply, asked) {
                        Err(StoreError::OutOfMemory) if pairing == Pairing::Transaction => {
                            pairing = Pairing::Twice;
                        }
                        found => return found,
                    }
                }
            }
            (Servers::Cluster(cluster), expire_time) => {
                let mut pairing = Pairing::Transaction;
                loop {
                    let asked = SystemTime::now();
                    // Boxed, so that its room is not in every call to a single server.
                    let each = self.get_each(cluster, namespace, ids, expire_time, pairing);
                    let replies = Box::pin(each).await?;
                    check(replies.iter().map(Bytes::len).sum())?;
                    let found = replies.into_iter().map(|reply| {
                        or_another_type(match expire_time {
                            ExpireTime::Omit => value("GET", Replies::new(&reply).next()),
                            ExpireTime::Include => one_pair(pairing, &reply, asked),
                        })
                    });
                    match found.collect() {
                        Err(StoreError::OutOfMemory) if pairing == Pairing::Transaction => {
                            pairing = Pairing::Twice;
                        }
                        found => return found,
                    }
                }
            }
        }
    }

    async fn multi_get(
        &self,
        link: &Link,
        namespace: &Namespace,
        ids: &[Id],
    ) -> Result<Bytes, StoreError> {
        let reply = link.request(Effect::Read, |commands| {
            let out = commands.command(1 + ids.len());
            argument(out, b"MGET");
            for id in ids {
                self.layout.write_key(namespace, id, out);
            }
        });
        Ok(reply.await?)
    }

    /// A GET or a transaction for each id: an MGET over slots is not served, and one slot on the move would fail
    /// it all.
    async fn get_each(
        &self,
        cluster: &Cluster,
        namespace: &Namespace,
        ids: &[Id],
        expire_time: ExpireTime,
        pairing: Pairing,
    ) -> Result<Vec<Bytes>, StoreError> {
        let slots: Vec<_> = ids.iter().map(|id| self.slot(namespace, id)).collect();
        let each = match (expire_time, pairing) {
            (ExpireTime::Omit, _) => 1,
            // Of MULTI, GET and PTTL that are queued, and EXEC.
            (ExpireTime::Include, Pairing::Transaction) => 4,
            (ExpireTime::Include, Pairing::Twice) => 3,
        };
        let replies = cluster.request_each(&slots, each, |item, commands| match expire_time {
            ExpireTime::Omit => self.write_get(namespace, &ids[item], commands),
            ExpireTime::Include => {
                let id = slice::from_ref(&ids[item]);
                self.write_get_with_expiry(namespace, id, pairing, commands);
            }
        });
        replies.await
    }

    /// Sends one unit about one id: a command or a transaction.
    async fn request(
        &self,
        effect: Effect,
        namespace: &Namespace,
        id: &Id,
        encode: impl Fn(&mut Commands<'_>),
    ) -> Result<Bytes, WriteError> {
        match &self.servers {
            Servers::One(link) => link.request(effect, encode).await,
            Servers::Cluster(cluster) => {
                // Boxed, so that its room is not in every call to a single server.
                Box::pin(cluster.request(effect, self.slot(namespace, id), encode)).await
            }
        }
    }

    fn slot(&self, namespace: &Namespace, id: &Id) -> u16 {
        cluster::slot(self.layout.key(namespace, id).as_bytes())
    }

    fn write_get(&self, namespace: &Namespace, id: &Id, commands: &mut Commands<'_>) {
        let out = commands.command(2);
        argument(out, b"GET");
        self.layout.write_key(namespace, id, out);
    }

    /// GET and PTTL of each id, all of them in one transaction: another program's write between the
    /// two would pair a value with the expiry of another.
    fn write_get_with_expiry(
        &self,
        namespace: &Namespace,
        ids: &[Id],
        pairing: Pairing,
        commands: &mut Commands<'_>,
    ) {
        let pair = |id: &Id, commands: &mut Commands<'_>| {
            self.write_get(namespace, id, commands);
            let out = commands.command(2);
            argument(out, b"PTTL");
            self.layout.write_key(namespace, id, out);
        };
        match pairing {
            Pairing::Transaction => commands.transaction(|commands| {
                for id in ids {
                    pair(id, commands);
                }
            }),
            Pairing::Twice => {
                for id in ids {
                    pair(id, commands);
                    self.write_get(namespace, id, commands);
                }
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
    executed.map_err(|reply| failed("EXEC", reply))
}

/// What one id holds, and until when.
fn one_pair(
    pairing: Pairing,
    reply: &[u8],
    asked: SystemTime,
) -> Result<Option<Found>, StoreError> {
    let mut replies = Replies::new(reply);
    executed(1, pairing, &mut replies)?;
    value_with_expiry(pairing, &mut replies, asked)
}

/// The same of all ids of a batch.
fn all_pairs(
    ids: usize,
    pairing: Pairing,
    reply: &[u8],
    asked: SystemTime,
) -> Result<Vec<Option<Found>>, StoreError> {
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

/// What a batch makes of a key of another type: no value, as MGET has it.
fn or_another_type(found: Result<Option<Found>, StoreError>) -> Result<Option<Found>, StoreError> {
    match found {
        Err(StoreError::WrongType) => Ok(None),
        found => found,
    }
}

/// What GET and PTTL of one key gave; `asked` was before.
fn value_with_expiry(
    pairing: Pairing,
    replies: &mut Replies<'_>,
    asked: SystemTime,
) -> Result<Option<Found>, StoreError> {
    let found = value("GET", replies.next());
    // Read in any case, so that what comes next is the next key's.
    let time_to_live = replies.next();
    let again = (pairing == Pairing::Twice).then(|| value("GET", replies.next()));
    let found = found?;
    if let Some(again) = again {
        let Some(again) = again? else {
            return Ok(None);
        };
        if found.as_ref().map(|found| &found.value) != Some(&again.value) {
            // Somebody wrote in between. It is as if Redis had been busy with that.
            return Err(StoreError::Busy);
        }
    }
    match time_to_live {
        // It expired between the two.
        Some(Reply::Int(-2)) => Ok(None),
        Some(Reply::Int(-1)) => Ok(found),
        Some(Reply::Int(millis)) => Ok(found.map(|found| Found {
            expire_time: u64::try_from(millis)
                .ok()
                .map(|millis| asked + Duration::from_millis(millis)),
            ..found
        })),
        reply => Err(failed("PTTL", reply)),
    }
}

fn value(command: &'static str, reply: Option<Reply<'_>>) -> Result<Option<Found>, StoreError> {
    match reply {
        Some(Reply::Nil) => Ok(None),
        Some(Reply::Bulk(stored)) => Ok(Some(Found {
            value: layout::decode(stored),
            expire_time: None,
        })),
        reply => Err(failed(command, reply)),
    }
}

/// Why a write was not answered as it should be. An error that is known says that Redis refused the
/// write. One that is not may come from a proxy, which need not know what became of it.
fn refused(command: &'static str, reply: Option<Reply<'_>>) -> WriteError {
    match failed(command, reply) {
        error @ StoreError::Unexpected => WriteError::unknown(error),
        error => WriteError::not_executed(error),
    }
}

fn failed(command: &'static str, reply: Option<Reply<'_>>) -> StoreError {
    // The type only: what is in a reply may be a value, which is not for the log.
    let kind = match reply {
        Some(Reply::Error(line)) => return failure::classify(line),
        Some(Reply::Status(_)) => "status",
        Some(Reply::Int(_)) => "integer",
        Some(Reply::Nil) => "nil",
        Some(Reply::Bulk(_)) => "bulk string",
        Some(Reply::Array(_)) => "array",
        None => "nothing",
    };
    tracing::error!(command, kind, "redis gave an unexpected kind of reply");
    StoreError::Unexpected
}
