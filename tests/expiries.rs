//! A read returns a value together with its own expiry, from a single Redis and from a cluster.

mod support;

use std::time::{Duration, Instant};

use dyndata::proto::{BatchGetRequest, Entry, MarkRequest};
use redis::Commands as _;
use support::{
    Client, Redis, TestServer, assert_error, batch, eventually, int, mark, millis, now, read,
    scripted_proxy::{Fault, ScriptedProxy},
    seconds_since_epoch,
};
use tonic::Code::{FailedPrecondition, Unavailable};

const GET: &str = "$3\r\nGET\r\n";
/// The start of a PTTL command.
const PTTL: &str = "*2\r\n$4\r\nPTTL\r\n";
const SLOTS: u16 = 16_384;

/// A cluster node that announces the address of the proxy as its own.
async fn node() -> (Redis, ScriptedProxy) {
    let proxy = ScriptedProxy::to(0).await;
    let redis = Redis::start_with(&[
        "--cluster-enabled",
        "yes",
        // A node that joins another waits for this time before it serves.
        "--cluster-node-timeout",
        "2000",
        "--cluster-announce-ip",
        "127.0.0.1",
        "--cluster-announce-port",
        &proxy.port.to_string(),
    ]);
    proxy.forward_to(redis.port);
    (redis, proxy)
}

fn cluster(redis: &Redis, command: &[&str]) -> redis::Value {
    let mut cluster = redis::cmd("CLUSTER");
    let answer = cluster.arg(command).query(&mut redis.connect());
    answer.unwrap_or_else(|error| panic!("CLUSTER {command:?}: {error}"))
}

/// True if a node reports that the cluster serves.
fn serves(redis: &Redis) -> bool {
    format!("{:?}", cluster(redis, &["INFO"])).contains("cluster_state:ok")
}

/// A node that has all slots.
async fn owner() -> (Redis, ScriptedProxy) {
    let (redis, proxy) = node().await;
    let mut command = vec!["ADDSLOTS".to_owned()];
    command.extend((0..SLOTS).map(|slot| slot.to_string()));
    let command: Vec<_> = command.iter().map(String::as_str).collect();
    cluster(&redis, &command);
    eventually("the cluster serves", || serves(&redis));
    (redis, proxy)
}

/// A single Redis, and a cluster of one node, each with a server behind a proxy.
async fn both() -> [(Redis, ScriptedProxy, TestServer); 2] {
    let redis = Redis::start();
    let proxy = ScriptedProxy::to(redis.port).await;
    let server = TestServer::behind(&proxy, &["--redis-timeout=5s"]).await;
    let (node, node_proxy) = owner().await;
    let arguments = ["--redis-timeout=5s", "--redis-mode=cluster"];
    let in_cluster = TestServer::behind(&node_proxy, &arguments).await;
    [(redis, proxy, server), (node, node_proxy, in_cluster)]
}

fn batch_with_expiries(ids: &[&str]) -> BatchGetRequest {
    BatchGetRequest {
        include_expire_time: true,
        ..batch(ids)
    }
}

async fn marked(client: &mut Client, value: i64, seconds: u64) {
    let request = MarkRequest {
        ttl: Some(millis(seconds * 1000)),
        ..mark("id", int(value))
    };
    client.mark(request).await.expect("marks");
}

/// Checks for either the first value with its TTL of 100 s, or the second one with its 1,000 s.
#[track_caller]
fn assert_belong_together(entry: &Entry) {
    let expires = seconds_since_epoch(&entry.expire_time.expect("asked"));
    let left = expires - now();
    let first = entry.value == read(int(1)) && (50.0..=100.0).contains(&left);
    let second = entry.value == read(int(2)) && (950.0..=1_000.0).contains(&left);
    assert!(first || second, "{entry:?} expires in {left} s");
}

#[tokio::test]
async fn an_expire_time_belongs_to_its_value() {
    for (redis, proxy, server) in both().await {
        let mut client = server.client().await;
        marked(&mut client, 1, 100).await;
        for is_batch in [false, true] {
            let mut fault = proxy.arm(PTTL, Fault::Split);
            let mut reader = client.clone();
            let reading = tokio::spawn(async move {
                if is_batch {
                    let request = batch_with_expiries(&["id"]);
                    let mut entries = reader.batch_get(request).await?;
                    return Ok(entries.remove(0));
                }
                reader.get_with_expiry("id").await
            });
            // Redis has executed the GET, but not the PTTL.
            fault.reached().await;
            redis
                .connect()
                .pset_ex::<_, _, ()>("dyn_data/id", 2, 1_000_000)
                .expect("SET");
            fault.go();
            assert_belong_together(&reading.await.expect("ends").expect("gets"));
            marked(&mut client, 1, 100).await;
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn a_batch_with_expire_times_has_no_value_for_another_type() {
    for (redis, _proxy, server) in both().await {
        let mut client = server.client().await;
        marked(&mut client, 1, 100).await;
        let mut connection = redis.connect();
        connection
            .rpush::<_, _, ()>("dyn_data/list", 1)
            .expect("RPUSH");
        connection
            .hset::<_, _, _, ()>("dyn_data/hash", 1, 1)
            .expect("HSET");
        let ids = ["list", "id", "hash", "absent", "id"];
        let entries = client.batch_get(batch_with_expiries(&ids)).await;
        let entries = entries.expect("gets");
        for (id, entry) in ids.iter().zip(&entries) {
            assert_eq!(entry.id, *id);
            if *id == "id" {
                assert_belong_together(entry);
            } else {
                assert_eq!((&entry.value, entry.expire_time), (&None, None), "{id}");
            }
        }
        for id in ["list", "hash"] {
            let result = client.get_with_expiry(id).await;
            assert_error(result, FailedPrecondition, "WRONG_TYPE");
        }
        server.stop().await;
    }
}

/// Two nodes. The first one has all slots. The slots of two ids are migrating to the second.
async fn migrating() -> [(Redis, ScriptedProxy); 2] {
    let nodes = [owner().await, node().await];
    let [(first, _), (second, _)] = &nodes;
    cluster(first, &["MEET", "127.0.0.1", &second.port.to_string()]);
    let id_of = |redis: &Redis| match cluster(redis, &["MYID"]) {
        redis::Value::BulkString(id) => String::from_utf8(id).expect("ASCII"),
        other => panic!("{other:?}"),
    };
    let ids = [id_of(first), id_of(second)];
    eventually("the nodes know each other", || {
        [first, second].iter().all(|redis| {
            let known = format!("{:?}", cluster(redis, &["NODES"]));
            ids.iter().all(|id| known.contains(id)) && serves(redis)
        })
    });
    for key in ["dyn_data/id", "dyn_data/other"] {
        let redis::Value::Int(slot) = cluster(first, &["KEYSLOT", key]) else {
            panic!("not a slot");
        };
        let slot = slot.to_string();
        cluster(second, &["SETSLOT", &slot, "IMPORTING", &ids[0]]);
        cluster(first, &["SETSLOT", &slot, "MIGRATING", &ids[1]]);
    }
    nodes
}

#[tokio::test]
async fn a_migrating_slot_is_read_and_written_at_its_target() {
    let [(_first, proxy), (second, _second_proxy)] = migrating().await;
    let arguments = ["--redis-timeout=5s", "--redis-mode=cluster"];
    let server = TestServer::behind(&proxy, &arguments).await;
    let mut client = server.client().await;
    marked(&mut client, 1, 100).await;
    let mut connection = second.connect();
    let (_, stored): ((), i64) = redis::pipe()
        .cmd("ASKING")
        .get("dyn_data/id")
        .query(&mut connection)
        .expect("GET");
    assert_eq!(stored, 1);
    assert_belong_together(&client.get_with_expiry("id").await.expect("gets"));
    let request = batch_with_expiries(&["other", "id"]);
    let entries = client.batch_get(request).await.expect("gets");
    assert_eq!(entries[0].value, None);
    assert_belong_together(&entries[1]);
    server.stop().await;
}

#[tokio::test]
async fn a_redirected_batch_keeps_to_one_redis_timeout() {
    let [(_first, proxy), (second, _second_proxy)] = migrating().await;
    let arguments = ["--redis-timeout=1s", "--redis-mode=cluster"];
    let server = TestServer::behind(&proxy, &arguments).await;
    let mut client = server.client().await;
    // The second node is connected, and then stops answering.
    client.batch_get(batch(["id"])).await.expect("gets");
    second.pause(60_000);
    // Each question to the first node takes 800 ms. After a second, the server would have forgotten
    // the second node, which has no slots, and wait for a new connection instead of a reply.
    for _ in 0..2 {
        drop(proxy.arm(GET, Fault::Delay(Duration::from_millis(800))));
    }
    let start = Instant::now();
    let result = client.batch_get(batch(["id"])).await;
    assert_error(result, Unavailable, "BACKEND_TIMEOUT");
    assert!(
        // With a limit of its own for the second node, it takes 1,800 ms.
        start.elapsed() < Duration::from_millis(1_750),
        "{:?}",
        start.elapsed()
    );
    server.stop().await;
}
