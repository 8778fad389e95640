//! Passes the request of a reflection stream to its handler.
//!
//! A handler that waits for its client to take a reply reads nothing, and HTTP/2 would buffer up to
//! a megabyte of further requests for it. So the task of the stream reads them and passes them on.
//! It resets the stream if the client sends much more than is answered, or leaves a message
//! incomplete.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use futures_util::Stream;
use h2::RecvStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{
    deadline::{Deadline, Deadlines},
    message_reader::BODY_TIMEOUT,
};
use crate::service::message::PREFIX_BYTES;

/// How much of the request may be unread by the handler. One more piece may go beyond this limit.
const MAX_UNREAD_BYTES: usize = 16 * 1024;
/// What a piece of a request costs besides its bytes.
const PIECE_BYTES: usize = 64;

/// The side of the stream's task. Dropping it ends the request for the handler.
pub(super) struct Feeder {
    pieces: Option<UnboundedSender<Bytes>>,
    unread: Arc<AtomicUsize>,
    /// How much of the current message has not come in yet.
    missing: usize,
    /// The part of the current prefix that has come in.
    prefix: Vec<u8>,
    /// Whether too much was unread before the handler's last turn.
    full: bool,
    /// When the current message has to be complete.
    deadline: Option<Deadline>,
}

/// The side of the handler: the pieces of the request.
pub(super) struct Pieces {
    receiver: UnboundedReceiver<Bytes>,
    unread: Arc<AtomicUsize>,
}

pub(super) fn feed() -> (Feeder, Pieces) {
    let (sender, receiver) = unbounded_channel();
    let unread = Arc::<AtomicUsize>::default();
    let feeder = Feeder {
        pieces: Some(sender),
        unread: Arc::clone(&unread),
        missing: 0,
        prefix: Vec::with_capacity(PREFIX_BYTES),
        full: false,
        deadline: None,
    };
    (feeder, Pieces { receiver, unread })
}

impl Feeder {
    /// Passes on what has come in. To be called before each turn of the handler. Ready if the stream
    /// has to be reset.
    pub(super) fn poll(
        &mut self,
        body: &mut RecvStream,
        deadlines: &Deadlines,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        while let Some(pieces) = &self.pieces {
            if self.unread.load(Ordering::Relaxed) >= MAX_UNREAD_BYTES {
                if self.full {
                    return Poll::Ready(());
                }
                // Perhaps the handler has just not had a turn yet.
                self.full = true;
                cx.waker().wake_by_ref();
                break;
            }
            self.full = false;
            let Poll::Ready(data) = body.poll_data(cx) else {
                break;
            };
            let Some(Ok(data)) = data else {
                // If the last message is incomplete, the handler refuses it.
                self.pieces = None;
                self.deadline = None;
                return Poll::Pending;
            };
            _ = body.flow_control().release_capacity(data.len());
            let cost = data.len() + PIECE_BYTES;
            self.unread.fetch_add(cost, Ordering::Relaxed);
            let incomplete = incomplete(&mut self.missing, &mut self.prefix, &data);
            if !incomplete {
                self.deadline = None;
            } else if self.deadline.is_none() {
                self.deadline = Some(deadlines.enter(Instant::now() + BODY_TIMEOUT));
            }
            // An error means that the handler has ended, and needs nothing any more.
            _ = pieces.send(data);
        }
        match &self.deadline {
            Some(deadline) => deadline.poll_passed(cx),
            None => Poll::Pending,
        }
    }
}

/// Counts through the messages in `data`. Returns whether the last of them is incomplete.
fn incomplete(missing: &mut usize, prefix: &mut Vec<u8>, mut data: &[u8]) -> bool {
    loop {
        let of_message = data.len().min(*missing);
        *missing -= of_message;
        data = &data[of_message..];
        if data.is_empty() {
            return *missing > 0 || !prefix.is_empty();
        }
        let of_prefix = data.len().min(PREFIX_BYTES - prefix.len());
        prefix.extend_from_slice(&data[..of_prefix]);
        data = &data[of_prefix..];
        if let &[_, a, b, c, d] = prefix.as_slice() {
            *missing = u32::from_be_bytes([a, b, c, d]) as usize;
            prefix.clear();
        }
    }
}

impl Stream for Pieces {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let polled = self.receiver.poll_recv(cx);
        if let Poll::Ready(Some(piece)) = &polled {
            let cost = piece.len() + PIECE_BYTES;
            self.unread.fetch_sub(cost, Ordering::Relaxed);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::incomplete;

    #[test]
    fn a_message_is_incomplete_until_its_last_byte() {
        let messages = [0, 0, 0, 0, 2, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 7];
        let ends = [7, 12, 18];
        for piece in 1..=messages.len() {
            let (mut missing, mut prefix) = (0, Vec::new());
            let mut seen = 0;
            for data in messages.chunks(piece) {
                seen += data.len();
                let incomplete = incomplete(&mut missing, &mut prefix, data);
                assert_eq!(incomplete, !ends.contains(&seen), "{seen} by {piece}");
            }
        }
    }
}
