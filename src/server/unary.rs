//! Unary gRPC over HTTP/2: from a request's bytes to a method, and from its reply to bytes.
//!
//! The generated server does the same for any service, streaming included, through boxed streams
//! and bodies; doing it here takes a tenth off what a Get costs (`docs/performance.md`). Health and
//! reflection are served the same way.
//!
//! Source: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use prost::Message;

use super::{held::Held, stream};
use crate::{
    error::Error,
    metrics::Method,
    service::{CallContext, DynDataService},
    store::StoreError,
};

/// Before each message: whether it is compressed (1 byte), and its length (4 bytes).
pub(super) const PREFIX_BYTES: usize = 5;

/// How much of a reply is handed to HTTP/2 at a time: it takes all that it is given, whether or
/// not the client has room for it.
const MAX_FRAME_BYTES: usize = 64 * 1024;

/// A method of `dyndata.v1.DynData`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rpc {
    Mark,
    Get,
    BatchGet,
}

impl Rpc {
    /// The method behind a request path.
    pub(super) fn from_path(path: &str) -> Option<Self> {
        match path.strip_prefix("/dyndata.v1.DynData/")? {
            "Mark" => Some(Self::Mark),
            "Get" => Some(Self::Get),
            "BatchGet" => Some(Self::BatchGet),
            _ => None,
        }
    }

    /// Whether the method changes what the store holds.
    pub(super) fn is_write(self) -> bool {
        match self {
            Self::Mark => true,
            Self::Get | Self::BatchGet => false,
        }
    }

    /// The method as a metric label.
    pub(super) fn label(self) -> Method {
        match self {
            Self::Mark => Method::MARK,
            Self::Get => Method::GET,
            Self::BatchGet => Method::BATCH_GET,
        }
    }
}

/// Whether a request says that it is gRPC with protobuf messages.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        match value.as_bytes().strip_prefix(b"application/grpc") {
            Some(rest) => matches!(rest, [] | [b';', ..]) || rest.starts_with(b"+proto"),
            None => false,
        }
    })
}

/// Reads the request message, runs the method, and gives the reply message with its prefix.
pub(super) async fn call(
    service: Arc<DynDataService>,
    rpc: Rpc,
    body: Incoming,
    limits: CallLimits,
    context: CallContext,
) -> Result<Bytes, Error> {
    let message = read(body, &limits).await?;
    let max = limits.max_reply_bytes;
    let reply = match rpc {
        Rpc::Mark => write(&service.mark(decode(message)?, &context).await?, max),
        Rpc::Get => write(&service.get(decode(message)?, &context).await?, max),
        Rpc::BatchGet => write(&service.batch_get(decode(message)?, &context).await?, max),
    };
    limits.held.hold(reply?)
}

/// How large the messages of a call may be.
pub(super) struct CallLimits {
    pub(super) max_message_bytes: usize,
    pub(super) max_reply_bytes: usize,
    pub(super) held: Held,
}

impl CallLimits {
    /// A reply message with its prefix, counted until it has been sent.
    pub(super) fn reply(&self, message: &impl Message) -> Result<Bytes, Error> {
        self.held.hold(write(message, self.max_reply_bytes)?)
    }
}

/// The one message of a request.
pub(super) async fn read(mut body: Incoming, limits: &CallLimits) -> Result<Bytes, Error> {
    let max_message_bytes = limits.max_message_bytes;
    let mut input = next(&mut body).await?.unwrap_or_default();
    check_prefix(&input, max_message_bytes)?;
    // Most messages come in one frame, and are never copied.
    if !body.is_end_stream() {
        let mut share = limits.held.begin();
        let mut gathered = BytesMut::from(input);
        while let Some(more) = next(&mut body).await? {
            share.grow(more.len())?;
            gathered.extend_from_slice(&more);
            let length = check_prefix(&gathered, max_message_bytes)?;
            if length.is_some_and(|length| gathered.len() > PREFIX_BYTES + length) {
                return Err(Error::MessageMalformed);
            }
        }
        input = gathered.freeze();
    }
    match check_prefix(&input, max_message_bytes)? {
        Some(length) if input.len() == PREFIX_BYTES + length => {
            input.advance(PREFIX_BYTES);
            Ok(input)
        }
        _ => Err(Error::MessageMalformed),
    }
}

/// The next piece of data; none at the end.
pub(super) async fn next(body: &mut Incoming) -> Result<Option<Bytes>, Error> {
    while let Some(frame) = body.frame().await {
        // An error means that the caller reset the stream, and will not see this one either.
        if let Ok(data) = frame.map_err(|_| Error::MessageMalformed)?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// The length of the message, if the prefix is there; refuses what cannot become a valid request,
/// before it has come in whole.
pub(super) fn check_prefix(input: &[u8], max_message_bytes: usize) -> Result<Option<usize>, Error> {
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

pub(super) fn decode<M: Message + Default>(message: Bytes) -> Result<M, Error> {
    M::decode(message).map_err(|_| Error::MessageMalformed)
}

fn write(reply: &impl Message, max: usize) -> Result<Vec<u8>, Error> {
    let length = reply.encoded_len();
    if length > max {
        return Err(StoreError::TooLarge { max }.into());
    }
    let prefix = u32::try_from(length).map_err(|_| Error::Internal)?;
    let mut output = Vec::with_capacity(PREFIX_BYTES + length);
    output.push(0);
    output.extend_from_slice(&prefix.to_be_bytes());
    reply.encode(&mut output).map_err(|_| Error::Internal)?;
    Ok(output)
}

/// The headers of a reply.
pub(super) fn reply_headers() -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(1);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers
}

/// The body of a reply: one message, then the status OK.
#[derive(Debug)]
pub(super) struct ReplyBody {
    message: Option<Bytes>,
    ended: bool,
}

impl ReplyBody {
    pub(super) fn new(message: Bytes) -> Self {
        stream::progress();
        Self {
            message: Some(message),
            ended: false,
        }
    }

    /// The next frame, which is always there.
    pub(super) fn next_frame(&mut self) -> Option<Frame<Bytes>> {
        stream::progress();
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

    pub(super) fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::call;

    /// The size of the futures that an async function gives.
    fn size_of_future<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_call_is_small() {
        // Each is copied to the heap, where up to 1 KiB is had most cheaply.
        assert!(size_of_future(call) <= 1024, "{}", size_of_future(call));
    }
}
