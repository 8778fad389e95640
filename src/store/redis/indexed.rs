//! Mark, Unmark, BatchMark, BatchUnmark and Touch in indexed namespaces, where a value and its place
//! in the index change in one step. [`Store`](crate::store::Store) documents them.

use std::{sync::LazyLock, time::SystemTime};

use bytes::Bytes;

use super::{
    batches::EachReply,
    layout,
    script::{Arity, CallBy, Script, is_unknown_script},
    servers::link::Effect,
    store::{RedisStore, Servers},
    wire::{
        commands::{Commands, argument},
        failure,
        resp::{Replies, Reply, Scanner},
    },
};
use crate::{
    model::{Id, MarkItem, Namespace, Ttl, Value},
    store::failure::{StoreError, WriteError},
};

static MARK: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/indexed/mark.lua")));
static UNMARK: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/indexed/unmark.lua")));
static TOUCH: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/indexed/touch.lua")));

impl RedisStore {
    pub(super) async fn mark_indexed(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        value: &Value<'_>,
        ttl: Ttl,
    ) -> Result<SystemTime, WriteError> {
        // Read before Redis starts to count, so that the promise is never later than the expiry.
        let expire_time = SystemTime::now() + ttl.as_duration();
        let slot = || self.slot(namespace, id);
        let reply = self.eval(Effect::Write, &MARK, arity(3), slot, |out| {
            self.layout.write_key_and_index(namespace, id, out);
            write_mark(id, value, ttl, out);
        });
        match Replies::new(&reply.await?).next() {
            Some(Reply::Status(b"OK")) => Ok(expire_time),
            reply => Err(failure::refused("mark", reply)),
        }
    }

    pub(super) async fn unmark_indexed(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
    ) -> Result<bool, WriteError> {
        let slot = || self.slot(namespace, id);
        let reply = self.eval(Effect::Write, &UNMARK, arity(1), slot, |out| {
            self.layout.write_key_and_index(namespace, id, out);
            argument(out, id.as_str().as_bytes());
        });
        match Replies::new(&reply.await?).next() {
            Some(Reply::Int(removed @ (0 | 1))) => Ok(removed == 1),
            reply => Err(failure::refused("unmark", reply)),
        }
    }

    /// Each reply is that of a SET.
    pub(super) async fn batch_mark_indexed(
        &self,
        namespace: Namespace<'_>,
        items: &[MarkItem<'_>],
    ) -> Result<EachReply, WriteError> {
        let ids: Vec<_> = items.iter().map(|item| item.id).collect();
        self.eval_each(&MARK, 3, namespace, &ids, |at, out| {
            let MarkItem { id, value, ttl } = &items[at];
            write_mark(*id, value, *ttl, out);
        })
        .await
    }

    /// Each reply is that of a DEL.
    pub(super) async fn batch_unmark_indexed(
        &self,
        namespace: Namespace<'_>,
        ids: &[Id<'_>],
    ) -> Result<EachReply, WriteError> {
        self.eval_each(&UNMARK, 1, namespace, ids, |at, out| {
            argument(out, ids[at].as_str().as_bytes());
        })
        .await
    }

    /// Each reply is that of a GETEX.
    pub(super) async fn touch_indexed(
        &self,
        namespace: Namespace<'_>,
        ids: &[Id<'_>],
        ttl: Ttl,
    ) -> Result<EachReply, WriteError> {
        self.eval_each(&TOUCH, 2, namespace, ids, |at, out| {
            argument(out, itoa::Buffer::new().format(ttl.as_millis()).as_bytes());
            argument(out, ids[at].as_str().as_bytes());
        })
        .await
    }

    /// Runs a script for each id, with the key of the id and the key of its index. `write` writes the
    /// arguments.
    async fn eval_each(
        &self,
        script: &Script,
        arguments: usize,
        namespace: Namespace<'_>,
        ids: &[Id<'_>],
        write: impl Fn(usize, &mut Vec<u8>),
    ) -> Result<EachReply, WriteError> {
        let everything: Vec<_> = (0..ids.len()).collect();
        let call = async |by, which: &[usize]| {
            self.write_apart(namespace, ids, which, |at, commands| {
                let out = script.write_call(by, arity(arguments), commands);
                self.layout.write_key_and_index(namespace, ids[at], out);
                write(at, out);
            })
            .await
        };
        let mut replies = call(CallBy::Hash, &everything).await?;
        let is_unknown = |at: &usize| replies[*at].as_ref().is_ok_and(|it| is_unknown_script(it));
        let unknown: Vec<_> = everything.into_iter().filter(is_unknown).collect();
        if !unknown.is_empty() {
            // Only these have not been run.
            let again = Box::pin(call(CallBy::Text, &unknown)).await;
            match again {
                Ok(again) => {
                    for (at, reply) in unknown.into_iter().zip(again) {
                        replies[at] = reply;
                    }
                }
                Err(failed) => unknown.into_iter().for_each(|at| replies[at] = Err(failed)),
            }
        }
        Ok(EachReply::Apart(replies))
    }

    /// Sends one command for each of `which` of the ids. Returns one reply for each of these.
    async fn write_apart(
        &self,
        namespace: Namespace<'_>,
        ids: &[Id<'_>],
        which: &[usize],
        encode: impl Fn(usize, &mut Commands<'_>),
    ) -> Result<Vec<Result<Bytes, WriteError>>, WriteError> {
        match &self.servers {
            Servers::One(link) => {
                let request = link.request(Effect::Write, |commands| {
                    for at in which {
                        encode(*at, commands);
                    }
                });
                let mut reply = request.await?;
                let cut = which.iter().map(|_| {
                    let length = Scanner::new(1).scan(&reply).ok().flatten();
                    let length =
                        length.ok_or_else(|| WriteError::unknown(StoreError::Unexpected))?;
                    Ok(reply.split_to(length))
                });
                Ok(cut.collect())
            }
            Servers::Cluster(cluster) => {
                let slots: Vec<_> = which
                    .iter()
                    .map(|at| self.slot(namespace, ids[*at]))
                    .collect();
                let encode = |at: usize, commands: &mut Commands<'_>| {
                    encode(which[at], commands);
                };
                let replies = Box::pin(cluster.request_each(Effect::Write, &slots, 1, encode));
                replies.await.map_err(WriteError::not_executed)
            }
        }
    }
}

/// A script of this file has two keys.
fn arity(arguments: usize) -> Arity {
    Arity { keys: 2, arguments }
}

fn write_mark(id: Id<'_>, value: &Value<'_>, ttl: Ttl, out: &mut Vec<u8>) {
    layout::write_value(value, out);
    argument(out, itoa::Buffer::new().format(ttl.as_millis()).as_bytes());
    argument(out, id.as_str().as_bytes());
}
