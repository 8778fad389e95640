//! Memory that calls make the server hold: requests on their way in, replies on their way out.
//!
//! A slow or hostile peer decides how long incomplete requests and unsent replies stay. So they are
//! counted, for each connection and for each worker: a request while it is incomplete, and a reply
//! from when it is made until HTTP/2 drops the last of its bytes. Each call also counts a fixed
//! amount for what the call itself costs.
//!
//! Complete requests that wait for the store have a count of their own with more room, because they
//! stay only until the store answers or the call's deadline passes. Otherwise a few callers with
//! large batches would be refused although the server has nothing else to do.
//!
//! A call that finds no room is refused before it does anything.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;

use crate::error::Error;

/// Counted for each call besides its bytes: HTTP/2's stream, its task, headers and trailers.
pub(crate) const CALL_BYTES: usize = 4 * 1024;
/// A reply of up to this size is not counted besides, so that it is never refused: what has been
/// written is always acknowledged.
const SMALL_REPLY_BYTES: usize = 512;
/// A complete request of up to this size is not counted besides.
const SMALL_REQUEST_BYTES: usize = 2 * 1024;
/// Counted besides for a call whose request is incomplete.
pub(crate) const UNFINISHED_BYTES: usize = 2 * 1024;
/// One connection may hold at most this much...
const MAX_CONNECTION_BYTES: usize = 6 << 20;
/// ... and once its worker holds more than this...
const MAX_WORKER_BYTES: usize = 6 << 20;
/// ... only its part of this, which all connections of the worker share...
const FAIR_WORKER_BYTES: usize = 2 << 20;
/// ... and which is at least the first and at most the second of these.
const MIN_FAIR_BYTES: usize = 16 * 1024;
const MAX_FAIR_BYTES: usize = 256 * 1024;
/// The complete requests of one connection, and of one worker, that wait for the store may take at
/// most this much.
const MAX_CONNECTION_REQUEST_BYTES: usize = 8 << 20;
const MAX_WORKER_REQUEST_BYTES: usize = 24 << 20;

/// What one worker holds. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct WorkerHeld(Arc<WorkerCounts>);

#[derive(Debug, Default)]
struct WorkerCounts {
    bytes: AtomicUsize,
    request_bytes: AtomicUsize,
    connections: AtomicUsize,
}

/// What one connection holds. Clones share the count. All counts are written by the worker's
/// thread alone.
#[derive(Debug, Clone)]
pub(crate) struct Held(Arc<ConnectionCount>);

#[derive(Debug)]
struct ConnectionCount {
    bytes: AtomicUsize,
    request_bytes: AtomicUsize,
    worker: WorkerHeld,
}

impl WorkerHeld {
    /// The count of another connection of this worker.
    pub(crate) fn new_connection(&self) -> Held {
        add(&self.0.connections, 1);
        Held(Arc::new(ConnectionCount {
            bytes: AtomicUsize::new(0),
            request_bytes: AtomicUsize::new(0),
            worker: self.clone(),
        }))
    }
}

impl Drop for ConnectionCount {
    fn drop(&mut self) {
        sub(&self.worker.0.connections, 1);
    }
}

impl Held {
    /// Holds `bytes`; refused if there is no room for them.
    pub(crate) fn take(&self, bytes: usize) -> Result<Share, Error> {
        let mut share = Share {
            held: self.clone(),
            bytes: 0,
            request_bytes: 0,
        };
        share.grow(bytes)?;
        Ok(share)
    }

    /// Whether the connection has no calls, nor any of their bytes. Each of them has a clone,
    /// besides those of the connection and its socket.
    pub(crate) fn is_idle(&self) -> bool {
        Arc::strong_count(&self.0) == 2
    }

    /// Whether the worker holds much, so that its connections should take new calls little by
    /// little.
    pub(crate) fn is_pressed(&self) -> bool {
        self.0.worker.0.bytes.load(Ordering::Relaxed) > MAX_WORKER_BYTES / 4
    }

    fn has_room_for(&self, more: usize, of_this_call: usize) -> bool {
        let before = self.0.bytes.load(Ordering::Relaxed);
        let worker = &self.0.worker.0;
        let in_worker = worker.bytes.load(Ordering::Relaxed) + more;
        if before + more <= MAX_CONNECTION_BYTES && in_worker <= MAX_WORKER_BYTES {
            return true;
        }
        let connections = worker.connections.load(Ordering::Relaxed).max(1);
        let fair = (FAIR_WORKER_BYTES / connections).clamp(MIN_FAIR_BYTES, MAX_FAIR_BYTES);
        // The only call of a connection has room whatever its size, or large replies could never
        // be sent.
        before + more <= fair || before == of_this_call
    }

    fn has_room_for_request(&self, more: usize) -> bool {
        let before = self.0.request_bytes.load(Ordering::Relaxed);
        let in_worker = self.0.worker.0.request_bytes.load(Ordering::Relaxed);
        // The only request of a connection has room whatever its size.
        before == 0
            || before + more <= MAX_CONNECTION_REQUEST_BYTES
                && in_worker + more <= MAX_WORKER_REQUEST_BYTES
    }
}

/// What one call holds.
#[derive(Debug)]
pub(crate) struct Share {
    held: Held,
    bytes: usize,
    /// Of a complete request that waits for the store.
    request_bytes: usize,
}

impl Share {
    /// Holds more; refused if there is no room for it.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        if !self.held.has_room_for(bytes, self.bytes) {
            return Err(Error::Overloaded);
        }
        self.bytes += bytes;
        let counts = &self.held.0;
        add(&counts.bytes, bytes);
        add(&counts.worker.0.bytes, bytes);
        Ok(())
    }

    /// Counts a complete request, which takes `bytes` while it waits for the store; refused if there
    /// is no room for it.
    pub(crate) fn hold_request(&mut self, bytes: usize) -> Result<(), Error> {
        if bytes <= SMALL_REQUEST_BYTES {
            return Ok(());
        }
        if !self.held.has_room_for_request(bytes) {
            return Err(Error::Overloaded);
        }
        self.request_bytes += bytes;
        let counts = &self.held.0;
        add(&counts.request_bytes, bytes);
        add(&counts.worker.0.request_bytes, bytes);
        Ok(())
    }

    /// Stops counting the request: the store has answered it.
    pub(crate) fn release_request(&mut self) {
        let bytes = std::mem::take(&mut self.request_bytes);
        if bytes > 0 {
            let counts = &self.held.0;
            sub(&counts.request_bytes, bytes);
            sub(&counts.worker.0.request_bytes, bytes);
        }
    }

    /// Holds no more than `bytes` from now on.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        if less == 0 {
            return;
        }
        self.bytes -= less;
        let counts = &self.held.0;
        sub(&counts.bytes, less);
        sub(&counts.worker.0.bytes, less);
    }

    /// Makes bytes of a reply that are counted until the last of them is dropped.
    pub(crate) fn hold(mut self, reply: impl AsRef<[u8]> + Send + 'static) -> Result<Bytes, Error> {
        let length = reply.as_ref().len();
        if length > SMALL_REPLY_BYTES {
            self.grow(length)?;
        }
        Ok(Bytes::from_owner(Counted {
            reply,
            _share: self,
        }))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let counts = &self.held.0;
        sub(&counts.bytes, self.bytes);
        sub(&counts.worker.0.bytes, self.bytes);
        self.release_request();
    }
}

struct Counted<R> {
    reply: R,
    _share: Share,
}

impl<R: AsRef<[u8]>> AsRef<[u8]> for Counted<R> {
    fn as_ref(&self) -> &[u8] {
        self.reply.as_ref()
    }
}

/// One thread writes, so that a load and a store are as good as one step, and cheaper.
fn add(count: &AtomicUsize, more: usize) {
    count.store(count.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

fn sub(count: &AtomicUsize, less: usize) {
    count.store(count.load(Ordering::Relaxed) - less, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn a_connection_that_holds_little_has_room_beside_one_that_holds_much() {
        let worker = WorkerHeld::default();
        let (slow, quick) = (worker.new_connection(), worker.new_connection());
        let large = |held: &Held| held.take(CALL_BYTES)?.hold(vec![0; MIB - CALL_BYTES]);
        let mut held = Vec::new();
        while let Ok(reply) = large(&slow) {
            held.push(reply);
        }
        assert_eq!(held.len(), MAX_CONNECTION_BYTES / MIB);
        let little = quick.take(MAX_FAIR_BYTES / 2);
        assert!(little.is_ok());
        assert!(quick.take(MAX_FAIR_BYTES).is_err());
        // A piece keeps all of it; the last to go counts.
        let piece = held[0].slice(..1);
        held.clear();
        assert_eq!(slow.0.bytes.load(Ordering::Relaxed), MIB);
        drop((piece, little));
        assert_eq!(worker.0.bytes.load(Ordering::Relaxed), 0);
        assert!(large(&slow).is_ok());
    }

    #[test]
    fn many_connections_together_hold_a_bounded_amount() {
        let worker = WorkerHeld::default();
        let connections: Vec<_> = (0..100).map(|_| worker.new_connection()).collect();
        let mut held = Vec::new();
        for connection in &connections {
            while let Ok(share) = connection.take(CALL_BYTES) {
                held.push(share);
            }
        }
        let total = worker.0.bytes.load(Ordering::Relaxed);
        assert!(total <= MAX_WORKER_BYTES + FAIR_WORKER_BYTES, "{total}");
        // Each has something all the same.
        for connection in &connections {
            assert!(connection.0.bytes.load(Ordering::Relaxed) >= MIN_FAIR_BYTES);
        }
        drop((held, connections));
        assert_eq!(worker.0.connections.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_only_call_of_a_connection_has_room_whatever_its_size() {
        let connection = WorkerHeld::default().new_connection();
        let mut share = connection.take(CALL_BYTES).expect("room");
        assert!(share.grow(2 * MAX_CONNECTION_BYTES).is_ok());
        assert!(connection.take(MAX_FAIR_BYTES).is_err());
        drop(share);
        assert!(connection.take(MAX_FAIR_BYTES).is_ok());
    }

    #[test]
    fn requests_that_wait_for_the_store_leave_room_for_other_calls_and_are_bounded() {
        let worker = WorkerHeld::default();
        let connections: Vec<_> = (0..4).map(|_| worker.new_connection()).collect();
        let mut shares = Vec::new();
        for connection in &connections {
            let mut bytes = 0;
            loop {
                let mut share = connection.take(CALL_BYTES).expect("room for the call");
                if share.hold_request(MIB).is_err() {
                    break;
                }
                bytes += MIB;
                shares.push(share);
            }
            // The last connection finds the worker full, and has room for one all the same.
            assert!(bytes == MAX_CONNECTION_REQUEST_BYTES || bytes == MIB);
        }
        let total = || worker.0.request_bytes.load(Ordering::Relaxed);
        assert_eq!(total(), MAX_WORKER_REQUEST_BYTES + MIB);
        shares[0].release_request();
        assert_eq!(total(), MAX_WORKER_REQUEST_BYTES);
        drop(shares);
        assert_eq!(total(), 0);
    }
}
