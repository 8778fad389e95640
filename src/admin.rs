//! The admin listener: HTTP/1.1 for probes and Prometheus.
//!
//! | path | answers |
//! |---|---|
//! | `/` | a page for people, which shows the rest and updates by itself |
//! | `/livez` | 200 while all event loops turn, 503 with the workers that are stuck |
//! | `/readyz` | 200 while calls can be served, 503 with the reason while they cannot |
//! | `/metrics` | the metrics, in the text format, or in OpenMetrics for clients that ask for it |
//!
//! The listener runs on the acceptor's thread and not on a worker, so that a scrape delays no call.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use crate::{
    health::Readiness,
    metrics::{Metrics, TextFormat},
    rpc::{self, Family, Rpc},
    server::{listen::accept, liveness::Liveness},
};

/// How many connections may be open, which is more than probes and scrapers need. For a further one,
/// the oldest connection that has sent no request is closed.
const MAX_CONNECTIONS: usize = 64;
/// The page contains all that it needs, and sends requests only to this listener.
const PAGE_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";
/// How long a request's head may take, and how long a connection may be idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection may send requests.
const MAX_AGE: Duration = Duration::from_secs(10);
/// How long the last reply may take after that.
const LAST_REPLY: Duration = Duration::from_secs(2);

/// The endpoints, and what they read.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    pub(crate) liveness: Liveness,
    pub(crate) readiness: watch::Receiver<Readiness>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) status_page: StatusPage,
}

/// The page at `/`, which shows the settings in force.
#[derive(Debug, Clone)]
pub(crate) struct StatusPage(Bytes);

impl StatusPage {
    /// Makes the page. `settings` must not contain secrets.
    pub(crate) fn new(settings: &str) -> Self {
        let settings = settings
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;");
        let methods: Vec<String> = Rpc::ALL
            .iter()
            .filter(|rpc| rpc.family() == Family::Values)
            .map(|rpc| format!("{:?}", Rpc::labels(Some(*rpc)).method))
            .collect();
        let page = include_str!("admin/status.html")
            .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
            .replace("@SERVICE@", rpc::DYN_DATA)
            .replace("@METHODS@", &methods.join(", "))
            .replace("@SETTINGS@", &settings);
        Self(page.into())
    }
}

/// An open connection.
struct Visitor {
    asked: Arc<AtomicBool>,
    connection: AbortHandle,
}

impl Visitor {
    /// Whether the connection has sent a request.
    fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Admin {
    /// Serves until the future is dropped. Connections end with it.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        // In the order in which they were opened.
        let mut visitors: Vec<Visitor> = Vec::new();
        loop {
            let socket = accept::retry(|| listener.accept()).await.0;
            loop {
                // The open connections first get a turn to read their requests.
                tokio::task::yield_now().await;
                while connections.try_join_next().is_some() {}
                visitors.retain(|visitor| !visitor.connection.is_finished());
                if visitors.len() < MAX_CONNECTIONS {
                    break;
                }
                // A request is answered at once. So if all connections have sent one, the oldest
                // connection is idle, or does not read its reply.
                let silent = visitors.iter().find(|visitor| !visitor.has_asked());
                if let Some(visitor) = silent.or_else(|| visitors.first()) {
                    visitor.connection.abort();
                }
                connections.join_next().await;
            }
            let asked = Arc::<AtomicBool>::default();
            let connection = connections.spawn(self.clone().visit(socket, Arc::clone(&asked)));
            visitors.push(Visitor { asked, connection });
        }
    }

    /// Serves one connection. Sets `asked` when it has sent a request.
    async fn visit(self, socket: TcpStream, asked: Arc<AtomicBool>) {
        let service = service_fn(|request| {
            asked.store(true, Ordering::Relaxed);
            let response = self.respond(&request);
            async { Ok::<_, Infallible>(response) }
        });
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(socket), service)
        );
        // An error means that the client has closed the connection early, which needs no log line. A
        // client that stays, and perhaps reads nothing, must not keep others out.
        if timeout(MAX_AGE, connection.as_mut()).await.is_err() {
            connection.as_mut().graceful_shutdown();
            _ = timeout(LAST_REPLY, connection).await;
        }
    }

    fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served\n");
        }
        match request.uri().path() {
            "/" => {
                let mut response = typed(
                    StatusCode::OK,
                    "text/html; charset=utf-8",
                    self.status_page.0.clone(),
                );
                response.headers_mut().insert(
                    header::CONTENT_SECURITY_POLICY,
                    header::HeaderValue::from_static(PAGE_POLICY),
                );
                response
            }
            "/livez" => match &self.liveness.stuck()[..] {
                [] => text(StatusCode::OK, "ok\n"),
                stuck => text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("workers that stand still: {stuck:?}\n"),
                ),
            },
            "/readyz" => match &*self.readiness.borrow() {
                Readiness::Ready => text(StatusCode::OK, "ok\n"),
                Readiness::NotReady(reason) => {
                    text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"))
                }
            },
            "/metrics" => match self.metrics.encode(format(request)) {
                Ok(metrics) => typed(StatusCode::OK, format(request).content_type(), metrics),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            _ => text(
                StatusCode::NOT_FOUND,
                "there are /, /livez, /readyz and /metrics\n",
            ),
        }
    }
}

fn format(request: &Request<Incoming>) -> TextFormat {
    let accept = request.headers().get(header::ACCEPT);
    TextFormat::accepted(accept.and_then(|accept| accept.to_str().ok()))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body)
}

fn typed(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    response
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;

    use super::*;
    use crate::proto;

    #[test]
    fn the_status_page_shows_every_unary_call_of_the_contract() {
        let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).expect("descriptors");
        let service = pool.get_service_by_name(rpc::DYN_DATA).expect("a service");
        let methods: Vec<String> = service
            .methods()
            .filter(|method| !method.is_client_streaming() && !method.is_server_streaming())
            .map(|method| format!("{:?}", method.name()))
            .collect();
        let StatusPage(page) = StatusPage::new("redis-url <unset> & more");
        let page = std::str::from_utf8(&page).expect("UTF-8");
        let found: Vec<&str> = page
            .split_once("METHODS = [")
            .and_then(|(_, rest)| rest.split_once(']'))
            .map(|(methods, _)| methods.split(", ").collect())
            .expect("methods");
        assert_eq!(sorted(found), sorted(methods));
        for text in [
            r#"SERVICE = "dyndata.v1.DynData""#,
            "<pre>redis-url &lt;unset&gt; &amp; more</pre>",
        ] {
            assert!(page.contains(text), "{text}");
        }
        for placeholder in ["@VERSION@", "@SERVICE@", "@METHODS@", "@SETTINGS@"] {
            assert!(!page.contains(placeholder), "{placeholder}");
        }
    }

    fn sorted<T: Ord>(mut all: Vec<T>) -> Vec<T> {
        all.sort();
        all
    }
}
