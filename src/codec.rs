//! The codec of the generated service: prost, with buffers of the size that messages have.
//!
//! tonic gives every call two buffers of 8 KiB. A Get needs a few dozen bytes of each; with
//! hundreds of calls in flight the difference is what fits into the processor's cache. Replies are
//! measured before they are written, so that a large one is written without growing its buffer.

use std::marker::PhantomData;

use prost::Message;
use tonic::{
    Status,
    codec::{self, BufferSettings, DecodeBuf, EncodeBuf},
};

use crate::error::Error;

/// The smallest buffer, in bytes: a Get or a Mark of a number with room to spare.
const BUFFER_BYTES: usize = 256;
/// tonic's own: how much of a stream of messages may gather before it is sent.
const YIELD_BYTES: usize = 32 * 1024;

fn settings() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
}

/// Writes `E`, reads `D`.
#[derive(Debug)]
pub(crate) struct Codec<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for Codec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E, D> codec::Codec for Codec<E, D>
where
    E: Message + 'static,
    D: Message + Default + 'static,
{
    type Encode = E;
    type Decode = D;
    type Encoder = Encoder<E>;
    type Decoder = Decoder<D>;

    fn encoder(&mut self) -> Encoder<E> {
        Encoder(PhantomData)
    }

    fn decoder(&mut self) -> Decoder<D> {
        Decoder(PhantomData)
    }
}

/// Writes messages.
#[derive(Debug)]
pub(crate) struct Encoder<E>(PhantomData<E>);

impl<E: Message> codec::Encoder for Encoder<E> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, message: E, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(message.encoded_len());
        message.encode(buffer).map_err(|_| Error::Internal.into())
    }

    fn buffer_settings(&self) -> BufferSettings {
        settings()
    }
}

/// Reads messages. One that cannot be read is the caller's mistake.
#[derive(Debug)]
pub(crate) struct Decoder<D>(PhantomData<D>);

impl<D: Message + Default> codec::Decoder for Decoder<D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        D::decode(buffer)
            .map(Some)
            .map_err(|_| Error::MessageMalformed.into())
    }

    fn buffer_settings(&self) -> BufferSettings {
        settings()
    }
}
