//! The service on a real redis-server: keys and values as other programs see them, credentials,
//! outages, and errors of Redis.

mod support;

use std::{
    thread,
    time::{Duration, Instant, SystemTime},
};

use dyndata::proto::{BatchGetRequest, GetRequest, MarkRequest, entry};
use redis::Commands as _;
use support::{
    CANARY, Directory, PATIENCE, Redis, TestServer, assert_error, assert_no_secret, batch, bytes,
    int, mark, millis, now, read, seconds_since_epoch, text,
};
use tonic::Code::{DeadlineExceeded, FailedPrecondition, ResourceExhausted, Unavailable};
use tonic_types::StatusExt as _;

#[tokio::test]
async fn keys_and_values_are_as_other_programs_read_them() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &[]).await;
    let mut client = server.client().await;
    client.mark(mark("42", int(100))).await.expect("marks");
    client.mark(mark("t", text("héllo"))).await.expect("marks");
    client
        .mark(mark("b", bytes(b"\x00\xff")))
        .await
        .expect("marks");
    let named = MarkRequest {
        namespace: "orders".to_owned(),
        ..mark("42", int(-7))
    };
    client.mark(named).await.expect("marks");
    let mut connection = redis.connect();
    let mut stored = |key: &str| connection.get::<_, Vec<u8>>(key).expect("GET");
    assert_eq!(stored("dyn_data/42"), b"100");
    assert_eq!(stored("dyn_data/t"), "s:héllo".as_bytes());
    assert_eq!(stored("dyn_data/b"), b"b:\x00\xff");
    assert_eq!(stored("dyn_data:orders/42"), b"-7");
    let left: i64 = redis.connect().pttl("dyn_data/42").expect("PTTL");
    assert!((50_000..=60_000).contains(&left), "{left}");
    server.stop().await;
}

#[tokio::test]
async fn what_another_program_wrote_is_read() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &[]).await;
    let mut client = server.client().await;
    let mut connection = redis.connect();
    for (stored, value) in [
        (&b"100"[..], entry::Value::IntValue(100)),
        (b"0100", entry::Value::StringValue("0100".to_owned())),
        (b"3.5", entry::Value::StringValue("3.5".to_owned())),
        (b"online", entry::Value::StringValue("online".to_owned())),
        (b"", entry::Value::StringValue(String::new())),
        (b"\xff\xfe", entry::Value::BytesValue(vec![0xff, 0xfe])),
        (b"s:\xff", entry::Value::BytesValue(b"s:\xff".to_vec())),
    ] {
        connection
            .set::<_, _, ()>("dyn_data/id", stored)
            .expect("SET");
        assert_eq!(client.get("id").await.expect("gets"), Some(value));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_value_without_expiry_has_no_expire_time() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &[]).await;
    let mut client = server.client().await;
    redis
        .connect()
        .set::<_, _, ()>("dyn_data/id", 5)
        .expect("SET");
    let entry = client.get_with_expiry("id").await.expect("gets");
    assert_eq!((entry.value, entry.expire_time), (read(int(5)), None));
    // A Mark sets an expiry.
    client.mark(mark("id", int(6))).await.expect("marks");
    let left: i64 = redis.connect().pttl("dyn_data/id").expect("PTTL");
    assert!(left > 0, "{left}");
    server.stop().await;
}

/// The application before this service writes with SET and EXPIREAT in a pipeline, and reads with
/// `int(GET)`.
#[tokio::test]
async fn the_original_application_and_the_service_read_each_other() {
    for (format, key) in [("python-bytes", "dyn_data/b'42'"), ("plain", "dyn_data/42")] {
        let redis = Redis::start();
        let server = TestServer::on_redis(&redis, &["--key-format", format]).await;
        let mut client = server.client().await;
        let mut connection = redis.connect();
        let in_a_minute = now() as i64 + 60;
        redis::pipe()
            .set(key, 1234)
            .expire_at(key, in_a_minute)
            .exec(&mut connection)
            .expect("SET and EXPIREAT");
        let entry = client.get_with_expiry("42").await.expect("gets");
        assert_eq!(entry.value, read(int(1234)));
        let expires = seconds_since_epoch(&entry.expire_time.expect("asked"));
        assert!((expires - in_a_minute as f64).abs() < 1.0, "{expires}");

        client.mark(mark("42", int(-99))).await.expect("marks");
        let stored: String = connection.get(key).expect("GET");
        assert_eq!(stored.parse(), Ok(-99), "{format}");
        server.stop().await;
    }
}

#[tokio::test]
async fn prefix_and_database_are_settings() {
    let redis = Redis::start();
    let url = format!("--redis-url={}/3", redis.url());
    let server = TestServer::start(&[&url, "--key-prefix", "presence"]);
    server.ready().await;
    server
        .client()
        .await
        .mark(mark("42", int(1)))
        .await
        .expect("marks");
    let mut connection = redis.connect();
    redis::cmd("SELECT")
        .arg(3)
        .exec(&mut connection)
        .expect("SELECT");
    assert_eq!(connection.get("presence/42"), Ok(1));
    server.stop().await;
}

#[tokio::test]
async fn a_unix_socket_works() {
    let redis = Redis::start();
    let url = format!("--redis-url=unix://{}", redis.unix_path());
    let server = TestServer::start(&[&url]);
    server.ready().await;
    let mut client = server.client().await;
    client.mark(mark("42", int(1))).await.expect("marks");
    assert_eq!(client.get("42").await.expect("gets"), read(int(1)));
    server.stop().await;
}

#[tokio::test]
async fn passwords_come_from_the_url_or_a_file() {
    let password = format!("pass {CANARY}");
    let redis = Redis::start_with(&["--requirepass", &password]);
    let files = Directory::new();
    let file = files.write("password", &(password + "\n"));
    let in_url = format!(
        "--redis-url=redis://:pass%20{CANARY}@127.0.0.1:{}",
        redis.port
    );
    let bare = format!("--redis-url=redis://127.0.0.1:{}", redis.port);
    let from_file = format!("--redis-password-file={file}");
    for arguments in [vec![&*in_url], vec![&*bare, &*from_file]] {
        let server = TestServer::start(&arguments);
        server.ready().await;
        server
            .client()
            .await
            .mark(mark("42", int(1)))
            .await
            .expect("marks");
        server.stop().await;
    }
}

#[tokio::test]
async fn a_wrong_password_keeps_the_service_up_and_not_ready() {
    let redis = Redis::start_with(&["--requirepass", "right"]);
    let url = format!("--redis-url=redis://:{CANARY}@127.0.0.1:{}", redis.port);
    let server = TestServer::start(&[&url]);
    let mut client = server.client().await;
    let start = Instant::now();
    loop {
        let (status, body) = server.http("/readyz").await;
        assert_eq!(status, 503);
        assert_no_secret("readyz", &body);
        if body.contains("uthentication") || body.contains("WRONGPASS") {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{body}");
    }
    assert_error(client.get("42").await, Unavailable, "BACKEND_AUTH");
    server.stop().await;
}

/// Redis says that it has too many clients instead of the reply to AUTH.
#[tokio::test]
async fn too_many_clients_are_not_taken_for_a_wrong_password() {
    let redis = Redis::start_with(&["--requirepass", "secret"]);
    redis.use_password("secret");
    let url = format!("--redis-url=redis://:secret@127.0.0.1:{}", redis.port);
    let server = TestServer::start(&[&url]);
    server.ready().await;
    let mut client = server.client().await;
    let mut ours = redis.connect();
    let mut command = |words: &[&str]| -> redis::Value {
        let (name, arguments) = words.split_first().expect("a command");
        let command = redis::cmd(name).arg(arguments).to_owned();
        command.query(&mut ours).expect("answers")
    };
    // The test has the only connection.
    command(&["CONFIG", "SET", "maxclients", "1"]);
    command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    let start = Instant::now();
    loop {
        let status = client.get("42").await.expect_err("no connection");
        let reasons = ["BACKEND_BUSY", "BACKEND_UNAVAILABLE"];
        let reason = status.get_details_error_info().expect("a reason").reason;
        assert!(reasons.contains(&&*reason), "{reason}");
        let (_, ready) = server.http("/readyz").await;
        assert!(!ready.contains("authentication"), "{ready}");
        if reason == "BACKEND_BUSY" && ready.contains("max number of clients") {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{reason}, {ready}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    command(&["CONFIG", "SET", "maxclients", "1000"]);
    server.ready().await;
    server.stop().await;
}

#[tokio::test]
async fn redis_may_come_later_than_the_service() {
    let mut redis = Redis::start();
    redis.kill();
    let url = format!("--redis-url={}", redis.url());
    let server = TestServer::start(&[&url]);
    let mut client = server.client().await;
    assert_error(client.get("42").await, Unavailable, "BACKEND_UNAVAILABLE");
    let (status, body) = server.http("/readyz").await;
    assert_eq!(status, 503);
    assert!(body.starts_with("redis: "), "{body}");
    assert_eq!(server.http("/livez").await.0, 200);
    redis.run();
    server.ready().await;
    client.mark(mark("42", int(1))).await.expect("marks");
    server.stop().await;
}

#[tokio::test]
async fn an_outage_fails_every_call_at_once_and_ends_by_itself() {
    let mut redis = Redis::start();
    let server = TestServer::on_redis(&redis, &["--redis-timeout=500ms"]).await;
    let mut client = server.client().await;
    client.mark(mark("42", int(1))).await.expect("marks");
    redis.kill();
    for _ in 0..20 {
        let start = Instant::now();
        for result in [
            client.mark(mark("42", int(1))).await.err(),
            client.get("42").await.err(),
            client.batch_get(batch(["42"])).await.err(),
        ] {
            let status = result.expect("not an answer without Redis");
            assert_error(Err::<(), _>(status), Unavailable, "BACKEND_UNAVAILABLE");
        }
        // redis-timeout is 500 ms, for each of the three calls.
        assert!(start.elapsed() < Duration::from_millis(1500));
    }
    redis.run();
    let back = Instant::now();
    while client.mark(mark("42", int(2))).await.is_err() {
        assert!(
            back.elapsed() < Duration::from_secs(5),
            "not back within 5 s"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(client.get("42").await.expect("gets"), read(int(2)));
    server.stop().await;
}

/// An alert is about connections that end again and again.
#[tokio::test]
async fn a_redis_that_is_busy_for_a_while_is_not_a_new_connection() {
    let redis = Redis::start_with(&["--lua-time-limit", "10"]);
    let server = TestServer::on_redis(&redis, &[]).await;
    server.metric("dyndata_store_links_up 2").await;
    let mut ours = redis.connect();
    let endless = thread::spawn(move || {
        let script = redis::cmd("EVAL")
            .arg("while true do end")
            .arg(0)
            .to_owned();
        script.query::<()>(&mut ours).expect_err("is killed");
    });
    server.metric("dyndata_store_links_up 0").await;
    redis.must(&["SCRIPT", "KILL"]);
    endless.join().expect("ends");
    server.metric("dyndata_store_links_up 2").await;
    server.metric("dyndata_store_connects_total 2").await;
    server.stop().await;
}

#[tokio::test]
async fn a_silent_redis_is_a_timeout() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &["--redis-timeout", "100ms"]).await;
    let mut client = server.client().await;
    redis.freeze();
    let start = Instant::now();
    assert_error(client.get("42").await, Unavailable, "BACKEND_TIMEOUT");
    assert_error(
        client.mark(mark("42", int(1))).await,
        Unavailable,
        "BACKEND_TIMEOUT",
    );
    assert!(start.elapsed() < Duration::from_secs(5));
    redis.thaw();
    while client.get("42").await.is_err() {
        assert!(start.elapsed() < PATIENCE, "never back");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_key_of_another_type_is_wrong_type() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &[]).await;
    let mut client = server.client().await;
    let mut connection = redis.connect();
    connection
        .rpush::<_, _, ()>("dyn_data/list", 1)
        .expect("RPUSH");
    assert_error(client.get("list").await, FailedPrecondition, "WRONG_TYPE");
    assert_error(
        client.get_with_expiry("list").await,
        FailedPrecondition,
        "WRONG_TYPE",
    );
    // MGET replies nil for a key of another type.
    let entries = client.batch_get(batch(["list"])).await.expect("gets");
    assert_eq!(entries[0].value, None);
    // SET replaces a key of another type.
    client.mark(mark("list", int(1))).await.expect("marks");
    assert_eq!(client.get("list").await.expect("gets"), read(int(1)));
    server.stop().await;
}

#[tokio::test]
async fn a_full_redis_refuses_marks_and_still_reads() {
    let redis = Redis::start_with(&["--maxmemory-policy", "noeviction"]);
    let server = TestServer::on_redis(&redis, &[]).await;
    let mut client = server.client().await;
    client.mark(mark("42", int(1))).await.expect("marks");
    let limit = |bytes: u64| {
        redis::cmd("CONFIG")
            .arg(&["SET", "maxmemory", &bytes.to_string()])
            .exec(&mut redis.connect())
            .expect("CONFIG SET");
    };
    limit(1);
    let result = client.mark(mark("43", int(1))).await;
    assert_error(result, ResourceExhausted, "BACKEND_OUT_OF_MEMORY");
    assert_eq!(client.get("42").await.expect("gets"), read(int(1)));
    // A full Redis refuses all commands of a transaction, even reads.
    let request = BatchGetRequest {
        ids: vec!["42".to_owned(), "43".to_owned()],
        include_expire_time: true,
        ..BatchGetRequest::default()
    };
    let reply = client
        .0
        .batch_get(request)
        .await
        .expect("gets")
        .into_inner();
    assert!(reply.entries[0].expire_time.is_some(), "{reply:?}");
    assert_eq!(reply.entries[1].value, None);
    let request = GetRequest {
        id: "42".to_owned(),
        include_expire_time: true,
        ..GetRequest::default()
    };
    let reply = client.0.get(request).await.expect("gets").into_inner();
    assert!(reply.entry.is_some_and(|entry| entry.expire_time.is_some()));
    limit(0);
    client.mark(mark("43", int(1))).await.expect("marks");
    server.stop().await;
}

#[tokio::test]
async fn redis_errors_become_their_reasons() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &[]).await;
    let mut client = server.client().await;
    let mut connection = redis.connect();
    let mut admin = |command: &[&str]| {
        let (name, arguments) = command.split_first().expect("a command");
        redis::cmd(name)
            .arg(arguments)
            .exec(&mut connection)
            .expect(name);
    };
    // Its master does not exist.
    admin(&["REPLICAOF", "127.0.0.1", "1"]);
    assert_error(
        client.mark(mark("42", int(1))).await,
        Unavailable,
        "BACKEND_READONLY",
    );
    admin(&["REPLICAOF", "NO", "ONE"]);

    admin(&["ACL", "SETUSER", "default", "-set"]);
    assert_error(
        client.mark(mark("42", int(1))).await,
        Unavailable,
        "BACKEND_AUTH",
    );
    assert_eq!(client.get("42").await.expect("gets"), None);
    admin(&["ACL", "SETUSER", "default", "+set"]);
    client.mark(mark("42", int(1))).await.expect("marks");
    server.stop().await;
}

#[tokio::test]
async fn batches_of_every_size_come_back_whole() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &[]).await;
    let mut client = server.client().await;
    let large = "x".repeat(60_000);
    for id in 0..20 {
        client
            .mark(mark(&id.to_string(), text(&large)))
            .await
            .expect("marks");
    }
    for include_expire_time in [false, true] {
        let request = BatchGetRequest {
            include_expire_time,
            ..batch((0..60).map(|place| place % 30))
        };
        let entries = client.batch_get(request).await.expect("gets");
        assert_eq!(entries.len(), 60);
        for (place, entry) in entries.iter().enumerate() {
            assert_eq!(entry.value.is_some(), place % 30 < 20, "{place}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_mark_that_redis_expires_is_gone_there_too() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &[]).await;
    let request = MarkRequest {
        ttl: Some(millis(50)),
        ..mark("42", int(1))
    };
    let before = SystemTime::now();
    server.client().await.mark(request).await.expect("marks");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(
        before
            .elapsed()
            .is_ok_and(|elapsed| elapsed >= Duration::from_millis(100))
    );
    assert_eq!(redis.connect().exists("dyn_data/42"), Ok(false));
    server.stop().await;
}

#[tokio::test]
async fn short_deadlines_do_not_hide_a_dead_connection() {
    let redis = Redis::start();
    let server =
        TestServer::on_redis(&redis, &["--redis-timeout=200ms", "--max-deadline=20ms"]).await;
    let mut client = server.client().await;
    redis.pause(60_000);
    let start = Instant::now();
    // Every deadline is far shorter than redis-timeout. The link must still notice.
    while server.http("/readyz").await.0 == 200 {
        assert!(client.get("42").await.is_err());
        assert!(start.elapsed() < PATIENCE, "never noticed");
    }
    // A call that stands still for 20 ms ends at its deadline, as before.
    let mut refused = client.get("42").await;
    while let Err(status) = &refused
        && status.code() == DeadlineExceeded
    {
        assert!(start.elapsed() < PATIENCE, "no call is refused at once");
        refused = client.get("42").await;
    }
    assert_error(refused, Unavailable, "BACKEND_UNAVAILABLE");
    server.stop().await;
}

#[tokio::test]
async fn replies_of_abandoned_calls_are_never_given_to_others() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &["--redis-timeout=5s", "--workers=1"]).await;
    let client = server.client().await;
    for id in 0..50 {
        client
            .clone()
            .mark(mark(&id.to_string(), int(id)))
            .await
            .expect("marks");
    }
    for round in 0..5 {
        redis.pause(30);
        let mut calls = tokio::task::JoinSet::new();
        for id in 0..50 {
            let mut client = client.clone();
            calls.spawn(async move {
                let request = GetRequest {
                    id: id.to_string(),
                    ..GetRequest::default()
                };
                // Every third call is dropped while Redis executes its command. HTTP/2 allows 20 resets
                // at a time.
                let patience = Duration::from_millis(if id % 3 == 0 { 5 } else { 5_000 });
                let reply = tokio::time::timeout(patience, client.get_request(request)).await;
                (id, reply)
            });
        }
        for (id, reply) in calls.join_all().await {
            match reply {
                Err(_) => assert_eq!(id % 3, 0, "round {round}"),
                Ok(entry) => assert_eq!(entry.expect("gets").value, read(int(id)), "round {round}"),
            }
        }
    }
    server.stop().await;
}
