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
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::{body::Incoming, service::Service};
use tokio::sync::watch;
use tonic::{Code, Status, body::Body, codegen::BoxFuture, service::Routes};
use tonic_health::{
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tower_service::Service as _;

use super::{
    deadline::{Deadline, Deadlines, grpc_timeout},
    worker::WorkerConfig,
};
use crate::{
    error::Error,
    metrics::{Method, Recorder},
    model::{Limits, MAX_ID_BYTES},
    proto::{self, dyn_data_server::DynDataServer},
    service::DynDataService,
};

const DYN_DATA_PREFIX: &str = "/dyndata.v1.DynData/";
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const STATUS_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// Everything that the calls of one worker need. Clones share it.
#[derive(Clone)]
pub(super) struct Dispatch {
    dyn_data: DynDataServer<DynDataService>,
    routes: Routes,
    recorder: Arc<Recorder>,
    draining: watch::Receiver<()>,
    deadlines: Deadlines,
    in_flight: Arc<AtomicUsize>,
    max_in_flight: usize,
    max_deadline: Duration,
    max_message_bytes: usize,
}

impl Dispatch {
    /// Opens the worker's store; to be called on the worker's own thread.
    pub(super) fn new(config: WorkerConfig, deadlines: Deadlines) -> Self {
        let WorkerConfig {
            number: _,
            store,
            limits,
            max_deadline,
            max_in_flight,
            recorder,
            health,
            draining,
            drain_timeout: _,
        } = config;
        let max_message_bytes = max_message_bytes(&limits);
        let service = DynDataService::new(store(), limits);
        Self {
            dyn_data: DynDataServer::new(service).max_decoding_message_size(max_message_bytes),
            routes: routes(health),
            recorder,
            draining,
            deadlines,
            in_flight: Arc::default(),
            max_in_flight,
            max_deadline,
            max_message_bytes,
        }
    }

    /// A call of the service itself, within its limits.
    fn dyn_data(&self, request: Request<Incoming>, started: Instant) -> Result<Running, Error> {
        let timeout = grpc_timeout(request.headers())?
            .unwrap_or(self.max_deadline)
            .min(self.max_deadline);
        let in_flight = InFlight::enter(&self.in_flight, self.max_in_flight)?;
        Ok(Running::DynData {
            // A clone is two reference counts; the generated service wants `&mut self`.
            call: self.dyn_data.clone().call(request),
            deadline: self.deadlines.enter(started + timeout),
            _in_flight: in_flight,
        })
    }

    /// A call of health or reflection; or of nothing that exists.
    fn other(&self, request: Request<Incoming>) -> Running {
        let mut routes = self.routes.clone();
        let draining = self.draining.clone();
        Running::Other {
            call: Box::pin(async move {
                routes
                    .call(request)
                    .await
                    .map(|response| response.map(|body| Body::new(UntilDrain::new(body, draining))))
            }),
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
            self.dyn_data(request, guard.started)
                .unwrap_or_else(|error| Running::Refused { error: Some(error) })
        } else {
            self.other(request)
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
    DynData {
        call: BoxFuture<Response<Body>, Infallible>,
        deadline: Deadline,
        _in_flight: InFlight,
    },
    Other {
        call: BoxFuture<Response<Body>, Infallible>,
    },
    Refused {
        error: Option<Error>,
    },
}

impl Future for Call {
    type Output = Result<Response<CallBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let response = match &mut this.running {
            Running::DynData { call, deadline, .. } => match poll_caught(call, cx) {
                Poll::Ready(response) => to_contract(response, this.max_message_bytes),
                Poll::Pending => {
                    ready!(deadline.poll_passed(cx));
                    Status::from(Error::DeadlineExceeded).into_http()
                }
            },
            Running::Other { call } => ready!(poll_caught(call, cx)),
            Running::Refused { error } => {
                Status::from(error.take().unwrap_or(Error::Internal)).into_http()
            }
        };
        let mut guard = this.guard.take();
        // An error that is known by now is in the head, without a body.
        if let Some(code) = code(response.headers())
            && let Some(guard) = guard.take()
        {
            guard.finish(code);
        }
        Poll::Ready(Ok(response.map(|inner| CallBody { inner, guard })))
    }
}

/// Polls a call, and makes a panic an INTERNAL of that call alone. What a handler leaves behind
/// when it panics is dropped with its future; the stores are consistent wherever they can panic.
fn poll_caught(
    call: &mut BoxFuture<Response<Body>, Infallible>,
    cx: &mut Context<'_>,
) -> Poll<Response<Body>> {
    match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(Ok(response))) => Poll::Ready(response),
        Ok(Poll::Ready(Err(never))) => match never {},
        Err(_) => Poll::Ready(Status::from(Error::Internal).into_http()),
    }
}

/// Puts tonic's own errors into the status contract. The service's errors have details; tonic's
/// have not.
fn to_contract(response: Response<Body>, max_message_bytes: usize) -> Response<Body> {
    let headers = response.headers();
    let error = match code(headers) {
        Some(Code::OutOfRange) => Error::MessageTooLarge {
            max: max_message_bytes,
        },
        Some(Code::Internal) if !headers.contains_key(STATUS_DETAILS) => Error::MessageMalformed,
        _ => return response,
    };
    Status::from(error).into_http()
}

/// One of a worker's calls in flight, for as long as it is one.
struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    fn enter(count: &Arc<AtomicUsize>, max: usize) -> Result<Self, Error> {
        // Only this thread counts, so that looking first is good enough.
        if count.load(Ordering::Relaxed) >= max {
            return Err(Error::Overloaded);
        }
        count.fetch_add(1, Ordering::Relaxed);
        Ok(Self(Arc::clone(count)))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
        ready!(drain.as_mut().poll(cx));
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
