//! Count and List on Redis. [`Store`](crate::store::Store) documents them.
//!
//! Both are scripts that take the time by the clock of the server which has the index. So a count is
//! exact for the moment at which the script runs. One server answers for all shards at once. In a
//! cluster the shards are asked one by one, because they are on several nodes.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use bytes::Bytes;

use super::{
    script::{Arity, CallBy, Script, is_unknown_script},
    servers::{
        cluster::{self, Cluster},
        effect::Effect,
    },
    store::{RedisStore, Servers},
    wire::{
        commands::argument,
        failure,
        resp::{Replies, Reply},
    },
};
use crate::{
    model::{INDEX_SHARDS, Namespace, Page, PageStart, RunId},
    store::failure::StoreError,
};

static COUNT: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/indexed/count.lua")));
static LIST: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/indexed/list.lua")));

impl RedisStore {
    pub(crate) async fn count(&self, namespace: Namespace<'_>) -> Result<u64, StoreError> {
        match &self.servers {
            Servers::One(_) => {
                let arity = Arity {
                    keys: INDEX_SHARDS.into(),
                    arguments: 0,
                };
                let reply = self.eval(
                    Effect::Read,
                    &COUNT,
                    arity,
                    || 0,
                    |out| {
                        for shard in 0..INDEX_SHARDS {
                            self.layout.write_index_key(namespace, shard, out);
                        }
                    },
                );
                read_count(&reply.await?)
            }
            Servers::Cluster(cluster) => {
                let mut counts = self.count_each(cluster, namespace).await?;
                for shard in 0..INDEX_SHARDS {
                    let reply = &mut counts[usize::from(shard)];
                    if is_unknown_script(reply) {
                        *reply = self.count_one(namespace, shard).await?;
                    }
                }
                counts.iter().map(|reply| read_count(reply)).sum()
            }
        }
    }

    /// Counts in each shard of a cluster.
    async fn count_each(
        &self,
        cluster: &Cluster,
        namespace: Namespace<'_>,
    ) -> Result<Vec<Bytes>, StoreError> {
        let shards = 0..INDEX_SHARDS;
        let slots: Vec<_> = shards
            .map(|shard| self.index_slot(namespace, shard))
            .collect();
        let replies = cluster.request_each(Effect::Read, &slots, 1, |item, commands| {
            let out = COUNT.write_call(CallBy::Hash, ONE_KEY, commands);
            // There are as many items as shards.
            self.layout.write_index_key(namespace, item as u16, out);
        });
        let replies = Box::pin(replies).await?;
        replies.into_iter().map(|reply| Ok(reply?)).collect()
    }

    async fn count_one(&self, namespace: Namespace<'_>, shard: u16) -> Result<Bytes, StoreError> {
        let slot = || self.index_slot(namespace, shard);
        let reply = self.eval(Effect::Read, &COUNT, ONE_KEY, slot, |out| {
            self.layout.write_index_key(namespace, shard, out);
        });
        Ok(reply.await?)
    }

    pub(crate) async fn list(
        &self,
        namespace: Namespace<'_>,
        size: usize,
        start: Option<PageStart>,
    ) -> Result<Page, StoreError> {
        let mut page = Page {
            ids: Vec::with_capacity(size),
            next: start,
        };
        // A cluster answers for one shard at a time.
        let together = match &self.servers {
            Servers::One(_) => INDEX_SHARDS,
            Servers::Cluster(_) => 1,
        };
        loop {
            let first = page.next.map_or(0, |next| next.shard);
            let shards = first..INDEX_SHARDS.min(first + together);
            let part = PartOfPage {
                shards,
                enough: size - page.ids.len(),
            };
            page.next = self.list_part(namespace, part, &mut page).await?;
            if page.next.is_none() || page.ids.len() >= size || together > 1 {
                return Ok(page);
            }
        }
    }

    /// Adds ids of some shards to a page that begins at `page.next`. Returns where the next part
    /// begins.
    async fn list_part(
        &self,
        namespace: Namespace<'_>,
        part: PartOfPage,
        page: &mut Page,
    ) -> Result<Option<PageStart>, StoreError> {
        let PartOfPage { shards, enough } = part;
        let arity = Arity {
            keys: shards.len(),
            arguments: 3,
        };
        // Read before Redis looks at its clock, so that no expire time is later than the expiry.
        let asked = SystemTime::now();
        let slot = || self.index_slot(namespace, shards.start);
        let reply = self.eval(Effect::Read, &LIST, arity, slot, |out| {
            for shard in shards.clone() {
                self.layout.write_index_key(namespace, shard, out);
            }
            let (cursor, run_id) = page
                .next
                .map_or((0, None), |start| (start.cursor, Some(start.run_id)));
            argument(out, itoa::Buffer::new().format(enough).as_bytes());
            argument(out, itoa::Buffer::new().format(cursor).as_bytes());
            argument(
                out,
                run_id.map(RunId::to_hex).unwrap_or_default().as_bytes(),
            );
        });
        let reply = reply.await?;
        let mut replies = Replies::new(&reply);
        let Some(Reply::Array(5)) = replies.next() else {
            return Err(failure::unexpected("list", Replies::new(&reply).next()));
        };
        read_part(&mut replies, asked, &shards, page)
            .ok_or_else(|| failure::unexpected("list", None))
    }

    fn index_slot(&self, namespace: Namespace<'_>, shard: u16) -> u16 {
        cluster::slot(&self.layout.index_key(namespace, shard))
    }
}

const ONE_KEY: Arity = Arity {
    keys: 1,
    arguments: 0,
};

/// What one command lists.
struct PartOfPage {
    shards: std::ops::Range<u16>,
    /// How many ids are enough.
    enough: usize,
}

fn read_count(reply: &[u8]) -> Result<u64, StoreError> {
    match Replies::new(reply).next() {
        Some(Reply::Int(count @ 0..)) => Ok(count.unsigned_abs()),
        reply => Err(failure::unexpected("count", reply)),
    }
}

/// Reads what the script has found, and adds the ids that are still marked to the page. Returns
/// where the next part begins, or `None` for a reply that makes no sense.
#[expect(clippy::option_option, reason = "the outer one is about the reply")]
fn read_part(
    replies: &mut Replies<'_>,
    asked: SystemTime,
    shards: &std::ops::Range<u16>,
    page: &mut Page,
) -> Option<Option<PageStart>> {
    let run_id = RunId::parse(replies.next()?.text()?)?;
    let now = replies.next()?.text()?.parse::<i64>().ok()?;
    let passed = replies.next()?.text()?.parse::<u16>().ok()?;
    // Cursors have all 64 bits.
    let cursor = replies.next()?.text()?.parse::<u64>().ok()?;
    let Reply::Array(length) = replies.next()? else {
        return None;
    };
    for _ in 0..length / 2 {
        let (id, score) = (replies.next()?, replies.next()?.text()?);
        let expire_time = match score {
            "inf" => None,
            score => {
                let left = score.parse::<i64>().ok()? - now;
                // What has expired is in the index until the next sweep.
                let Ok(left) = u64::try_from(left) else {
                    continue;
                };
                Some(asked + Duration::from_millis(left))
            }
        };
        page.ids.push((id.text()?.into(), expire_time));
    }
    let shard = shards.start + passed;
    Some((shard < INDEX_SHARDS).then_some(PageStart {
        shard,
        run_id,
        cursor,
    }))
}
