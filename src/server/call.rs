//! One call: to the right service, within its limits, and back with a status of the contract.
//!
//! The service's own methods go through [`unary`]; health and reflection through tonic's router.
//! Around every call is a [`Guard`] that records it.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, atomic::AtomicUsize},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, service::Service};
use tokio::sync::watch;
use tonic::{Code, body::Body, codegen::BoxFuture, service::Routes};
use tonic_health::server::HealthReporter;
use tower_service::Service as _;

use super::{
    admission::{InFlight, StreamPlace},
    deadline::{Deadline, Deadlines, grpc_timeout},
    guard::{CallBody, Guard, UntilDrain, code},
    held::Held,
    routes::routes,
    stores::OpenStore,
    unary::{self, CallLimits, ReplyBody, Rpc, is_grpc},
};
use crate::{
    auth::{Access, Grant, San},
    config::Reflection,
    error::{Error, previous_attempts},
    metrics::{Method, Recorder},
    model::{Limits, MAX_ID_BYTES},
    service::{Asked, CallContext, DynDataService},
    trace::Tracing,
};

/// What a worker's calls are made of.
pub(super) struct CallConfig {
    pub(super) store: OpenStore,
    pub(super) limits: Limits,
    pub(super) access: Option<watch::Receiver<Access>>,
    pub(super) reflection: Reflection,
    pub(super) max_deadline: Duration,
    pub(super) max_in_flight: usize,
    pub(super) recorder: Arc<Recorder>,
    pub(super) tracing: Option<Tracing>,
    pub(super) health: HealthReporter,
}

/// Everything that the calls of one connection need.
#[derive(Clone)]
pub(super) struct Dispatch {
    worker: Arc<WorkerCalls>,
    /// In the client's certificate, which has been verified.
    names: Arc<[San]>,
    held: Held,
    /// How many streams of health and reflection the connection has.
    streams: Arc<AtomicUsize>,
}

/// Everything that the calls of one worker need.
struct WorkerCalls {
    service: Arc<DynDataService>,
    routes: Routes,
    access: Option<watch::Receiver<Access>>,
    reflection: Reflection,
    recorder: Arc<Recorder>,
    draining: watch::Receiver<()>,
    deadlines: Deadlines,
    tracing: Option<Tracing>,
    max_in_flight: usize,
    max_deadline: Duration,
    max_message_bytes: usize,
    max_reply_bytes: usize,
}

impl Dispatch {
    /// Opens the worker's store; to be called on the worker's own thread.
    pub(super) fn new(
        calls: CallConfig,
        draining: watch::Receiver<()>,
        deadlines: Deadlines,
    ) -> Self {
        let CallConfig {
            store,
            limits,
            access,
            reflection,
            max_deadline,
            max_in_flight,
            recorder,
            tracing,
            health,
        } = calls;
        let max_message_bytes = max_message_bytes(&limits);
        let max_reply_bytes = limits.max_reply_bytes;
        Self {
            worker: Arc::new(WorkerCalls {
                service: Arc::new(DynDataService::new(store(), limits, Arc::clone(&recorder))),
                routes: routes(health, reflection),
                access,
                reflection,
                recorder,
                draining,
                deadlines,
                tracing,
                max_in_flight,
                max_deadline,
                max_message_bytes,
                max_reply_bytes,
            }),
            names: Arc::default(),
            held: Held::default(),
            streams: Arc::default(),
        }
    }

    /// For the calls of a new connection.
    pub(super) fn of_connection(&self, names: Arc<[San]>) -> Self {
        Self {
            worker: Arc::clone(&self.worker),
            names,
            held: self.held.of_new_connection(),
            streams: Arc::default(),
        }
    }

    /// Who makes a call, and what it may do.
    fn identify(&self, headers: &HeaderMap) -> Result<Grant, Error> {
        match &self.worker.access {
            Some(access) => access.borrow().identify(headers, &self.names),
            None => Ok(Grant::Everything),
        }
    }

    /// A call of the service itself, within its limits.
    fn dyn_data(
        &self,
        rpc: Rpc,
        request: Request<Incoming>,
        guard: &mut Guard,
        asked: Option<Asked>,
    ) -> Result<Running, Error> {
        let grant = self.identify(request.headers())?;
        guard.identified(&grant);
        let worker = &self.worker;
        let timeout = grpc_timeout(request.headers())?
            .unwrap_or(worker.max_deadline)
            .min(worker.max_deadline);
        let in_flight = InFlight::enter(&worker.recorder, worker.max_in_flight)?;
        let context = CallContext {
            grant,
            span: guard.span().cloned(),
            asked,
        };
        Ok(Running::DynData {
            call: Box::pin(unary::call(
                Arc::clone(&worker.service),
                rpc,
                request.into_body(),
                CallLimits {
                    max_message_bytes: worker.max_message_bytes,
                    max_reply_bytes: worker.max_reply_bytes,
                    held: self.held.clone(),
                },
                context,
            )),
            deadline: worker.deadlines.enter(guard.started() + timeout),
            _in_flight: in_flight,
        })
    }

    /// A call of health or reflection; or of nothing that exists.
    fn other(&self, request: Request<Incoming>, started: Instant) -> Result<Running, Error> {
        let path = request.uri().path();
        let open = path.starts_with("/grpc.health.v1.Health/")
            || (self.worker.reflection == Reflection::Open
                && path.starts_with("/grpc.reflection."));
        if !open {
            self.identify(request.headers())?;
        }
        let is_stream =
            path == "/grpc.health.v1.Health/Watch" || path.starts_with("/grpc.reflection.");
        let place = is_stream.then(|| StreamPlace::take(&self.streams));
        let place = place.transpose()?;
        let mut routes = self.worker.routes.clone();
        let draining = self.worker.draining.clone();
        // A stream may go on for as long as it likes, once it has begun.
        let deadline = started + self.worker.max_deadline;
        Ok(Running::Other {
            call: Box::pin(async move {
                let response = routes.call(request).await?;
                Ok(response.map(|body| Body::new(UntilDrain::new(body, draining, place))))
            }),
            deadline: self.worker.deadlines.enter(deadline),
        })
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

impl Service<Request<Incoming>> for Dispatch {
    type Response = Response<CallBody>;
    type Error = Infallible;
    type Future = Call;

    fn call(&self, request: Request<Incoming>) -> Call {
        let path = request.uri().path();
        let rpc = Rpc::from_path(path);
        let label = rpc.map_or_else(|| Method::from_path(path), Rpc::label);
        let span = self.worker.tracing.as_ref();
        let span = span.map(|tracing| tracing.call(label, request.headers()));
        let mut guard = Guard::start(&self.worker.recorder, label, span);
        let asked = rpc.filter(|rpc| rpc.is_write()).map(|_| Asked::default());
        let previous_attempts = previous_attempts(request.headers());
        let running = if !is_grpc(request.headers()) {
            Ok(Running::NotGrpc)
        } else if let Some(rpc) = rpc {
            self.dyn_data(rpc, request, &mut guard, asked.clone())
        } else {
            self.other(request, guard.started())
        };
        let running = running.unwrap_or_else(|error| Running::Refused(Some(error)));
        Call {
            running,
            guard: Some(guard),
            asked,
            previous_attempts,
        }
    }
}

/// The future of a call's response head.
pub(super) struct Call {
    running: Running,
    guard: Option<Guard>,
    /// For a call that writes.
    asked: Option<Asked>,
    previous_attempts: u32,
}

enum Running {
    /// A method of the service itself.
    DynData {
        call: Pin<Box<dyn Future<Output = Result<Bytes, Error>> + Send>>,
        deadline: Deadline,
        _in_flight: InFlight,
    },
    /// Health, reflection, or nothing that exists.
    Other {
        call: BoxFuture<Response<Body>, Infallible>,
        deadline: Deadline,
    },
    /// Failed before it began.
    Refused(Option<Error>),
    /// HTTP/2, but no gRPC.
    NotGrpc,
}

impl Future for Call {
    type Output = Result<Response<CallBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let result = match &mut this.running {
            Running::DynData { call, deadline, .. } => {
                ready!(poll_within(call.as_mut(), deadline, cx)).and_then(|result| result)
            }
            Running::Other { call, deadline } => {
                match ready!(poll_within(call.as_mut(), deadline, cx)) {
                    Ok(Ok(response)) => {
                        if let Some(code) = code(response.headers())
                            && code != Code::Ok
                            && let Some(guard) = &this.guard
                        {
                            guard.log_code(code, "");
                        }
                        return Poll::Ready(Ok(this.finish_other(response)));
                    }
                    Ok(Err(never)) => match never {},
                    Err(error) => Err(error),
                }
            }
            Running::Refused(error) => Err(error.take().unwrap_or(Error::Internal)),
            Running::NotGrpc => {
                if let Some(guard) = this.guard.take() {
                    guard.finish(Code::InvalidArgument);
                }
                let text =
                    Full::from("this is a gRPC server; the content-type is application/grpc\n");
                let mut response = Response::new(CallBody::other(Body::new(text), None));
                *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
                return Poll::Ready(Ok(response));
            }
        };
        Poll::Ready(Ok(match result {
            Ok(message) => {
                let reply = ReplyBody::new(message);
                let mut response = Response::new(CallBody::reply(reply, this.guard.take()));
                *response.headers_mut() = unary::reply_headers();
                response
            }
            Err(error) => {
                if let Some(guard) = &this.guard {
                    guard.failed(&error);
                }
                let outcome = this.asked.as_ref();
                let outcome = outcome.map(|asked| error.outcome(asked.get()));
                let status = error.into_status(outcome, this.previous_attempts);
                this.finish_other(status.into_http())
            }
        }))
    }
}

impl Call {
    /// A response that is not one message and OK.
    fn finish_other(&mut self, response: Response<Body>) -> Response<CallBody> {
        let mut guard = self.guard.take();
        // An error that is known by now is in the head, without a body.
        if let Some(code) = code(response.headers())
            && let Some(guard) = guard.take()
        {
            guard.finish(code);
        }
        response.map(|body| CallBody::other(body, guard))
    }
}

/// Polls a call until its deadline. A panic is to end that call alone: what a handler leaves behind
/// when it panics is dropped with its future, and the stores are consistent wherever they can panic.
fn poll_within<F: Future + ?Sized>(
    call: Pin<&mut F>,
    deadline: &Deadline,
    cx: &mut Context<'_>,
) -> Poll<Result<F::Output, Error>> {
    match catch_unwind(AssertUnwindSafe(|| call.poll(cx))) {
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Ok(Poll::Pending) => deadline
            .poll_passed(cx)
            .map(|()| Err(Error::DeadlineExceeded)),
        Err(_) => Poll::Ready(Err(Error::Internal)),
    }
}
