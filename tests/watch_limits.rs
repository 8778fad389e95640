//! What ends a Watch, and what refuses one.

mod support;

use std::time::{Duration, Instant};

use dyndata::proto::{MarkRequest, WatchRequest, dyn_data_client::DynDataClient};
use support::{
    CANARY, Directory, PATIENCE, Redis, TestServer, assert_error, int, mark, sha256_hex, text,
    watching::{Watching, ids},
};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt as _;

/// Checks that a watch was ended by a limit, and that the caller may try again later.
#[track_caller]
fn assert_limit(status: &Status) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!(info.reason, "WATCH_LIMIT");
    assert!(status.get_details_retry_info().is_some());
    let pushback = status.metadata().get("grpc-retry-pushback-ms");
    let pushback = pushback.and_then(|pushback| pushback.to_str().ok()?.parse::<i64>().ok());
    assert!(pushback.is_some_and(|millis| millis >= 0), "{status:?}");
}

/// The error that a watch ends with, whether it begins or not.
async fn end(client: &mut support::Client, request: WatchRequest) -> Status {
    match Watching::start(&mut client.0, request).await {
        Ok(mut watching) => watching.ends().await,
        Err(status) => status,
    }
}

#[tokio::test]
async fn no_more_watches_than_allowed() {
    let server = TestServer::start(&["--max-watches=2"]);
    let mut client = server.client().await;
    let mut first = Watching::begin(&mut client.0, ids("", ["a"])).await;
    let second = Watching::begin(&mut client.0, ids("", ["a"])).await;
    assert_limit(&end(&mut client, ids("", ["a"])).await);
    drop(second);
    server.metric("dyndata_watches 1").await;
    let third = Watching::begin(&mut client.0, ids("", ["a"])).await;
    client.mark(mark("a", int(1))).await.expect("marks");
    first.until("a change", |first| first.messages == 2).await;
    drop((first, third));
    server.metric("dyndata_watches 0").await;
    server.metric("dyndata_watched_ids 0").await;
    server.stop().await;
}

#[tokio::test]
async fn no_more_namespaces_than_32_and_an_idle_one_makes_room() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &[]).await;
    let mut client = server.client().await;
    let mut watches = Vec::new();
    for number in 0..32 {
        let request = ids(&format!("n{number}"), ["a"]);
        watches.push(Watching::begin(&mut client.0, request).await);
    }
    assert_limit(&end(&mut client, ids("one-more", ["a"])).await);
    drop(watches.pop());
    server.metric("dyndata_watches 31").await;
    let mut other = Watching::begin(&mut client.0, ids("one-more", ["a"])).await;
    // Both the new namespace and the others are tracked.
    for (namespace, watching) in [("one-more", &mut other), ("n5", &mut watches[5])] {
        let request = MarkRequest {
            namespace: namespace.to_owned(),
            ..mark("a", int(7))
        };
        client.mark(request).await.expect("marks");
        watching.sees("a", support::read(int(7))).await;
        assert_eq!(watching.snapshots, 1);
    }
    server.stop().await;
}

#[tokio::test]
async fn no_more_ids_than_100_000() {
    let server = TestServer::start(&[]);
    let mut client = server.client().await;
    let mut watches = Vec::new();
    for part in 0..10 {
        let request = ids("", part * 10_000..(part + 1) * 10_000);
        watches.push(Watching::begin(&mut client.0, request).await);
    }
    server.metric("dyndata_watched_ids 100000").await;
    assert_limit(&end(&mut client, ids("", 99_990..100_001)).await);
    // Ids that are watched already are no more.
    let more = Watching::begin(&mut client.0, ids("", 5..10_005)).await;
    assert_eq!(more.known.len(), 10_000);
    drop((watches, more));
    server.metric("dyndata_watched_ids 0").await;
    server.stop().await;
}

#[tokio::test]
async fn no_more_values_than_64_mebibytes() {
    let server = TestServer::start(&[]);
    let mut client = server.client().await;
    let large = "x".repeat(65_000);
    for id in 0..1040 {
        let id = id.to_string();
        client.mark(mark(&id, text(&large))).await.expect("marks");
    }
    let half = Watching::begin(&mut client.0, ids("", 0..500)).await;
    assert_eq!(half.present().len(), 500);
    assert_limit(&end(&mut client, ids("", 500..1040)).await);
    server.stop().await;
}

#[tokio::test]
async fn a_value_that_fits_no_message_ends_the_watch() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &["--max-reply-bytes=70000"]).await;
    let mut client = server.client().await;
    let mut watching = Watching::begin(&mut client.0, ids("", ["a", "b"])).await;
    let mut other = Watching::begin(&mut client.0, ids("", ["b"])).await;
    redis.must(&["SET", "dyn_data/a", &"x".repeat(70_000)]);
    let status = watching.ends().await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!(info.reason, "REPLY_TOO_LARGE");
    client.mark(mark("b", int(1))).await.expect("marks");
    other.sees("b", support::read(int(1))).await;
    server.stop().await;
}

#[tokio::test]
async fn a_drain_ends_a_watch() {
    let mut server = TestServer::start(&[]);
    let mut client = server.client().await;
    let mut watching = Watching::begin(&mut client.0, ids("", ["a"])).await;
    server.begin_stop();
    let status = watching.ends().await;
    assert_error(Err::<(), _>(status), Code::Unavailable, "SHUTTING_DOWN");
    server.stop().await;
}

#[tokio::test]
async fn an_old_connection_ends_its_watches() {
    let server = TestServer::start(&["--max-connection-age=3s", "--drain-timeout=60s"]);
    let mut client = server.client().await;
    let mut watching = Watching::begin(&mut client.0, ids("", ["a"])).await;
    let status = watching.ends().await;
    assert_error(Err::<(), _>(status), Code::Unavailable, "SHUTTING_DOWN");
    server.stop().await;
}

#[tokio::test]
async fn a_watch_is_not_in_flight_and_outlives_the_deadline_of_calls() {
    let flags = [
        "--max-in-flight=1",
        "--max-deadline=1s",
        "--workers=1",
        "--send-timeout=1s",
    ];
    let server = TestServer::start(&flags);
    let mut client = server.client().await;
    let mut watches = Vec::new();
    for _ in 0..5 {
        watches.push(Watching::begin(&mut client.0, ids("", ["a"])).await);
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    client.mark(mark("a", int(1))).await.expect("marks");
    for watching in &mut watches {
        watching.sees("a", support::read(int(1))).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_caller_who_reads_nothing_is_cut_off_and_nobody_else() {
    let server = TestServer::start(&["--send-timeout=500ms"]);
    let mut writer = server.client().await;
    let large = "x".repeat(10_000);
    for id in 0..40 {
        let id = id.to_string();
        writer.mark(mark(&id, text(&large))).await.expect("marks");
    }
    let slow = Channel::from_shared(format!("http://{}", server.addr))
        .expect("a URL")
        .initial_stream_window_size(65_535)
        .connect()
        .await;
    let mut slow = DynDataClient::new(slow.expect("connects"));
    let idle = Watching::start(&mut slow, ids("", 0..40)).await;
    let mut idle = idle.expect("begins");
    let mut reader = server.client().await;
    let mut watching = Watching::begin(&mut reader.0, ids("", 0..40)).await;
    server.metric("dyndata_watches 1").await;
    let status = idle.ends().await;
    assert_eq!(status.code(), Code::Cancelled, "{status:?}");
    writer.mark(mark("1", int(1))).await.expect("marks");
    watching.sees("1", support::read(int(1))).await;
    server.stop().await;
}

#[tokio::test]
async fn every_ten_seconds_a_watcher_hears_that_nothing_is_missing() {
    let redis = Redis::start();
    let servers = [
        TestServer::start(&[]),
        TestServer::on_redis(&redis, &[]).await,
    ];
    let mut watches = Vec::new();
    for server in &servers {
        let mut client = server.client().await;
        watches.push(Watching::begin(&mut client.0, ids("", ["a"])).await);
    }
    let start = Instant::now();
    for watching in &mut watches {
        while watching.alive == 0 {
            let message = tokio::time::timeout(2 * PATIENCE, watching.message());
            message.await.expect("in time").expect("goes on");
        }
    }
    let time = start.elapsed();
    assert!((8..20).contains(&time.as_secs()), "{time:?}");
    for server in servers {
        server.stop().await;
    }
}

/// The entry of the access file for a token.
fn caller(name: &str, rights: &str, namespaces: &str) -> String {
    let hash = sha256_hex(&token(name));
    format!(
        "[[caller]]\nname = \"{name}\"\ntoken_sha256 = \"{hash}\"\nallow = [{rights}]\n\
         namespaces = [\"{namespaces}\"]\n"
    )
}

fn token(name: &str) -> String {
    format!("dyn_{CANARY}-{name}")
}

fn with_token(request: WatchRequest, name: &str) -> Request<WatchRequest> {
    let mut request = Request::new(request);
    let value = format!("Bearer {}", token(name)).parse().expect("ASCII");
    request.metadata_mut().insert("authorization", value);
    request
}

#[tokio::test]
async fn a_caller_who_loses_its_right_hears_nothing_more() {
    let files = Directory::new();
    let both = |rights: &str, namespaces: &str| {
        caller("stays", "\"read\"", "*") + &caller("changes", rights, namespaces)
    };
    let access = files.write("access.toml", &both("\"read\"", "*"));
    let server = TestServer::start(&["--access-file", &access]);
    let mut client = DynDataClient::new(server.channel().await);
    let refused = client.watch(ids("", ["a"])).await;
    assert_error(refused, Code::Unauthenticated, "UNAUTHENTICATED");
    let mut stays = Watching::begin(&mut client, with_token(ids("n", ["a"]), "stays")).await;
    for (file, code, reason) in [
        (
            caller("stays", "\"read\"", "*"),
            Code::Unauthenticated,
            "UNAUTHENTICATED",
        ),
        (
            both("\"write\"", "*"),
            Code::PermissionDenied,
            "PERMISSION_DENIED",
        ),
        (
            both("\"read\"", "other"),
            Code::PermissionDenied,
            "PERMISSION_DENIED",
        ),
    ] {
        let request = with_token(ids("n", ["a"]), "changes");
        let mut watching = Watching::begin(&mut client, request).await;
        let start = Instant::now();
        files.write("access.toml", &file);
        let status = watching.ends().await;
        assert_error(Err::<(), _>(status), code, reason);
        assert!(start.elapsed() < Duration::from_secs(5));
        let refused = client.watch(with_token(ids("n", ["a"]), "changes")).await;
        assert_error(refused, code, reason);
        files.write("access.toml", &both("\"read\"", "*"));
        let start = Instant::now();
        while client
            .watch(with_token(ids("n", ["a"]), "changes"))
            .await
            .is_err()
        {
            assert!(start.elapsed() < Duration::from_secs(5));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    stays.hears_nothing(Duration::from_millis(50)).await;
    server.stop().await;
}
