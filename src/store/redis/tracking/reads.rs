//! Reads of many keys with their times to live.

use std::{sync::Arc, time::Duration};

use futures_util::future::{join, join_all};

use super::super::{
    layout::{self, KeyLayout},
    servers::{
        cluster::{Cluster, slot},
        effect::Effect,
    },
    wire::{
        commands::Commands,
        failure,
        pipe::Pipe,
        resp::{Replies, Reply},
    },
};
use crate::{
    model::{INDEX_SHARDS, Namespace},
    store::{changes::Reading, failure::StoreError},
};

/// Reads keys.
#[derive(Clone)]
pub(crate) enum RedisReader {
    /// Over the connection beside the one that tracks.
    One(Pipe, KeyLayout),
    /// Over links of its own to all nodes.
    Cluster(Cluster, KeyLayout),
}

impl RedisReader {
    /// Reads GET and PTTL of each key. They are not read in one step: a change between the two is
    /// pushed like any other, and has the key read again.
    pub(crate) async fn read(self, keys: &[Arc<[u8]>]) -> Vec<Reading> {
        match self {
            Self::One(pipe, _) => match read_all(&pipe, keys).await {
                Ok(readings) => readings,
                Err(error) => keys.iter().map(|_| Err(error)).collect(),
            },
            Self::Cluster(cluster, _) => {
                join_all(keys.iter().map(|key| read_from(&cluster, key))).await
            }
        }
    }
}

impl RedisReader {
    /// Lists an indexed namespace by its index, shard by shard.
    pub(crate) async fn list(
        self,
        namespace: &str,
        max: usize,
    ) -> Result<Vec<Box<str>>, StoreError> {
        let (Self::One(_, layout) | Self::Cluster(_, layout)) = &self;
        let namespace = Namespace::try_from(namespace).map_err(|_| StoreError::Unexpected)?;
        let mut ids = Vec::new();
        for shard in 0..INDEX_SHARDS {
            let key = layout.index_key(namespace, shard);
            // One more than allowed says that there are too many.
            let last = (max - ids.len()).to_string();
            let encode = |commands: &mut Commands<'_>| {
                commands.whole(&[b"ZRANGE", &key, b"0", last.as_bytes()]);
            };
            let reply = match &self {
                Self::One(pipe, _) => pipe.request(encode)?.await?,
                Self::Cluster(cluster, _) => {
                    cluster.request(Effect::Read, slot(&key), encode).await?
                }
            };
            let mut replies = Replies::new(&reply);
            match replies.next() {
                Some(Reply::Array(_)) => {}
                reply => return Err(failure::unexpected("ZRANGE", reply)),
            }
            ids.extend(replies.filter_map(|id| Some(id.text()?.into())));
            if ids.len() > max {
                break;
            }
        }
        Ok(ids)
    }
}

async fn read_all(pipe: &Pipe, keys: &[Arc<[u8]>]) -> Result<Vec<Reading>, StoreError> {
    let request = pipe.request(|commands| {
        for key in keys {
            write(key, commands);
        }
    });
    let reply = request?.await?;
    let mut replies = Replies::new(&reply);
    Ok(keys.iter().map(|_| reading(&mut replies)).collect())
}

/// Reads one key from the node that has it. In a transaction, because a slot that moves would
/// otherwise be asked for only one of the two commands.
async fn read_from(cluster: &Cluster, key: &[u8]) -> Reading {
    let (read, slot) = (Effect::Read, slot(key));
    let request = cluster.request(read, slot, |commands| {
        commands.transaction(|commands| write(key, commands));
    });
    let reply = request.await?;
    let mut replies = Replies::new(&reply);
    match replies.executed(2) {
        Ok(()) => reading(&mut replies),
        Err(refused) => match failure::unexpected("EXEC", refused) {
            // Without memory, Redis refuses transactions and serves the same commands alone.
            StoreError::OutOfMemory => {
                let get = cluster.request(read, slot, |commands| commands.whole(&[b"GET", key]));
                let pttl = cluster.request(read, slot, |commands| commands.whole(&[b"PTTL", key]));
                let (value, left) = join(get, pttl).await;
                reading(&mut Replies::new(&[value?, left?].concat()))
            }
            error => Err(error),
        },
    }
}

fn write(key: &[u8], commands: &mut Commands<'_>) {
    commands.whole(&[b"GET", key]);
    commands.whole(&[b"PTTL", key]);
}

/// Reads the replies to GET and PTTL of one key.
fn reading(replies: &mut Replies<'_>) -> Reading {
    let (value, left) = (replies.next(), replies.next());
    let value = match value {
        Some(Reply::Bulk(stored)) => layout::decode(stored).into_owned(),
        Some(Reply::Nil) => return Ok(None),
        reply => {
            // A key of another type holds no value.
            return match failure::unexpected("GET", reply) {
                StoreError::WrongType => Ok(None),
                error => Err(error),
            };
        }
    };
    match left {
        // The value expired between GET and PTTL.
        Some(Reply::Int(-2)) => Ok(None),
        Some(Reply::Int(left)) => {
            let left = u64::try_from(left).ok().map(Duration::from_millis);
            Ok(Some((value, left)))
        }
        reply => Err(failure::unexpected("PTTL", reply)),
    }
}

impl std::fmt::Debug for RedisReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisReader").finish_non_exhaustive()
    }
}
