//! Removes from the indexes what has expired. Redis removes expired values by itself, but it does not
//! know what the members of an index mean. In the same step it counts what has not expired, for
//! `/metrics`.
//!
//! Each process sweeps every shard about every ten seconds. Several processes do no harm, because
//! the second one finds nothing. Nobody waits for the sweep: Count and List look at the expiry of
//! each id.

use std::{sync::LazyLock, time::Duration};

use tokio::time::sleep;

use super::{
    script::{Arity, Script},
    servers::{cluster, effect::Effect},
    store::RedisStore,
    wire::{
        commands::argument,
        failure,
        resp::{Replies, Reply},
    },
};
use crate::{
    model::{INDEX_SHARDS, Namespace},
    store::{failure::StoreError, status::StoreStatus, sweeps::Swept},
};

static TRIM: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/indexed/trim.lua")));

/// How often each shard is swept.
const INTERVAL: Duration = Duration::from_secs(10);
/// The most ids that one step removes. Redis serves nobody else meanwhile.
const MAX_STEP: u64 = 1000;
/// The pause between two steps in one shard, so that calls come in between.
const BETWEEN_STEPS: Duration = Duration::from_millis(5);

/// Sweeps for as long as it is polled.
pub(super) async fn run(store: RedisStore, status: StoreStatus) {
    let names: Vec<String> = store.layout.indexed.names().map(str::to_owned).collect();
    let visits = names.len() * usize::from(INDEX_SHARDS);
    let Ok(visits) = u32::try_from(visits) else {
        return;
    };
    let mut eviction_checked = false;
    loop {
        if !eviction_checked {
            eviction_checked = store.check_eviction(&names[0]).await.is_ok();
        }
        for name in &names {
            let Ok(namespace) = Namespace::try_from(name.as_str()) else {
                continue;
            };
            for shard in 0..INDEX_SHARDS {
                // Jitter, so that processes do not sweep the same shard together.
                sleep((INTERVAL / visits).mul_f64(0.5 + fastrand::f64())).await;
                // After a failure, the shard is swept in the next round.
                loop {
                    let step = store.trim(namespace, shard).await;
                    status.sweeps.record(namespace, shard, &step);
                    if step.is_ok_and(|swept| swept.removed == MAX_STEP) {
                        sleep(BETWEEN_STEPS).await;
                    } else {
                        break;
                    }
                }
            }
        }
    }
}

impl RedisStore {
    /// Warns if Redis may evict an index. Count and List would then miss a whole shard.
    async fn check_eviction(&self, name: &str) -> Result<(), StoreError> {
        let Ok(namespace) = Namespace::try_from(name) else {
            return Ok(());
        };
        let slot = || cluster::slot(&self.layout.index_key(namespace, 0));
        let reply = self.request_at(Effect::Read, slot, |commands| {
            commands.whole(&[b"INFO", b"memory"]);
        });
        let reply = reply.await?;
        let info = Replies::new(&reply).next();
        let info = info.as_ref().and_then(Reply::text).unwrap_or_default();
        let mut lines = info.lines();
        let policy = lines.find_map(|line| line.strip_prefix("maxmemory_policy:"));
        if let Some(policy) = policy.filter(|policy| policy.starts_with("allkeys")) {
            tracing::warn!(
                policy,
                "redis may evict the index of an indexed namespace, and ids would be missing from \
                 Count and List; a volatile policy or noeviction keeps the index"
            );
        }
        Ok(())
    }

    /// Removes expired ids from the index of a shard, and counts the others.
    async fn trim(&self, namespace: Namespace<'_>, shard: u16) -> Result<Swept, StoreError> {
        let slot = || cluster::slot(&self.layout.index_key(namespace, shard));
        let arity = Arity {
            keys: 1,
            arguments: 1,
        };
        let reply = self.eval(Effect::Write, &TRIM, arity, slot, |out| {
            self.layout.write_index_key(namespace, shard, out);
            argument(out, itoa::Buffer::new().format(MAX_STEP).as_bytes());
        });
        let reply = reply.await?;
        let mut replies = Replies::new(&reply);
        match (replies.next(), replies.next(), replies.next()) {
            (
                Some(Reply::Array(2)),
                Some(Reply::Int(removed @ 0..)),
                Some(Reply::Int(marked @ 0..)),
            ) => Ok(Swept {
                removed: removed.unsigned_abs(),
                marked: marked.unsigned_abs(),
            }),
            (reply, ..) => Err(failure::unexpected("trim", reply)),
        }
    }
}
