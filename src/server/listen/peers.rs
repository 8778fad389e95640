//! The limit on how many connections one peer may have.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Counts the connections of each peer address. Clones share the counts.
#[derive(Debug, Clone)]
pub(crate) struct Peers {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
    max: usize,
}

/// Counts one connection of a peer until it is dropped.
#[derive(Debug)]
pub(crate) struct PeerSlot {
    peers: Peers,
    addr: IpAddr,
}

impl Peers {
    /// Allows `max` connections for each peer.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            counts: Arc::default(),
            max,
        }
    }

    /// Counts one more connection from this address, unless its peer has too many.
    pub(crate) fn enter(&self, addr: IpAddr) -> Option<PeerSlot> {
        let mut counts = self.counts();
        let count = counts.entry(network(addr)).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(PeerSlot {
            peers: self.clone(),
            addr,
        })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PeerSlot {
    fn drop(&mut self) {
        let mut counts = self.peers.counts();
        if let Entry::Occupied(mut count) = counts.entry(network(self.addr)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// The network that counts as one peer: an IPv4 address, or an IPv6 /64, which usually belongs to
/// one host.
fn network(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_none() => {
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64))
        }
        addr => addr,
    }
}
