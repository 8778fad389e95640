//! Which commands are repeated when a connection to Redis ends during a call. A Mark that Redis may
//! have executed must not be repeated: it could overwrite a newer value with an older one.

mod support;

use std::time::Duration;

use dyndata::proto::{MarkRequest, mark_request};
use redis::Commands as _;
use support::{
    Client, PATIENCE, Redis, TestServer, assert_error, assert_outcome, int, mark, read,
    scripted_proxy::{Fault, ScriptedProxy},
    text,
};
use tonic::{
    Code::{self, Unavailable},
    Status,
};

const SET: &str = "$3\r\nSET\r\n";
const GET: &str = "$3\r\nGET\r\n";

fn marking(
    client: &Client,
    request: MarkRequest,
) -> tokio::task::JoinHandle<Result<Option<prost_types::Timestamp>, Status>> {
    let mut client = client.clone();
    tokio::spawn(async move { client.mark(request).await })
}

#[tokio::test]
async fn a_mark_whose_reply_is_lost_is_not_written_over_a_newer_one() {
    let redis = Redis::start();
    let proxy = ScriptedProxy::to(redis.port).await;
    let server = TestServer::behind(&proxy, &[]).await;
    let other_server = TestServer::on_redis(&redis, &[]).await;
    let mut other = other_server.client().await;

    let mut fault = proxy.arm(SET, Fault::LoseReply);
    let first = marking(&server.client().await, mark("id", int(1)));
    fault.reached().await;
    other.mark(mark("id", int(2))).await.expect("marks");
    assert_eq!(other.get("id").await.expect("gets"), read(int(2)));
    fault.go();

    let first = first.await.expect("ends");
    assert_eq!(other.get("id").await.expect("gets"), read(int(2)));
    let status = assert_error(first, Unavailable, "BACKEND_UNAVAILABLE");
    assert_outcome(&status, "unknown");
    assert!(!status.metadata().contains_key("grpc-retry-pushback-ms"));
    server.stop().await;
    other_server.stop().await;
}

#[tokio::test]
async fn a_mark_that_reaches_redis_late_was_not_acknowledged() {
    let redis = Redis::start();
    let proxy = ScriptedProxy::to(redis.port).await;
    let server = TestServer::behind(&proxy, &[]).await;
    let other_server = TestServer::on_redis(&redis, &[]).await;
    let mut other = other_server.client().await;

    let mut fault = proxy.arm(SET, Fault::DeliverLate);
    let first = marking(&server.client().await, mark("id", int(1)));
    fault.reached().await;
    let first = first.await.expect("ends");
    let status = assert_error(first, Unavailable, "BACKEND_UNAVAILABLE");
    assert_outcome(&status, "unknown");
    other.mark(mark("id", int(2))).await.expect("marks");
    fault.go();
    // As the outcome `unknown` says, the Mark may take effect once, at a later time.
    while other.get("id").await.expect("gets") != read(int(1)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.stop().await;
    other_server.stop().await;
}

#[tokio::test]
async fn a_read_whose_connection_ends_is_repeated() {
    let redis = Redis::start();
    let proxy = ScriptedProxy::to(redis.port).await;
    let server = TestServer::behind(&proxy, &[]).await;
    let mut client = server.client().await;
    client.mark(mark("id", int(1))).await.expect("marks");
    let mut fault = proxy.arm(GET, Fault::LoseReply);
    let mut getting = client.clone();
    let getting = tokio::spawn(async move { getting.get("id").await });
    fault.reached().await;
    fault.go();
    assert_eq!(getting.await.expect("ends").expect("gets"), read(int(1)));
    server.stop().await;
}

#[tokio::test]
async fn a_connection_that_lost_a_reply_is_closed() {
    let redis = Redis::start();
    let proxy = ScriptedProxy::to(redis.port).await;
    let server = TestServer::behind(&proxy, &["--redis-timeout=500ms"]).await;
    let mut client = server.client().await;
    client.mark(mark("id", int(1))).await.expect("marks");

    let mut fault = proxy.arm(GET, Fault::SwallowReply);
    let lost = client.get("id").await;
    assert_error(lost, Unavailable, "BACKEND_TIMEOUT");
    fault.reached().await;
    // From here on, each reply on this connection belongs to the command before.
    let recovered = async {
        while !client
            .get("id")
            .await
            .is_ok_and(|value| value == read(int(1)))
        {}
    };
    tokio::time::timeout(PATIENCE, recovered)
        .await
        .expect("another connection within some seconds");
    server.stop().await;
}

#[tokio::test]
async fn a_connection_with_a_reply_that_does_not_end_is_closed() {
    let redis = Redis::start();
    let proxy = ScriptedProxy::to(redis.port).await;
    let server = TestServer::behind(&proxy, &["--redis-timeout=500ms"]).await;
    let client = server.client().await;
    let mut fault = proxy.arm(GET, Fault::EndlessReply);
    // Calls go on all the time, so that the connection is never silent.
    let mut calls = tokio::task::JoinSet::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(25));
    let answered = async {
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let mut client = client.clone();
                    calls.spawn(async move { client.get("id").await });
                }
                Some(call) = calls.join_next() => {
                    if call.expect("no panic").is_ok() {
                        break;
                    }
                }
            }
        }
    };
    tokio::time::timeout(3 * PATIENCE, answered)
        .await
        .expect("another connection after some seconds");
    fault.reached().await;
    server.stop().await;
}

/// Many large Marks fill the socket, so that the last ones stay in the server.
#[tokio::test]
async fn only_unsent_marks_are_repeated() {
    // More than the buffers of two sockets hold, and less than the limit of a worker.
    const MARKS: usize = 40;
    let redis = Redis::start();
    let proxy = ScriptedProxy::to(redis.port).await;
    let server = TestServer::behind(&proxy, &["--redis-timeout=10s"]).await;
    let client = server.client().await;
    let value = "x".repeat(60_000);

    let mut fault = proxy.arm(SET, Fault::Stall);
    let marks: Vec<_> = (0..MARKS)
        .map(|id| marking(&client, mark(&id.to_string(), text(&value))))
        .collect();
    fault.reached().await;
    server
        .metric(&format!("dyndata_calls_in_flight {MARKS}"))
        .await;
    fault.go();

    let (mut marked, mut unknown, mut not_executed) = (0, 0, 0);
    for (id, result) in marks.into_iter().enumerate() {
        // No command of the first connection has reached Redis.
        let exists = || redis.connect().exists(format!("dyn_data/{id}"));
        let Err(status) = result.await.expect("ends") else {
            assert_eq!(exists(), Ok(true), "{id}");
            marked += 1;
            continue;
        };
        assert_eq!(exists(), Ok(false), "{id}");
        let status = assert_error(Err::<(), _>(status), Unavailable, "BACKEND_UNAVAILABLE");
        match status.metadata().contains_key("grpc-retry-pushback-ms") {
            true => panic!("the caller's own backoff is better: {status:?}"),
            false if has_outcome(&status, "unknown") => unknown += 1,
            false => {
                assert_outcome(&status, "not_executed");
                not_executed += 1;
            }
        }
    }
    // Marks in the buffers of the two sockets count as sent. The budget for repetitions is ten, plus
    // a tenth of all calls.
    assert!(unknown > 0, "{marked} marked, {not_executed} not executed");
    assert!(marked > 0, "{unknown} unknown, {not_executed} not executed");
    server.stop().await;
}

fn has_outcome(status: &Status, outcome: &str) -> bool {
    use tonic_types::StatusExt as _;
    let info = status.get_details_error_info().expect("an ErrorInfo");
    info.metadata.get("outcome").is_some_and(|it| it == outcome)
}

/// A replica, which refuses writes, with a value for each id.
fn replica(ids: usize) -> Redis {
    let redis = Redis::start();
    let mut connection = redis.connect();
    for id in 0..ids {
        connection
            .set::<_, _, ()>(format!("dyn_data/{id}"), 1)
            .expect("SET");
    }
    redis::cmd("REPLICAOF")
        .arg(&["127.0.0.1", "1"])
        .exec(&mut connection)
        .expect("REPLICAOF");
    redis
}

/// Marks until the connection is old enough to be replaced. Until then, every error is READONLY.
async fn mark_until_master(client: &mut Client, value: mark_request::Value) {
    let start = std::time::Instant::now();
    while let Err(status) = client.mark(mark("marked", value.clone())).await {
        let status = assert_error(Err::<(), _>(status), Unavailable, "BACKEND_READONLY");
        assert_outcome(&status, "not_executed");
        assert!(start.elapsed() < PATIENCE, "never marked at the master");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_mark_that_a_replica_refuses_is_repeated_at_the_master() {
    let (replica, master) = (replica(0), Redis::start());
    let proxy = ScriptedProxy::to(replica.port).await;
    let server = TestServer::behind(&proxy, &["--redis-timeout=2s"]).await;
    proxy.forward_to(master.port);
    mark_until_master(&mut server.client().await, int(5)).await;
    assert_eq!(master.connect().get("dyn_data/marked"), Ok(5));
    server.stop().await;
}

#[tokio::test]
async fn a_replaced_connection_completes_its_calls_in_flight() {
    const GETS: usize = 50;
    let (replica, master) = (replica(GETS), Redis::start());
    let proxy = ScriptedProxy::to(replica.port).await;
    let server = TestServer::behind(&proxy, &["--redis-timeout=5s"]).await;
    let mut client = server.client().await;
    proxy.forward_to(master.port);
    // Younger connections are not replaced.
    tokio::time::sleep(Duration::from_millis(2_100)).await;

    let mut fault = proxy.arm(SET, Fault::HoldReplies { gets: GETS });
    let marked = marking(&client, mark("marked", int(5)));
    // The SET is sent before the first GET.
    server.metric("dyndata_calls_in_flight 1").await;
    let gets: Vec<_> = (0..GETS)
        .map(|id| {
            let mut client = client.clone();
            tokio::spawn(async move { client.get(&id.to_string()).await })
        })
        .collect();
    fault.reached().await;
    // The Mark is repeated on the new connection, while the Gets still wait on the old one.
    marked.await.expect("ends").expect("marks");
    assert_eq!(client.get("marked").await.expect("gets"), read(int(5)));
    assert!(gets.iter().all(|get| !get.is_finished()));
    fault.go();
    for get in gets {
        // The value of the replica. The master has none.
        assert_eq!(get.await.expect("ends").expect("gets"), read(int(1)));
    }
    server.stop().await;
}

#[tokio::test]
async fn every_failed_mark_says_whether_it_may_have_an_effect() {
    let mut redis = Redis::start();
    let server = TestServer::on_redis(&redis, &["--redis-timeout=1s"]).await;
    let mut client = server.client().await;
    let mut check = async |request: MarkRequest, code: Code, reason: &str, outcome: &str| {
        let status = assert_error(client.mark(request).await, code, reason);
        assert_outcome(&status, outcome);
    };
    let large = mark("id", text(&"x".repeat(1 << 20)));
    let invalid = Code::InvalidArgument;
    check(mark("", int(1)), invalid, "ID_INVALID", "not_executed").await;
    check(
        large,
        Code::ResourceExhausted,
        "MESSAGE_TOO_LARGE",
        "not_executed",
    )
    .await;

    redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory", "1"])
        .exec(&mut redis.connect())
        .expect("CONFIG SET");
    let exhausted = Code::ResourceExhausted;
    let reason = "BACKEND_OUT_OF_MEMORY";
    check(mark("id", int(1)), exhausted, reason, "not_executed").await;

    redis.pause(60_000);
    let reason = "BACKEND_TIMEOUT";
    check(mark("id", int(1)), Unavailable, reason, "unknown").await;
    redis.kill();
    server.metric("dyndata_store_links_up 0").await;
    let reason = "BACKEND_UNAVAILABLE";
    check(mark("id", int(1)), Unavailable, reason, "not_executed").await;

    // A read has no outcome.
    let status = assert_error(client.get("id").await, Unavailable, reason);
    assert!(!has_outcome(&status, "not_executed"));
    server.stop().await;
}

#[tokio::test]
async fn the_outcome_of_a_mark_past_its_deadline_depends_on_whether_redis_was_asked() {
    let redis = Redis::start();
    let flags = ["--redis-timeout=10s", "--max-deadline=1s"];
    let server = TestServer::on_redis(&redis, &flags).await;
    let mut client = server.client().await;
    redis.pause(5_000);
    let result = client.mark(mark("id", int(1))).await;
    let status = assert_error(result, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    assert_outcome(&status, "unknown");
    server.stop().await;
}
