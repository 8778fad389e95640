//! Traces: a server span for each call, and a client span for each operation of the store. They are
//! sent by OTLP to the endpoint in `OTEL_EXPORTER_OTLP_ENDPOINT`.
//!
//! A caller's `traceparent` is continued. The SDK's own variables apply (`OTEL_TRACES_SAMPLER`,
//! `OTEL_SERVICE_NAME`, `OTEL_BSP_...`). Without an endpoint there are no spans, and the cost for a
//! call is one comparison.
//!
//! Source of the names: <https://opentelemetry.io/docs/specs/semconv/rpc/grpc/> and
//! <https://opentelemetry.io/docs/specs/semconv/database/redis/>

use std::{env, sync::Arc, time::Duration};

use http::HeaderMap;
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{SpanKind, Status, TraceContextExt as _, TraceId, Tracer as _, TracerProvider as _},
};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};
use tonic::Code;

use crate::{
    auth::Caller,
    rpc::{Labels, Rpc},
};

/// The environment variables that can have the endpoint.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];
/// How long sending the last spans may take.
const LAST_SPANS: Duration = Duration::from_secs(5);

/// Makes spans. Clones send to the same endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Tracing {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
}

impl Tracing {
    /// Configured by the environment. `None` if the environment has no endpoint. To be called on a
    /// runtime that lives as long as the result, because it sends the spans.
    pub(crate) fn from_environment() -> Option<Self> {
        if env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true")) {
            return None;
        }
        let endpoint = ENDPOINTS
            .into_iter()
            .find(|name| env::var(name).is_ok_and(|value| !value.is_empty()))?;
        let exporter = match opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .build()
        {
            Ok(exporter) => exporter,
            Err(error) => {
                tracing::error!(%error, variable = endpoint, "cannot send traces");
                return None;
            }
        };
        // OTEL_SERVICE_NAME has precedence over this name.
        let mut resource = Resource::builder();
        if env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("dyndata");
        }
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.with_attribute(version).build())
            .build();
        tracing::info!(variable = endpoint, "sending traces");
        Some(Self {
            tracer: provider.tracer("dyndata"),
            provider,
        })
    }

    /// Starts the span of a call.
    pub(crate) fn call(&self, rpc: Option<Rpc>, headers: &HeaderMap) -> CallSpan {
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        let Labels {
            service, method, ..
        } = Rpc::labels(rpc);
        let span = self
            .tracer
            .span_builder(format!("{service}/{method}"))
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("rpc.system", "grpc"),
                KeyValue::new("rpc.service", service),
                KeyValue::new("rpc.method", method),
            ])
            .start_with_context(&self.tracer, &parent);
        CallSpan(Arc::new(SpanContext {
            context: parent.with_span(span),
            tracer: self.tracer.clone(),
        }))
    }

    /// Sends the spans that have not been sent yet.
    pub(crate) async fn shut_down(self) {
        // The SDK blocks a thread until the spans are sent, and this thread sends them.
        let provider = self.provider;
        let sent = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST_SPANS));
        if let Ok(Err(error)) = sent.await {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// The span of one call. Clones are about the same span.
#[derive(Debug, Clone)]
pub(crate) struct CallSpan(Arc<SpanContext>);

#[derive(Debug)]
struct SpanContext {
    context: Context,
    tracer: SdkTracer,
}

impl CallSpan {
    /// The trace that the call belongs to.
    pub(crate) fn trace_id(&self) -> TraceId {
        self.0.context.span().span_context().trace_id()
    }

    /// Records who makes the call.
    pub(crate) fn identified(&self, caller: &Caller) {
        let name = KeyValue::new("enduser.id", caller.to_string());
        self.0.context.span().set_attribute(name);
    }

    /// Records why the call fails.
    pub(crate) fn failed(&self, reason: &'static str) {
        let reason = KeyValue::new("error.type", reason);
        self.0.context.span().set_attribute(reason);
    }

    /// Ends the span.
    pub(crate) fn end(&self, code: Code) {
        let span = self.0.context.span();
        span.set_attribute(KeyValue::new("rpc.grpc.status_code", code as i64));
        if is_servers_fault(code) {
            span.set_status(Status::error(""));
        }
        span.end();
    }

    /// Starts the span of the store operation that the RPC needs. `None` if the RPC needs none.
    pub(crate) fn store(&self, rpc: Rpc, system: &'static str) -> Option<StoreSpan> {
        let operation = rpc.operation()?;
        let SpanContext { context, tracer } = &*self.0;
        let span = tracer
            .span_builder(operation)
            .with_kind(SpanKind::Client)
            .with_attributes([
                KeyValue::new("db.system.name", system),
                KeyValue::new("db.operation.name", operation),
            ])
            .start_with_context(tracer, context);
        Some(StoreSpan(context.with_span(span)))
    }
}

/// The span of one store operation. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct StoreSpan(Context);

impl StoreSpan {
    /// Records why the store failed.
    pub(crate) fn failed(&self, reason: &'static str) {
        let span = self.0.span();
        span.set_attribute(KeyValue::new("error.type", reason));
        span.set_status(Status::error(""));
    }
}

impl Drop for StoreSpan {
    fn drop(&mut self) {
        self.0.span().end();
    }
}

/// Whether the conventions count this code as a failure of the server.
pub(crate) fn is_servers_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
