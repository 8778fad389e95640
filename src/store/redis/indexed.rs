//! Mark, Unmark, BatchMark, BatchUnmark and Touch in indexed namespaces, where a value and its place
//! in the index change in one step. [`Store`](crate::store::Store) documents them.
//!
//! Mark and Unmark are transactions, which cost Redis less than scripts. A Mark then names the time of
//! its expiry by the estimate of Redis's clock. Without an estimate, it is a script, which looks at
//! the clock itself. Touch has to read first, so it always is a script.

use std::{sync::LazyLock, time::SystemTime};

use bytes::Bytes;

use super::{
    batches::EachReply,
    layout,
    script::{Arity, CallBy, Script, is_unknown_script},
    servers::effect::Effect,
    store::{RedisStore, Servers},
    wire::{
        commands::{Commands, argument},
        failure,
        resp::{Replies, Reply, Scanner},
        transaction,
    },
};
use crate::{
    model::{Id, MarkItem, Namespace, Ttl, Value},
    store::failure::{Outcome, StoreError, WriteError},
};

static MARK: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/indexed/mark.lua")));
/// For a Redis that has no memory left. It refuses transactions, and removes all the same.
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
        let item = MarkItem {
            id,
            value: value.borrowed(),
            ttl,
        };
        let slot = || self.slot(namespace, id);
        let reply = self.request_at(Effect::Transactions, slot, |commands| {
            self.write_mark(namespace, &item, commands);
        });
        let mut results = transaction::results(reply.await?)?;
        if is_unknown_script(&results) {
            results = Box::pin(self.mark_by_script(namespace, &item)).await?;
        }
        match Replies::new(&results).next() {
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
        let reply = self.request_at(Effect::Transactions, slot, |commands| {
            self.write_unmark(namespace, id, commands);
        });
        let result = match transaction::results(reply.await?) {
            Err(OUT_OF_MEMORY) => {
                let removed = self.eval(Effect::Write, &UNMARK, arity(1), slot, |out| {
                    self.layout.write_key_and_index(namespace, id, out);
                    argument(out, id.as_str().as_bytes());
                });
                Box::pin(removed).await?
            }
            result => result?,
        };
        match Replies::new(&result).next() {
            Some(Reply::Int(removed @ (0 | 1))) => Ok(removed == 1),
            reply => Err(failure::refused("unmark", reply)),
        }
    }

    /// Each reply begins with that of a SET.
    pub(super) async fn batch_mark_indexed(
        &self,
        namespace: Namespace<'_>,
        items: &[MarkItem<'_>],
    ) -> Result<EachReply, WriteError> {
        let ids: Vec<_> = items.iter().map(|item| item.id).collect();
        let results = self.transact_each(namespace, &ids, |at, commands| {
            self.write_mark(namespace, &items[at], commands);
        });
        let results = results.await?;
        let results = repeat_some(results, is_unknown, async |which| {
            self.eval_each(&MARK, 3, namespace, &ids, which, |at, out| {
                write_mark_arguments(&items[at], out);
            })
            .await
        });
        Ok(EachReply::Apart(results.await))
    }

    /// Each reply begins with that of a DEL.
    pub(super) async fn batch_unmark_indexed(
        &self,
        namespace: Namespace<'_>,
        ids: &[Id<'_>],
    ) -> Result<EachReply, WriteError> {
        let results = self.transact_each(namespace, ids, |at, commands| {
            self.write_unmark(namespace, ids[at], commands);
        });
        let results = results.await?;
        let is_refused = |result: &_| *result == Err(OUT_OF_MEMORY);
        let results = repeat_some(results, is_refused, async |which| {
            self.eval_each(&UNMARK, 1, namespace, ids, which, |at, out| {
                argument(out, ids[at].as_str().as_bytes());
            })
            .await
        });
        Ok(EachReply::Apart(results.await))
    }

    /// Writes a transaction that marks an id. The first of its two results is that of SET.
    fn write_mark(
        &self,
        namespace: Namespace<'_>,
        item: &MarkItem<'_>,
        commands: &mut Commands<'_>,
    ) {
        let MarkItem { id, value, ttl } = item;
        let now = commands.latest_server_millis();
        transaction::write(commands, |commands| match now {
            Some(now) => {
                let mut number = itoa::Buffer::new();
                let expiry = number
                    .format(now.saturating_add(ttl.as_millis()))
                    .as_bytes();
                let out = commands.command(5);
                argument(out, b"SET");
                self.layout.write_key(namespace, *id, out);
                layout::write_value(value, out);
                argument(out, b"PXAT");
                argument(out, expiry);
                let out = commands.command(4);
                argument(out, b"ZADD");
                self.layout
                    .write_index_key(namespace, layout::shard(*id), out);
                argument(out, expiry);
                argument(out, id.as_str().as_bytes());
            }
            // Redis looks at its own clock. PING makes the replies as many as above.
            None => {
                let out = MARK.write_call(CallBy::Hash, arity(3), commands);
                self.layout.write_key_and_index(namespace, *id, out);
                write_mark_arguments(item, out);
                commands.whole(&[b"PING"]);
            }
        });
    }

    /// Marks an id with the script.
    async fn mark_by_script(
        &self,
        namespace: Namespace<'_>,
        item: &MarkItem<'_>,
    ) -> Result<Bytes, WriteError> {
        let slot = || self.slot(namespace, item.id);
        self.eval(Effect::Write, &MARK, arity(3), slot, |out| {
            self.layout.write_key_and_index(namespace, item.id, out);
            write_mark_arguments(item, out);
        })
        .await
    }

    /// Writes a transaction that removes an id. The first of its two results is that of DEL.
    fn write_unmark(&self, namespace: Namespace<'_>, id: Id<'_>, commands: &mut Commands<'_>) {
        transaction::write(commands, |commands| {
            let out = commands.command(2);
            argument(out, b"DEL");
            self.layout.write_key(namespace, id, out);
            let out = commands.command(3);
            argument(out, b"ZREM");
            self.layout
                .write_index_key(namespace, layout::shard(id), out);
            argument(out, id.as_str().as_bytes());
        });
    }

    /// Sends a transaction for each id. Returns the two results of each.
    async fn transact_each(
        &self,
        namespace: Namespace<'_>,
        ids: &[Id<'_>],
        encode: impl Fn(usize, &mut Commands<'_>),
    ) -> Result<EachResult, WriteError> {
        let batch = WriteBatch {
            namespace,
            ids,
            which: &everything(ids),
            effect: Effect::Transactions,
            replies: transaction::REPLIES,
        };
        let replies = self.write_apart(batch, encode).await?.into_iter();
        let results = replies.map(|reply| reply.and_then(transaction::results));
        Ok(results.collect())
    }

    /// Each reply is that of a GETEX.
    pub(super) async fn touch_indexed(
        &self,
        namespace: Namespace<'_>,
        ids: &[Id<'_>],
        ttl: Ttl,
    ) -> Result<EachReply, WriteError> {
        let which = everything(ids);
        let replies = self.eval_each(&TOUCH, 2, namespace, ids, &which, |at, out| {
            argument(out, itoa::Buffer::new().format(ttl.as_millis()).as_bytes());
            argument(out, ids[at].as_str().as_bytes());
        });
        Ok(EachReply::Apart(replies.await?))
    }

    /// Runs a script for the ids at some places, with the key of the id and the key of its index.
    /// `write` writes the arguments.
    async fn eval_each(
        &self,
        script: &Script,
        arguments: usize,
        namespace: Namespace<'_>,
        ids: &[Id<'_>],
        which: &[usize],
        write: impl Fn(usize, &mut Vec<u8>),
    ) -> Result<EachResult, WriteError> {
        let call = async |by, which: &[usize]| {
            let batch = WriteBatch {
                namespace,
                ids,
                which,
                effect: Effect::Write,
                replies: 1,
            };
            self.write_apart(batch, |at, commands| {
                let out = script.write_call(by, arity(arguments), commands);
                self.layout.write_key_and_index(namespace, ids[at], out);
                write(at, out);
            })
            .await
        };
        let replies = call(CallBy::Hash, which).await?;
        let replies = repeat_some(replies, is_unknown, async |unknown| {
            let unknown: Vec<_> = unknown.iter().map(|at| which[*at]).collect();
            call(CallBy::Text, &unknown).await
        });
        Ok(replies.await)
    }

    /// Sends what `encode` writes for each of some ids. Returns the replies of each of them.
    async fn write_apart(
        &self,
        batch: WriteBatch<'_>,
        encode: impl Fn(usize, &mut Commands<'_>),
    ) -> Result<EachResult, WriteError> {
        let WriteBatch {
            namespace,
            ids,
            which,
            effect,
            replies,
        } = batch;
        match &self.servers {
            Servers::One(link) => {
                let request = link.request(effect, |commands| {
                    for at in which {
                        encode(*at, commands);
                    }
                });
                let mut reply = request.await?;
                let cut = which.iter().map(|_| {
                    let length = Scanner::new(replies).scan(&reply).ok().flatten();
                    let length =
                        length.ok_or_else(|| WriteError::unknown(StoreError::Unexpected))?;
                    Ok(reply.split_to(length))
                });
                Ok(cut.collect())
            }
            Servers::Cluster(cluster) => {
                let slots = which.iter().map(|at| self.slot(namespace, ids[*at]));
                let slots: Vec<_> = slots.collect();
                let encode = |at: usize, commands: &mut Commands<'_>| encode(which[at], commands);
                let replies = cluster.request_each(effect, &slots, replies, encode);
                Box::pin(replies).await.map_err(WriteError::not_executed)
            }
        }
    }
}

/// The replies for each of many ids.
type EachResult = Vec<Result<Bytes, WriteError>>;

/// Which ids to write, and how.
struct WriteBatch<'a> {
    namespace: Namespace<'a>,
    ids: &'a [Id<'a>],
    /// The places of the ids in `ids`.
    which: &'a [usize],
    effect: Effect,
    /// How many replies each of them gets.
    replies: usize,
}

/// Redis has no memory left, and has refused a write.
const OUT_OF_MEMORY: WriteError = WriteError {
    error: StoreError::OutOfMemory,
    outcome: Outcome::NotExecuted,
};

/// A script of this file has two keys.
fn arity(arguments: usize) -> Arity {
    Arity { keys: 2, arguments }
}

fn write_mark_arguments(item: &MarkItem<'_>, out: &mut Vec<u8>) {
    let MarkItem { id, value, ttl } = item;
    layout::write_value(value, out);
    argument(out, itoa::Buffer::new().format(ttl.as_millis()).as_bytes());
    argument(out, id.as_str().as_bytes());
}

fn everything(ids: &[Id<'_>]) -> Vec<usize> {
    (0..ids.len()).collect()
}

/// Whether Redis has not run a script because it does not know the script.
fn is_unknown(result: &Result<Bytes, WriteError>) -> bool {
    result.as_ref().is_ok_and(|reply| is_unknown_script(reply))
}

/// Repeats the writes whose results say that Redis has not executed them. `repeat` gets the places of
/// these results, and returns new ones.
async fn repeat_some(
    mut results: EachResult,
    is_refused: impl Fn(&Result<Bytes, WriteError>) -> bool,
    repeat: impl AsyncFnOnce(&[usize]) -> Result<EachResult, WriteError>,
) -> EachResult {
    let places = 0..results.len();
    let places: Vec<_> = places.filter(|at| is_refused(&results[*at])).collect();
    if places.is_empty() {
        return results;
    }
    let again = Box::pin(repeat(&places)).await;
    let again = again.unwrap_or_else(|failed| vec![Err(failed); places.len()]);
    for (place, result) in places.into_iter().zip(again) {
        results[place] = result;
    }
    results
}
