//! gRPC messages: from bytes to a request, and from a reply to bytes.
//!
//! The generated server does the same for any service, through boxed streams and bodies. Doing it
//! here makes a Get a tenth cheaper (`docs/performance.md`).
//!
//! Source: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

use bytes::{BufMut, Bytes};
use prost::Message;

use crate::{
    budget::{CALL_BYTES, ConnectionBudget, Reservation},
    codec::replies::EntryField,
    error::Error,
    store::StoreError,
};

/// Before each message: whether it is compressed (1 byte), and its length (4 bytes).
pub(crate) const PREFIX_BYTES: usize = 5;
/// The limit for a request of health or reflection: the name of a service or symbol, with room to
/// spare.
pub(crate) const MAX_SMALL_MESSAGE_BYTES: usize = 4 * 1024;

/// The length of the message that follows the prefix. `None` if the prefix is incomplete.
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

/// Decodes a message, which comes without its prefix.
pub(crate) fn decode<M: Message + Default>(message: Bytes) -> Result<M, Error> {
    M::decode(message).map_err(|_| Error::MessageMalformed)
}

/// Encodes the replies of one call.
pub(crate) struct ReplyEncoder {
    pub(crate) max_reply_bytes: usize,
    pub(crate) budget: ConnectionBudget,
}

impl ReplyEncoder {
    /// The bytes of a reply with its prefix, reserved until they have been sent.
    pub(crate) fn encode(&self, reply: &impl Message) -> Result<Bytes, Error> {
        let reservation = self.budget.reserve(CALL_BYTES)?;
        encode_reply(reply, self.max_reply_bytes, reservation)
    }
}

/// Encodes the one reply of a unary call, for which its request has left a reservation.
pub(crate) struct UnaryReplyEncoder {
    pub(crate) max_reply_bytes: usize,
    pub(crate) reservation: Reservation,
}

impl UnaryReplyEncoder {
    /// Reserves what the request takes while it waits for the store.
    pub(crate) fn reserve_for_request(&mut self, bytes: usize) -> Result<(), Error> {
        self.reservation.reserve_request(bytes)
    }

    /// The bytes of the reply with its prefix, reserved until they have been sent.
    pub(crate) fn encode(self, reply: &impl Reply) -> Result<Bytes, Error> {
        encode_reply(reply, self.max_reply_bytes, self.reservation)
    }

    /// A reply of entries, which are encoded one by one. It will have about so many bytes.
    pub(crate) fn entries(self, expected_bytes: usize) -> EntriesEncoder {
        EntriesEncoder {
            encoder: self,
            output: Vec::new(),
            expected_bytes,
        }
    }
}

/// A reply that is encoded entry by entry.
pub(crate) struct EntriesEncoder {
    encoder: UnaryReplyEncoder,
    /// The prefix, and the entries so far.
    output: Vec<u8>,
    expected_bytes: usize,
}

impl EntriesEncoder {
    pub(crate) fn push(&mut self, entry: &EntryField<'_>) {
        if self.output.is_empty() {
            // Only now, so that a call that waits for the store does not hold this.
            self.output.reserve(PREFIX_BYTES + self.expected_bytes);
            self.output.extend_from_slice(&[0; PREFIX_BYTES]);
        }
        // The rest of a reply that is too large is not needed.
        if self.output.len() <= PREFIX_BYTES + self.encoder.max_reply_bytes {
            entry.encode(&mut self.output);
        }
    }

    /// As [`UnaryReplyEncoder::encode`].
    pub(crate) fn finish(mut self) -> Result<Bytes, Error> {
        let UnaryReplyEncoder {
            max_reply_bytes,
            mut reservation,
        } = self.encoder;
        reservation.release_request();
        // There is an entry for each id, and a batch has at least one.
        let length = self.output.len().saturating_sub(PREFIX_BYTES);
        let prefix = prefix(length, max_reply_bytes)?;
        self.output[..PREFIX_BYTES].copy_from_slice(&prefix);
        reservation.hold(self.output)
    }
}

/// A message that can be encoded.
pub(crate) trait Reply {
    fn length(&self) -> usize;
    fn write(&self, output: &mut impl BufMut) -> Result<(), Error>;
}

impl<M: Message> Reply for M {
    fn length(&self) -> usize {
        self.encoded_len()
    }

    fn write(&self, output: &mut impl BufMut) -> Result<(), Error> {
        self.encode(output).map_err(|_| Error::Internal)
    }
}

/// A GetResponse is one entry.
impl Reply for EntryField<'_> {
    fn length(&self) -> usize {
        self.encoded_len()
    }

    fn write(&self, output: &mut impl BufMut) -> Result<(), Error> {
        self.encode(output);
        Ok(())
    }
}

/// A small reply is a single allocation.
fn encode_reply(
    reply: &impl Reply,
    max_reply_bytes: usize,
    mut reservation: Reservation,
) -> Result<Bytes, Error> {
    reservation.release_request();
    let length = reply.length();
    let prefix = prefix(length, max_reply_bytes)?;
    match PREFIX_BYTES + length {
        ..=128 => reservation.hold(Inline::<128>::encode(prefix, reply, length)?),
        129..=640 => reservation.hold(Inline::<640>::encode(prefix, reply, length)?),
        all => {
            let mut output = Vec::with_capacity(all);
            output.extend_from_slice(&prefix);
            reply.write(&mut output)?;
            reservation.hold(output)
        }
    }
}

/// The prefix of a message of this length.
pub(super) fn prefix(length: usize, max_bytes: usize) -> Result<[u8; PREFIX_BYTES], Error> {
    if length > max_bytes {
        return Err(StoreError::TooLarge { max: max_bytes }.into());
    }
    let length = u32::try_from(length).map_err(|_| Error::Internal)?;
    let [a, b, c, d] = length.to_be_bytes();
    Ok([0, a, b, c, d])
}

/// Up to `N` bytes that need no allocation of their own.
struct Inline<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Inline<N> {
    fn encode(
        prefix: [u8; PREFIX_BYTES],
        reply: &impl Reply,
        length: usize,
    ) -> Result<Self, Error> {
        let mut bytes = [0; N];
        bytes[..PREFIX_BYTES].copy_from_slice(&prefix);
        reply.write(&mut &mut bytes[PREFIX_BYTES..])?;
        Ok(Self {
            bytes,
            length: PREFIX_BYTES + length,
        })
    }
}

impl<const N: usize> AsRef<[u8]> for Inline<N> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}
