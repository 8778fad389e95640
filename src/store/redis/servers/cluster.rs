//! Redis Cluster: which node has which key, and a supervised link to every master.
//!
//! A key belongs to one of 16,384 slots, and a slot to one master. The map of slots is asked from
//! the nodes themselves: now and then, and at once when a link breaks or a node redirects us.
//! MOVED changes the map; ASK sends one request elsewhere while a slot is on its way. A batch is
//! grouped by node, one pipelined request each. What cannot be read fails the call: a key is
//! never taken for absent because its node is.
//!
//! Nodes fail one by one, so each has a link with all that [`Link`] does about it; a node that
//! hangs holds up nobody who wants another one.
//!
//! [`refresh`] keeps the map right.
//!
//! Source: <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>

mod refresh;
mod view;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::try_join_all;
use redis::ConnectionAddr;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use self::refresh::Supervisor;
use super::{
    super::wire::{
        connect::Connector,
        resp::{Commands, Replies, Reply, Scanner},
    },
    link::{AbortOnDrop, Effect, Link, Report},
};
use crate::store::failure::{StoreError, WriteError};

/// How many slots there are.
const SLOTS: u16 = 16_384;
/// How often one request may be sent elsewhere.
const MAX_REDIRECTS: usize = 5;

/// The slot of a key: of all of it, or of what is between the first `{` and the next `}`.
pub(crate) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let length = rest.iter().position(|byte| *byte == b'}')?;
        (length > 0).then(|| &rest[..length])
    });
    crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(key)) % SLOTS
}

/// A handle to the cluster. Clones share it; the last one to go ends its tasks.
#[derive(Clone)]
pub(crate) struct Cluster {
    shared: Arc<Shared>,
    _supervisor: Arc<AbortOnDrop>,
}

struct Shared {
    /// How nodes are spoken to.
    connector: Connector,
    timeout: Duration,
    map: Mutex<Map>,
    /// Says that the map may no longer be right.
    stale: Arc<Notify>,
}

/// Who has which slot. The lock around it is never contended: all that use it are on one thread.
#[derive(Default)]
struct Map {
    nodes: Vec<Node>,
    /// Of each slot, the place of its node; empty until the map is known.
    slots: Vec<Option<usize>>,
    /// Why the last look at the cluster gave no map, for the calls that find no node.
    failure: Option<StoreError>,
}

#[derive(Clone)]
struct Node {
    addr: Addr,
    link: Link,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Addr {
    host: String,
    port: u16,
}

impl Cluster {
    /// Starts to look for the nodes, on the current runtime, through `seeds`, some of them.
    pub(crate) fn start(
        connector: Connector,
        seeds: Vec<ConnectionAddr>,
        timeout: Duration,
        report: Report,
    ) -> Self {
        let shared = Arc::new(Shared {
            connector,
            timeout,
            map: Mutex::default(),
            stale: Arc::default(),
        });
        let supervisor = Supervisor::new(Arc::clone(&shared), seeds, report);
        let task = tokio::spawn(async move { match supervisor.run().await {} });
        Self {
            shared,
            _supervisor: Arc::new(AbortOnDrop(task.abort_handle())),
        }
    }

    /// Sends one unit about one key, a command or a transaction, to the node that has its slot,
    /// wherever that is by now.
    pub(crate) async fn request(
        &self,
        effect: Effect,
        slot: u16,
        encode: impl Fn(&mut Commands<'_>),
    ) -> Result<Bytes, WriteError> {
        let deadline = Instant::now() + self.shared.timeout;
        let node = self.shared.node_of(slot);
        let node = node.map_err(WriteError::not_executed)?;
        let reply = node.link.request(effect, &encode).await?;
        let Some(redirect) = redirect(&reply) else {
            self.shared.note(&reply);
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
                // The same host as the node that says so.
                addr.host.clone_from(&node.addr.host);
            }
            node = self.shared.node_at(addr);
            if !asking {
                self.shared.set_slot(slot, &node);
            }
            let connected = timeout_at(deadline, node.link.connected()).await;
            let connected = connected.unwrap_or(Err(StoreError::Timeout));
            connected.map_err(WriteError::not_executed)?;
            let request = node.link.request(effect, |commands| {
                if asking {
                    // The node then serves the next unit, although it does not own the slot yet.
                    commands.whole(&[b"ASKING"]);
                }
                encode(commands);
            });
            let reply = timeout_at(deadline, request).await;
            let mut reply = reply.unwrap_or(Err(WriteError::unknown(StoreError::Timeout)))?;
            if asking {
                // The first reply is that to ASKING.
                let length = Scanner::new(1).scan(&reply).ok().flatten();
                _ = reply.split_to(length.unwrap_or(0));
            }
            redirect = match self::redirect(&reply) {
                Some(redirect) => redirect,
                None => {
                    self.shared.note(&reply);
                    return Ok(reply);
                }
            };
        }
        tracing::warn!(slot, "the nodes of the cluster send a request in circles");
        Err(WriteError::not_executed(StoreError::Busy))
    }

    /// Reads many keys, one unit for each. Each goes to the node that has its slot, as one request
    /// for each node. Gives for each key its `each` replies.
    pub(crate) async fn request_each(
        &self,
        slots: &[u16],
        each: usize,
        encode: impl Fn(usize, &mut Commands<'_>),
    ) -> Result<Vec<Bytes>, StoreError> {
        let deadline = Instant::now() + self.shared.timeout;
        let mut groups: Vec<(Node, Vec<usize>)> = Vec::new();
        for (item, slot) in slots.iter().enumerate() {
            let node = self.shared.node_of(*slot)?;
            match groups.iter_mut().find(|(known, _)| known.addr == node.addr) {
                Some((_, items)) => items.push(item),
                None => groups.push((node, vec![item])),
            }
        }
        let encode = &encode;
        let replies = try_join_all(groups.iter().map(|(node, items)| {
            node.link.request(Effect::Read, move |commands| {
                for item in items {
                    encode(*item, commands);
                }
            })
        }));
        let mut pieces = vec![Bytes::new(); slots.len()];
        let mut refused = Vec::new();
        for ((node, items), mut reply) in groups.iter().zip(replies.await?) {
            for item in items {
                let length = Scanner::new(each).scan(&reply).ok().flatten();
                let piece = reply.split_to(length.ok_or(StoreError::Unexpected)?);
                if let Some(redirect) = redirect(&piece) {
                    let redirected = Redirected {
                        redirect,
                        node: node.clone(),
                        slot: slots[*item],
                        deadline,
                    };
                    refused.push((*item, redirected));
                }
                self.shared.note(&piece);
                pieces[*item] = piece;
            }
        }
        // Within the time of the first requests: a batch takes no longer than one of them.
        let again = try_join_all(refused.into_iter().map(async |(item, redirected)| {
            let encode = |commands: &mut Commands<'_>| encode(item, commands);
            let piece = self.follow(Effect::Read, redirected, encode);
            Ok::<_, StoreError>((item, piece.await?))
        }));
        for (item, piece) in again.await? {
            pieces[item] = piece;
        }
        Ok(pieces)
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

/// Where a node sends us instead.
#[derive(Debug, PartialEq, Eq)]
enum Redirect {
    /// For good.
    Moved(Addr),
    /// For this one request, because the slot is on its way.
    Ask(Addr),
}

/// A unit that a node has refused, and by when it must be answered.
struct Redirected {
    redirect: Redirect,
    /// The node that refused it.
    node: Node,
    slot: u16,
    deadline: Instant,
}

/// The redirect that a unit was answered with, if it was: `MOVED 3999 127.0.0.1:6381`. It is the
/// first error among the replies. A later one says nothing about the unit as a whole: if MULTI was
/// refused, each command after it ran alone.
fn redirect(replies: &[u8]) -> Option<Redirect> {
    let line = Replies::new(replies).find_map(|reply| match reply {
        Reply::Error(line) => Some(line),
        _ => None,
    })?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let kind = match words.next()? {
        "MOVED" => Redirect::Moved,
        "ASK" => Redirect::Ask,
        _ => return None,
    };
    let (host, port) = words.nth(1)?.rsplit_once(':')?;
    Some(kind(Addr {
        // A node that does not know its own host name says so with a question mark.
        host: if host == "?" { "" } else { host }.to_owned(),
        port: port.parse().ok()?,
    }))
}

impl Shared {
    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node_of(&self, slot: u16) -> Result<Node, StoreError> {
        let map = self.map();
        match map.slots.get(usize::from(slot)) {
            Some(Some(place)) => Ok(map.nodes[*place].clone()),
            Some(None) | None => Err(map.failure.unwrap_or(StoreError::Unavailable)),
        }
    }

    /// The node at an address, which is linked to if it is new.
    fn node_at(&self, addr: Addr) -> Node {
        let mut map = self.map();
        let place = map.place(&addr, || self.link(&addr));
        map.nodes[place].clone()
    }

    fn set_slot(&self, slot: u16, node: &Node) {
        let mut map = self.map();
        let place = map.place(&node.addr, || node.link.clone());
        if let Some(owner) = map.slots.get_mut(usize::from(slot)) {
            *owner = Some(place);
        }
        self.stale.notify_one();
    }

    fn link(&self, addr: &Addr) -> Link {
        let connector = self.connector.to_node(addr.host.clone(), addr.port);
        let stale = Arc::clone(&self.stale);
        let report = Box::new(move |_| stale.notify_one());
        Link::start(connector, self.timeout, report)
    }

    /// Takes note of a reply that says that the cluster is not well.
    fn note(&self, reply: &[u8]) {
        if reply.starts_with(b"-CLUSTERDOWN") {
            self.stale.notify_one();
        }
    }
}

impl Map {
    fn place(&mut self, addr: &Addr, link: impl FnOnce() -> Link) -> usize {
        let known = self.nodes.iter().position(|node| node.addr == *addr);
        known.unwrap_or_else(|| {
            self.nodes.push(Node {
                addr: addr.clone(),
                link: link(),
            });
            self.nodes.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The redis crate's is the reference.
        #[test]
        fn slots_are_as_the_redis_crate_has_them(key in "[a-c{}]{0,12}") {
            let reference = redis::cluster_routing::Slot::for_key(&key);
            prop_assert_eq!(redis::cluster_routing::Slot::new(slot(key.as_bytes())), Some(reference));
        }

        #[test]
        fn fuzz_redirect(line in "(MOVED|ASK)? ?[0-9]{0,6} ?.{0,20}") {
            _ = redirect(format!("-{line}\r\n").as_bytes());
        }
    }

    #[test]
    fn redirects_are_found_among_replies() {
        let addr = |host: &str, port| Addr {
            host: host.to_owned(),
            port,
        };
        for (replies, expected) in [
            ("$2\r\n42\r\n", None),
            ("-ERR MOVED 1 h:1\r\n", None),
            (
                "-MOVED 3999 10.0.0.1:6381\r\n",
                Some(Redirect::Moved(addr("10.0.0.1", 6381))),
            ),
            (
                "$-1\r\n-ASK 3999 ::1:6381\r\n",
                Some(Redirect::Ask(addr("::1", 6381))),
            ),
            (
                "-MOVED 3999 :6381\r\n",
                Some(Redirect::Moved(addr("", 6381))),
            ),
            ("-ASK 3999 ?:6381\r\n", Some(Redirect::Ask(addr("", 6381)))),
            ("-NOPERM MULTI\r\n-ASK 3999 h:1\r\n:5\r\n", None),
            ("$11\r\nMOVED 1 h:1\r\n", None),
        ] {
            assert_eq!(redirect(replies.as_bytes()), expected, "{replies:?}");
        }
    }
}
