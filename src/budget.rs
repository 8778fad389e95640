//! A budget for the memory that calls hold: requests on their way in, replies on their way out.
//!
//! A slow or hostile peer decides how long an incomplete request or an unsent reply stays in memory.
//! So each connection and each worker has a budget, and a call reserves its part of both:
//!
//! - a fixed amount for the call itself;
//! - the request while it is incomplete;
//! - the reply, from when it is encoded until HTTP/2 drops its last byte.
//!
//! Complete requests that wait for the store have a budget of their own with more room, because they
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

/// Reserved for each call besides its bytes: HTTP/2's stream, its task, headers and trailers.
pub(crate) const CALL_BYTES: usize = 4 * 1024;
/// Reserved besides for a call whose request is incomplete.
pub(crate) const INCOMPLETE_BYTES: usize = 3 * 1024;
/// A reply of up to this size needs nothing besides [`CALL_BYTES`]. So it is never refused, and a
/// caller always hears that its value has been written.
const SMALL_REPLY_BYTES: usize = 512;
/// A complete request of up to this size needs nothing besides [`CALL_BYTES`].
const SMALL_REQUEST_BYTES: usize = 2 * 1024;
/// The limit of one connection.
const MAX_CONNECTION_BYTES: usize = 6 << 20;
/// When a worker has reserved this much, each of its connections has only a fair share.
const MAX_WORKER_BYTES: usize = 6 << 20;
/// All connections of a worker divide this into fair shares...
const FAIR_WORKER_BYTES: usize = 2 << 20;
/// ... of at least this size...
const MIN_FAIR_BYTES: usize = 16 * 1024;
/// ... and at most this size.
const MAX_FAIR_BYTES: usize = 256 * 1024;
/// An incomplete request of up to this size always has room if it is the only call of its
/// connection. A larger one needs room like all others, or a worker without other calls.
const MAX_ALONE_INCOMPLETE_BYTES: usize = 600 * 1024;
/// The limit for the complete requests of one connection that wait for the store.
const MAX_CONNECTION_REQUEST_BYTES: usize = 8 << 20;
/// The limit for those of one worker.
const MAX_WORKER_REQUEST_BYTES: usize = 24 << 20;

/// The budget of one worker. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct WorkerBudget(Arc<WorkerCounts>);

#[derive(Debug, Default)]
struct WorkerCounts {
    bytes: AtomicUsize,
    /// Of complete requests that wait for the store.
    request_bytes: AtomicUsize,
    connections: AtomicUsize,
}

/// The budget of one connection. Clones share the count. Only the worker's thread writes the counts.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionBudget(Arc<ConnectionCount>);

#[derive(Debug)]
struct ConnectionCount {
    bytes: AtomicUsize,
    /// Of complete requests that wait for the store.
    request_bytes: AtomicUsize,
    worker: WorkerBudget,
}

impl WorkerBudget {
    /// The budget of a new connection of this worker.
    pub(crate) fn for_connection(&self) -> ConnectionBudget {
        add(&self.0.connections, 1);
        ConnectionBudget(Arc::new(ConnectionCount {
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

impl ConnectionBudget {
    /// Reserves `bytes`, or refuses if there is no room for them.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<Reservation, Error> {
        let mut reservation = self.hold(0);
        reservation.grow(bytes)?;
        Ok(reservation)
    }

    /// Counts bytes that are held in any case. They leave less room for what is reserved later.
    pub(crate) fn hold(&self, bytes: usize) -> Reservation {
        let mut reservation = Reservation {
            budget: self.clone(),
            bytes: 0,
            request_bytes: 0,
        };
        reservation.add(bytes);
        reservation
    }

    /// Whether the connection has neither calls nor unsent bytes of replies. Each of them has a
    /// clone of the budget; the other two belong to the connection and its socket.
    pub(crate) fn is_idle(&self) -> bool {
        Arc::strong_count(&self.0) == 2
    }

    /// Whether the worker has reserved so much that its connections should read new calls little by
    /// little.
    pub(crate) fn is_pressed(&self) -> bool {
        self.0.worker.0.bytes.load(Ordering::Relaxed) > MAX_WORKER_BYTES / 4
    }

    /// Whether a call that holds `of_this_call` may hold `more`. The only call of a connection may
    /// hold up to `alone` whatever the others hold.
    fn has_room_for(&self, more: usize, of_this_call: usize, alone: usize) -> bool {
        let before = self.0.bytes.load(Ordering::Relaxed);
        let worker = &self.0.worker.0;
        let in_worker = worker.bytes.load(Ordering::Relaxed) + more;
        if before + more <= MAX_CONNECTION_BYTES && in_worker <= MAX_WORKER_BYTES {
            return true;
        }
        let connections = worker.connections.load(Ordering::Relaxed).max(1);
        let fair = (FAIR_WORKER_BYTES / connections).clamp(MIN_FAIR_BYTES, MAX_FAIR_BYTES);
        let is_alone = before == of_this_call;
        let is_alone_in_worker = in_worker == of_this_call + more;
        before + more <= fair || is_alone && (before + more <= alone || is_alone_in_worker)
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

/// What one call has reserved. Dropping it gives the bytes back.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: ConnectionBudget,
    bytes: usize,
    /// Of a complete request that waits for the store.
    request_bytes: usize,
}

impl Reservation {
    /// Reserves more, or refuses if there is no room for it.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        // The only call of a connection has room whatever its size. Otherwise large replies could
        // never be sent.
        self.grow_alone(bytes, usize::MAX)
    }

    /// As [`Reservation::grow`], for a request that is incomplete.
    pub(crate) fn grow_incomplete(&mut self, bytes: usize) -> Result<(), Error> {
        self.grow_alone(bytes, MAX_ALONE_INCOMPLETE_BYTES)
    }

    fn grow_alone(&mut self, bytes: usize, alone: usize) -> Result<(), Error> {
        if !self.budget.has_room_for(bytes, self.bytes, alone) {
            return Err(Error::Overloaded);
        }
        self.add(bytes);
        Ok(())
    }

    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        let counts = &self.budget.0;
        add(&counts.bytes, bytes);
        add(&counts.worker.0.bytes, bytes);
    }

    /// Reserves what a complete request takes while it waits for the store, or refuses if there is
    /// no room for it.
    pub(crate) fn reserve_request(&mut self, bytes: usize) -> Result<(), Error> {
        if bytes <= SMALL_REQUEST_BYTES {
            return Ok(());
        }
        if !self.budget.has_room_for_request(bytes) {
            return Err(Error::Overloaded);
        }
        self.request_bytes += bytes;
        let counts = &self.budget.0;
        add(&counts.request_bytes, bytes);
        add(&counts.worker.0.request_bytes, bytes);
        Ok(())
    }

    /// Gives back what [`Reservation::reserve_request`] has reserved. To be called when the store
    /// has answered.
    pub(crate) fn release_request(&mut self) {
        let bytes = std::mem::take(&mut self.request_bytes);
        if bytes > 0 {
            let counts = &self.budget.0;
            sub(&counts.request_bytes, bytes);
            sub(&counts.worker.0.request_bytes, bytes);
        }
    }

    /// Gives back everything above `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        if less == 0 {
            return;
        }
        self.bytes -= less;
        let counts = &self.budget.0;
        sub(&counts.bytes, less);
        sub(&counts.worker.0.bytes, less);
    }

    /// Reserves the bytes of a reply until the last of them is dropped.
    pub(crate) fn hold(mut self, reply: impl AsRef<[u8]> + Send + 'static) -> Result<Bytes, Error> {
        let length = reply.as_ref().len();
        if length > SMALL_REPLY_BYTES {
            self.grow(length)?;
        }
        Ok(Bytes::from_owner(ReservedReply {
            reply,
            _reservation: self,
        }))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let counts = &self.budget.0;
        sub(&counts.bytes, self.bytes);
        sub(&counts.worker.0.bytes, self.bytes);
        self.release_request();
    }
}

struct ReservedReply<R> {
    reply: R,
    _reservation: Reservation,
}

impl<R: AsRef<[u8]>> AsRef<[u8]> for ReservedReply<R> {
    fn as_ref(&self) -> &[u8] {
        self.reply.as_ref()
    }
}

/// Adds with a load and a store, which is cheaper than one atomic step. Only one thread writes, so
/// nothing can come between the two.
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
        let worker = WorkerBudget::default();
        let (slow, quick) = (worker.for_connection(), worker.for_connection());
        let large =
            |budget: &ConnectionBudget| budget.reserve(CALL_BYTES)?.hold(vec![0; MIB - CALL_BYTES]);
        let mut held = Vec::new();
        while let Ok(reply) = large(&slow) {
            held.push(reply);
        }
        assert_eq!(held.len(), MAX_CONNECTION_BYTES / MIB);
        let little = quick.reserve(MAX_FAIR_BYTES / 2);
        assert!(little.is_ok());
        assert!(quick.reserve(MAX_FAIR_BYTES).is_err());
        // A piece of a reply keeps all of it in memory, so all of it stays reserved.
        let piece = held[0].slice(..1);
        held.clear();
        assert_eq!(slow.0.bytes.load(Ordering::Relaxed), MIB);
        drop((piece, little));
        assert_eq!(worker.0.bytes.load(Ordering::Relaxed), 0);
        assert!(large(&slow).is_ok());
    }

    #[test]
    fn many_connections_together_hold_a_bounded_amount() {
        let worker = WorkerBudget::default();
        let connections: Vec<_> = (0..100).map(|_| worker.for_connection()).collect();
        let mut held = Vec::new();
        for connection in &connections {
            while let Ok(reservation) = connection.reserve(CALL_BYTES) {
                held.push(reservation);
            }
        }
        let total = worker.0.bytes.load(Ordering::Relaxed);
        assert!(total <= MAX_WORKER_BYTES + FAIR_WORKER_BYTES, "{total}");
        // Each connection has its fair share all the same.
        for connection in &connections {
            assert!(connection.0.bytes.load(Ordering::Relaxed) >= MIN_FAIR_BYTES);
        }
        drop((held, connections));
        assert_eq!(worker.0.connections.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_only_call_of_a_connection_has_room_whatever_its_size() {
        let connection = WorkerBudget::default().for_connection();
        let mut reservation = connection.reserve(CALL_BYTES).expect("room");
        assert!(reservation.grow(2 * MAX_CONNECTION_BYTES).is_ok());
        assert!(connection.reserve(MAX_FAIR_BYTES).is_err());
        drop(reservation);
        assert!(connection.reserve(MAX_FAIR_BYTES).is_ok());
    }

    #[test]
    fn an_incomplete_request_that_is_alone_has_room_up_to_a_size() {
        let worker = WorkerBudget::default();
        let (busy, slow) = (worker.for_connection(), worker.for_connection());
        // Without other calls in the worker, any size has room.
        let mut incomplete = slow.reserve(CALL_BYTES).expect("room");
        assert!(incomplete.grow_incomplete(2 * MAX_WORKER_BYTES).is_ok());
        drop(incomplete);
        let full = busy.reserve(MAX_WORKER_BYTES).expect("room");
        let mut incomplete = slow.reserve(CALL_BYTES).expect("room");
        let rest = MAX_ALONE_INCOMPLETE_BYTES - CALL_BYTES;
        assert!(incomplete.grow_incomplete(rest).is_ok());
        assert!(incomplete.grow_incomplete(1).is_err());
        drop(full);
        assert!(incomplete.grow_incomplete(1).is_ok());
    }

    #[test]
    fn requests_that_wait_for_the_store_leave_room_for_other_calls_and_are_bounded() {
        let worker = WorkerBudget::default();
        let connections: Vec<_> = (0..4).map(|_| worker.for_connection()).collect();
        let mut reservations = Vec::new();
        for connection in &connections {
            let mut bytes = 0;
            loop {
                let mut reservation = connection.reserve(CALL_BYTES).expect("room for the call");
                if reservation.reserve_request(MIB).is_err() {
                    break;
                }
                bytes += MIB;
                reservations.push(reservation);
            }
            // The last connection finds the worker full, and has room for one all the same.
            assert!(bytes == MAX_CONNECTION_REQUEST_BYTES || bytes == MIB);
        }
        let total = || worker.0.request_bytes.load(Ordering::Relaxed);
        assert_eq!(total(), MAX_WORKER_REQUEST_BYTES + MIB);
        reservations[0].release_request();
        assert_eq!(total(), MAX_WORKER_REQUEST_BYTES);
        drop(reservations);
        assert_eq!(total(), 0);
    }
}
