//! Traces, as an OTLP receiver gets them.

mod support;

use std::{
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Instant,
};

use dyndata::proto::{GetRequest, dyn_data_client::DynDataClient};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use support::{CANARY, Directory, PATIENCE, Redis, free_port, int, mark, sha256_hex};
use tonic::{Request, Response, Status, metadata::MetadataValue};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector that keeps all requests.
#[derive(Debug, Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut kept = self.0.lock().expect("not poisoned");
        kept.push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn start(&self) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let addr = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("a socket");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        let service = TraceServiceServer::new(self.clone());
        tokio::spawn(async move {
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(incoming).await
        });
        format!("http://{addr}")
    }

    /// Waits until the trace has `count` spans, and returns them.
    async fn spans(&self, count: usize) -> Vec<Span> {
        let start = Instant::now();
        loop {
            let spans: Vec<Span> = self
                .0
                .lock()
                .expect("not poisoned")
                .iter()
                .flat_map(|request| &request.resource_spans)
                .flat_map(|resource| &resource.scope_spans)
                .flat_map(|scope| scope.spans.clone())
                .filter(|span| hex(&span.trace_id) == TRACE)
                .collect();
            if spans.len() >= count {
                return spans;
            }
            assert!(start.elapsed() < PATIENCE, "{} spans", spans.len());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

/// A process of the binary, because the settings of the SDK are environment variables.
struct Serving(Child);

impl Serving {
    async fn start(port: u16, redis: &str, endpoint: &str, access: &str) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_dyndata"))
            .args(["serve", "--admin-listen=off", "--redis-url", redis])
            .args(["--access-file", access])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            .env("OTEL_BSP_SCHEDULE_DELAY", "100")
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("runs"))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<Value> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.as_ref()?.value.clone()
}

fn text(value: &str) -> Option<Value> {
    Some(Value::StringValue(value.to_owned()))
}

#[tokio::test]
async fn a_callers_trace_goes_on_through_the_call_and_the_store() {
    let collector = Collector::default();
    let endpoint = collector.start();
    let mut redis = Redis::start();
    let port = free_port();
    let files = Directory::new();
    let token = format!("dyn_{CANARY}");
    let access = files.write(
        "access.toml",
        &format!(
            "[[caller]]\nname = \"checkout\"\ntoken_sha256 = \"{}\"\n\
             allow = [\"read\", \"write\"]\nnamespaces = [\"*\"]\n",
            sha256_hex(&token)
        ),
    );
    let authorization: MetadataValue<_> = format!("Bearer {token}").parse().expect("ASCII");
    let _serving = Serving::start(port, &redis.url(), &endpoint, &access).await;
    let url = format!("http://127.0.0.1:{port}");
    let start = Instant::now();
    let mut client = loop {
        if let Ok(client) = DynDataClient::connect(url.clone()).await {
            let mut request = Request::new(mark("42", int(1)));
            let headers = request.metadata_mut();
            headers.insert("authorization", authorization.clone());
            let ready = client.clone().mark(request).await;
            if ready.is_ok() {
                break client;
            }
        }
        assert!(start.elapsed() < PATIENCE, "never ready");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let traced = |flags: &str| {
        let mut request = Request::new(GetRequest {
            id: "42".to_owned(),
            ..GetRequest::default()
        });
        let parent = format!("00-{TRACE}-{PARENT}-{flags}")
            .parse()
            .expect("ASCII");
        let headers = request.metadata_mut();
        headers.insert("traceparent", parent);
        headers.insert("authorization", authorization.clone());
        request
    };

    client.get(traced("01")).await.expect("gets");
    let spans = collector.spans(2).await;
    let [call] = spans_of(&spans, SpanKind::Server);
    let [store] = spans_of(&spans, SpanKind::Client);
    assert_eq!(call.name, "dyndata.v1.DynData/Get");
    assert_eq!(hex(&call.parent_span_id), PARENT);
    assert_eq!(store.parent_span_id, call.span_id);
    for (span, key, value) in [
        (&call, "rpc.system", text("grpc")),
        (&call, "rpc.service", text("dyndata.v1.DynData")),
        (&call, "rpc.method", text("Get")),
        (&call, "rpc.grpc.status_code", Some(Value::IntValue(0))),
        (&call, "enduser.id", text("checkout")),
        (&store, "db.system.name", text("redis")),
        (&store, "db.operation.name", text("get")),
    ] {
        assert_eq!(attribute(&span.attributes, key), value, "{key}");
    }
    assert!(call.start_time_unix_nano <= store.start_time_unix_nano);
    assert!(store.end_time_unix_nano <= call.end_time_unix_nano);

    // A failed call has the error status in both spans.
    redis.kill();
    client.get(traced("01")).await.expect_err("no redis");
    let spans = collector.spans(4).await;
    for span in &spans[2..] {
        let code = span.status.as_ref().map(|status| status.code());
        assert_eq!(code, Some(StatusCode::Error), "{span:?}");
        let reason = attribute(&span.attributes, "error.type");
        assert_eq!(reason, text("BACKEND_UNAVAILABLE"), "{span:?}");
    }
    // A call that its caller does not sample is not exported.
    client.get(traced("00")).await.expect_err("no redis");
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(collector.spans(4).await.len(), 4);

    let resource = collector.0.lock().expect("not poisoned")[0].resource_spans[0]
        .resource
        .clone();
    let resource = resource.expect("a resource").attributes;
    assert_eq!(attribute(&resource, "service.name"), text("dyndata"));
}

/// The only span of a kind.
fn spans_of(spans: &[Span], kind: SpanKind) -> [Span; 1] {
    let of_kind: Vec<_> = spans
        .iter()
        .filter(|span| span.kind() == kind)
        .cloned()
        .collect();
    of_kind.try_into().expect("one span")
}
