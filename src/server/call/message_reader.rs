//! The one message of a unary request, read as its pieces come in.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use h2::RecvStream;

use crate::{
    budget::{CALL_BYTES, INCOMPLETE_BYTES, Reservation},
    error::Error,
    service::message::{PREFIX_BYTES, check_prefix},
};

/// How long a request may be incomplete.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(3);

/// Why there is no message.
#[derive(Debug)]
pub(crate) enum NoMessage {
    Refused(Error),
    /// The caller reset the stream, or its connection ended: there is nobody to answer.
    CallerGone,
}

impl From<Error> for NoMessage {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// The part of a message that has come in.
#[derive(Debug)]
pub(crate) struct MessageReader {
    max_message_bytes: usize,
    /// Most messages come in one piece, and are never copied.
    first: Option<Bytes>,
    gathered: BytesMut,
    /// What the call has reserved. `None` after the end.
    reservation: Option<Reservation>,
    /// Whether a piece of the message was missing at some time. From then on its bytes are
    /// reserved.
    incomplete: bool,
}

impl MessageReader {
    pub(crate) fn new(max_message_bytes: usize, reservation: Reservation) -> Self {
        Self {
            max_message_bytes,
            first: None,
            gathered: BytesMut::new(),
            reservation: Some(reservation),
            incomplete: false,
        }
    }

    /// The message without its prefix, and the reservation of the call without the message.
    pub(crate) fn poll(
        &mut self,
        body: &mut RecvStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Bytes, Reservation), NoMessage>> {
        loop {
            let data = match body.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => data,
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(NoMessage::CallerGone)),
                Poll::Ready(None) => break,
                Poll::Pending => {
                    self.note_incomplete()?;
                    return Poll::Pending;
                }
            };
            // An error means that the stream has ended, which the next poll tells.
            _ = body.flow_control().release_capacity(data.len());
            // Some clients end a request with an empty piece.
            if !data.is_empty() {
                self.add(data)?;
            }
            if body.is_end_stream() {
                break;
            }
        }
        Poll::Ready(self.finish().map_err(NoMessage::Refused))
    }

    /// Reserves the bytes of the message from now on.
    fn note_incomplete(&mut self) -> Result<(), Error> {
        if !self.incomplete {
            self.incomplete = true;
            self.grow(INCOMPLETE_BYTES)?;
            if let Some(first) = self.first.take() {
                self.gather(&first)?;
            }
        }
        Ok(())
    }

    /// Keeps a copy of a piece, because the piece keeps the whole buffer that it was read into. The
    /// capacity of the copies is reserved, and not their length: it doubles as it grows.
    fn gather(&mut self, piece: &[u8]) -> Result<(), Error> {
        let capacity = self.gathered.capacity();
        self.gathered.extend_from_slice(piece);
        self.grow(self.gathered.capacity() - capacity)
    }

    fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        self.reservation
            .as_mut()
            .ok_or(Error::Internal)?
            .grow_incomplete(bytes)
    }

    /// Adds a piece. A message that cannot become valid is refused before it is complete.
    fn add(&mut self, data: Bytes) -> Result<(), Error> {
        let is_first = !self.incomplete && self.first.is_none();
        if is_first {
            check_prefix(&data, self.max_message_bytes)?;
            self.first = Some(data);
            return Ok(());
        }
        self.note_incomplete()?;
        self.gather(&data)?;
        let length = check_prefix(&self.gathered, self.max_message_bytes)?;
        if length.is_some_and(|length| self.gathered.len() > PREFIX_BYTES + length) {
            return Err(Error::MessageMalformed);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(Bytes, Reservation), Error> {
        let mut reservation = self.reservation.take().ok_or(Error::Internal)?;
        reservation.shrink_to(CALL_BYTES);
        let first = self.first.take();
        let mut input = first.unwrap_or_else(|| self.gathered.split().freeze());
        match check_prefix(&input, self.max_message_bytes)? {
            Some(length) if input.len() == PREFIX_BYTES + length => {
                input.advance(PREFIX_BYTES);
                Ok((input, reservation))
            }
            _ => Err(Error::MessageMalformed),
        }
    }
}
