//! The bodies of responses. A body tells the guard of its call how the call ended.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header::CONTENT_TYPE};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Code, Status, body::Body};

use super::{guard::Guard, reply_stream::ReplyStream};
use crate::{budget::Reservation, error::Error};

// Constants, because names and values are checked at each use otherwise.
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const OK: HeaderValue = HeaderValue::from_static("0");

/// How much of a reply a client has to take within `--send-timeout`.
const MAX_FRAME_BYTES: usize = 64 * 1024;

/// The body of any response.
pub(super) struct CallBody {
    kind: BodyKind,
    guard: Option<Guard>,
}

enum BodyKind {
    Reply(ReplyBody),
    /// `None` after the end.
    Stream(Option<ReplyStream>),
    Other {
        body: Body,
        /// For a body whose bytes have no reservation of their own.
        _reservation: Option<Reservation>,
    },
}

impl CallBody {
    /// One message and OK.
    pub(super) fn reply(reply: ReplyBody, guard: Option<Guard>) -> Self {
        Self {
            kind: BodyKind::Reply(reply),
            guard,
        }
    }

    /// Messages, and then a status.
    pub(super) fn stream(stream: ReplyStream, guard: Option<Guard>) -> Self {
        Self {
            kind: BodyKind::Stream(Some(stream)),
            guard,
        }
    }

    /// The body of a response whose head has the status: nothing, or a text for clients that do not
    /// speak gRPC.
    pub(super) fn other(body: Body, reservation: Option<Reservation>) -> Self {
        Self {
            kind: BodyKind::Other {
                body,
                _reservation: reservation,
            },
            guard: None,
        }
    }

    /// The response that has this body and the head of a gRPC reply.
    pub(super) fn into_response(self) -> Response<Self> {
        let mut headers = HeaderMap::with_capacity(1);
        headers.insert(CONTENT_TYPE, GRPC);
        let mut response = Response::new(self);
        *response.headers_mut() = headers;
        response
    }

    fn finish(&mut self, code: Code) {
        if let Some(guard) = self.guard.take() {
            guard.finish(code);
        }
    }

    /// Records the end of a stream. Returns its trailers.
    fn end_stream(&mut self, end: Result<(), Error>) -> HeaderMap {
        let status = match end {
            Ok(()) => Status::ok(""),
            Err(error) => {
                // Every watch ends with the process, so that is not worth a log line.
                if let Some(guard) = &self.guard
                    && !matches!(error, Error::ShuttingDown)
                {
                    guard.failed(&error);
                }
                Status::from(error)
            }
        };
        self.finish(status.code());
        let mut trailers = HeaderMap::new();
        // Our messages are plain ASCII, so they always fit into a header.
        _ = status.add_header(&mut trailers);
        trailers
    }
}

impl HttpBody for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut self.kind {
            BodyKind::Reply(reply) => {
                let frame = reply.next_frame();
                if reply.is_end_stream() {
                    self.finish(Code::Ok);
                }
                Poll::Ready(frame.map(Ok))
            }
            BodyKind::Stream(stream) => {
                let Some(messages) = stream else {
                    return Poll::Ready(None);
                };
                let end = match ready!(messages.poll_next(cx)) {
                    Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
                    Some(Err(error)) => Err(error),
                    None => Ok(()),
                };
                *stream = None;
                Poll::Ready(Some(Ok(Frame::trailers(self.end_stream(end)))))
            }
            BodyKind::Other { body, .. } => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            BodyKind::Reply(reply) => reply.is_end_stream(),
            BodyKind::Stream(stream) => stream.is_none(),
            BodyKind::Other { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            BodyKind::Reply(_) | BodyKind::Stream(_) => SizeHint::default(),
            BodyKind::Other { body, .. } => body.size_hint(),
        }
    }
}

/// The body of a unary reply: one message, then the status OK.
#[derive(Debug)]
pub(super) struct ReplyBody {
    message: Option<Bytes>,
    ended: bool,
}

impl ReplyBody {
    pub(super) fn new(message: Bytes) -> Self {
        Self {
            message: Some(message),
            ended: false,
        }
    }

    /// The next frame, or `None` after the end. A frame never has to be waited for.
    fn next_frame(&mut self) -> Option<Frame<Bytes>> {
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
        trailers.insert(GRPC_STATUS, OK);
        Some(Frame::trailers(trailers))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
