//! Bytes that calls make the server hold: requests on their way in, replies on their way out.
//!
//! A slow or hostile peer decides how long those stay, so they are counted, for each connection and
//! for each worker: a request from when it turns out to come in pieces until it is there, a reply
//! from when it is made to when the last of it has left HTTP/2's buffers. A call that would make a
//! connection hold too much is refused; sooner, if its worker as a whole holds much. What is small
//! is not counted: the number of streams bounds it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;

use crate::error::Error;

/// A reply that is smaller is not worth counting.
const COUNTED_BYTES: usize = 4 * 1024;
/// What one connection may hold at most...
const MAX_CONNECTION_BYTES: usize = 8 << 20;
/// ... and once its worker holds more than this...
const MAX_WORKER_BYTES: usize = 8 << 20;
/// ... only this.
const FAIR_CONNECTION_BYTES: usize = 256 * 1024;

/// The counts of one connection and of its worker. Clones share both.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    connection: Arc<AtomicUsize>,
    worker: Arc<AtomicUsize>,
}

impl Held {
    /// The counts of another connection of the same worker.
    pub(super) fn of_new_connection(&self) -> Self {
        Self {
            connection: Arc::default(),
            worker: Arc::clone(&self.worker),
        }
    }

    /// Counts nothing yet.
    pub(super) fn begin(&self) -> Share {
        Share {
            held: self.clone(),
            bytes: 0,
        }
    }

    /// Counts a reply until the last of its bytes is dropped.
    pub(super) fn hold(&self, reply: Vec<u8>) -> Result<Bytes, Error> {
        if reply.len() < COUNTED_BYTES {
            return Ok(reply.into());
        }
        let mut share = self.begin();
        share.grow(reply.len())?;
        Ok(Bytes::from_owner(Counted {
            reply,
            _share: share,
        }))
    }

    fn has_room_for(&self, bytes: usize) -> bool {
        let connection = self.connection.load(Ordering::Relaxed) + bytes;
        let worker = self.worker.load(Ordering::Relaxed) + bytes;
        // One thing at a time has room whatever its size, or large replies could never be sent.
        connection == bytes
            || connection <= FAIR_CONNECTION_BYTES
            || (connection <= MAX_CONNECTION_BYTES && worker <= MAX_WORKER_BYTES)
    }
}

/// What one call holds.
#[derive(Debug)]
pub(super) struct Share {
    held: Held,
    bytes: usize,
}

impl Share {
    /// Holds more; refused if there is no room for it.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        if !self.held.has_room_for(bytes) {
            return Err(Error::Overloaded);
        }
        self.bytes += bytes;
        self.held.connection.fetch_add(bytes, Ordering::Relaxed);
        self.held.worker.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Held { connection, worker } = &self.held;
        connection.fetch_sub(self.bytes, Ordering::Relaxed);
        worker.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

struct Counted {
    reply: Vec<u8>,
    _share: Share,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_holds_little_has_room_beside_one_that_holds_much() {
        let worker = Held::default();
        let (slow, quick) = (worker.of_new_connection(), worker.of_new_connection());
        let mut held = Vec::new();
        while let Ok(reply) = slow.hold(vec![0; 1 << 20]) {
            held.push(reply);
        }
        assert_eq!(held.len(), MAX_CONNECTION_BYTES >> 20);
        let small = quick.hold(vec![0; FAIR_CONNECTION_BYTES / 2]);
        assert!(small.is_ok());
        assert!(quick.hold(vec![0; FAIR_CONNECTION_BYTES]).is_err());
        // A piece keeps all of it; the last to go counts.
        let piece = held[0].slice(..1);
        held.clear();
        assert_eq!(slow.connection.load(Ordering::Relaxed), 1 << 20);
        drop((piece, small));
        assert_eq!(worker.worker.load(Ordering::Relaxed), 0);
        assert!(slow.hold(vec![0; 1 << 20]).is_ok());
    }

    #[test]
    fn a_request_is_held_until_it_is_there() {
        let connection = Held::default().of_new_connection();
        let mut share = connection.begin();
        assert!(share.grow(MAX_CONNECTION_BYTES).is_ok());
        assert!(share.grow(1).is_err());
        drop(share);
        assert!(connection.begin().grow(1).is_ok());
    }
}
