//! Redis Cluster: which node has which key, and a supervised link to every master.
//!
//! A key belongs to one of 16,384 slots, and a slot to one master. The nodes themselves tell the
//! map of slots; they are asked now and then, and at once when a link breaks or a node redirects
//! us. MOVED changes the map. ASK sends one request elsewhere while a slot is on its way. A batch
//! is grouped by node, with one pipelined request to each. If a key cannot be read, the call fails:
//! a key is never taken for absent because its node is.
//!
//! Nodes fail one by one, so each has its own link. A node that hangs delays nobody who wants
//! another one.
//!
//! | module | what it has |
//! |---|---|
//! | [`slots`] | the map of slots, and the nodes |
//! | [`redirect`] | MOVED and ASK |
//! | [`refresh`] | the task that keeps the map right |
//! | [`view`] | what one node says about the cluster |
//!
//! Source: <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>

mod redirect;
mod refresh;
mod slots;
mod view;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use redis::ConnectionAddr;
use tokio::time::{Instant, timeout_at};

pub(crate) use self::slots::slot;
use self::{
    redirect::Redirect,
    refresh::MapRefresh,
    slots::{Node, Topology},
};
use super::{
    super::wire::{commands::Commands, connect::Connector, resp::Scanner},
    effect::Effect,
    link::Report,
    links::Links,
    task::AbortOnDrop,
};
use crate::store::failure::{StoreError, WriteError};

/// How often one request may be sent elsewhere.
const MAX_REDIRECTS: usize = 5;

/// A handle to the cluster. Clones share it. Dropping the last one ends its tasks.
#[derive(Clone)]
pub(crate) struct Cluster {
    topology: Arc<Topology>,
    _refresh: Arc<AbortOnDrop>,
}

impl Cluster {
    /// Starts to look for the nodes on the current runtime. `seeds` are the addresses of some
    /// nodes. The links to the nodes are some of `links`, for the metrics.
    pub(crate) fn start(
        connector: Connector,
        seeds: Vec<ConnectionAddr>,
        timeout: Duration,
        report: Report,
        links: Links,
    ) -> Self {
        let topology = Arc::new(Topology::new(connector, timeout, links));
        let refresh = MapRefresh::new(Arc::clone(&topology), seeds, report);
        let task = tokio::spawn(async move { match refresh.run().await {} });
        Self {
            topology,
            _refresh: Arc::new(AbortOnDrop(task.abort_handle())),
        }
    }

    /// The number of slots of every cluster.
    pub(crate) const SLOTS: usize = slots::SLOTS as usize;

    /// Who has which slot, as far as is known. If nothing is known, the error is that of the last
    /// look at the cluster, once there was one.
    pub(crate) fn owners(&self) -> Result<Owners, Option<StoreError>> {
        let map = self.topology.map();
        if map.slots.is_empty() {
            return Err(map.failure);
        }
        let connector = &self.topology.connector;
        let addr = |node: &Node| connector.addr(node.addr.host.clone(), node.addr.port);
        // Nodes may be known that have no slots.
        let mut places = vec![None; map.nodes.len()];
        let mut nodes = Vec::new();
        let slots = map.slots.iter().map(|place| {
            place.map(|place| {
                *places[place].get_or_insert_with(|| {
                    nodes.push(addr(&map.nodes[place]));
                    nodes.len() - 1
                })
            })
        });
        let slots = slots.collect();
        Ok(Owners { nodes, slots })
    }

    /// Has the nodes asked soon whether the map is right.
    pub(crate) fn check_soon(&self) {
        self.topology.stale.notify_one();
    }

    /// Sends one unit about one key, a command or a transaction, to the node that has the key's
    /// slot. Follows redirects.
    pub(crate) async fn request(
        &self,
        effect: Effect,
        slot: u16,
        encode: impl Fn(&mut Commands<'_>),
    ) -> Result<Bytes, WriteError> {
        let deadline = Instant::now() + self.topology.timeout;
        let node = self.topology.node_of(slot);
        let node = node.map_err(WriteError::not_executed)?;
        let reply = node.link.request(effect, &encode).await?;
        let Some(redirect) = Redirect::find(&reply) else {
            self.topology.note(&reply);
            return Ok(reply);
        };
        let redirected = Redirected {
            redirect,
            node,
            slot,
            deadline,
        };
        Box::pin(self.follow(effect, redirected, encode)).await
    }

    /// Sends a unit that a node has refused to the node that it names.
    async fn follow(
        &self,
        effect: Effect,
        redirected: Redirected,
        encode: impl Fn(&mut Commands<'_>),
    ) -> Result<Bytes, WriteError> {
        let Redirected {
            mut redirect,
            mut node,
            slot,
            deadline,
        } = redirected;
        for _ in 0..MAX_REDIRECTS {
            let (asking, mut addr) = match redirect {
                Redirect::Moved(addr) => (false, addr),
                Redirect::Ask(addr) => (true, addr),
            };
            if addr.host.is_empty() {
                // The node means its own host.
                addr.host.clone_from(&node.addr.host);
            }
            node = self.topology.node_at(addr);
            if !asking {
                self.topology.set_slot(slot, &node);
            }
            let connected = timeout_at(deadline, node.link.connected()).await;
            let connected = connected.unwrap_or(Err(StoreError::Timeout));
            connected.map_err(WriteError::not_executed)?;
            let request = node.link.request(effect, |commands| {
                if asking {
                    // With it, the node serves the next unit although it does not own the slot yet.
                    commands.whole(&[b"ASKING"]);
                }
                encode(commands);
            });
            let reply = timeout_at(deadline, request).await;
            let mut reply = reply.unwrap_or(Err(WriteError::unknown(StoreError::Timeout)))?;
            if asking {
                // The first reply is the one to ASKING.
                let length = Scanner::new(1).scan(&reply).ok().flatten();
                _ = reply.split_to(length.unwrap_or(0));
            }
            redirect = match Redirect::find(&reply) {
                Some(redirect) => redirect,
                None => {
                    self.topology.note(&reply);
                    return Ok(reply);
                }
            };
        }
        tracing::warn!(slot, "the nodes of the cluster send a request in circles");
        Err(WriteError::not_executed(StoreError::Busy))
    }

    /// Sends one unit for each of many keys. The units for one node go to it as one request. Returns
    /// for each key its replies, `each` in number, or why there are none. Fails as a whole if nothing
    /// was sent, because nobody is known to have one of the slots.
    pub(crate) async fn request_each(
        &self,
        effect: Effect,
        slots: &[u16],
        each: usize,
        encode: impl Fn(usize, &mut Commands<'_>),
    ) -> Result<Vec<Result<Bytes, WriteError>>, StoreError> {
        let deadline = Instant::now() + self.topology.timeout;
        let mut groups: Vec<(Node, Vec<usize>)> = Vec::new();
        for (item, slot) in slots.iter().enumerate() {
            let node = self.topology.node_of(*slot)?;
            match groups.iter_mut().find(|(known, _)| known.addr == node.addr) {
                Some((_, items)) => items.push(item),
                None => groups.push((node, vec![item])),
            }
        }
        let encode = &encode;
        let replies = join_all(groups.iter().map(|(node, items)| {
            node.link.request(effect, move |commands| {
                for item in items {
                    encode(*item, commands);
                }
            })
        }));
        let mut pieces = vec![Ok(Bytes::new()); slots.len()];
        let mut refused = Vec::new();
        for ((node, items), reply) in groups.iter().zip(replies.await) {
            let mut reply = match reply {
                Ok(reply) => reply,
                Err(failed) => {
                    for item in items {
                        pieces[*item] = Err(failed);
                    }
                    continue;
                }
            };
            for item in items {
                let Some(length) = Scanner::new(each).scan(&reply).ok().flatten() else {
                    pieces[*item] = Err(WriteError::unknown(StoreError::Unexpected));
                    continue;
                };
                let piece = reply.split_to(length);
                if let Some(redirect) = Redirect::find(&piece) {
                    let redirected = Redirected {
                        redirect,
                        node: node.clone(),
                        slot: slots[*item],
                        deadline,
                    };
                    refused.push((*item, redirected));
                }
                self.topology.note(&piece);
                pieces[*item] = Ok(piece);
            }
        }
        // They share the deadline of the first requests, so a batch takes no longer than one request.
        let again = join_all(refused.into_iter().map(async |(item, redirected)| {
            let encode = |commands: &mut Commands<'_>| encode(item, commands);
            (item, self.follow(effect, redirected, encode).await)
        }));
        for (item, piece) in again.await {
            pieces[item] = piece;
        }
        Ok(pieces)
    }
}

/// Who has which slot.
pub(crate) struct Owners {
    /// The masters that have slots.
    pub(crate) nodes: Vec<ConnectionAddr>,
    /// For each slot, the place of its owner in `nodes`.
    pub(crate) slots: Vec<Option<usize>>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

/// A unit that a node has refused, and the deadline of its call.
struct Redirected {
    redirect: Redirect,
    /// The node that refused it.
    node: Node,
    slot: u16,
    deadline: Instant,
}
