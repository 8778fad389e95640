//! The three RPCs: parse the request into domain types, see that the caller may, ask the store,
//! reply.
//!
//! Knows nothing of Redis, sockets or HTTP/2.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use crate::{
    auth::{Grant, Right},
    error::Error,
    metrics::{Operation, Recorder},
    model::{self, Batch, Id, Limits, Namespace, Ttl, Value},
    proto::{
        BatchGetRequest, BatchGetResponse, GetRequest, GetResponse, MarkRequest, MarkResponse,
    },
    store::{Store, StoreError},
    trace::{CallSpan, StoreSpan},
};

/// The name of the service on the wire.
pub(crate) const NAME: &str = "dyndata.v1.DynData";

/// The service of one worker.
#[derive(Debug)]
pub(crate) struct DynDataService {
    store: Store,
    limits: Limits,
    recorder: Arc<Recorder>,
}

/// What a call comes with besides its request.
#[derive(Debug)]
pub(crate) struct CallContext {
    /// What its caller may do.
    pub(crate) grant: Grant,
    /// Its span, if there are traces.
    pub(crate) span: Option<CallSpan>,
    /// For a call that writes: whether the store was asked. A call that only reads has none.
    pub(crate) asked: Option<Asked>,
}

/// Whether a call has handed its write to the store. From then on the write may take effect,
/// whatever becomes of the call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked(Arc<AtomicBool>);

impl Asked {
    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl DynDataService {
    /// Serves what is in `store`.
    pub(crate) fn new(store: Store, limits: Limits, recorder: Arc<Recorder>) -> Self {
        Self {
            store,
            limits,
            recorder,
        }
    }

    /// Writes a value.
    pub(crate) async fn mark(
        &self,
        request: MarkRequest,
        call: &CallContext,
    ) -> Result<MarkResponse, Error> {
        let MarkRequest {
            namespace,
            id,
            ttl,
            value,
        } = request;
        let namespace = Namespace::try_from(namespace)?;
        call.grant.check(Right::Write, &namespace)?;
        let id = Id::try_from(id)?;
        let value = Value::parse(value, &self.limits)?;
        let ttl = Ttl::parse(ttl, &self.limits)?;
        if let Some(asked) = &call.asked {
            asked.set();
        }
        let observed = self.observe(Operation::Mark, call);
        let marked = self.store.mark(&namespace, &id, value, ttl).await;
        let expire_time = observed.end(marked)?;
        Ok(MarkResponse {
            expire_time: Some(model::timestamp(expire_time)),
        })
    }

    /// Reads a value.
    pub(crate) async fn get(
        &self,
        request: GetRequest,
        call: &CallContext,
    ) -> Result<GetResponse, Error> {
        let GetRequest {
            namespace,
            id,
            include_expire_time,
        } = request;
        let namespace = Namespace::try_from(namespace)?;
        call.grant.check(Right::Read, &namespace)?;
        let id = Id::try_from(id)?;
        let observed = self.observe(Operation::Get, call);
        let expire_time = include_expire_time.into();
        let found = observed.end(self.store.get(&namespace, &id, expire_time).await)?;
        Ok(GetResponse {
            entry: Some(model::entry(id, found)),
        })
    }

    /// Reads many values.
    pub(crate) async fn batch_get(
        &self,
        request: BatchGetRequest,
        call: &CallContext,
    ) -> Result<BatchGetResponse, Error> {
        let BatchGetRequest {
            namespace,
            ids,
            include_expire_time,
        } = request;
        let namespace = Namespace::try_from(namespace)?;
        call.grant.check(Right::Read, &namespace)?;
        let batch = Batch::parse(ids, &self.limits)?;
        let observed = self.observe(Operation::BatchGet, call);
        let getting = self.store.batch_get(
            &namespace,
            batch.ids(),
            include_expire_time.into(),
            self.limits.max_reply_bytes,
        );
        let found = observed.end(getting.await)?;
        let entries = batch
            .into_ids()
            .into_iter()
            .zip(found)
            .map(|(id, found)| model::entry(id, found))
            .collect();
        Ok(BatchGetResponse { entries })
    }

    /// The store is asked something from now on.
    fn observe(&self, operation: Operation, call: &CallContext) -> Observed<'_> {
        Observed {
            recorder: &self.recorder,
            operation,
            started: Instant::now(),
            span: call
                .span
                .as_ref()
                .map(|span| span.store(operation, self.store.name())),
        }
    }
}

/// Records how long the store took when it is dropped: also when the call is, whose time was up.
///
/// It does not hold the future that it observes: a future that is handed on is copied, and takes
/// its room twice in the call's.
struct Observed<'a> {
    recorder: &'a Recorder,
    operation: Operation,
    started: Instant,
    span: Option<StoreSpan>,
}

impl Observed<'_> {
    /// The store has answered; notes how it failed, if it did.
    fn end<T, E: Into<StoreError> + Copy>(self, result: Result<T, E>) -> Result<T, E> {
        if let Err(error) = result.as_ref().map_err(|error| (*error).into()) {
            self.recorder.store_failed(error);
            if let Some(span) = &self.span {
                span.failed(error.reason().name());
            }
        }
        result
    }
}

impl Drop for Observed<'_> {
    fn drop(&mut self) {
        self.recorder.stored(self.operation, self.started.elapsed());
    }
}
