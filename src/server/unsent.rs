//! Replies on their way out, in bytes: what slow readers make the server keep.
//!
//! The bytes of a large reply are counted from when it is made to when the last of them has left
//! HTTP/2's buffers. A connection that lets too much gather is refused further calls until it has
//! read some; sooner, if the worker as a whole holds much. Small replies are not counted: the
//! number of streams bounds them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;

/// A reply that is smaller is not worth counting.
const COUNTED_BYTES: usize = 4 * 1024;
/// What one connection may have unsent at most...
const MAX_CONNECTION_BYTES: usize = 16 << 20;
/// ... and once its worker has more than this unsent...
const MAX_WORKER_BYTES: usize = 16 << 20;
/// ... only this.
const FAIR_CONNECTION_BYTES: usize = 256 * 1024;

/// The counts of one connection and of its worker. Clones share both.
#[derive(Debug, Clone, Default)]
pub(super) struct Unsent {
    connection: Arc<AtomicUsize>,
    worker: Arc<AtomicUsize>,
}

impl Unsent {
    /// The counts of another connection of the same worker.
    pub(super) fn of_new_connection(&self) -> Self {
        Self {
            connection: Arc::default(),
            worker: Arc::clone(&self.worker),
        }
    }

    /// Whether the connection may be owed another reply.
    pub(super) fn has_room(&self) -> bool {
        let connection = self.connection.load(Ordering::Relaxed);
        connection <= FAIR_CONNECTION_BYTES
            || (connection <= MAX_CONNECTION_BYTES
                && self.worker.load(Ordering::Relaxed) <= MAX_WORKER_BYTES)
    }

    /// Counts a reply until the last of its bytes is dropped.
    pub(super) fn count(&self, reply: Vec<u8>) -> Bytes {
        if reply.len() < COUNTED_BYTES {
            return reply.into();
        }
        self.connection.fetch_add(reply.len(), Ordering::Relaxed);
        self.worker.fetch_add(reply.len(), Ordering::Relaxed);
        Bytes::from_owner(Counted {
            reply,
            unsent: self.clone(),
        })
    }
}

struct Counted {
    reply: Vec<u8>,
    unsent: Unsent,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.reply
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Unsent { connection, worker } = &self.unsent;
        connection.fetch_sub(self.reply.len(), Ordering::Relaxed);
        worker.fetch_sub(self.reply.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_with_little_unsent_has_room_beside_one_with_much() {
        let worker = Unsent::default();
        let (slow, quick) = (worker.of_new_connection(), worker.of_new_connection());
        let mut held = Vec::new();
        while slow.has_room() {
            held.push(slow.count(vec![0; 1 << 20]));
        }
        assert_eq!(held.len(), (MAX_CONNECTION_BYTES >> 20) + 1);
        assert!(quick.has_room());
        held.push(quick.count(vec![0; 2 * FAIR_CONNECTION_BYTES]));
        assert!(!quick.has_room());
        // A piece keeps all of it; the last to go counts.
        let piece = held[0].slice(..1);
        held.clear();
        assert_eq!(slow.connection.load(Ordering::Relaxed), 1 << 20);
        drop(piece);
        assert_eq!(worker.worker.load(Ordering::Relaxed), 0);
        assert!(slow.has_room() && quick.has_room());
    }
}
