//! Unmark, MarkIf and Increment on Redis. What needs a decision between reading and writing is a
//! script, which Redis runs in one step. [`Store`](crate::store::Store) documents them.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use bytes::Bytes;

use super::{
    layout,
    script::{Arity, Script},
    servers::effect::Effect,
    store::RedisStore,
    wire::{
        commands::argument,
        failure,
        resp::{Replies, Reply},
    },
};
use crate::{
    model::{Condition, Counter, Id, Increment, MarkedIf, Namespace, Step, Ttl, TtlPolicy, Value},
    store::failure::{StoreError, WriteError},
};

/// The two forms of a script.
struct ScriptPair {
    /// For namespaces without an index.
    plain: Script,
    /// For indexed namespaces.
    indexed: Script,
}

/// Loads both forms of a script.
macro_rules! script_pair {
    ($file:literal) => {
        LazyLock::new(|| ScriptPair {
            plain: Script::new(include_str!(concat!("scripts/", $file))),
            indexed: Script::new(include_str!(concat!("scripts/indexed/", $file))),
        })
    };
}

static MARK_IF: LazyLock<ScriptPair> = script_pair!("mark_if.lua");
static UNMARK_IF: LazyLock<ScriptPair> = script_pair!("unmark_if.lua");
static INCREMENT: LazyLock<ScriptPair> = script_pair!("increment.lua");

impl RedisStore {
    pub(crate) async fn unmark(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        if_equal: Option<&Value<'_>>,
    ) -> Result<bool, WriteError> {
        let reply = match if_equal {
            None if self.is_indexed(namespace) => {
                return Box::pin(self.unmark_indexed(namespace, id)).await;
            }
            None => {
                let reply = self.request(Effect::Write, namespace, id, |commands| {
                    let out = commands.command(2);
                    argument(out, b"DEL");
                    self.layout.write_key(namespace, id, out);
                });
                reply.await?
            }
            Some(value) => {
                let reply = self.run(&UNMARK_IF, 2, namespace, id, |out| {
                    layout::write_value(value, out);
                    layout::write_foreign_value(value, out);
                });
                reply.await?
            }
        };
        match Replies::new(&reply).next() {
            Some(Reply::Int(removed @ (0 | 1))) => Ok(removed == 1),
            reply => Err(failure::refused("DEL", reply)),
        }
    }

    pub(crate) async fn mark_if(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        value: &Value<'_>,
        ttl: Ttl,
        condition: &Condition<'_>,
    ) -> Result<MarkedIf<'static>, WriteError> {
        // Read before Redis starts to count, so that the promise is never later than the expiry.
        let expire_time = SystemTime::now() + ttl.as_duration();
        let (name, equal): (&[u8], _) = match condition {
            Condition::Always => (b"", None),
            Condition::Absent => (b"absent", None),
            Condition::Present => (b"present", None),
            Condition::Equal(value) => (b"equal", Some(value)),
        };
        let reply = self.run(&MARK_IF, 5, namespace, id, |out| {
            layout::write_value(value, out);
            argument(out, itoa::Buffer::new().format(ttl.as_millis()).as_bytes());
            argument(out, name);
            match equal {
                Some(value) => {
                    layout::write_value(value, out);
                    layout::write_foreign_value(value, out);
                }
                None => {
                    argument(out, b"");
                    argument(out, b"");
                }
            }
        });
        let reply = reply.await?;
        let mut replies = Replies::new(&reply);
        let applied = match (replies.next(), replies.next()) {
            (Some(Reply::Array(2)), Some(Reply::Int(applied @ (0 | 1)))) => applied == 1,
            (reply, _) => return Err(failure::refused("mark_if", reply)),
        };
        let previous = match replies.next() {
            Some(Reply::Nil) => None,
            Some(Reply::Bulk(stored)) => Some(layout::decode(stored).into_owned()),
            reply => return Err(failure::refused("mark_if", reply)),
        };
        Ok(MarkedIf {
            expire_time: applied.then_some(expire_time),
            previous,
        })
    }

    pub(crate) async fn increment(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        increment: &Increment,
    ) -> Result<Counter, WriteError> {
        // Read before Redis answers, so that no expire time is later than the expiry.
        let asked = SystemTime::now();
        let (least, greatest) = increment.range();
        let policy: &[u8] = match increment.policy {
            TtlPolicy::Restart => b"RESTART",
            TtlPolicy::Keep => b"KEEP",
        };
        let reply = self.run(&INCREMENT, 5, namespace, id, |out| {
            let mut number = itoa::Buffer::new();
            argument(out, number.format(increment.delta).as_bytes());
            argument(out, number.format(increment.ttl.as_millis()).as_bytes());
            argument(out, policy);
            argument(out, number.format(least).as_bytes());
            argument(out, number.format(greatest).as_bytes());
        });
        let reply = reply.await?;
        let mut replies = Replies::new(&reply);
        let applied = match (replies.next(), replies.next()) {
            (Some(Reply::Array(1)), Some(Reply::Int(-1))) => {
                return Err(WriteError::not_executed(StoreError::NotAnInteger));
            }
            (Some(Reply::Array(3)), Some(Reply::Int(applied @ (0 | 1)))) => applied == 1,
            (reply, _) => return Err(failure::refused("increment", reply)),
        };
        let value = replies.next();
        let Some(value) = value.as_ref().and_then(Reply::number) else {
            return Err(WriteError::unknown(failure::unexpected("increment", value)));
        };
        // The time that is left is empty without an expiry.
        let left = replies.next().and_then(|left| left.number());
        let left = left.and_then(|millis| u64::try_from(millis).ok());
        if !applied && increment.step(value) == Step::Overflow {
            return Err(WriteError::not_executed(StoreError::CounterOverflow));
        }
        Ok(Counter {
            applied,
            value,
            expire_time: left.map(|millis| asked + Duration::from_millis(millis)),
        })
    }

    /// Runs a script on the key of an id. `write` writes its `arguments` arguments. In an indexed
    /// namespace, the script also gets the key of the index and the id.
    async fn run(
        &self,
        scripts: &ScriptPair,
        arguments: usize,
        namespace: Namespace<'_>,
        id: Id<'_>,
        write: impl Fn(&mut Vec<u8>),
    ) -> Result<Bytes, WriteError> {
        let slot = || self.slot(namespace, id);
        if self.is_indexed(namespace) {
            let arity = Arity {
                keys: 2,
                arguments: arguments + 1,
            };
            let call = self.eval(Effect::Write, &scripts.indexed, arity, slot, |out| {
                self.layout.write_key_and_index(namespace, id, out);
                write(out);
                argument(out, id.as_str().as_bytes());
            });
            return Box::pin(call).await;
        }
        let arity = Arity { keys: 1, arguments };
        self.eval(Effect::Write, &scripts.plain, arity, slot, |out| {
            self.layout.write_key(namespace, id, out);
            write(out);
        })
        .await
    }
}
