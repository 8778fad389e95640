//! One call: to the right service, within its limits, and back with a status of the contract.
//!
//! The service's own methods go through [`unary`], the others through [`health_calls`] and
//! [`reflection`].
//! Around every call is a [`Guard`] that records it.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::Service};
use tokio::sync::watch;
use tonic::{Code, body::Body};

use super::{
    admission::{InFlight, StreamPlaces},
    deadline::{Deadline, Deadlines, grpc_timeout},
    guard::{CallBody, Guard, code},
    health_calls::{self, HealthRpc},
    held::Held,
    message_stream::{MessageStream, StreamLimits},
    reflection,
    stores::OpenStore,
    unary::{self, CallLimits, ReplyBody, Rpc, is_grpc},
};
use crate::{
    auth::{Access, Grant, San},
    config::Reflection,
    error::{Error, previous_attempts},
    health::HealthService,
    metrics::{Method, Recorder},
    model::{Limits, MAX_ID_BYTES},
    service::{Asked, CallContext, DynDataService},
    trace::Tracing,
};

/// A name of a service or a symbol, with room to spare: what health and reflection are asked.
const MAX_SMALL_MESSAGE_BYTES: usize = 4 * 1024;

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
    pub(super) health: HealthService,
}

/// Everything that the calls of one connection need.
#[derive(Clone)]
pub(super) struct Dispatch {
    worker: Arc<WorkerCalls>,
    /// In the client's certificate, which has been verified.
    names: Arc<[San]>,
    held: Held,
    streams: StreamPlaces,
}

/// Everything that the calls of one worker need.
struct WorkerCalls {
    service: Arc<DynDataService>,
    health: HealthService,
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
                health,
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
            streams: StreamPlaces::default(),
        }
    }

    /// For the calls of a new connection.
    pub(super) fn of_connection(&self, names: Arc<[San]>) -> Self {
        Self {
            worker: Arc::clone(&self.worker),
            names,
            held: self.held.of_new_connection(),
            streams: self.streams.of_new_connection(),
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
        let timeout = grpc_timeout(request.headers())?;
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
            deadline: self.deadline(timeout, guard.started()),
            _in_flight: in_flight,
        })
    }

    /// A call of the health service. Probes need no credentials, and are not among the calls in
    /// flight.
    fn health(
        &self,
        rpc: HealthRpc,
        request: Request<Incoming>,
        started: Instant,
    ) -> Result<Running, Error> {
        let timeout = grpc_timeout(request.headers())?;
        let (health, limits) = (self.worker.health.clone(), self.small_call_limits());
        let body = request.into_body();
        let deadline = self.deadline(timeout, started);
        Ok(match rpc {
            HealthRpc::Check => Running::Health {
                call: Box::pin(health_calls::check(health, body, limits)),
                deadline,
            },
            HealthRpc::List => Running::Health {
                call: Box::pin(health_calls::list(health, body, limits)),
                deadline,
            },
            HealthRpc::Watch => Running::Stream {
                call: Box::pin(health_calls::watch(
                    health,
                    body,
                    limits,
                    self.stream_limits(timeout, started)?,
                )),
                deadline,
            },
        })
    }

    /// A call of reflection, or of nothing that exists. Who is not known does not learn which.
    fn other(&self, request: Request<Incoming>, guard: &mut Guard) -> Result<Running, Error> {
        let reflection = self.worker.reflection;
        let is_reflection = reflection::is_path(request.uri().path());
        if !(is_reflection && reflection == Reflection::Open) {
            guard.identified(&self.identify(request.headers())?);
        }
        if !is_reflection || reflection == Reflection::Off {
            return Err(Error::Unimplemented);
        }
        let timeout = grpc_timeout(request.headers())?;
        let started = guard.started();
        let stream_limits = self.stream_limits(timeout, started)?;
        let limits = self.small_call_limits();
        let stream = reflection::answer(request.into_body(), limits, stream_limits);
        Ok(Running::Stream {
            call: Box::pin(std::future::ready(stream)),
            deadline: self.deadline(timeout, started),
        })
    }

    /// The deadline of a call that waits at most this long, if its caller says so.
    fn deadline(&self, timeout: Option<Duration>, started: Instant) -> Deadline {
        let max = self.worker.max_deadline;
        let timeout = timeout.unwrap_or(max).min(max);
        self.worker.deadlines.enter(started + timeout)
    }

    /// A stream may go on for as long as its caller likes, once it has begun.
    fn stream_limits(
        &self,
        timeout: Option<Duration>,
        started: Instant,
    ) -> Result<StreamLimits, Error> {
        let place = self.streams.take()?;
        let deadline = timeout.map(|timeout| self.worker.deadlines.enter(started + timeout));
        let draining = self.worker.draining.clone();
        Ok(StreamLimits::new(place, deadline, draining))
    }

    /// The limits of health and reflection.
    fn small_call_limits(&self) -> CallLimits {
        CallLimits {
            max_message_bytes: MAX_SMALL_MESSAGE_BYTES,
            max_reply_bytes: self.worker.max_reply_bytes,
            held: self.held.clone(),
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
        let running = if request.method() != http::Method::POST {
            Ok(Running::NotGrpc(StatusCode::METHOD_NOT_ALLOWED))
        } else if !is_grpc(request.headers()) {
            Ok(Running::NotGrpc(StatusCode::UNSUPPORTED_MEDIA_TYPE))
        } else if let Some(rpc) = rpc {
            self.dyn_data(rpc, request, &mut guard, asked.clone())
        } else if let Some(rpc) = HealthRpc::from_path(path) {
            self.health(rpc, request, guard.started())
        } else {
            self.other(request, &mut guard)
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
    /// A health check.
    Health {
        call: Pin<Box<dyn Future<Output = Result<Bytes, Error>> + Send>>,
        deadline: Deadline,
    },
    /// A health watch, or reflection.
    Stream {
        call: Pin<Box<dyn Future<Output = Result<MessageStream, Error>> + Send>>,
        deadline: Deadline,
    },
    /// Failed before it began.
    Refused(Option<Error>),
    /// HTTP/2, but no gRPC; the HTTP status says what is wrong.
    NotGrpc(StatusCode),
}

impl Future for Call {
    type Output = Result<Response<CallBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let result = match &mut this.running {
            Running::DynData { call, deadline, .. } | Running::Health { call, deadline } => {
                ready!(poll_within(call.as_mut(), deadline, cx)).and_then(|result| result)
            }
            Running::Stream { call, deadline } => {
                match ready!(poll_within(call.as_mut(), deadline, cx)).and_then(|result| result) {
                    Ok(stream) => {
                        let mut response =
                            Response::new(CallBody::stream(stream, this.guard.take()));
                        *response.headers_mut() = unary::reply_headers();
                        return Poll::Ready(Ok(response));
                    }
                    Err(error) => Err(error),
                }
            }
            Running::Refused(error) => Err(error.take().unwrap_or(Error::Internal)),
            Running::NotGrpc(status) => {
                if let Some(guard) = this.guard.take() {
                    guard.finish(Code::InvalidArgument);
                }
                return Poll::Ready(Ok(not_grpc(*status)));
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
                let response = error
                    .into_status(outcome, this.previous_attempts)
                    .into_http();
                if let Some(guard) = this.guard.take()
                    && let Some(code) = code(response.headers())
                {
                    guard.finish(code);
                }
                response.map(CallBody::other)
            }
        }))
    }
}

/// The answer to what is no gRPC call: only POST with a content type of gRPC is one.
fn not_grpc(status: StatusCode) -> Response<CallBody> {
    let text = "this is a gRPC server; it takes POST, and the content-type is application/grpc\n";
    let mut response = Response::new(CallBody::other(Body::new(Full::from(text))));
    *response.status_mut() = status;
    if status == StatusCode::METHOD_NOT_ALLOWED {
        let headers = response.headers_mut();
        headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
    }
    response
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
