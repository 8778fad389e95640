//! Unmark, MarkIf and Increment on Redis. What needs a decision between reading and writing is a
//! script, which Redis runs in one step. [`Store`](crate::store::Store) documents them.
//!
//! A script is called by its hash. A Redis that does not know the script, as after a restart or a
//! failover, gets the whole text.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use ring::digest;

use super::{
    layout,
    servers::link::Effect,
    store::RedisStore,
    wire::{
        commands::{Commands, argument},
        failure,
        resp::{Replies, Reply},
    },
};
use crate::{
    model::{Condition, Counter, Id, Increment, MarkedIf, Namespace, Step, Ttl, TtlPolicy, Value},
    store::failure::{StoreError, WriteError},
};

static MARK_IF: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/mark_if.lua")));
static UNMARK_IF: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/unmark_if.lua")));
static INCREMENT: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/increment.lua")));

impl RedisStore {
    pub(crate) async fn unmark(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        if_equal: Option<&Value<'_>>,
    ) -> Result<bool, WriteError> {
        let reply = match if_equal {
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

    /// Runs a script on the key of an id. `write` writes its `arguments` arguments.
    async fn run(
        &self,
        script: &Script,
        arguments: usize,
        namespace: Namespace<'_>,
        id: Id<'_>,
        write: impl Fn(&mut Vec<u8>),
    ) -> Result<Bytes, WriteError> {
        let call = |name: &[u8], script: &[u8], commands: &mut Commands<'_>| {
            let out = commands.command(4 + arguments);
            argument(out, name);
            argument(out, script);
            argument(out, b"1");
            self.layout.write_key(namespace, id, out);
            write(out);
        };
        let by_hash = |commands: &mut Commands<'_>| {
            call(b"EVALSHA", script.hash.as_bytes(), commands);
        };
        let reply = self.request(Effect::Write, namespace, id, by_hash).await?;
        if !reply.starts_with(b"-NOSCRIPT") {
            return Ok(reply);
        }
        // Redis has not run the script, so this repeats nothing.
        let by_text = |commands: &mut Commands<'_>| {
            call(b"EVAL", script.text.as_bytes(), commands);
        };
        Box::pin(self.request(Effect::Write, namespace, id, by_text)).await
    }
}

/// A script, and the hash by which Redis knows it.
struct Script {
    text: &'static str,
    hash: String,
}

impl Script {
    fn new(text: &'static str) -> Self {
        // Redis's choice of hash. Nothing depends on its being secure.
        let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        let hash = hash.as_ref().iter().map(|byte| format!("{byte:02x}"));
        Self {
            text,
            hash: hash.collect(),
        }
    }
}
