//! What the calls of one worker share, and what the calls of one connection share.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::HeaderMap;
use tokio::sync::watch;

use super::{admission::StreamPlaces, deadline::Deadlines, reply_stream::StreamLimits};
use crate::{
    auth::{Access, Grant, San, settings::Reflection},
    budget::{ConnectionBudget, WorkerBudget},
    error::Error,
    metrics::Recorder,
    model::{Limits, MAX_ID_BYTES},
    rpc::{RequestSize, Rpc},
    server::stores::OpenStore,
    service::{
        Service,
        health::HealthService,
        message::{MAX_SMALL_MESSAGE_BYTES, ReplyEncoder},
    },
    trace::Tracing,
    watch::WatchHub,
};

/// What [`WorkerCalls`] are made of.
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
    pub(crate) watches: WatchHub,
}

/// Shared by all calls of one worker.
pub(crate) struct WorkerCalls {
    pub(super) service: Arc<Service>,
    pub(super) health: HealthService,
    pub(super) reflection: Reflection,
    pub(super) recorder: Arc<Recorder>,
    pub(super) deadlines: Deadlines,
    pub(super) tracing: Option<Tracing>,
    pub(super) max_in_flight: usize,
    pub(super) max_reply_bytes: usize,
    limits: Limits,
    max_deadline: Duration,
    pub(super) access: Option<watch::Receiver<Access>>,
    budget: WorkerBudget,
    streams: StreamPlaces,
}

/// Shared by all calls of one connection.
pub(crate) struct ConnectionCalls {
    pub(super) worker: Arc<WorkerCalls>,
    pub(crate) budget: ConnectionBudget,
    /// The names in the client's certificate, which has been verified.
    names: Arc<[San]>,
    streams: StreamPlaces,
    /// Closes when the connection takes no new calls.
    leaving: watch::Receiver<()>,
}

impl WorkerCalls {
    /// Opens the worker's store. To be called on the worker's own thread.
    pub(crate) fn new(config: CallConfig, deadlines: Deadlines) -> Arc<Self> {
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
            watches,
        } = config;
        let max_reply_bytes = limits.max_reply_bytes;
        Arc::new(Self {
            service: Arc::new(Service::new(
                store(),
                limits,
                watches,
                Arc::clone(&recorder),
            )),
            health,
            reflection,
            recorder,
            deadlines,
            tracing,
            max_in_flight,
            limits,
            max_reply_bytes,
            max_deadline,
            access,
            budget: WorkerBudget::default(),
            streams: StreamPlaces::default(),
        })
    }

    /// What the calls of a new connection share. `leaving` closes when the connection takes no new
    /// calls.
    pub(crate) fn for_connection(
        self: &Arc<Self>,
        names: Arc<[San]>,
        leaving: watch::Receiver<()>,
    ) -> Arc<ConnectionCalls> {
        Arc::new(ConnectionCalls {
            worker: Arc::clone(self),
            budget: self.budget.for_connection(),
            names,
            streams: self.streams.for_connection(),
            leaving,
        })
    }
}

impl ConnectionCalls {
    /// The largest message that a request of this RPC can have.
    pub(super) fn max_message_bytes(&self, rpc: Rpc) -> usize {
        max_message_bytes(&self.worker.limits, rpc.request_size())
    }

    /// Who makes a call, and what this caller may do.
    pub(super) fn identify(&self, headers: &HeaderMap) -> Result<Grant, Error> {
        match &self.worker.access {
            Some(access) => Ok(access.borrow().identify(headers, &self.names)?),
            None => Ok(Grant::Everything),
        }
    }

    /// The deadline of a call: after the caller's timeout, and after `--max-deadline` at the latest.
    pub(super) fn deadline(&self, timeout: Option<Duration>, started: Instant) -> Instant {
        let max = self.worker.max_deadline;
        started + timeout.unwrap_or(max).min(max)
    }

    /// The limits of a call whose reply is a stream. A stream that has begun may go on until its
    /// caller's own deadline.
    pub(super) fn stream_limits(
        &self,
        timeout: Option<Duration>,
        started: Instant,
    ) -> Result<Box<StreamLimits>, Error> {
        let place = self.streams.take()?;
        let deadlines = &self.worker.deadlines;
        let deadline = timeout.map(|timeout| deadlines.enter(started + timeout));
        let leaving = self.leaving.clone();
        Ok(Box::new(StreamLimits::new(place, deadline, leaving)))
    }

    pub(super) fn reply_encoder(&self) -> ReplyEncoder {
        ReplyEncoder {
            max_reply_bytes: self.worker.max_reply_bytes,
            budget: self.budget.clone(),
        }
    }
}

/// The largest message that a request of this size can have.
fn max_message_bytes(limits: &Limits, size: RequestSize) -> usize {
    /// For tags, lengths, namespace, id and ttl.
    const OVERHEAD: usize = 1024;
    /// For the tag and the length of an id.
    const OVERHEAD_PER_ID: usize = 3;
    match size {
        RequestSize::Small => MAX_SMALL_MESSAGE_BYTES,
        RequestSize::Usual => {
            let batch = limits.max_batch * (MAX_ID_BYTES + OVERHEAD_PER_ID);
            batch.max(limits.max_value_bytes) + OVERHEAD
        }
        RequestSize::TwoValues => 2 * limits.max_value_bytes + OVERHEAD,
        RequestSize::Largest => limits.max_request_bytes,
    }
}
