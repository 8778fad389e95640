//! The one message of a unary request, read as its pieces come.
//!
//! Source: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes, BytesMut};
use h2::RecvStream;

use crate::{
    budget::{CALL_BYTES, Share, UNFINISHED_BYTES},
    error::Error,
};

/// Before each message: whether it is compressed (1 byte), and its length (4 bytes).
pub(crate) const PREFIX_BYTES: usize = 5;

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

/// A message as far as it has come.
#[derive(Debug)]
pub(crate) struct MessageReader {
    max_message_bytes: usize,
    /// Most messages come in one piece, and are never copied.
    first: Option<Bytes>,
    gathered: BytesMut,
    /// What the call holds.
    share: Option<Share>,
    /// Whether the message has turned out to be incomplete, which is counted.
    unfinished: bool,
}

impl MessageReader {
    pub(crate) fn new(max_message_bytes: usize, share: Share) -> Self {
        Self {
            max_message_bytes,
            first: None,
            gathered: BytesMut::new(),
            share: Some(share),
            unfinished: false,
        }
    }

    /// The message without its prefix, and what the call holds without it.
    pub(crate) fn poll(
        &mut self,
        body: &mut RecvStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Bytes, Share), NoMessage>> {
        loop {
            let data = match body.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => data,
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(NoMessage::CallerGone)),
                Poll::Ready(None) => break,
                Poll::Pending => {
                    self.unfinished()?;
                    return Poll::Pending;
                }
            };
            // An error means that the stream has ended, which the next look at it tells.
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

    /// Counts the message as incomplete from now on.
    fn unfinished(&mut self) -> Result<(), Error> {
        if !self.unfinished {
            self.unfinished = true;
            self.grow(UNFINISHED_BYTES)?;
            if let Some(first) = self.first.take() {
                self.gather(&first)?;
            }
        }
        Ok(())
    }

    /// Keeps a copy of a piece, because the piece keeps the whole buffer that it was read into. The
    /// room of the gathered pieces is counted, not their length: it doubles as it grows.
    fn gather(&mut self, piece: &[u8]) -> Result<(), Error> {
        let room = self.gathered.capacity();
        self.gathered.extend_from_slice(piece);
        self.grow(self.gathered.capacity() - room)
    }

    fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        // The share is there until the message is complete.
        self.share.as_mut().ok_or(Error::Internal)?.grow(bytes)
    }

    /// Refuses what cannot become a valid request before it has come in whole.
    fn add(&mut self, data: Bytes) -> Result<(), Error> {
        let is_first = !self.unfinished && self.first.is_none();
        if is_first {
            check_prefix(&data, self.max_message_bytes)?;
            self.first = Some(data);
            return Ok(());
        }
        self.unfinished()?;
        self.gather(&data)?;
        let length = check_prefix(&self.gathered, self.max_message_bytes)?;
        if length.is_some_and(|length| self.gathered.len() > PREFIX_BYTES + length) {
            return Err(Error::MessageMalformed);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(Bytes, Share), Error> {
        let mut share = self.share.take().ok_or(Error::Internal)?;
        share.shrink_to(CALL_BYTES);
        let first = self.first.take();
        let mut input = first.unwrap_or_else(|| self.gathered.split().freeze());
        match check_prefix(&input, self.max_message_bytes)? {
            Some(length) if input.len() == PREFIX_BYTES + length => {
                input.advance(PREFIX_BYTES);
                Ok((input, share))
            }
            _ => Err(Error::MessageMalformed),
        }
    }
}

/// The length of the message, if the prefix is there.
pub(crate) fn check_prefix(input: &[u8], max_message_bytes: usize) -> Result<Option<usize>, Error> {
    let Some((&[compressed, length @ ..], _)) = input.split_first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    match compressed {
        0 => {}
        1 => return Err(Error::CompressionUnsupported),
        _ => return Err(Error::MessageMalformed),
    }
    // A u32 fits into a usize on every platform that this runs on.
    let length = u32::from_be_bytes(length) as usize;
    if length > max_message_bytes {
        return Err(Error::MessageTooLarge {
            max: max_message_bytes,
        });
    }
    Ok(Some(length))
}
