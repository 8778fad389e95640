//! Calls that no gRPC client would send, as bytes on the wire.

mod support;

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Response,
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{Redis, TestServer};
use tonic::Code;

const GET: &str = "/dyndata.v1.DynData/Get";
const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
/// A GetRequest for the id 42, with the gRPC prefix.
const MESSAGE: [u8; 9] = [0, 0, 0, 0, 4, 0x12, 2, b'4', b'2'];

struct Caller {
    sender: SendRequest<BoxBody<Bytes, Infallible>>,
    addr: String,
}

impl Caller {
    async fn connect(server: &TestServer) -> Self {
        let addr = server.addr.clone();
        let socket = tokio::net::TcpStream::connect(&addr)
            .await
            .expect("connects");
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(socket))
            .await
            .expect("HTTP/2");
        tokio::spawn(connection);
        Self { sender, addr }
    }

    /// The response to a POST. The content type is `application/grpc` unless the headers have one.
    async fn post(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: BoxBody<Bytes, Infallible>,
    ) -> Response<Incoming> {
        let mut request = http::Request::post(format!("http://{}{path}", self.addr));
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/grpc");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).expect("a request");
        self.sender.send_request(request).await.expect("a reply")
    }

    /// The grpc-status of a call with exactly these bytes.
    async fn call(&mut self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Code {
        let body = Full::new(Bytes::copy_from_slice(body)).boxed();
        grpc_status(self.post(path, headers, body).await).await
    }
}

async fn grpc_status(reply: Response<Incoming>) -> Code {
    assert_eq!(reply.status(), 200);
    let in_head = reply.headers().get("grpc-status").cloned();
    let body = reply.into_body().collect().await.expect("a body");
    let status = in_head.or_else(|| body.trailers()?.get("grpc-status").cloned());
    Code::from_bytes(status.expect("a grpc-status").as_bytes())
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented_and_counted_as_other() {
    let server = TestServer::start(&[]);
    let mut caller = Caller::connect(&server).await;
    for path in ["/dyndata.v1.DynData/Delete", "/nobody.v1.Nothing/Do"] {
        let code = caller.call(path, &[], &MESSAGE).await;
        assert_eq!(code, Code::Unimplemented, "{path}");
    }
    let (_, metrics) = server.http("/metrics").await;
    let line = r#"grpc_server_handled_total{grpc_type="unary",grpc_service="other",grpc_method="other",grpc_code="Unimplemented"} 2"#;
    assert!(metrics.contains(line), "{metrics}");
    drop(caller);
    server.stop().await;
}

#[tokio::test]
async fn a_malformed_message_is_an_invalid_argument() {
    let server = TestServer::start(&[]);
    let mut caller = Caller::connect(&server).await;
    for (path, body) in [GET, CHECK, WATCH].into_iter().flat_map(|path| {
        [
            // A field with wire type 7, which does not exist.
            &[0, 0, 0, 0, 2, 0x0f, 0x00][..],
            // An id and a service that are not UTF-8.
            &[0, 0, 0, 0, 6, 0x12, 0x01, 0xff, 0x0a, 0x01, 0xff],
            // A message shorter than its length.
            &[0, 0, 0, 0, 9, 0x12],
            // No message.
            &[],
        ]
        .map(|body| (path, body))
    }) {
        let code = caller.call(path, &[], body).await;
        assert_eq!(code, Code::InvalidArgument, "{path} {body:?}");
    }
    drop(caller);
    server.stop().await;
}

#[tokio::test]
async fn a_callers_deadline_is_kept() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &["--redis-timeout=10s"]).await;
    let mut caller = Caller::connect(&server).await;
    redis.pause(10_000);
    for millis in [1, 20, 100] {
        let timeout = format!("{millis}m");
        let start = Instant::now();
        let code = caller
            .call(GET, &[("grpc-timeout", &timeout)], &MESSAGE)
            .await;
        let elapsed = start.elapsed();
        assert_eq!(code, Code::DeadlineExceeded);
        assert!(elapsed >= Duration::from_millis(millis), "{elapsed:?}");
        // The server's own deadline is 5 s.
        assert!(elapsed < Duration::from_secs(4), "{elapsed:?}");
    }
    drop(caller);
    server.stop().await;
}

#[tokio::test]
async fn another_content_type_is_an_unsupported_media_type() {
    let server = TestServer::start(&[]);
    let mut caller = Caller::connect(&server).await;
    for (content_type, status) in [
        ("application/json", 415),
        ("application/grpc-web", 415),
        ("", 415),
        ("application/grpc", 200),
        ("application/grpc+proto", 200),
        ("application/grpc;x=y", 200),
    ] {
        let body = Full::new(Bytes::from_static(&MESSAGE)).boxed();
        let reply = caller
            .post(GET, &[("content-type", content_type)], body)
            .await;
        assert_eq!(reply.status(), status, "{content_type}");
    }
    drop(caller);
    server.stop().await;
}

#[tokio::test]
async fn messages_of_another_format_are_unimplemented() {
    let server = TestServer::start(&[]);
    let mut caller = Caller::connect(&server).await;
    for path in [GET, CHECK, WATCH, "/nobody.v1.Nothing/Do"] {
        for content_type in ["application/grpc+json", "application/grpc+thrift"] {
            let body = Full::new(Bytes::from_static(&MESSAGE)).boxed();
            let headers = [("content-type", content_type)];
            let reply = caller.post(path, &headers, body).await;
            let answer = reply.headers();
            assert_eq!(answer["content-type"], "application/grpc", "{path}");
            assert!(answer.contains_key("grpc-status-details-bin"), "{path}");
            let code = grpc_status(reply).await;
            assert_eq!(code, Code::Unimplemented, "{path} {content_type}");
        }
    }
    drop(caller);
    server.stop().await;
}

#[tokio::test]
async fn a_health_call_ends_at_its_callers_deadline() {
    let server = TestServer::start(&[]);
    let mut caller = Caller::connect(&server).await;
    for method in ["Check", "List", "Watch"] {
        let path = format!("/grpc.health.v1.Health/{method}");
        // The message is never sent.
        let body = BoxBody::new(StreamBody::new(tokio_stream::pending()));
        let call = async {
            let reply = caller.post(&path, &[("grpc-timeout", "200m")], body).await;
            grpc_status(reply).await
        };
        let code = tokio::time::timeout(Duration::from_secs(5), call).await;
        assert_eq!(code, Ok(Code::DeadlineExceeded), "{method}");
    }
    drop(caller);
    server.stop().await;
}

#[tokio::test]
async fn a_timeout_of_0_has_passed() {
    let server = TestServer::start(&[]);
    let mut caller = Caller::connect(&server).await;
    for path in [
        GET,
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ] {
        for timeout in ["0n", "0u", "0m", "0S", "0M", "0H", "00000000n"] {
            let headers = [("grpc-timeout", timeout)];
            let call = caller.call(path, &headers, &[0, 0, 0, 0, 0]);
            let code = tokio::time::timeout(Duration::from_secs(5), call).await;
            assert_eq!(code, Ok(Code::DeadlineExceeded), "{path} {timeout}");
        }
    }
    drop(caller);
    server.stop().await;
}

#[tokio::test]
async fn only_post_is_served() {
    let server = TestServer::start(&[]);
    let mut caller = Caller::connect(&server).await;
    for path in [GET, "/grpc.health.v1.Health/Check", "/nobody.v1.Nothing/Do"] {
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"] {
            let request = http::Request::builder()
                .method(method)
                .uri(format!("http://{}{path}", caller.addr))
                .header("content-type", "application/grpc")
                .body(Full::new(Bytes::from_static(&MESSAGE)).boxed());
            let request = request.expect("a request");
            let reply = caller.sender.send_request(request).await.expect("a reply");
            assert_eq!(reply.status(), 405, "{method} {path}");
            assert_eq!(reply.headers()["allow"], "POST", "{method} {path}");
            let text = reply.into_body().collect().await.expect("a body");
            let is_head = method == "HEAD";
            assert_eq!(text.to_bytes().is_empty(), is_head, "{method} {path}");
        }
    }
    drop(caller);
    server.stop().await;
}

#[tokio::test]
async fn a_message_may_come_in_pieces_and_must_be_the_only_one() {
    let server = TestServer::start(&[]);
    let mut caller = Caller::connect(&server).await;
    let twice = [MESSAGE, MESSAGE].concat();
    for (bytes, piece, code) in [
        (&MESSAGE[..], 1, Code::Ok),
        (&MESSAGE, 4, Code::Ok),
        (&MESSAGE, 5, Code::Ok),
        (&twice, 9, Code::InvalidArgument),
        (&twice, 18, Code::InvalidArgument),
        (&MESSAGE[..8], 3, Code::InvalidArgument),
    ] {
        let pieces: Vec<_> = bytes
            .chunks(piece)
            .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        let body = BoxBody::new(StreamBody::new(tokio_stream::iter(pieces)));
        let reply = caller.post(GET, &[], body).await;
        assert_eq!(grpc_status(reply).await, code, "{bytes:?} by {piece}");
    }
    drop(caller);
    server.stop().await;
}

#[tokio::test]
async fn a_too_large_length_is_refused_before_the_message_arrives() {
    let server = TestServer::start(&[]);
    let mut caller = Caller::connect(&server).await;
    // The length is four gigabytes, nothing is sent, and the stream stays open.
    let announced = Ok(Frame::data(Bytes::from_static(&[
        0, 0xff, 0xff, 0xff, 0xff,
    ])));
    let for_ever =
        tokio_stream::StreamExt::chain(tokio_stream::iter([announced]), tokio_stream::pending());
    let reply = caller
        .post(GET, &[], BoxBody::new(StreamBody::new(for_ever)))
        .await;
    assert_eq!(reply.headers()["grpc-status"], "8");
    drop(caller);
    server.stop().await;
}

#[tokio::test]
async fn compressed_messages_are_unimplemented_and_say_what_is() {
    let server = TestServer::start(&[]);
    let mut caller = Caller::connect(&server).await;
    let body = Full::new(Bytes::from_static(&[1, 0, 0, 0, 1, 0])).boxed();
    let reply = caller.post(GET, &[("grpc-encoding", "gzip")], body).await;
    assert_eq!(reply.headers()["grpc-accept-encoding"], "identity");
    assert_eq!(grpc_status(reply).await, Code::Unimplemented);
    drop(caller);
    server.stop().await;
}
