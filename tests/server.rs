//! The server on the network: health, reflection, probes, metrics, limits, listeners, shutdown.

mod support;

use std::{
    io::{Read as _, Write as _},
    time::{Duration, Instant},
};

use dyndata::proto::health::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use support::{PATIENCE, Redis, TestServer, assert_error, int, mark};
use tokio_stream::StreamExt as _;
use tonic::{
    Code,
    Code::{InvalidArgument, ResourceExhausted, Unavailable},
    Status,
};
use tonic_reflection::pb::{v1, v1alpha};

async fn health(server: &TestServer, service: &str) -> Result<ServingStatus, Status> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let reply = HealthClient::new(server.channel().await)
        .check(request)
        .await?;
    Ok(reply.into_inner().status())
}

#[tokio::test]
async fn health_follows_redis() {
    let mut redis = Redis::start();
    let server = TestServer::on_redis(&redis, &[]).await;
    for service in ["", "dyndata.v1.DynData", "liveness"] {
        assert_eq!(
            health(&server, service).await.expect("known"),
            ServingStatus::Serving
        );
    }
    assert_eq!(
        health(&server, "other").await.expect_err("unknown").code(),
        Code::NotFound
    );
    redis.kill();
    let start = Instant::now();
    while health(&server, "").await.expect("known") == ServingStatus::Serving {
        assert!(start.elapsed() < PATIENCE, "health never noticed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let status = health(&server, "dyndata.v1.DynData").await.expect("known");
    assert_eq!(status, ServingStatus::NotServing);
    assert_eq!(
        health(&server, "liveness").await.expect("known"),
        ServingStatus::Serving
    );
    server.stop().await;
}

#[tokio::test]
async fn a_health_watch_sees_the_shutdown_and_does_not_delay_it() {
    let mut server = TestServer::start(&["--drain-timeout=30s"]);
    server.ready().await;
    let mut client = HealthClient::new(server.channel().await);
    let watch = client
        .watch(HealthCheckRequest::default())
        .await
        .expect("watches");
    let mut watch = watch.into_inner();
    let first = watch.next().await.expect("a status").expect("a status");
    assert_eq!(first.status(), ServingStatus::Serving);
    let start = Instant::now();
    server.begin_stop();
    let second = watch.next().await.expect("a status");
    // NOT_SERVING, unless the stream ended first.
    assert!(
        second.is_err() || second.is_ok_and(|status| status.status() == ServingStatus::NotServing)
    );
    server.stop().await;
    assert!(
        start.elapsed() < PATIENCE,
        "the shutdown waited for the watch"
    );
}

#[tokio::test]
async fn silent_peers_do_not_keep_probes_out() {
    let server = TestServer::start(&[]);
    let admin = server.admin.expect("there is one");
    let start = Instant::now();
    let mut silent: Vec<_> = (0..400)
        .map(|number| {
            let mut peer = std::net::TcpStream::connect(admin).expect("connects");
            // Half of them start a request that never ends.
            if number % 2 == 0 {
                _ = peer.write_all(b"GET /livez HTTP/1.1\r\n");
            }
            peer
        })
        .collect();
    for _ in 0..5 {
        let before = Instant::now();
        assert_eq!(server.http("/livez").await.0, 200);
        let took = before.elapsed();
        assert!(took < Duration::from_millis(1500), "a probe took {took:?}");
    }
    // The server closes the others long before the probe of an orchestrator times out.
    for peer in &mut silent {
        peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        // An end or a reset.
        while matches!(peer.read(&mut [0; 64]), Ok(1..)) {}
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    server.stop().await;
}

#[tokio::test]
async fn peers_that_read_nothing_do_not_keep_probes_out() {
    let server = TestServer::start(&[]);
    let admin = server.admin.expect("there is one");
    // More than the listener takes, each with more replies than its socket holds.
    let peers: Vec<_> = (0..100)
        .map(|_| {
            let mut peer = std::net::TcpStream::connect(admin).expect("connects");
            peer.set_write_timeout(Some(Duration::from_millis(100)))
                .expect("a timeout");
            let requests = "GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(2_000);
            // What does not go out has no room on the other side.
            _ = peer.write_all(requests.as_bytes());
            peer
        })
        .collect();
    // Long before those that read nothing have to go by themselves, which is after 12 s.
    let probe = tokio::time::timeout(Duration::from_secs(5), server.http("/livez"));
    assert_eq!(probe.await.expect("in time").0, 200);
    drop(peers);
    server.stop().await;
}

#[tokio::test]
async fn reflection_v1_lists_services_and_shows_comments() {
    use v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let server = TestServer::start(&[]);
    let mut client = ServerReflectionClient::new(server.channel().await);
    let requests = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("dyndata.v1.DynData".to_owned()),
    ]
    .map(|request| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    });
    let replies = client
        .server_reflection_info(tokio_stream::iter(requests))
        .await;
    let mut replies = replies.expect("answers").into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = replies
        .next()
        .await
        .expect("a reply")
        .expect("a reply")
        .message_response
    else {
        panic!("not a list");
    };
    let names: Vec<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    for name in ["dyndata.v1.DynData", "grpc.health.v1.Health"] {
        assert!(names.contains(&name.to_owned()), "{names:?}");
    }
    let Some(MessageResponse::FileDescriptorResponse(files)) = replies
        .next()
        .await
        .expect("a reply")
        .expect("a reply")
        .message_response
    else {
        panic!("not a file");
    };
    let found = files
        .file_descriptor_proto
        .iter()
        .any(|file| String::from_utf8_lossy(file).contains("Mark writes one value"));
    assert!(found, "comments are missing");
    server.stop().await;
}

#[tokio::test]
async fn reflection_v1alpha_lists_services() {
    use v1alpha::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let server = TestServer::start(&[]);
    let mut client = ServerReflectionClient::new(server.channel().await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let replies = client
        .server_reflection_info(tokio_stream::iter([request]))
        .await;
    let reply = replies.expect("answers").into_inner().next().await;
    let Some(MessageResponse::ListServicesResponse(list)) =
        reply.expect("a reply").expect("a reply").message_response
    else {
        panic!("not a list");
    };
    assert!(
        list.service
            .iter()
            .any(|service| service.name == "dyndata.v1.DynData")
    );
    server.stop().await;
}

#[tokio::test]
async fn the_admin_listener_answers_probes_and_nothing_else() {
    let server = TestServer::start(&[]);
    server.ready().await;
    assert_eq!(server.http("/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(server.http("/readyz").await, (200, "ok\n".to_owned()));
    assert_eq!(server.http("/other").await.0, 404);
    server.stop().await;
}

#[tokio::test]
async fn metrics_count_calls_by_method_and_code() {
    let server = TestServer::start(&[]);
    let mut client = server.client().await;
    for _ in 0..3 {
        client.mark(mark("42", int(1))).await.expect("marks");
    }
    assert!(client.get("").await.is_err());
    let (status, metrics) = server.http("/metrics").await;
    assert_eq!(status, 200);
    let labels = |method: &str| {
        format!(r#"{{grpc_type="unary",grpc_service="dyndata.v1.DynData",grpc_method="{method}""#)
    };
    let (mark, get) = (labels("Mark"), labels("Get"));
    for line in [
        format!("grpc_server_started_total{mark}}} 3"),
        format!(r#"grpc_server_handled_total{mark},grpc_code="OK"}} 3"#),
        format!(r#"grpc_server_handled_total{get},grpc_code="InvalidArgument"}} 1"#),
        format!("grpc_server_handling_seconds_count{mark}}} 3"),
        "dyndata_store_up 1".to_owned(),
        "dyndata_memory_entries 1".to_owned(),
    ] {
        assert!(
            metrics.lines().any(|have| have == line),
            "{line} is not in:\n{metrics}"
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn limits_are_settings() {
    let server = TestServer::start(&[
        "--max-batch=2",
        "--max-value-bytes=4",
        "--default-ttl=1s",
        "--max-ttl=2s",
        "--memory-max-entries=1",
    ]);
    let mut client = server.client().await;
    client
        .mark(mark("42", support::text("four")))
        .await
        .expect("marks");
    let result = client.mark(mark("42", support::text("fives"))).await;
    assert_error(result, InvalidArgument, "VALUE_TOO_LARGE");
    let result = client.batch_get(support::batch(0..3)).await;
    assert_error(result, InvalidArgument, "BATCH_TOO_LARGE");
    let request = dyndata::proto::MarkRequest {
        ttl: Some(support::millis(2_001)),
        ..mark("42", int(1))
    };
    assert_error(
        client.mark(request).await,
        InvalidArgument,
        "TTL_OUT_OF_RANGE",
    );
    let status = assert_error(
        client.mark(mark("43", int(1))).await,
        ResourceExhausted,
        "BACKEND_OUT_OF_MEMORY",
    );
    assert!(
        status.message().contains("memory-max-entries"),
        "{}",
        status.message()
    );
    server.stop().await;
}

#[tokio::test]
async fn a_unix_listener_serves_and_tidies_up() {
    let path = std::env::temp_dir().join(format!("dyndata-{}.sock", std::process::id()));
    let listen = format!("--listen=unix:{}", path.display());
    for _ in 0..2 {
        let server = TestServer::start(&[&listen]);
        assert_eq!(server.addr, format!("unix:{}", path.display()));
        let channel = tonic::transport::Endpoint::from_shared(format!("unix:{}", path.display()))
            .expect("a URL")
            .connect()
            .await
            .expect("connects");
        let mut client =
            support::Client(dyndata::proto::dyn_data_client::DynDataClient::new(channel));
        client.mark(mark("42", int(1))).await.expect("marks");
        drop(client);
        server.stop().await;
        assert!(!path.exists(), "the socket file is left behind");
        // The socket file of a crashed server does not prevent the second round.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
    }
    std::fs::remove_file(path).expect("removes");
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_it() {
    let server = TestServer::start(&[]);
    let config = dyndata::Config::parse_from(["--listen", &server.addr, "--admin-listen", "off"]);
    let error = dyndata::Server::bind(config.expect("valid"))
        .await
        .expect_err("in use");
    assert!(error.to_string().contains(&server.addr), "{error}");
    server.stop().await;
}

/// The line of `/metrics` that shows that one call of a method has started.
fn started(method: &str) -> String {
    format!(
        r#"grpc_server_started_total{{grpc_type="unary",grpc_service="dyndata.v1.DynData",grpc_method="{method}"}} 1"#
    )
}

#[tokio::test]
async fn a_shutdown_lets_running_calls_finish() {
    let redis = Redis::start();
    let mut server = TestServer::on_redis(&redis, &["--redis-timeout=5s"]).await;
    let mut client = server.client().await;
    // Makes the call take a while.
    redis.pause(500);
    let call = tokio::spawn(async move { client.mark(mark("42", int(1))).await });
    server.metric(&started("Mark")).await;
    server.begin_stop();
    call.await
        .expect("ends")
        .expect("an accepted call succeeds");
    server.stop().await;
}

#[tokio::test]
async fn during_the_shutdown_delay_health_says_not_serving_and_calls_are_served() {
    let mut server = TestServer::start(&["--shutdown-delay=3s"]);
    server.ready().await;
    let mut old = server.client().await;
    let mut health_client = HealthClient::new(server.channel().await);
    let watch = health_client.watch(HealthCheckRequest::default()).await;
    let mut watch = watch.expect("watches").into_inner();
    let first = watch.next().await.expect("a status").expect("a status");
    assert_eq!(first.status(), ServingStatus::Serving);

    let start = Instant::now();
    server.begin_stop();
    let second = watch.next().await.expect("a status").expect("a status");
    assert_eq!(second.status(), ServingStatus::NotServing);
    let told = start.elapsed();
    assert!(told < Duration::from_secs(2), "told after {told:?}");
    assert_eq!(server.http("/readyz").await.0, 503);
    assert_eq!(server.http("/livez").await.0, 200);
    for service in ["", "dyndata.v1.DynData"] {
        let status = health(&server, service).await.expect("known");
        assert_eq!(status, ServingStatus::NotServing, "{service}");
    }
    // On the open connection and on new ones.
    while start.elapsed() < Duration::from_secs(1) {
        old.mark(mark("42", int(1))).await.expect("marks");
        server.client().await.get("42").await.expect("gets");
    }
    server.stop().await;
    assert!(start.elapsed() >= Duration::from_secs(3), "too early");
    let status = old.get("42").await.expect_err("stopped");
    assert_eq!(status.code(), Unavailable);
}

#[tokio::test]
async fn a_shutdown_takes_no_longer_than_the_drain_timeout() {
    let redis = Redis::start();
    let mut server =
        TestServer::on_redis(&redis, &["--redis-timeout=60s", "--drain-timeout=300ms"]).await;
    let mut client = server.client().await;
    redis.pause(8_000);
    let call = tokio::spawn(async move { client.get("42").await });
    // A peer that sends nothing after its preface.
    let mut silent = std::net::TcpStream::connect(&server.addr).expect("connects");
    silent
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .expect("writes");
    server.metric(&started("Get")).await;
    server.metric("dyndata_connections 2").await;
    let start = Instant::now();
    server.begin_stop();
    let ended = call.await.expect("ends").expect_err("cut off");
    assert_ne!(ended.code(), Code::Ok);
    server.stop().await;
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn a_peer_that_says_nothing_does_not_delay_a_shutdown() {
    let server = TestServer::start(&["--drain-timeout=60s"]);
    let mut silent = std::net::TcpStream::connect(&server.addr).expect("connects");
    server.metric("dyndata_connections 1").await;
    server.stop().await;
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).expect("a clean end");
    assert!(rest.is_empty(), "{rest:?}");
}

#[tokio::test]
async fn an_http1_client_is_told_what_this_is() {
    let server = TestServer::start(&[]);
    let mut socket = std::net::TcpStream::connect(&server.addr).expect("connects");
    socket
        .write_all(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
        .expect("writes");
    socket
        .shutdown(std::net::Shutdown::Write)
        .expect("half-closes");
    let mut reply = String::new();
    socket.read_to_string(&mut reply).expect("reads");
    let (head, body) = reply.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 505 "), "{head}");
    assert!(
        head.contains(&format!("content-length: {}", body.len())),
        "{head}"
    );
    assert!(body.contains("gRPC"), "{body}");
    server.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once() {
    let server = TestServer::start(&["--max-connections=2"]);
    let mut first = server.client().await;
    first.get("42").await.expect("gets");
    let second = std::net::TcpStream::connect(&server.addr).expect("connects");
    server.metric("dyndata_connections 2").await;
    let mut third = std::net::TcpStream::connect(&server.addr).expect("connects");
    assert_eq!(third.read(&mut [0]).expect("a clean end"), 0);
    // Open connections are still served. A closed one makes room.
    first.get("42").await.expect("gets");
    drop(second);
    server.metric("dyndata_connections 1").await;
    server.client().await.get("42").await.expect("gets");
    drop(first);
    server.stop().await;
}

#[tokio::test]
async fn an_old_connection_is_replaced_without_a_failed_call() {
    let server = TestServer::start(&["--max-connection-age=1s"]);
    let mut client = server.client().await;
    let start = Instant::now();
    let connections = |metrics: &str| {
        let line = metrics
            .lines()
            .find(|line| line.starts_with("dyndata_connections_accepted_total "));
        let count = line.and_then(|line| line.split(' ').nth(1)?.parse::<u32>().ok());
        count.expect("a count")
    };
    while connections(&server.http("/metrics").await.1) < 3 {
        if let Err(status) = client.get("42").await {
            // The client failed this call itself: tonic does not repeat an unsent call when the
            // connection closes. A status of the server would have no source.
            let cause = std::error::Error::source(&status).expect("no answer of the server");
            assert_eq!(status.code(), Code::Cancelled, "{cause:?}");
        }
        assert!(start.elapsed() < PATIENCE, "never replaced");
    }
    assert!(
        start.elapsed() > Duration::from_millis(1500),
        "replaced too soon"
    );
    server.stop().await;
}

#[tokio::test]
async fn health_follows_an_outage_and_not_a_reconnect() {
    let mut redis = Redis::start();
    let server = TestServer::on_redis(&redis, &[]).await;
    let mut health = HealthClient::new(server.channel().await);
    let watch = health
        .watch(HealthCheckRequest::default())
        .await
        .expect("watches");
    let mut watch = watch.into_inner();
    let mut next = async || {
        let status = tokio::time::timeout(PATIENCE, watch.next()).await;
        let status = status.expect("a change").expect("a status");
        status.expect("a status").status()
    };
    assert_eq!(next().await, ServingStatus::Serving);
    // A reconnect is too short to change the health. The next change is that of the outage.
    let kill = |redis: &Redis| {
        redis::cmd("CLIENT")
            .arg(&["KILL", "TYPE", "NORMAL", "SKIPME", "YES"])
            .exec(&mut redis.connect())
            .expect("CLIENT KILL");
    };
    let start = Instant::now();
    kill(&redis);
    let mut client = server.client().await;
    while client.get("42").await.is_err() {
        assert!(start.elapsed() < PATIENCE, "never back");
    }
    if start.elapsed() > Duration::from_millis(400) {
        // The machine is slow, and the reconnect may have counted as an outage, whose end counts 1 s later.
        let more = Duration::from_secs(2);
        while tokio::time::timeout(more, next()).await.is_ok() {}
    }
    assert_eq!(server.http("/readyz").await.0, 200);
    redis.kill();
    assert_eq!(next().await, ServingStatus::NotServing);
    assert_eq!(server.http("/readyz").await.0, 503);
    let liveness = HealthCheckRequest {
        service: "liveness".to_owned(),
    };
    let status = health.check(liveness).await.expect("answers").into_inner();
    assert_eq!(status.status(), ServingStatus::Serving);
    redis.run();
    assert_eq!(next().await, ServingStatus::Serving);
    assert_eq!(server.http("/readyz").await.0, 200);
    server.stop().await;
}

#[tokio::test]
async fn after_a_shutdown_nothing_is_served() {
    let server = TestServer::start(&[]);
    let mut client = server.client().await;
    client.mark(mark("42", int(1))).await.expect("marks");
    server.stop().await;
    let status = client.get("42").await.expect_err("stopped");
    assert_eq!(status.code(), Unavailable);
}

#[tokio::test]
async fn every_worker_serves_the_same_data() {
    let server = TestServer::start(&["--workers=4"]);
    // Many connections reach all workers, and all workers share the embedded store.
    let mut clients = Vec::new();
    for number in 0..8 {
        let mut client = server.client().await;
        client
            .mark(mark(&number.to_string(), int(number)))
            .await
            .expect("marks");
        clients.push(client);
    }
    for client in &mut clients {
        let entries = client.batch_get(support::batch(0..8)).await.expect("gets");
        assert!(entries.iter().all(|entry| entry.value.is_some()));
    }
    let (_, metrics) = server.http("/metrics").await;
    assert!(metrics.contains("dyndata_connections 8"), "{metrics}");
    drop(clients);
    server.stop().await;
}

#[tokio::test]
async fn the_servers_own_deadline_bounds_every_call() {
    let redis = Redis::start();
    let flags = ["--redis-timeout=10s", "--max-deadline=100ms"];
    let server = TestServer::on_redis(&redis, &flags).await;
    let mut client = server.client().await;
    redis.pause(8_000);
    let start = Instant::now();
    assert_error(
        client.get("42").await,
        Code::DeadlineExceeded,
        "DEADLINE_EXCEEDED",
    );
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    server.stop().await;
}

#[tokio::test]
async fn a_malformed_timeout_is_refused() {
    let server = TestServer::start(&[]);
    let mut client = server.client().await;
    let mut request = tonic::Request::new(dyndata::proto::GetRequest::default());
    request
        .metadata_mut()
        .insert("grpc-timeout", "soon".parse().expect("ASCII"));
    assert_error(
        client.0.get(request).await,
        InvalidArgument,
        "TIMEOUT_INVALID",
    );
    server.stop().await;
}

#[tokio::test]
async fn work_beyond_the_limit_is_refused_at_once_with_a_pushback() {
    let redis = Redis::start();
    let flags = ["--workers=1", "--max-in-flight=5", "--redis-timeout=10s"];
    let server = TestServer::on_redis(&redis, &flags).await;
    let client = server.client().await;
    redis.pause(1_000);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let mut client = client.clone();
        calls.spawn(async move { client.get("42").await });
    }
    let (mut accepted, mut refused) = (0, 0);
    for result in calls.join_all().await {
        match result {
            Ok(value) => {
                assert_eq!(value, None);
                accepted += 1;
            }
            Err(status) => {
                assert_eq!(status.code(), ResourceExhausted);
                assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
                assert!(
                    status.message().contains("in flight"),
                    "{}",
                    status.message()
                );
                refused += 1;
            }
        }
    }
    assert_eq!((accepted, refused), (5, 15));
    server.stop().await;
}
