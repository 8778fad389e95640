//! The request of a reflection stream, on its way to its handler.
//!
//! A handler that waits for its reply to be taken reads nothing, and HTTP/2 would keep up to a
//! megabyte of further requests for it. So the stream's own task reads them, passes them on, and
//! ends a stream that sends much more than is answered, or leaves a message incomplete.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use h2::RecvStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{
    deadline::{Deadline, Deadlines},
    message::PREFIX_BYTES,
    state::BODY_TIMEOUT,
};

/// Requests that the handler has not read yet; one more piece may go beyond it.
const MAX_UNREAD_BYTES: usize = 16 * 1024;
/// What a piece of a request costs besides its bytes.
const PIECE_BYTES: usize = 64;

/// The task's side. The handler sees the end of the request when it is dropped.
pub(crate) struct Feeder {
    pieces: Option<UnboundedSender<Bytes>>,
    unread: Arc<AtomicUsize>,
    /// How much of the present message has not come yet, and of the prefix before it.
    missing: usize,
    prefix: Vec<u8>,
    /// Whether too much was unread when the handler last had its turn.
    full: bool,
    /// When the present message has to be complete.
    deadline: Option<Deadline>,
}

/// The handler's side.
pub(crate) struct Fed {
    pieces: UnboundedReceiver<Bytes>,
    unread: Arc<AtomicUsize>,
}

pub(crate) fn feed() -> (Feeder, Fed) {
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
    let fed = Fed {
        pieces: receiver,
        unread,
    };
    (feeder, fed)
}

impl Feeder {
    /// Passes on what has come; to be called before each turn of the handler. Ready if the stream
    /// has to be reset.
    pub(crate) fn poll(
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
                // The handler may only not have had the time yet.
                self.full = true;
                cx.waker().wake_by_ref();
                break;
            }
            self.full = false;
            let Poll::Ready(data) = body.poll_data(cx) else {
                break;
            };
            let Some(Ok(data)) = data else {
                // The handler decides what an incomplete message at the end is.
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
            // A handler that has gone needs nothing any more.
            _ = pieces.send(data);
        }
        match &self.deadline {
            Some(deadline) => deadline.poll_passed(cx),
            None => Poll::Pending,
        }
    }
}

/// Follows the messages in `data`; whether the last of them is incomplete.
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

impl Fed {
    /// The next piece; none at the end of the request. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        let piece = self.pieces.recv().await?;
        self.unread
            .fetch_sub(piece.len() + PIECE_BYTES, Ordering::Relaxed);
        Some(piece)
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
