//! What dyndata sends to Redis for indexed namespaces, and what becomes of it while a slot moves.

mod support;

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};

use dyndata::proto::{
    BatchMarkRequest, BatchUnmarkRequest, CountRequest, IncrementRequest, ListRequest,
    ListResponse, MarkIfRequest, MarkRequest, TouchRequest, UnmarkRequest, Value,
    batch_mark_request::{Item, item},
    mark_if_request,
    value::Kind,
};
use support::{
    Client, INDEXED, Redis, TestServer, assert_error, assert_outcome, batch, cluster, int, key,
    mark, millis, namespace, now, seconds_since_epoch, use_indexed_namespace,
    watching::{self, Watching},
};
use tonic::Code::{ResourceExhausted, Unavailable};

/// Makes each call about single ids in the namespace of the test.
async fn call_everything(client: &mut Client) {
    client.mark(mark("a", int(1))).await.expect("marks");
    client.get("a").await.expect("gets");
    client.get_with_expiry("a").await.expect("gets");
    client.batch_get(batch(["a", "b"])).await.expect("gets");
    let item = |id: &str| Item {
        id: id.to_owned(),
        value: Some(item::Value::IntValue(1)),
        ttl: None,
    };
    let request = BatchMarkRequest {
        namespace: namespace(),
        marks: ["a", "b", "c"].map(item).into(),
    };
    client.0.batch_mark(request).await.expect("marks");
    let request = TouchRequest {
        namespace: namespace(),
        ids: ["a", "none"].map(str::to_owned).into(),
        ttl: None,
    };
    client.0.touch(request).await.expect("touches");
    for delta in [1, 2] {
        let request = IncrementRequest {
            namespace: namespace(),
            id: "n".to_owned(),
            delta: Some(delta),
            ..IncrementRequest::default()
        };
        client.0.increment(request).await.expect("counts");
    }
    let request = MarkIfRequest {
        namespace: namespace(),
        id: "a".to_owned(),
        value: Some(mark_if_request::Value::IntValue(2)),
        ..MarkIfRequest::default()
    };
    client.0.mark_if(request).await.expect("marks");
    for if_equal in [Some(Kind::IntValue(2)), None] {
        let request = UnmarkRequest {
            namespace: namespace(),
            id: "a".to_owned(),
            if_equal: if_equal.map(|kind| Value { kind: Some(kind) }),
        };
        client.0.unmark(request).await.expect("unmarks");
    }
    let request = BatchUnmarkRequest {
        namespace: namespace(),
        ids: ["a", "b"].map(str::to_owned).into(),
    };
    client.0.batch_unmark(request).await.expect("unmarks");
}

/// Makes each call once, and returns the commands that Redis has run for it.
async fn commands(flags: &[&str]) -> Vec<String> {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &[&["--workers=1"], flags].concat()).await;
    if flags == INDEXED {
        // Until then, Redis itself has to look at its clock, with other commands.
        server.metric("dyndata_store_clocks_known 1").await;
    }
    let mut client = server.client().await;
    let mut monitor = TcpStream::connect(("127.0.0.1", redis.port)).expect("connects");
    monitor.write_all(b"MONITOR\r\n").expect("writes");
    let mut lines = BufReader::new(monitor).lines();
    assert_eq!(lines.next().expect("answers").expect("a line"), "+OK");
    call_everything(&mut client).await;
    redis.must(&["ECHO", "the end"]);
    let mut commands = Vec::new();
    for line in lines {
        let line = line.expect("a line");
        // Time and address come first.
        let (_, command) = line.split_once("] ").expect("a command");
        if command.contains("the end") {
            break;
        }
        let is_of_the_server = ["\"PING\"", "\"TIME\""]
            .iter()
            .any(|name| command.starts_with(name));
        // The sweep goes on meanwhile.
        let is_of_the_sweep = ["ZRANGEBYSCORE", "LIMIT", "ZCOUNT"]
            .iter()
            .any(|word| command.contains(word));
        if !is_of_the_server && !is_of_the_sweep && !is_trim(command) {
            commands.push(command.to_owned());
        }
    }
    server.stop().await;
    commands
}

/// Whether a command calls the script of the sweep.
fn is_trim(command: &str) -> bool {
    command.starts_with("\"EVALSHA\"") && command.ends_with("\"1000\"")
}

#[tokio::test]
async fn other_namespaces_get_the_same_commands_as_without_the_setting() {
    let without = commands(&[]).await;
    assert_eq!(commands(INDEXED).await, without);
    assert!(without.iter().all(|command| !command.contains("_index:")));
}

#[tokio::test]
async fn a_mark_in_an_indexed_namespace_is_one_transaction() {
    use_indexed_namespace();
    let commands = commands(INDEXED).await;
    let names: Vec<_> = commands
        .iter()
        .filter_map(|command| command.split(' ').next())
        .take(4)
        .collect();
    assert_eq!(names, ["\"MULTI\"", "\"SET\"", "\"ZADD\"", "\"EXEC\""]);
    assert!(commands[1].contains("\"PXAT\""), "{}", commands[1]);
    let index = "\"dyn_data_index:{online.";
    assert!(commands[2].contains(index), "{}", commands[2]);
}

/// When a key expires, in milliseconds since the epoch. Redis 6 has no PEXPIRETIME.
fn expiry(redis: &mut redis::Connection, key: &str) -> i64 {
    loop {
        let mut pipe = redis::pipe();
        pipe.cmd("TIME").cmd("PTTL").arg(key).cmd("TIME");
        let ((seconds, micros), left, end): ((i64, i64), i64, (i64, i64)) =
            pipe.query(redis).expect("reads");
        // Redis has looked at its clock within one millisecond.
        if (seconds, micros / 1000) == (end.0, end.1 / 1000) {
            return seconds * 1000 + micros / 1000 + left;
        }
    }
}

/// The index has the expiry of the value itself, and no caller is promised a later one.
#[tokio::test]
async fn value_index_and_reply_agree_about_the_expiry() {
    use_indexed_namespace();
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, INDEXED).await;
    let mut client = server.client().await;
    let mut connection = redis.connect();
    for number in 0..200 {
        let id = number.to_string();
        let ttl = fastrand::u64(5_000..100_000);
        let request = MarkRequest {
            ttl: Some(millis(ttl)),
            ..mark(&id, int(1))
        };
        let started = now();
        let promised = client.mark(request).await.expect("marks");
        let promised = seconds_since_epoch(&promised.expect("always set"));
        let shard = crc16::State::<crc16::XMODEM>::calculate(id.as_bytes()) % 64;
        let key = key(&id);
        let index = format!("dyn_data_index:{{online.{shard}}}");
        let score: f64 =
            redis::from_redis_value(redis.must(&["ZSCORE", &index, &id])).expect("a score");
        let expiry = expiry(&mut connection, &key);
        assert_eq!(score, expiry as f64, "{id}");
        // Redis keeps a value during the whole millisecond of its expiry.
        let ends = (expiry + 1) as f64 / 1000.0;
        assert!(promised <= ends, "{id}: {promised}, {ends}");
        let least = started + ttl as f64 / 1000.0;
        assert!(ends < least + 0.5, "{id}: {least}, {ends}");
        // Half of them are written before the next probe, and half after it.
        if number == 100 {
            tokio::time::sleep(Duration::from_millis(1200)).await;
        }
    }
    server.stop().await;
}

/// The rights are those that `docs/security.md` gives to dyndata's Redis user.
#[tokio::test]
async fn the_rights_of_the_security_page_are_enough() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/security.md");
    let text = std::fs::read_to_string(path).expect("the page");
    let (_, rights) = text.split_once("ACL SETUSER dyndata on ").expect("a user");
    let (rights, _) = rights.split_once("\nOK").expect("the answer of Redis");
    let redis = Redis::start();
    let mut words = vec!["ACL", "SETUSER", "dyndata", "on", ">secret"];
    words.extend(
        rights
            .split_whitespace()
            .filter(|word| *word != "\\")
            .map(|word| word.trim_matches('\'')),
    );
    redis.must(&words);
    let url = redis.url().replace("redis://", "redis://dyndata:secret@");
    let server = TestServer::start(&[&format!("--redis-url={url}"), INDEXED[0]]);
    server.ready().await;
    let mut client = server.client().await;
    call_everything(&mut client).await;
    use_indexed_namespace();
    call_everything(&mut client).await;
    let listed = page(&mut client, 0, String::new()).await.entries.len();
    assert_eq!((count(&mut client).await, listed), (2, 2));
    for request in [watching::ids("orders", ["a"]), watching::all("online")] {
        Watching::begin(&mut client.0, request).await;
    }
    // The sweep runs too.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let refused: Vec<redis::Value> =
        redis::from_redis_value(redis.must(&["ACL", "LOG"])).expect("a list");
    assert!(refused.is_empty(), "{refused:?}");
    server.stop().await;
}

/// The value of a metric without labels, if `/metrics` has it.
async fn metric(server: &TestServer, name: &str) -> Option<f64> {
    let (_, metrics) = server.http("/metrics").await;
    sample(&metrics, name)
}

/// The value of a metric without labels, if this scrape has it.
fn sample(metrics: &str, name: &str) -> Option<f64> {
    let mut lines = metrics.lines().filter_map(|line| line.split_once(' '));
    let (_, value) = lines.find(|(found, _)| *found == name)?;
    Some(value.parse().expect("a number"))
}

/// Redis and the server are on one machine, so their clocks are the same.
#[tokio::test]
async fn metrics_say_how_well_the_clock_of_redis_is_known() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, INDEXED).await;
    let error = || metric(&server, "dyndata_store_clock_error_seconds");
    let offset = || metric(&server, "dyndata_store_clock_offset_seconds");
    let known = "dyndata_store_clocks_known";
    // One for each worker.
    server.metric(&format!("{known} 2")).await;
    let seconds = error().await.expect("known");
    assert!((0.0..=0.005).contains(&seconds), "{seconds}");
    let seconds = offset().await.expect("known");
    assert!(seconds.abs() < 0.01, "{seconds}");
    // Samples are too old after three seconds.
    redis.freeze();
    server.metric(&format!("{known} 0")).await;
    assert_eq!((error().await, offset().await), (None, None));
    redis.thaw();
    server.metric(&format!("{known} 2")).await;
    assert!(error().await.is_some());
    server.stop().await;

    let server = TestServer::on_redis(&redis, &[]).await;
    let (_, metrics) = server.http("/metrics").await;
    assert!(!metrics.contains("dyndata_store_clock"), "{metrics}");
    server.stop().await;
}

/// Waits until so many connections know the clock of their server. Checks what every scrape must
/// say about the clocks of servers on this machine.
async fn wait_for_known_clocks(server: &TestServer, known: f64) {
    let start = Instant::now();
    loop {
        let (_, metrics) = server.http("/metrics").await;
        let error = sample(&metrics, "dyndata_store_clock_error_seconds");
        assert!(
            error.is_none_or(|error| (0.0..=0.005).contains(&error)),
            "{metrics}"
        );
        let have = sample(&metrics, "dyndata_store_clocks_known");
        let offset = sample(&metrics, "dyndata_store_clock_offset_seconds");
        // A busy machine may stop this process between two looks at the clock.
        let is_near = offset.is_some_and(|offset| offset.abs() < 0.01);
        if have == Some(known) && error.is_some() && is_near {
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{known}: {metrics}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Each connection to a node estimates the clock of that node.
#[tokio::test]
async fn each_connection_to_a_cluster_has_a_clock() {
    let nodes = cluster::masters();
    let url = cluster::url_flag(&nodes);
    let server = TestServer::start(&["--redis-mode=cluster", &url, INDEXED[0]]);
    server.ready().await;
    // Each of the two workers has a connection to each of the three nodes.
    wait_for_known_clocks(&server, 6.0).await;
    // The estimates of one node become too old, and the others stay.
    nodes[1].freeze();
    wait_for_known_clocks(&server, 4.0).await;
    nodes[1].thaw();
    wait_for_known_clocks(&server, 6.0).await;
    server.stop().await;
}

/// Ids that are all in shard 0.
fn ids_of_shard_0() -> impl Iterator<Item = String> {
    let shard = |id: &str| crc16::State::<crc16::XMODEM>::calculate(id.as_bytes()) % 64;
    let ids = (0..).map(|number| number.to_string());
    ids.filter(move |id| shard(id) == 0)
}

async fn count(client: &mut Client) -> i64 {
    let request = CountRequest {
        namespace: namespace(),
    };
    let reply = client.0.count(request).await.expect("counts");
    reply.into_inner().count
}

async fn page(client: &mut Client, page_size: i32, page_token: String) -> ListResponse {
    let request = ListRequest {
        namespace: namespace(),
        page_size,
        page_token,
    };
    client.0.list(request).await.expect("lists").into_inner()
}

/// While a slot moves, value and index are on two nodes for some time. Writes are refused then, and
/// what is acknowledged stays counted and listed.
#[tokio::test]
async fn writes_in_a_slot_that_moves_are_refused_without_an_effect() {
    use_indexed_namespace();
    let nodes = cluster::masters();
    let url = cluster::url_flag(&nodes);
    let server = TestServer::start(&["--redis-mode=cluster", &url, INDEXED[0]]);
    server.ready().await;
    let mut client = server.client().await;
    // So many that Redis lists them in several steps.
    let ids: Vec<_> = ids_of_shard_0().take(300).collect();
    for id in &ids {
        client.mark(mark(id, int(1))).await.expect("marks");
    }
    let first = page(&mut client, 50, String::new()).await;
    assert!(first.entries.len() < 300, "{}", first.entries.len());

    let index = "dyn_data_index:{online.0}";
    let from = cluster::owner(&nodes, index);
    let mut others = nodes.iter().filter(|node| node.port != from.port);
    let to = others.next().expect("another node");
    let slot = from.text(&["CLUSTER", "KEYSLOT", index]);
    let (from_id, to_id) = (
        from.text(&["CLUSTER", "MYID"]),
        to.text(&["CLUSTER", "MYID"]),
    );
    to.must(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
    from.must(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
    let port = to.port.to_string();
    let migrate = |key: &str| from.must(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
    assert_eq!(count(&mut client).await, 300);
    migrate(index);
    assert_eq!(count(&mut client).await, 300);
    let new_id = ids_of_shard_0().nth(300).expect("there are more");
    for id in [&ids[0], &new_id] {
        let marked = client.mark(mark(id, int(2))).await;
        let status = assert_error(marked, Unavailable, "BACKEND_BUSY");
        assert_outcome(&status, "not_executed");
    }
    assert_eq!(count(&mut client).await, 300);
    // The rest of the list comes from the other node.
    let mut listed: BTreeSet<_> = first.entries.into_iter().map(|entry| entry.id).collect();
    let mut token = first.next_page_token;
    while !token.is_empty() {
        let next = page(&mut client, 50, token).await;
        listed.extend(next.entries.into_iter().map(|entry| entry.id));
        token = next.next_page_token;
    }
    assert_eq!(listed, ids.iter().cloned().collect());

    for id in &ids {
        migrate(&format!("dyn_data:{{online.0}}/{id}"));
    }
    client.mark(mark(&ids[0], int(3))).await.expect("marks");
    for node in [to, from] {
        node.must(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
    }
    let start = Instant::now();
    while let Err(status) = client.mark(mark(&new_id, int(4))).await {
        assert!(start.elapsed() < support::PATIENCE, "{status}");
    }
    let value = client.get(&ids[0]).await.expect("gets");
    assert_eq!(value, support::read(int(3)));
    assert_eq!(count(&mut client).await, 301);
    server.stop().await;
}

/// A Redis without memory refuses transactions. What frees memory works all the same.
#[tokio::test]
async fn a_redis_without_memory_counts_lists_and_removes() {
    use_indexed_namespace();
    let redis = Redis::start_with(&["--maxmemory-policy", "noeviction"]);
    let server = TestServer::on_redis(&redis, INDEXED).await;
    let mut client = server.client().await;
    for id in ["a", "b", "c", "d"] {
        client.mark(mark(id, int(1))).await.expect("marks");
    }
    redis.must(&["CONFIG", "SET", "maxmemory", "1"]);
    let marked = client.mark(mark("a", int(2))).await;
    let status = assert_error(marked, ResourceExhausted, "BACKEND_OUT_OF_MEMORY");
    assert_outcome(&status, "not_executed");
    let request = UnmarkRequest {
        namespace: namespace(),
        id: "a".to_owned(),
        if_equal: None,
    };
    let removed = client
        .0
        .unmark(request)
        .await
        .expect("unmarks")
        .into_inner();
    assert!(removed.removed);
    let request = BatchUnmarkRequest {
        namespace: namespace(),
        ids: ["b", "c", "none"].map(str::to_owned).into(),
    };
    let removed = client.0.batch_unmark(request).await.expect("unmarks");
    assert_eq!(removed.into_inner().removed_count, 2);
    let listed = page(&mut client, 0, String::new()).await.entries.len();
    assert_eq!((count(&mut client).await, listed), (1, 1));
    server.stop().await;
}
