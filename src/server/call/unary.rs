//! Unary gRPC over HTTP/2: from a request's bytes to a method, and from its reply to bytes.
//!
//! The generated server does the same for any service, streaming included, through boxed streams
//! and bodies; doing it here takes a tenth off what a Get costs (`docs/performance.md`). Health and
//! reflection are served the same way.
//!
//! Source: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

use std::sync::Arc;

use bytes::{BufMut, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};
use http_body::Frame;
use prost::Message;

use super::message::PREFIX_BYTES;
use crate::{
    budget::{CALL_BYTES, Held, Share},
    error::Error,
    metrics::Method,
    proto::BatchGetRequest,
    service::{CallContext, DynDataService},
    store::StoreError,
};

/// How much of a reply a client has to take within `--send-timeout`.
const MAX_FRAME_BYTES: usize = 64 * 1024;

/// A method of `dyndata.v1.DynData`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rpc {
    Mark,
    Get,
    BatchGet,
}

impl Rpc {
    /// The method behind a request path.
    pub(crate) fn from_path(path: &str) -> Option<Self> {
        match path.strip_prefix("/dyndata.v1.DynData/")? {
            "Mark" => Some(Self::Mark),
            "Get" => Some(Self::Get),
            "BatchGet" => Some(Self::BatchGet),
            _ => None,
        }
    }

    /// Whether the method changes what the store holds.
    pub(crate) fn is_write(self) -> bool {
        match self {
            Self::Mark => true,
            Self::Get | Self::BatchGet => false,
        }
    }

    /// The method as a metric label.
    pub(crate) fn label(self) -> Method {
        match self {
            Self::Mark => Method::MARK,
            Self::Get => Method::GET,
            Self::BatchGet => Method::BATCH_GET,
        }
    }
}

/// What a request says that its messages are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Format {
    Protobuf,
    /// Messages of gRPC, of a format that the server does not have.
    Unknown,
    /// Another protocol, such as gRPC-Web.
    NotGrpc,
}

impl Format {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        match content_type.and_then(|value| value.strip_prefix(b"application/grpc")) {
            Some([] | [b';', ..]) => Self::Protobuf,
            Some(rest) if rest.starts_with(b"+proto") => Self::Protobuf,
            Some([b'+', ..]) => Self::Unknown,
            Some(_) | None => Self::NotGrpc,
        }
    }
}

/// While a request waits for the store, it is there as what was decoded, and as a command for the
/// store.
const COPIES: usize = 2;
/// With the expiries, the command names every id twice.
const COPIES_WITH_EXPIRY: usize = 3;
/// What each copy of an id takes besides its bytes.
const OVERHEAD_PER_ID: usize = 32;

/// Runs the method on the request message, and gives the reply message with its prefix.
pub(crate) async fn call(
    service: Arc<DynDataService>,
    rpc: Rpc,
    message: Bytes,
    max: usize,
    mut share: Share,
    context: CallContext,
) -> Result<Bytes, Error> {
    let length = message.len();
    match rpc {
        Rpc::Mark => {
            share.hold_request(COPIES * length)?;
            let reply = service.mark(decode(message)?, &context).await?;
            write(&reply, max, share)
        }
        Rpc::Get => write(&service.get(decode(message)?, &context).await?, max, share),
        Rpc::BatchGet => {
            let request: BatchGetRequest = decode(message)?;
            let copies = match request.include_expire_time {
                true => COPIES_WITH_EXPIRY,
                false => COPIES,
            };
            share.hold_request(copies * (length + OVERHEAD_PER_ID * request.ids.len()))?;
            let reply = service.batch_get(request, &context).await?;
            write(&reply, max, share)
        }
    }
}

pub(crate) fn decode<M: Message + Default>(message: Bytes) -> Result<M, Error> {
    M::decode(message).map_err(|_| Error::MessageMalformed)
}

/// How large the replies of a call may be, and whose they are.
pub(crate) struct ReplyLimits {
    pub(crate) max_reply_bytes: usize,
    pub(crate) held: Held,
}

impl ReplyLimits {
    /// A reply message with its prefix, counted until it has been sent.
    pub(crate) fn reply(&self, message: &impl Message) -> Result<Bytes, Error> {
        write(message, self.max_reply_bytes, self.held.take(CALL_BYTES)?)
    }
}

/// The reply with its prefix, counted in `share` instead of its request. A small reply is a single
/// allocation.
fn write(reply: &impl Message, max: usize, mut share: Share) -> Result<Bytes, Error> {
    share.release_request();
    let length = reply.encoded_len();
    if length > max {
        return Err(StoreError::TooLarge { max }.into());
    }
    match PREFIX_BYTES + length {
        ..=128 => share.hold(Inline::<128>::encode(reply, length)?),
        129..=640 => share.hold(Inline::<640>::encode(reply, length)?),
        all => {
            let mut output = Vec::with_capacity(all);
            encode(reply, length, &mut output)?;
            share.hold(output)
        }
    }
}

fn encode(reply: &impl Message, length: usize, output: &mut impl BufMut) -> Result<(), Error> {
    output.put_u8(0);
    output.put_u32(u32::try_from(length).map_err(|_| Error::Internal)?);
    reply.encode(output).map_err(|_| Error::Internal)
}

/// Up to `N` bytes that need no allocation of their own.
struct Inline<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Inline<N> {
    fn encode(reply: &impl Message, length: usize) -> Result<Self, Error> {
        let mut bytes = [0; N];
        encode(reply, length, &mut &mut bytes[..])?;
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

/// The headers of a reply.
pub(crate) fn reply_headers() -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(1);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers
}

/// The body of a reply: one message, then the status OK.
#[derive(Debug)]
pub(crate) struct ReplyBody {
    message: Option<Bytes>,
    ended: bool,
}

impl ReplyBody {
    pub(crate) fn new(message: Bytes) -> Self {
        Self {
            message: Some(message),
            ended: false,
        }
    }

    /// The next frame, which is always there.
    pub(crate) fn next_frame(&mut self) -> Option<Frame<Bytes>> {
        if let Some(mut message) = self.message.take() {
            if message.len() > MAX_FRAME_BYTES {
                self.message = Some(message.split_off(MAX_FRAME_BYTES));
            }
            return Some(Frame::data(message));
        }
        if self.ended {
            return None;
        }
        self.ended = true;
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert(
            HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("0"),
        );
        Some(Frame::trailers(trailers))
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::call;

    /// The size of the futures that an async function gives.
    fn size_of_future<A, B, C, D, E, G, F>(_: impl Fn(A, B, C, D, E, G) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_call_is_small() {
        // Each is copied to the heap, where up to 1 KiB is had most cheaply.
        assert!(size_of_future(call) <= 1024, "{}", size_of_future(call));
    }
}
