//! Health and reflection as callers see them: replies, deadlines, errors, and the limit on watches.

mod support;

use std::time::{Duration, Instant};

use dyndata::proto::health::{
    HealthCheckRequest, HealthListRequest, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use support::{PATIENCE, TestServer, assert_error};
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, transport::Channel};
use tonic_reflection::pb::v1::{
    self, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

/// Far longer than any deadline of a caller here. A watch has no deadline of the server.
const FAR_TOO_LATE: Duration = Duration::from_secs(10);

fn service(name: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: name.to_owned(),
    }
}

fn with_timeout<T>(message: T, timeout: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = timeout.parse().expect("ASCII");
    request.metadata_mut().insert("grpc-timeout", value);
    request
}

#[tokio::test]
async fn list_gives_the_status_of_every_service() {
    let server = TestServer::start(&[]);
    server.ready().await;
    let mut client = HealthClient::new(server.channel().await);
    let reply = client.list(HealthListRequest {}).await.expect("a list");
    let mut statuses: Vec<_> = reply
        .into_inner()
        .statuses
        .into_iter()
        .map(|(name, response)| (name, response.status()))
        .collect();
    statuses.sort();
    let serving = |name: &str| (name.to_owned(), ServingStatus::Serving);
    assert_eq!(
        statuses,
        ["", "dyndata.v1.DynData", "liveness"].map(serving)
    );
    server.stop().await;
}

#[tokio::test]
async fn a_watch_of_an_unknown_service_says_so_and_stays_open() {
    let server = TestServer::start(&[]);
    let mut client = HealthClient::new(server.channel().await);
    let request = with_timeout(service("other"), "1S");
    let mut watch = client.watch(request).await.expect("watches").into_inner();
    let first = watch.next().await.expect("a status").expect("a status");
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);
    let end = watch.next().await.expect("an end");
    assert_error(end, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    server.stop().await;
}

#[tokio::test]
async fn a_health_watch_ends_at_its_callers_deadline() {
    let server = TestServer::start(&[]);
    let mut client = HealthClient::new(server.channel().await);
    let start = Instant::now();
    let request = with_timeout(service(""), "1S");
    let mut watch = client.watch(request).await.expect("watches").into_inner();
    let end = async {
        loop {
            match watch.next().await {
                Some(Ok(_)) => {}
                Some(Err(status)) => return Err(status),
                None => return Ok(()),
            }
        }
    };
    let end = tokio::time::timeout(FAR_TOO_LATE, end).await;
    let end = end.expect("the watch ignores grpc-timeout");
    assert_error(end, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    assert!(start.elapsed() >= Duration::from_secs(1));
    server.stop().await;
}

/// Calls a method with a stream of messages. Returns the first reply.
async fn streaming(
    channel: &Channel,
    path: String,
    request: Request<impl tokio_stream::Stream<Item = HealthCheckRequest> + Send + 'static>,
) -> Result<Option<HealthCheckRequest>, tonic::Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("ready");
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckRequest>::default();
    let path = path.parse().expect("a path");
    let reply = client.streaming(request, path, codec).await?;
    reply.into_inner().message().await
}

#[tokio::test]
async fn every_error_has_error_info() {
    let mut server = TestServer::start(&[]);
    server.ready().await;
    let channel = server.channel().await;
    let empty = || Request::new(tokio_stream::empty());
    for path in [
        "/dyndata.v1.DynData/Delete",
        "/nobody.v1.Nothing/Do",
        "/grpc.health.v1.Health/Nothing",
        "/grpc.reflection.v1.ServerReflection/Nothing",
        "/",
    ] {
        let result = streaming(&channel, path.to_owned(), empty()).await;
        assert_error(result, Code::Unimplemented, "UNIMPLEMENTED");
    }
    let mut health = HealthClient::new(channel.clone());
    let result = health.check(service("other")).await;
    assert_error(result, Code::NotFound, "SERVICE_UNKNOWN");
    // No message, and two messages.
    let two = Request::new(tokio_stream::iter([service(""), service("")]));
    for method in ["Check", "List", "Watch"] {
        let path = format!("/grpc.health.v1.Health/{method}");
        let result = streaming(&channel, path, empty()).await;
        assert_error(result, Code::InvalidArgument, "MESSAGE_MALFORMED");
    }
    let path = "/grpc.health.v1.Health/Check".to_owned();
    let result = streaming(&channel, path, two).await;
    assert_error(result, Code::InvalidArgument, "MESSAGE_MALFORMED");
    // A message far larger than any name of a service.
    for path in [
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ] {
        let large = Request::new(tokio_stream::iter([service(&"x".repeat(100_000))]));
        let result = streaming(&channel, path.to_owned(), large).await;
        assert_error(result, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    }
    let watch = health.watch(service("")).await.expect("watches");
    let mut watch = watch.into_inner();
    watch.next().await.expect("a status").expect("a status");
    server.begin_stop();
    let end = loop {
        match watch.next().await.expect("an end") {
            Ok(status) => assert_eq!(status.status(), ServingStatus::NotServing),
            Err(status) => break status,
        }
    };
    assert_error(Err::<(), _>(end), Code::Unavailable, "SHUTTING_DOWN");
    server.stop().await;
}

#[tokio::test]
async fn a_watch_ends_with_a_status_once_its_connection_is_old() {
    let server = TestServer::start(&["--max-connection-age=2s", "--drain-timeout=60s"]);
    let channel = server.channel().await;
    let mut health = HealthClient::new(channel);
    let watch = health.watch(service("liveness")).await.expect("watches");
    let mut watch = watch.into_inner();
    watch.next().await.expect("a status").expect("a status");
    let end = tokio::time::timeout(PATIENCE, watch.next()).await;
    let end = end.expect("soon").expect("a status");
    assert_error(end, Code::Unavailable, "SHUTTING_DOWN");
    // On a new connection.
    let watch = health.watch(service("liveness")).await.expect("watches");
    drop(watch);
    server.stop().await;
}

#[tokio::test]
async fn reflection_answers_an_unknown_name_and_goes_on() {
    let server = TestServer::start(&[]);
    let mut client = ServerReflectionClient::new(server.channel().await);
    let questions = [
        MessageRequest::FileContainingSymbol("dyndata.v1.Nothing".to_owned()),
        MessageRequest::FileByFilename("nothing.proto".to_owned()),
        MessageRequest::FileContainingSymbol("grpc.health.v1.Health.List".to_owned()),
    ]
    .map(|question| v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(question),
    });
    let replies = client
        .server_reflection_info(tokio_stream::iter(questions.clone()))
        .await
        .expect("answers");
    let replies: Vec<_> = replies.into_inner().collect().await;
    assert_eq!(replies.len(), 3, "{replies:?}");
    for (number, reply) in replies.into_iter().enumerate() {
        let reply = reply.expect("a reply");
        assert_eq!(reply.original_request.as_ref(), Some(&questions[number]));
        match reply.message_response.expect("an answer") {
            MessageResponse::ErrorResponse(error) => {
                assert!(number < 2);
                assert_eq!(error.error_code, i32::from(Code::NotFound));
            }
            MessageResponse::FileDescriptorResponse(_) => assert_eq!(number, 2),
            other => panic!("{other:?}"),
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_connection_may_have_as_many_watches_as_streams() {
    let server = TestServer::start(&["--max-concurrent-streams=100", "--workers=1"]);
    server.ready().await;
    let channel = server.channel().await;
    let mut watches = Vec::new();
    for _ in 0..99 {
        let mut client = HealthClient::new(channel.clone());
        let watch = client.watch(service("")).await.expect("watches");
        let mut watch = watch.into_inner();
        let status = watch.next().await.expect("a status").expect("a status");
        assert_eq!(status.status(), ServingStatus::Serving);
        watches.push(watch);
    }
    // Other calls are not limited by it.
    let mut client = HealthClient::new(channel);
    client.check(service("")).await.expect("checks");
    drop(watches);
    server.stop().await;
}

#[tokio::test]
async fn the_watches_of_a_worker_are_bounded_and_other_connections_get_some() {
    let flags = ["--workers=1", "--max-concurrent-streams=3000"];
    let server = TestServer::start(&flags);
    let channel = server.channel().await;
    let mut watches = Vec::new();
    let refused = loop {
        let mut client = HealthClient::new(channel.clone());
        match client.watch(service("")).await {
            Ok(watch) => watches.push(watch),
            Err(status) => break status,
        }
        assert!(watches.len() < 2_900, "nothing bounds the watches");
    };
    assert_eq!(watches.len(), 2_048);
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    // Another connection still gets a few.
    let other = server.channel().await;
    let mut few = Vec::new();
    for _ in 0..8 {
        let mut client = HealthClient::new(other.clone());
        few.push(client.watch(service("")).await.expect("watches"));
    }
    drop(watches);
    let start = Instant::now();
    while HealthClient::new(channel.clone())
        .watch(service(""))
        .await
        .is_err()
    {
        assert!(start.elapsed() < PATIENCE, "the places stay taken");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(few);
    server.stop().await;
}
