//! The map of a cluster's slots, and a link to each master.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::super::{super::wire::connect::Connector, link::Link, links::Links, place::Place};
use crate::store::failure::StoreError;

/// Number of slots of a cluster.
pub(super) const SLOTS: u16 = 16_384;

/// The slot of a key. If the key has a part between the first `{` and the next `}`, only that part
/// counts.
pub(crate) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let length = rest.iter().position(|byte| *byte == b'}')?;
        (length > 0).then(|| &rest[..length])
    });
    crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(key)) % SLOTS
}

/// The nodes of a cluster, shared by its callers and the task that keeps the map right.
pub(super) struct Topology {
    /// The credentials for every node.
    pub(super) connector: Connector,
    /// How long one request may take.
    pub(super) timeout: Duration,
    /// For the metrics.
    links: Links,
    map: Mutex<SlotMap>,
    /// Is notified when the map may be outdated.
    pub(super) stale: Arc<Notify>,
}

/// Which node has which slot. The lock around it is never contended, because one thread has all the
/// users.
#[derive(Default)]
pub(super) struct SlotMap {
    pub(super) nodes: Vec<Node>,
    /// For each slot, the place of its node in `nodes`. Empty until the map is known.
    pub(super) slots: Vec<Option<usize>>,
    /// Why the last look at the cluster gave no map. The error for calls that find no node.
    pub(super) failure: Option<StoreError>,
}

#[derive(Clone)]
pub(super) struct Node {
    pub(super) addr: NodeAddr,
    pub(super) link: Link,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeAddr {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Topology {
    pub(super) fn new(connector: Connector, timeout: Duration, links: Links) -> Self {
        Self {
            connector,
            timeout,
            links,
            map: Mutex::default(),
            stale: Arc::default(),
        }
    }

    pub(super) fn map(&self) -> MutexGuard<'_, SlotMap> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn node_of(&self, slot: u16) -> Result<Node, StoreError> {
        let map = self.map();
        match map.slots.get(usize::from(slot)) {
            Some(Some(place)) => Ok(map.nodes[*place].clone()),
            Some(None) | None => Err(map.failure.unwrap_or(StoreError::Unavailable)),
        }
    }

    /// The node at an address. Starts a link to it if it is new.
    pub(super) fn node_at(&self, addr: NodeAddr) -> Node {
        let mut map = self.map();
        let place = map.place(&addr, || self.link(&addr));
        map.nodes[place].clone()
    }

    pub(super) fn set_slot(&self, slot: u16, node: &Node) {
        let mut map = self.map();
        let place = map.place(&node.addr, || node.link.clone());
        if let Some(owner) = map.slots.get_mut(usize::from(slot)) {
            *owner = Some(place);
        }
        self.stale.notify_one();
    }

    pub(super) fn link(&self, addr: &NodeAddr) -> Link {
        let connector = self.connector.clone();
        let addr = connector.addr(addr.host.clone(), addr.port);
        let stale = Arc::clone(&self.stale);
        let report = Box::new(move |_| stale.notify_one());
        let place = Place::at(connector, addr);
        Link::start(place, self.timeout, report, &self.links)
    }

    /// Looks for a reply that says that the cluster is down, and then has the map checked.
    pub(super) fn note(&self, reply: &[u8]) {
        if reply.starts_with(b"-CLUSTERDOWN") {
            self.stale.notify_one();
        }
    }
}

impl SlotMap {
    /// The place of a node. Adds the node, with the link that `link` makes, if it is new.
    pub(super) fn place(&mut self, addr: &NodeAddr, link: impl FnOnce() -> Link) -> usize {
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
        /// The redis crate is the reference.
        #[test]
        fn slots_are_as_the_redis_crate_has_them(key in "[a-c{}]{0,12}") {
            let reference = redis::cluster_routing::Slot::for_key(&key);
            prop_assert_eq!(redis::cluster_routing::Slot::new(slot(key.as_bytes())), Some(reference));
        }
    }
}
