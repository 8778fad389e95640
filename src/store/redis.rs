//! Values in Redis: the commands, over one supervised link per worker.
//!
//! A Mark is one atomic `SET key value PX ttl`, so that no crash leaves a value behind that never
//! expires. Everything else of this store is in its parts: [`layout`] has keys and values as
//! other programs see them, [`link`](mod@link) the connection, [`url`] the address. This module
//! and its parts are the only users of the redis crate.

mod connect;
mod layout;
mod link;
mod url;

use std::time::{Duration, SystemTime};

use ::redis::{Cmd, Value as Reply};

pub(crate) use self::url::RedisUrl;
use self::{connect::Connector, layout::KeyLayout, link::Link};
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
        let mut set = Cmd::with_capacity(5, 512);
        set.arg("SET")
            .arg(self.layout.key(namespace, id))
            .arg(layout::encode(value))
            .arg("PX")
            .arg(ttl.as_millis());
        match self.link.command(&set).await? {
            Reply::Okay => Ok(expire_time),
            reply => Err(unexpected("SET", &reply)),
        }
    }

    pub(super) async fn get(
        &self,
        namespace: &Namespace,
        id: &Id,
        expire_time: ExpireTime,
    ) -> Result<Option<Found>, StoreError> {
        let key = self.layout.key(namespace, id);
        match expire_time {
            ExpireTime::Omit => {
                let reply = self.link.command(&get(&key)).await?;
                Ok(value("GET", reply)?.map(without_expiry))
            }
            ExpireTime::Include => {
                let mut found = self.with_expiry(std::iter::once(key)).await?;
                Ok(found.pop().flatten())
            }
        }
    }

    pub(super) async fn batch_get(
        &self,
        namespace: &Namespace,
        ids: &[Id],
        expire_time: ExpireTime,
    ) -> Result<Vec<Option<Found>>, StoreError> {
        let keys = ids.iter().map(|id| self.layout.key(namespace, id));
        match expire_time {
            ExpireTime::Omit => {
                let mut mget = Cmd::with_capacity(ids.len() + 1, ids.len() * 32);
                mget.arg("MGET");
                for key in keys {
                    mget.arg(key);
                }
                match self.link.command(&mget).await? {
                    Reply::Array(replies) if replies.len() == ids.len() => replies
                        .into_iter()
                        .map(|reply| Ok(value("MGET", reply)?.map(without_expiry)))
                        .collect(),
                    reply => Err(unexpected("MGET", &reply)),
                }
            }
            ExpireTime::Include => self.with_expiry(keys).await,
        }
    }

    /// GET and PTTL of every key, pipelined. A key that expires between its two commands counts
    /// as expired.
    async fn with_expiry(
        &self,
        keys: impl Iterator<Item = String>,
    ) -> Result<Vec<Option<Found>>, StoreError> {
        let mut pipeline = ::redis::pipe();
        for key in keys {
            pipeline.add_command(get(&key));
            pipeline.cmd("PTTL").arg(key);
        }
        let asked = SystemTime::now();
        let replies = self.link.pipeline(&pipeline).await?;
        let mut replies = replies.into_iter();
        let mut found = Vec::with_capacity(replies.len() / 2);
        while let (Some(stored), Some(ttl)) = (replies.next(), replies.next()) {
            let value = value("GET", stored)?;
            found.push(match (value, ttl) {
                (None, _) | (_, Reply::Int(-2)) => None,
                (Some(value), Reply::Int(-1)) => Some(without_expiry(value)),
                (Some(value), Reply::Int(millis)) => Some(Found {
                    value,
                    // Redis counted from a later moment than `asked`, so this is not too late.
                    expire_time: Some(
                        asked + Duration::from_millis(u64::try_from(millis).unwrap_or(0)),
                    ),
                }),
                (Some(_), reply) => return Err(unexpected("PTTL", &reply)),
            });
        }
        Ok(found)
    }
}

fn get(key: &str) -> Cmd {
    let mut get = Cmd::with_capacity(2, key.len() + 3);
    get.arg("GET").arg(key);
    get
}

fn value(command: &str, reply: Reply) -> Result<Option<Value>, StoreError> {
    match reply {
        Reply::Nil => Ok(None),
        Reply::BulkString(stored) => Ok(Some(layout::decode(&stored))),
        reply => Err(unexpected(command, &reply)),
    }
}

fn without_expiry(value: Value) -> Found {
    Found {
        value,
        expire_time: None,
    }
}

fn unexpected(command: &str, reply: &Reply) -> StoreError {
    match reply {
        // An error among the replies of a pipeline.
        Reply::ServerError(error) => link::classify(&error.clone().into()),
        reply => {
            let kind = reply_kind(reply);
            tracing::error!(command, kind, "redis gave an unexpected kind of reply");
            StoreError::Unexpected
        }
    }
}

/// The type of a reply; its content may be a value, which is not for the log.
fn reply_kind(reply: &Reply) -> &'static str {
    match reply {
        Reply::Nil => "nil",
        Reply::Int(_) => "integer",
        Reply::BulkString(_) => "bulk string",
        Reply::Array(_) => "array",
        Reply::SimpleString(_) | Reply::Okay => "simple string",
        Reply::ServerError(_) => "error",
        _ => "other",
    }
}
