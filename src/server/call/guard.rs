//! Records how each call ends.
//!
//! A call is recorded exactly once: with the status in the head or in the trailers of its response,
//! or as cancelled if it is dropped before either has been sent.

use std::{sync::Arc, time::Instant};

use tonic::Code;

use crate::{
    auth::{Caller, Grant},
    error::Error,
    log_limit::LogLimit,
    metrics::Recorder,
    rpc::{Labels, Rpc},
    trace::{CallSpan, is_servers_fault},
};

/// Records one call in metrics, traces and the log. The end is recorded on drop.
pub(super) struct Guard {
    recorder: Arc<Recorder>,
    /// `None` for a path that the server does not have.
    rpc: Option<Rpc>,
    started: Instant,
    code: Code,
    span: Option<CallSpan>,
    caller: Option<Arc<Caller>>,
}

impl Guard {
    /// The call begins.
    pub(super) fn start(
        recorder: &Arc<Recorder>,
        rpc: Option<Rpc>,
        span: Option<CallSpan>,
    ) -> Self {
        recorder.started(rpc);
        Self {
            recorder: Arc::clone(recorder),
            rpc,
            started: Instant::now(),
            // Stays if the call is dropped before its end: then the caller has left.
            code: Code::Cancelled,
            span,
            caller: None,
        }
    }

    /// The call's RPC, if the server has it.
    pub(super) fn rpc(&self) -> Option<Rpc> {
        self.rpc
    }

    /// When the call began.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// The call's span, if there are traces.
    pub(super) fn span(&self) -> Option<&CallSpan> {
        self.span.as_ref()
    }

    /// Records who makes the call.
    pub(super) fn identified(&mut self, grant: &Grant) {
        if let Grant::Of(caller) = grant {
            if let Some(span) = &self.span {
                span.identified(caller);
            }
            self.caller = Some(Arc::clone(caller));
        }
    }

    /// Records why the call fails.
    pub(super) fn failed(&self, error: &Error) {
        if let Error::Overloaded = error {
            self.recorder.shed();
        }
        let (code, reason) = error.code_and_reason();
        if let Some(span) = &self.span {
            span.failed(reason);
        }
        self.log_code(code, reason);
    }

    /// Logs how the call fails, at most once a second: callers must not be able to fill the log.
    /// Failures of the server have a limit of their own, so that mistakes of callers do not hide
    /// them.
    fn log_code(&self, code: Code, reason: &str) {
        static CALLERS: LogLimit = LogLimit::new();
        static SERVERS: LogLimit = LogLimit::new();
        let servers_fault = is_servers_fault(code);
        let limit = if servers_fault { &SERVERS } else { &CALLERS };
        let Some(unlogged) = limit.admit() else {
            return;
        };
        let Labels {
            service, method, ..
        } = Rpc::labels(self.rpc);
        let caller = self.caller.as_deref().map(tracing::field::display);
        let trace_id = self.span.as_ref().map(CallSpan::trace_id);
        let trace_id = trace_id.map(tracing::field::display);
        // The level of a log line is fixed at compile time.
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    service,
                    method,
                    ?code,
                    reason,
                    caller,
                    trace_id,
                    unlogged,
                    "call failed"
                )
            };
        }
        if servers_fault {
            line!(warn);
        } else {
            line!(info);
        }
    }

    /// The call ends now, with `code`.
    pub(super) fn finish(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        self.recorder.handled(self.rpc, self.code, elapsed);
        if let Some(span) = &self.span {
            span.end(self.code);
        }
    }
}
