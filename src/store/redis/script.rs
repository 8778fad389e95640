//! Calls of scripts.
//!
//! A script is called by its hash. A Redis that does not know the script, as after a restart or a
//! failover, gets the whole text. It has not run the script then, so this repeats nothing.

use bytes::Bytes;
use ring::digest;

use super::{
    servers::effect::Effect,
    store::RedisStore,
    wire::commands::{Commands, argument},
};
use crate::store::failure::WriteError;

/// A script, and the hash by which Redis knows it.
#[derive(Debug)]
pub(super) struct Script {
    text: &'static str,
    hash: String,
}

/// Whether to call a script by its hash or by its text.
#[derive(Debug, Clone, Copy)]
pub(super) enum CallBy {
    Hash,
    Text,
}

/// How many parts a call has besides the script.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arity {
    /// How many keys.
    pub(super) keys: usize,
    /// How many arguments after the keys.
    pub(super) arguments: usize,
}

impl Script {
    pub(super) fn new(text: &'static str) -> Self {
        // Redis's choice of hash. Nothing depends on its being secure.
        let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        let hash = hash.as_ref().iter().map(|byte| format!("{byte:02x}"));
        Self {
            text,
            hash: hash.collect(),
        }
    }

    /// Writes a call up to its keys. The caller then writes the keys and the arguments.
    pub(super) fn write_call<'a>(
        &self,
        by: CallBy,
        arity: Arity,
        commands: &'a mut Commands<'_>,
    ) -> &'a mut Vec<u8> {
        let Arity { keys, arguments } = arity;
        let out = commands.command(3 + keys + arguments);
        match by {
            CallBy::Hash => {
                argument(out, b"EVALSHA");
                argument(out, self.hash.as_bytes());
            }
            CallBy::Text => {
                argument(out, b"EVAL");
                argument(out, self.text.as_bytes());
            }
        }
        argument(out, itoa::Buffer::new().format(keys).as_bytes());
        out
    }
}

/// Whether Redis does not know the script that it was asked to run.
pub(super) fn is_unknown_script(reply: &[u8]) -> bool {
    reply.starts_with(b"-NOSCRIPT")
}

impl RedisStore {
    /// Runs a script, whose keys are all in `slot`. `write` writes its keys and arguments.
    pub(super) async fn eval(
        &self,
        effect: Effect,
        script: &Script,
        arity: Arity,
        slot: impl Fn() -> u16,
        write: impl Fn(&mut Vec<u8>),
    ) -> Result<Bytes, WriteError> {
        let call = |by| {
            let (slot, write) = (&slot, &write);
            self.request_at(effect, slot, move |commands: &mut Commands<'_>| {
                write(script.write_call(by, arity, commands));
            })
        };
        let reply = call(CallBy::Hash).await?;
        if is_unknown_script(&reply) {
            return Box::pin(call(CallBy::Text)).await;
        }
        Ok(reply)
    }
}
