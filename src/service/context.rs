//! What the handlers of all families share: the service of a worker, and what comes with a call.

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
    metrics::Recorder,
    model::{Limits, Namespace},
    rpc::Rpc,
    store::{Store, StoreError},
    trace::{CallSpan, StoreSpan},
    watch::WatchHub,
};

/// The service of one worker.
#[derive(Debug)]
pub(crate) struct Service {
    pub(super) store: Store,
    pub(super) limits: Limits,
    pub(super) watches: WatchHub,
    pub(super) recorder: Arc<Recorder>,
}

impl Service {
    /// Serves what is in `store`.
    pub(crate) fn new(
        store: Store,
        limits: Limits,
        watches: WatchHub,
        recorder: Arc<Recorder>,
    ) -> Self {
        Self {
            store,
            limits,
            watches,
            recorder,
        }
    }

    /// Starts to measure an operation of the store. To be called right before the operation.
    pub(super) fn observe(&self, call: &CallContext) -> StoreObserver<'_> {
        let span = call.span.as_ref();
        StoreObserver {
            recorder: &self.recorder,
            rpc: call.rpc,
            started: Instant::now(),
            span: span.and_then(|span| span.store(call.rpc, self.store.name())),
        }
    }
}

/// What a call comes with besides its message.
#[derive(Debug)]
pub(crate) struct CallContext {
    pub(crate) rpc: Rpc,
    /// What the caller may do.
    pub(crate) grant: Grant,
    /// The span of the call, if there are traces.
    pub(crate) span: Option<CallSpan>,
    /// `None` for a call that only reads.
    pub(crate) write_started: Option<WriteStarted>,
}

impl CallContext {
    /// Refuses the call if its caller lacks a right that the RPC needs in this namespace.
    pub(super) fn check_access(&self, namespace: Namespace<'_>) -> Result<(), Error> {
        let mut rights = self.rpc.rights().iter();
        rights.try_for_each(|right| self.check_right(*right, namespace))
    }

    /// Refuses the call if its caller lacks this right in this namespace.
    pub(super) fn check_right(&self, right: Right, namespace: Namespace<'_>) -> Result<(), Error> {
        Ok(self.grant.check(right, namespace)?)
    }

    /// Notes that the store is asked to write from now on.
    pub(super) fn start_write(&self) {
        if let Some(started) = &self.write_started {
            started.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Whether a call has handed its write to the store. From then on the write may take effect,
/// whatever becomes of the call. Clones are about the same call.
#[derive(Debug, Clone, Default)]
pub(crate) struct WriteStarted(Arc<AtomicBool>);

impl WriteStarted {
    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Measures one operation of the store. The time is recorded on drop, so that it is also recorded
/// for a call that is dropped because its deadline has passed.
///
/// The observer does not wrap the operation's future: a future that is handed on is copied, and
/// would take up twice its size in the future of the call.
pub(super) struct StoreObserver<'a> {
    recorder: &'a Recorder,
    rpc: Rpc,
    started: Instant,
    span: Option<StoreSpan>,
}

impl StoreObserver<'_> {
    /// Records why the store failed, if it did. To be called with the store's answer.
    pub(super) fn end<T, E: Into<StoreError> + Copy>(self, result: Result<T, E>) -> Result<T, E> {
        if let Err(error) = result.as_ref().map_err(|error| (*error).into()) {
            self.recorder.store_failed(error);
            if let Some(span) = &self.span {
                span.failed(error.reason().name());
            }
        }
        result
    }
}

impl Drop for StoreObserver<'_> {
    fn drop(&mut self) {
        self.recorder.stored(self.rpc, self.started.elapsed());
    }
}
