//! Values in Redis: the commands, over one supervised link per worker.
//!
//! A Mark is one atomic `SET key value PX ttl`, so that no crash leaves a value behind that never
//! expires. The parts of this module: [`layout`] has keys and values as other programs see them,
//! [`resp`] the wire protocol, [`pipe`] one pipelined connection, [`link`](mod@link) its
//! supervisor, [`connect`] sockets and handshake, [`url`] the address, [`failure`] the meaning of
//! Redis's errors. This module and its parts are the only users of the redis crate.

mod connect;
mod failure;
mod layout;
mod link;
mod pipe;
mod resp;
mod url;

use std::time::{Duration, SystemTime};

pub(crate) use self::url::RedisUrl;
use self::{
    connect::Connector,
    layout::KeyLayout,
    link::Link,
    resp::{Replies, Reply, argument, command},
};
use crate::{
    config::RedisConfig,
    model::{ExpireTime, Found, Id, Namespace, Ttl, Value},
    store::{StoreError, StoreStatus},
};

/// One worker's way to Redis. Clones share the link.
#[derive(Debug, Clone)]
pub(crate) struct RedisStore {
    link: Link,
    layout: KeyLayout,
}

impl RedisStore {
    /// Starts to connect, on the current runtime, and reports to `status` as link number
    /// `worker`. Calls fail at once while there is no connection.
    pub(crate) fn start(config: &RedisConfig, worker: usize, status: StoreStatus) -> Self {
        let RedisConfig {
            url,
            password_file,
            timeout,
            key_prefix,
            key_format,
        } = config;
        Self {
            link: Link::start(
                Connector::new(url.clone(), password_file.clone()),
                *timeout,
                worker,
                status,
            ),
            layout: KeyLayout {
                prefix: key_prefix.clone(),
                format: *key_format,
            },
        }
    }

    pub(super) async fn mark(
        &self,
        namespace: &Namespace,
        id: &Id,
        value: &Value,
        ttl: Ttl,
    ) -> Result<SystemTime, StoreError> {
        // Taken before Redis starts to count, so that the promise is never later than the expiry.
        let expire_time = SystemTime::now() + ttl.as_duration();
        let reply = self.link.request(1, |out| {
            command(out, 5);
            argument(out, b"SET");
            self.layout.write_key(namespace, id, out);
            layout::write_value(value, out);
            argument(out, b"PX");
            argument(out, itoa::Buffer::new().format(ttl.as_millis()).as_bytes());
        });
        match Replies::new(&reply.await?).next() {
            Some(Reply::Status(b"OK")) => Ok(expire_time),
            reply => Err(failed("SET", reply)),
        }
    }

    pub(super) async fn get(
        &self,
        namespace: &Namespace,
        id: &Id,
        expire_time: ExpireTime,
    ) -> Result<Option<Found>, StoreError> {
        match expire_time {
            ExpireTime::Omit => {
                let reply = self.link.request(1, |out| {
                    command(out, 2);
                    argument(out, b"GET");
                    self.layout.write_key(namespace, id, out);
                });
                value("GET", Replies::new(&reply.await?).next())
            }
            ExpireTime::Include => {
                let ids = std::slice::from_ref(id);
                Ok(self.with_expiry(namespace, ids).await?.pop().flatten())
            }
        }
    }

    pub(super) async fn batch_get(
        &self,
        namespace: &Namespace,
        ids: &[Id],
        expire_time: ExpireTime,
    ) -> Result<Vec<Option<Found>>, StoreError> {
        if expire_time == ExpireTime::Include {
            return self.with_expiry(namespace, ids).await;
        }
        let reply = self.link.request(1, |out| {
            command(out, 1 + ids.len());
            argument(out, b"MGET");
            for id in ids {
                self.layout.write_key(namespace, id, out);
            }
        });
        let reply = reply.await?;
        let mut replies = Replies::new(&reply);
        match replies.next() {
            Some(Reply::Array(length)) if length == ids.len() => {
                ids.iter().map(|_| value("MGET", replies.next())).collect()
            }
            reply => Err(failed("MGET", reply)),
        }
    }

    /// GET and PTTL of every id, pipelined. A value that expires between its two commands counts
    /// as expired.
    async fn with_expiry(
        &self,
        namespace: &Namespace,
        ids: &[Id],
    ) -> Result<Vec<Option<Found>>, StoreError> {
        // Taken before Redis answers, so that no expire time is later than the expiry.
        let asked = SystemTime::now();
        let reply = self.link.request(2 * ids.len(), |out| {
            for id in ids {
                for name in [&b"GET"[..], b"PTTL"] {
                    command(out, 2);
                    argument(out, name);
                    self.layout.write_key(namespace, id, out);
                }
            }
        });
        let reply = reply.await?;
        let mut replies = Replies::new(&reply);
        ids.iter()
            .map(|_| {
                let found = value("GET", replies.next())?;
                match replies.next() {
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
            })
            .collect()
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
