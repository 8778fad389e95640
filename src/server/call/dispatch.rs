//! From a request's headers to a call: who makes it, what it is for, and what it needs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, StatusCode, request::Parts};
use tokio::sync::watch;

use super::{
    admission::StreamPlaces,
    deadline::{Deadlines, grpc_timeout},
    feed::{Feeder, feed},
    guard::Guard,
    message::MessageReader,
    reply_stream::StreamLimits,
    state::{Call, MAX_SMALL_MESSAGE_BYTES, Message, Running},
    unary::{Format, ReplyLimits, Rpc},
};
use crate::{
    auth::{Access, Grant, San},
    budget::{CALL_BYTES, Held, WorkerHeld},
    config::Reflection,
    error::{Error, previous_attempts},
    health::HealthService,
    metrics::{Method, Recorder},
    model::{Limits, MAX_ID_BYTES},
    server::stores::OpenStore,
    service::{Asked, CallContext, DynDataService, health::HealthRpc, reflection},
    trace::Tracing,
};

/// What a worker's calls are made of.
pub(crate) struct CallConfig {
    pub(crate) store: OpenStore,
    pub(crate) limits: Limits,
    pub(crate) access: Option<watch::Receiver<Access>>,
    pub(crate) reflection: Reflection,
    pub(crate) max_deadline: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) tracing: Option<Tracing>,
    pub(crate) health: HealthService,
}

/// Makes the calls of a worker.
#[derive(Clone)]
pub(crate) struct Dispatch {
    worker: Arc<WorkerCalls>,
    held: WorkerHeld,
    streams: StreamPlaces,
}

/// Makes the calls of one connection. Clones are about the same connection.
#[derive(Clone)]
pub(crate) struct ConnectionDispatch(Arc<ConnectionCalls>);

struct ConnectionCalls {
    worker: Arc<WorkerCalls>,
    /// In the client's certificate, which has been verified.
    names: Arc<[San]>,
    held: Held,
    streams: StreamPlaces,
    /// Closes when the connection takes no new calls.
    leaving: watch::Receiver<()>,
}

/// Everything that the calls of one worker need.
pub(crate) struct WorkerCalls {
    pub(crate) service: Arc<DynDataService>,
    pub(crate) health: HealthService,
    access: Option<watch::Receiver<Access>>,
    reflection: Reflection,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) deadlines: Deadlines,
    tracing: Option<Tracing>,
    pub(crate) max_in_flight: usize,
    max_deadline: Duration,
    max_message_bytes: usize,
    pub(crate) max_reply_bytes: usize,
}

impl Dispatch {
    /// Opens the worker's store; to be called on the worker's own thread.
    pub(crate) fn new(calls: CallConfig, deadlines: Deadlines) -> Self {
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
                deadlines,
                tracing,
                max_in_flight,
                max_deadline,
                max_message_bytes,
                max_reply_bytes,
            }),
            held: WorkerHeld::default(),
            streams: StreamPlaces::default(),
        }
    }

    /// For the calls of a new connection. `leaving` closes when it takes no new calls, which ends its
    /// streams.
    pub(crate) fn of_connection(
        &self,
        names: Arc<[San]>,
        leaving: watch::Receiver<()>,
    ) -> ConnectionDispatch {
        ConnectionDispatch(Arc::new(ConnectionCalls {
            worker: Arc::clone(&self.worker),
            names,
            held: self.held.new_connection(),
            streams: self.streams.of_new_connection(),
            leaving,
        }))
    }
}

impl ConnectionDispatch {
    pub(crate) fn worker(&self) -> &WorkerCalls {
        &self.0.worker
    }

    pub(crate) fn held(&self) -> &Held {
        &self.0.held
    }

    /// The call behind a request's head; and where its request goes, if a handler reads it as a
    /// stream.
    pub(crate) fn begin(&self, head: &Parts) -> (Call, Option<Feeder>) {
        let path = head.uri.path();
        let rpc = Rpc::from_path(path);
        let label = rpc.map_or_else(|| Method::from_path(path), Rpc::label);
        let span = self.0.worker.tracing.as_ref();
        let span = span.map(|tracing| tracing.call(label, &head.headers));
        let mut guard = Guard::start(&self.0.worker.recorder, label, span);
        let asked = rpc.filter(|rpc| rpc.is_write()).map(|_| Asked::default());
        let previous_attempts = previous_attempts(&head.headers);
        let mut feeder = None;
        let running = if head.method != http::Method::POST {
            Ok(Running::NotGrpc {
                status: StatusCode::METHOD_NOT_ALLOWED,
                has_text: head.method != http::Method::HEAD,
            })
        } else if let Some(refused) = refused_format(&head.headers) {
            refused
        } else if let Some(rpc) = rpc {
            self.dyn_data(rpc, head, &mut guard, asked.clone())
        } else if let Some(rpc) = HealthRpc::from_path(path) {
            self.health(rpc, head, guard.started())
        } else {
            self.other(head, &mut guard, &mut feeder)
        };
        let running = running.unwrap_or_else(Running::refused);
        let call = Call::new(self.clone(), guard, running, asked, previous_attempts);
        (call, feeder)
    }

    /// Who makes a call, and what it may do.
    fn identify(&self, headers: &HeaderMap) -> Result<Grant, Error> {
        match &self.0.worker.access {
            Some(access) => access.borrow().identify(headers, &self.0.names),
            None => Ok(Grant::Everything),
        }
    }

    /// A call of the service itself.
    fn dyn_data(
        &self,
        rpc: Rpc,
        head: &Parts,
        guard: &mut Guard,
        asked: Option<Asked>,
    ) -> Result<Running, Error> {
        let grant = self.identify(&head.headers)?;
        guard.identified(&grant);
        let timeout = grpc_timeout(&head.headers)?;
        let share = self.0.held.take(CALL_BYTES)?;
        let context = CallContext {
            grant,
            span: guard.span().cloned(),
            asked,
        };
        Ok(Running::Reading {
            reader: MessageReader::new(self.0.worker.max_message_bytes, share),
            message_is: Message::DynData(rpc, context),
            deadline: self.deadline(timeout, guard.started()),
            waiting: None,
        })
    }

    /// A call of the health service. Probes need no credentials, and are not among the calls in
    /// flight.
    fn health(&self, rpc: HealthRpc, head: &Parts, started: Instant) -> Result<Running, Error> {
        let timeout = grpc_timeout(&head.headers)?;
        let share = self.0.held.take(CALL_BYTES)?;
        Ok(Running::Reading {
            reader: MessageReader::new(MAX_SMALL_MESSAGE_BYTES, share),
            message_is: match rpc {
                HealthRpc::Watch => Message::Watch(self.stream_limits(timeout, started)?),
                HealthRpc::Check => Message::Check,
                HealthRpc::List => Message::List,
            },
            deadline: self.deadline(timeout, started),
            waiting: None,
        })
    }

    /// A call of reflection, or of nothing that exists. Who is not known does not learn which.
    fn other(
        &self,
        head: &Parts,
        guard: &mut Guard,
        feeder: &mut Option<Feeder>,
    ) -> Result<Running, Error> {
        let reflection = self.0.worker.reflection;
        let is_reflection = reflection::is_path(head.uri.path());
        if !(is_reflection && reflection == Reflection::Open) {
            guard.identified(&self.identify(&head.headers)?);
        }
        if !is_reflection || reflection == Reflection::Off {
            return Err(Error::Unimplemented);
        }
        let timeout = grpc_timeout(&head.headers)?;
        let stream_limits = self.stream_limits(timeout, guard.started())?;
        let (mine, theirs) = feed();
        let stream = reflection::answer(theirs, self.reply_limits(), stream_limits)?;
        *feeder = Some(mine);
        Ok(Running::Stream(Some(stream)))
    }

    /// When a call ends that waits at most this long, if its caller says so.
    fn deadline(&self, timeout: Option<Duration>, started: Instant) -> Instant {
        let max = self.0.worker.max_deadline;
        started + timeout.unwrap_or(max).min(max)
    }

    /// A stream may go on for as long as its caller likes, once it has begun.
    fn stream_limits(
        &self,
        timeout: Option<Duration>,
        started: Instant,
    ) -> Result<StreamLimits, Error> {
        let worker = &self.0.worker;
        let place = self.0.streams.take()?;
        let deadline = timeout.map(|timeout| worker.deadlines.enter(started + timeout));
        Ok(StreamLimits::new(place, deadline, self.0.leaving.clone()))
    }

    pub(crate) fn reply_limits(&self) -> ReplyLimits {
        ReplyLimits {
            max_reply_bytes: self.0.worker.max_reply_bytes,
            held: self.0.held.clone(),
        }
    }
}

/// What becomes of a call whose content type is not that of gRPC with protobuf messages.
fn refused_format(headers: &HeaderMap) -> Option<Result<Running, Error>> {
    match Format::of(headers) {
        Format::Protobuf => None,
        Format::Unknown => Some(Err(Error::FormatUnsupported)),
        Format::NotGrpc => Some(Ok(Running::NotGrpc {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            has_text: true,
        })),
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
