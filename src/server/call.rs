//! One call: to the right service, with a guard around it that counts it, times it, and turns
//! what tonic and panics say into the status contract.
//!
//! The generated service is called directly; health and reflection go through tonic's router.
//! The guard is a value that travels from the request into the end of the response body, so that
//! a call is recorded exactly once and as what it was, cancelled ones included.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::{body::Incoming, service::Service};
use tokio::sync::watch;
use tonic::{Code, Status, body::Body, codegen::BoxFuture, service::Routes};
use tonic_health::{
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tower_service::Service as _;

use crate::{
    error::Error,
    metrics::{Method, Recorder},
    model::{Limits, MAX_ID_BYTES},
    proto::{self, dyn_data_server::DynDataServer},
    service::DynDataService,
};

const DYN_DATA_PREFIX: &str = "/dyndata.v1.DynData/";
const STATUS: &str = "grpc-status";
const STATUS_DETAILS: &str = "grpc-status-details-bin";

/// Everything that the calls of one worker need. Clones share it.
#[derive(Clone)]
pub(super) struct Dispatch {
    dyn_data: DynDataServer<DynDataService>,
    routes: Routes,
    recorder: Arc<Recorder>,
    draining: watch::Receiver<()>,
    max_message_bytes: usize,
}

impl Dispatch {
    pub(super) fn new(
        service: DynDataService,
        limits: &Limits,
        health: HealthReporter,
        recorder: Arc<Recorder>,
        draining: watch::Receiver<()>,
    ) -> Self {
        let max_message_bytes = max_message_bytes(limits);
        Self {
            dyn_data: DynDataServer::new(service).max_decoding_message_size(max_message_bytes),
            routes: routes(health),
            recorder,
            draining,
            max_message_bytes,
        }
    }
}

/// Room for the largest valid request: a full batch of the longest ids, or the largest value.
fn max_message_bytes(limits: &Limits) -> usize {
    /// Tags, lengths, namespace, ttl; and of every id its tag and length.
    const OVERHEAD: usize = 1024;
    const OVERHEAD_PER_ID: usize = 3;
    let batch = limits.max_batch * (MAX_ID_BYTES + OVERHEAD_PER_ID);
    batch.max(limits.max_value_bytes) + OVERHEAD
}

fn routes(health: HealthReporter) -> Routes {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that grpcurl shows the details of an error.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let health = HealthServer::new(HealthService::from_health_reporter(health));
    let mut routes = Routes::new(health);
    // Older grpcurl, Postman and Kreya ask for v1alpha.
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => routes = routes.add_service(v1).add_service(v1alpha),
        // The descriptor sets are built in, so a test would have failed first.
        (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "no reflection"),
    }
    routes.prepare()
}

impl Service<Request<Incoming>> for Dispatch {
    type Response = Response<CallBody>;
    type Error = Infallible;
    type Future = Call;

    fn call(&self, request: Request<Incoming>) -> Call {
        let path = request.uri().path();
        let guard = Guard::start(&self.recorder, Method::from_path(path));
        let running = if path.starts_with(DYN_DATA_PREFIX) {
            // A clone is two reference counts; the generated service wants `&mut self`.
            Running::DynData(self.dyn_data.clone().call(request))
        } else {
            let mut routes = self.routes.clone();
            let draining = self.draining.clone();
            Running::Other(Box::pin(async move {
                routes
                    .call(request)
                    .await
                    .map(|response| response.map(|body| Body::new(UntilDrain::new(body, draining))))
            }))
        };
        Call {
            running,
            guard: Some(guard),
            max_message_bytes: self.max_message_bytes,
        }
    }
}

/// The future of a call's response head.
pub(super) struct Call {
    running: Running,
    guard: Option<Guard>,
    max_message_bytes: usize,
}

enum Running {
    DynData(BoxFuture<Response<Body>, Infallible>),
    Other(BoxFuture<Response<Body>, Infallible>),
}

impl Future for Call {
    type Output = Result<Response<CallBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        // What a handler leaves behind when it panics is dropped with its future; the stores are
        // consistent at every point where they could panic.
        let polled = catch_unwind(AssertUnwindSafe(|| match &mut this.running {
            Running::DynData(call) | Running::Other(call) => call.as_mut().poll(cx),
        }));
        let response = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(Ok(response))) => match &this.running {
                Running::DynData(_) => self.to_contract(response),
                Running::Other(_) => response,
            },
            Ok(Poll::Ready(Err(never))) => match never {},
            Err(_) => Status::from(Error::Internal).into_http(),
        };
        let mut guard = self.guard.take();
        // An error that is known by now is in the head, without a body.
        if let Some(code) = code(response.headers())
            && let Some(guard) = guard.take()
        {
            guard.finish(code);
        }
        Poll::Ready(Ok(response.map(|inner| CallBody { inner, guard })))
    }
}

impl Call {
    /// Puts tonic's own errors into the status contract. The service's errors have details;
    /// tonic's have not.
    fn to_contract(&self, response: Response<Body>) -> Response<Body> {
        let headers = response.headers();
        let error = match code(headers) {
            Some(Code::OutOfRange) => Error::MessageTooLarge {
                max: self.max_message_bytes,
            },
            Some(Code::Internal) if !headers.contains_key(STATUS_DETAILS) => {
                Error::MessageMalformed
            }
            _ => return response,
        };
        Status::from(error).into_http()
    }
}

fn code(headers: &HeaderMap) -> Option<Code> {
    headers
        .get(STATUS)
        .map(|status| Code::from_bytes(status.as_bytes()))
}

/// A response body that tells the guard how the call ended.
pub(super) struct CallBody {
    inner: Body,
    guard: Option<Guard>,
}

impl HttpBody for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        let ended = match &polled {
            Poll::Ready(Some(Ok(frame))) => frame.trailers_ref().and_then(code),
            Poll::Ready(Some(Err(status))) => Some(status.code()),
            Poll::Ready(None) | Poll::Pending => None,
        };
        if let Some(code) = ended
            && let Some(guard) = self.guard.take()
        {
            guard.finish(code);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Records one call when it ends, whatever ends it.
struct Guard {
    recorder: Arc<Recorder>,
    method: Method,
    started: Instant,
    code: Code,
}

impl Guard {
    fn start(recorder: &Arc<Recorder>, method: Method) -> Self {
        recorder.started(method);
        Self {
            recorder: Arc::clone(recorder),
            method,
            started: Instant::now(),
            // Until something better is known: dropped before its end means that the caller left.
            code: Code::Cancelled,
        }
    }

    fn finish(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.recorder
            .handled(self.method, self.code, self.started.elapsed());
    }
}

/// A response stream that ends with UNAVAILABLE when the drain begins: a health watch would
/// otherwise keep its connection open for ever.
struct UntilDrain {
    inner: Body,
    drain: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl UntilDrain {
    fn new(inner: Body, mut draining: watch::Receiver<()>) -> Self {
        Self {
            inner,
            drain: Some(Box::pin(async move {
                // The channel carries nothing; its end is the message.
                _ = draining.changed().await;
            })),
        }
    }
}

impl HttpBody for UntilDrain {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if polled.is_ready() {
            return polled;
        }
        let Some(drain) = &mut self.drain else {
            return Poll::Ready(None);
        };
        std::task::ready!(drain.as_mut().poll(cx));
        self.drain = None;
        let mut trailers = HeaderMap::new();
        // The message is plain ASCII, so it always fits into a header.
        _ = Status::unavailable("shutting down").add_header(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.drain.is_none() || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
