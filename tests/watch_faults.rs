//! Watch while Redis fails, and while other programs write. The state of each watcher has to become
//! that of Redis, whatever happens in between.

mod support;

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use dyndata::proto::{BatchGetRequest, MarkRequest, dyn_data_client::DynDataClient, entry};
use support::{
    Dyndata, PATIENCE, Redis, TestServer, assert_error, cluster, eventually, int, mark, millis,
    read,
    watching::{Watching, all, ids},
};

const KEYS: usize = 300;

fn names() -> Vec<String> {
    (0..KEYS).map(|number| number.to_string()).collect()
}

/// The connections on which Redis pushes changes.
fn trackers(redis: &Redis) -> usize {
    let clients = redis.text(&["CLIENT", "LIST"]);
    let mut words = clients.split_whitespace();
    let mut count = 0;
    while let Some(flags) = words.find_map(|word| word.strip_prefix("flags=")) {
        // B says that a client is told of all keys with its prefixes.
        count += usize::from(flags.contains('B'));
    }
    count
}

/// What Redis holds under these keys, and how long it will live in milliseconds.
fn held(redis: &mut redis::Connection, keys: &[String]) -> BTreeMap<String, (Vec<u8>, i64)> {
    let mut pipe = redis::pipe();
    for key in keys {
        let key = format!("dyn_data:on/{key}");
        pipe.cmd("GET").arg(&key).cmd("PTTL").arg(&key);
    }
    pipe.ignore_errors();
    let replies: Vec<redis::RedisResult<redis::Value>> = pipe.query(redis).expect("reads");
    let mut held = BTreeMap::new();
    for (key, pair) in keys.iter().zip(replies.chunks(2)) {
        if let [
            Ok(redis::Value::BulkString(value)),
            Ok(redis::Value::Int(left)),
        ] = pair
            && *left != -2
        {
            held.insert(key.clone(), (value.clone(), *left));
        }
    }
    held
}

fn as_stored(value: &entry::Value) -> Vec<u8> {
    match value {
        entry::Value::IntValue(int) => int.to_string().into_bytes(),
        entry::Value::StringValue(text) => text.clone().into_bytes(),
        entry::Value::BytesValue(bytes) => bytes.clone(),
    }
}

/// Takes messages until the watcher knows what Redis holds. An id that is about to expire may
/// differ.
async fn agrees(watching: &mut Watching, redis: &Redis, keys: &[String], within: Duration) {
    let mut connection = redis.connect();
    let start = Instant::now();
    loop {
        while let Ok(message) =
            tokio::time::timeout(Duration::from_millis(20), watching.message()).await
        {
            message.expect("the watch goes on");
        }
        let held = held(&mut connection, keys);
        let known = watching.present();
        let differs = keys.iter().find(|key| {
            let value = known.get(*key).map(as_stored);
            match held.get(*key) {
                Some((_, 0..120)) => false,
                held => value.as_ref() != held.map(|(value, _)| value),
            }
        });
        let Some(key) = differs else { return };
        assert!(
            start.elapsed() < within,
            "{key} is {:?} in Redis, and the watcher knows {:?}",
            held.get(key),
            known.get(key)
        );
    }
}

async fn marks(server: &TestServer, ids: &[String], value: i64) {
    marks_within(PATIENCE, server, ids, value).await;
}

/// Marks the ids. Each of them is tried for at most this time.
async fn marks_within(time: Duration, server: &TestServer, ids: &[String], value: i64) {
    let mut client = server.client().await;
    for id in ids {
        let mut request = mark(id, int(value));
        request.namespace = "on".to_owned();
        let start = Instant::now();
        while let Err(status) = client.mark(request.clone()).await {
            assert!(start.elapsed() < time, "still not marked: {status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A server on this Redis, and a watcher of all names that knows their values.
async fn watched(redis: &Redis) -> (TestServer, Watching) {
    let server = TestServer::on_redis(redis, &[]).await;
    marks(&server, &names()[..20], 1).await;
    let mut client = server.client().await;
    let watching = Watching::begin(&mut client.0, ids("on", names())).await;
    assert_eq!(watching.present().len(), 20);
    (server, watching)
}

#[tokio::test]
async fn redis_tracks_only_while_somebody_watches() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &[]).await;
    assert_eq!(trackers(&redis), 0);
    let mut client = server.client().await;
    let first = Watching::begin(&mut client.0, ids("on", ["a"])).await;
    let second = Watching::begin(&mut client.0, ids("", ["a"])).await;
    assert_eq!(trackers(&redis), 1);
    drop(first);
    drop(second);
    let start = Instant::now();
    while trackers(&redis) > 0 {
        assert!(start.elapsed() < PATIENCE, "still tracking");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_killed_connection_brings_a_new_snapshot() {
    let redis = Redis::start();
    let (server, mut watching) = watched(&redis).await;
    for value in 2..5 {
        redis.must(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        marks(&server, &names()[10..40], value).await;
        watching.snapshot().await;
        agrees(&mut watching, &redis, &names(), Duration::from_secs(3)).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn the_log_says_why_redis_does_not_tell_changes() {
    let redis = Redis::start();
    let server = Dyndata::on(&redis.url(), &[]);
    let client = DynDataClient::connect(format!("http://{}", server.addr)).await;
    let mut client = client.expect("connects");
    let mut watching = Watching::begin(&mut client, ids("on", ["a"])).await;
    redis.must(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    watching.snapshot().await;
    let log = server.log();
    let line = log.lines().find(|line| line.contains("does not tell"));
    let line = line.expect("a line");
    let server = format!("server=127.0.0.1:{}", redis.port);
    for part in [" WARN ", &server, "reason=\"connection closed\""] {
        assert!(line.contains(part), "{line}");
    }
}

#[tokio::test]
async fn a_restart_brings_a_new_snapshot_and_a_new_watch_is_refused_meanwhile() {
    let mut redis = Redis::start();
    let (server, mut watching) = watched(&redis).await;
    redis.kill();
    let mut client = server.client().await;
    let start = Instant::now();
    loop {
        let mut late = Watching::start(&mut client.0, ids("other", ["a"]))
            .await
            .expect("begins");
        let status = late.ends().await;
        assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
        assert!(start.elapsed() < Duration::from_secs(5), "not at once");
        if start.elapsed() > Duration::from_millis(300) {
            break;
        }
    }
    redis.run();
    watching.snapshot().await;
    assert!(watching.present().is_empty(), "Redis has lost everything");
    marks(&server, &names()[..5], 9).await;
    agrees(&mut watching, &redis, &names(), Duration::from_secs(3)).await;
    server.stop().await;
}

/// Nothing else fails then, and the alert on a Redis that refuses looks at this metric.
#[tokio::test]
async fn a_watch_that_redis_does_not_allow_is_an_error_of_the_store() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &[]).await;
    let mut client = server.client().await;
    redis.must(&["ACL", "SETUSER", "default", "-client"]);
    for count in 1..3 {
        let mut watching = Watching::start(&mut client.0, ids("on", ["a"]))
            .await
            .expect("begins");
        let refused: Result<(), _> = Err(watching.ends().await);
        assert_error(refused, tonic::Code::Unavailable, "BACKEND_AUTH");
        let line = format!("dyndata_store_errors_total{{reason=\"BACKEND_AUTH\"}} {count}");
        server.metric(&line).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_pause_of_redis_loses_nothing() {
    let redis = Redis::start();
    let (server, mut watching) = watched(&redis).await;
    redis.freeze();
    tokio::time::sleep(Duration::from_secs(3)).await;
    redis.thaw();
    marks(&server, &names()[..30], 7).await;
    agrees(&mut watching, &redis, &names(), Duration::from_secs(3)).await;
    server.stop().await;
}

#[tokio::test]
async fn a_flush_empties_what_is_known() {
    let redis = Redis::start();
    let (server, mut watching) = watched(&redis).await;
    redis.must(&["FLUSHALL"]);
    watching
        .until("all are gone", |watching| watching.present().is_empty())
        .await;
    marks(&server, &names()[5..9], 7).await;
    agrees(&mut watching, &redis, &names(), Duration::from_secs(3)).await;
    assert_eq!(watching.snapshots, 1, "these are changes");
    server.stop().await;
}

/// Redis says nothing about SWAPDB. Watched ids are read again every 60 s, and the ids of a
/// namespace that is watched as a whole are listed again.
#[tokio::test]
async fn a_swap_of_databases_is_seen_within_a_minute() {
    let redis = Redis::start();
    let mut databases = Vec::new();
    for (database, value, ids) in [(0, 1, 0..20), (1, 2, 10..30)] {
        let url = format!("--redis-url={}/{database}", redis.url());
        let server = TestServer::start(&[&url, "--indexed-namespaces=on"]);
        server.ready().await;
        let mut client = server.client().await;
        for id in ids {
            let request = MarkRequest {
                namespace: "on".to_owned(),
                ttl: Some(millis(600_000)),
                ..mark(&id.to_string(), int(value))
            };
            client.mark(request).await.expect("marks");
        }
        databases.push((server, client));
    }
    let (server, mut client) = databases.swap_remove(0);
    // Ids that nobody names are found only by listing the namespace.
    let one = Watching::begin(&mut client.0, ids("on", 0..25)).await;
    let all = Watching::begin(&mut client.0, all("on")).await;
    let held = |ids: Range<i32>, value| -> BTreeMap<_, _> {
        ids.map(|id| (id.to_string(), entry::Value::IntValue(value)))
            .collect()
    };
    let swapped = Instant::now();
    redis.must(&["SWAPDB", "0", "1"]);
    // Some ids vanish, some have another value, and some appear.
    for (mut watching, after) in [(one, held(10..25, 2)), (all, held(10..30, 2))] {
        assert_eq!(watching.present(), held(0..20, 1));
        // Some time more, for a busy machine.
        let left = Duration::from_secs(65).saturating_sub(swapped.elapsed());
        watching
            .within(left, "the other database", |watching| {
                watching.present() == after
            })
            .await;
        assert_eq!(watching.snapshots, 1, "these are changes");
        assert!(watching.alive >= 4, "{}", watching.alive);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_key_of_another_type_is_absent() {
    let redis = Redis::start();
    let (server, mut watching) = watched(&redis).await;
    redis.must(&["DEL", "dyn_data:on/3"]);
    redis.must(&["LPUSH", "dyn_data:on/3", "x"]);
    watching.sees("3", None).await;
    redis.must(&["DEL", "dyn_data:on/3"]);
    redis.must(&["SET", "dyn_data:on/3", "back"]);
    let back = entry::Value::StringValue("back".to_owned());
    watching.sees("3", Some(back)).await;
    server.stop().await;
}

/// As the application did it that dyndata has grown out of.
#[tokio::test]
async fn a_program_that_sets_and_then_expires_is_followed() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &["--key-format=python-bytes"]).await;
    let mut client = server.client().await;
    let mut watching = Watching::begin(&mut client.0, ids("", ["42", "43"])).await;
    let mut connection = redis.connect();
    for round in 0..3 {
        let now = support::now();
        for (key, value) in [("dyn_data/b'42'", round), ("dyn_data/b'43'", 7)] {
            let set: () = redis::cmd("SET")
                .arg(key)
                .arg(value)
                .query(&mut connection)
                .expect("sets");
            let _: () = set;
            let expires = now as i64 + 2;
            let _: i64 = redis::cmd("EXPIREAT")
                .arg(key)
                .arg(expires)
                .query(&mut connection)
                .expect("expires");
        }
        watching.sees("42", read(int(round))).await;
        watching.sees("43", read(int(7))).await;
        watching.sees("42", None).await;
        watching.sees("43", None).await;
        assert!(support::now() - now < 10.0, "noticed late");
    }
    server.stop().await;
}

/// Writes what programs may write, at random, until it is told to stop. Pauses when told to.
struct Writer {
    stop: Arc<AtomicBool>,
    pause: Arc<AtomicBool>,
    is_paused: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<usize>>,
}

impl Writer {
    fn start(redis: &Redis) -> Self {
        let flag = Arc::<AtomicBool>::default;
        let (stop, pause, is_paused) = (flag(), flag(), flag());
        let mut connection = redis.connect();
        let flags = (
            Arc::clone(&stop),
            Arc::clone(&pause),
            Arc::clone(&is_paused),
        );
        let thread = thread::spawn(move || {
            let (stop, pause, is_paused) = flags;
            let mut written = 0;
            while !stop.load(Ordering::Relaxed) {
                if pause.load(Ordering::Relaxed) {
                    is_paused.store(true, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(2));
                    continue;
                }
                is_paused.store(false, Ordering::Relaxed);
                let mut pipe = redis::pipe();
                for _ in 0..fastrand::usize(1..12) {
                    random_command(&mut pipe);
                    written += 1;
                }
                pipe.ignore_errors();
                let _: Vec<redis::RedisResult<redis::Value>> =
                    pipe.query(&mut connection).expect("writes");
                thread::sleep(Duration::from_micros(fastrand::u64(..600)));
            }
            written
        });
        Self {
            stop,
            pause,
            is_paused,
            thread: Some(thread),
        }
    }

    fn pause(&self) {
        self.pause.store(true, Ordering::Relaxed);
        eventually("the writer pauses", || {
            self.is_paused.load(Ordering::Relaxed)
        });
    }

    fn go_on(&self) {
        self.pause.store(false, Ordering::Relaxed);
        eventually("the writer writes", || {
            !self.is_paused.load(Ordering::Relaxed)
        });
    }

    fn stop(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("runs");
        thread.join().expect("writes without an error")
    }
}

fn random_command(pipe: &mut redis::Pipeline) {
    // Most commands are about a few ids, so that an id often changes while it is being read.
    let key = || {
        let most = [4, 4, 4, KEYS][fastrand::usize(..4)];
        format!("dyn_data:on/{}", fastrand::usize(..most))
    };
    let other = || format!("other/{}", fastrand::usize(..20));
    let ttl = || {
        let most = [1, 5, 40, 300, 2_000, 10_000][fastrand::usize(..6)];
        fastrand::i64(1..=most)
    };
    let value = || fastrand::i64(0..5);
    match fastrand::u32(..100) {
        0..45 => pipe.cmd("SET").arg(key()).arg(value()).arg("PX").arg(ttl()),
        45..55 => pipe.cmd("SET").arg(key()).arg(value()),
        55..70 => pipe.cmd("DEL").arg(key()),
        70..75 => pipe.cmd("PEXPIRE").arg(key()).arg(ttl() - 5),
        75..78 => pipe.cmd("PERSIST").arg(key()),
        78..84 => pipe.cmd("INCRBY").arg(key()).arg(1),
        84..87 => pipe.cmd("APPEND").arg(key()).arg(1),
        87..90 => pipe.cmd("RENAME").arg(key()).arg(key()),
        90..92 => pipe.cmd("RENAME").arg(key()).arg(other()),
        92..94 => pipe.cmd("RENAME").arg(other()).arg(key()),
        94..97 => pipe.cmd("LPUSH").arg(key()).arg(1),
        _ => pipe.cmd("GETEX").arg(key()).arg("PX").arg(ttl()),
    };
}

#[tokio::test]
async fn whatever_is_written_a_watcher_ends_up_with_it() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &[]).await;
    let mut client = server.client().await;
    let all = Watching::begin(&mut client.0, ids("on", names())).await;
    let half = Watching::begin(&mut client.0, ids("on", &names()[..KEYS / 2])).await;
    let mut watchers = [(all, names()), (half, names()[..KEYS / 2].to_vec())];
    let writer = Writer::start(&redis);
    // Many rounds, because only the last change before a pause can be missing in the end.
    for round in 0..60 {
        let fault: &[&str] = match round {
            10 | 30 | 45 => &["CLIENT", "KILL", "TYPE", "pubsub"],
            20 => &["FLUSHALL"],
            40 => &["FLUSHALL", "ASYNC"],
            _ => &["PING"],
        };
        for part in 0..4 {
            for (watching, _) in &mut watchers {
                let time = Duration::from_millis(10);
                while let Ok(message) = tokio::time::timeout(time, watching.message()).await {
                    message.expect("the watch goes on");
                    if fastrand::u32(..20) == 0 {
                        break;
                    }
                }
            }
            if part == 2 {
                redis.must(fault);
            }
        }
        writer.pause();
        for (watching, keys) in &mut watchers {
            agrees(watching, &redis, keys, Duration::from_secs(3)).await;
        }
        writer.go_on();
    }
    let written = writer.stop();
    assert!(written > 1000, "{written}");
    // Everything that expires is noticed, although nobody writes.
    for (watching, keys) in &mut watchers {
        agrees(watching, &redis, keys, Duration::from_secs(3)).await;
    }
    server.stop().await;
}

/// Watches of a whole namespace.
mod whole {
    use super::*;

    async fn server(redis: &[Redis]) -> TestServer {
        let mode = match redis {
            [_] => "--redis-mode=standalone",
            _ => "--redis-mode=cluster",
        };
        let urls = cluster::url_flag(redis);
        let server = TestServer::start(&[mode, &urls, "--indexed-namespaces=on"]);
        server.ready().await;
        server
    }

    fn expected(value: i64, count: usize) -> BTreeMap<String, entry::Value> {
        let names = names().into_iter().take(count);
        names
            .map(|name| (name, entry::Value::IntValue(value)))
            .collect()
    }

    async fn follows(watching: &mut Watching, value: i64, count: usize) {
        watching
            .until("all changes", |watching| {
                watching.present() == expected(value, count)
            })
            .await;
    }

    async fn is_followed(redis: &[Redis]) {
        let server = server(redis).await;
        marks(&server, &names()[..100], 1).await;
        let mut client = server.client().await;
        let mut watching = Watching::begin(&mut client.0, all("on")).await;
        assert_eq!(watching.present(), expected(1, 100));
        marks(&server, &names()[..150], 2).await;
        follows(&mut watching, 2, 150).await;
        for server in redis {
            server.must(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
        marks(&server, &names()[..200], 3).await;
        follows(&mut watching, 3, 200).await;
        assert!(watching.snapshots > 1);
        for server in redis {
            server.must(&["FLUSHALL"]);
        }
        watching
            .until("all are gone", |watching| watching.present().is_empty())
            .await;
        marks(&server, &names()[..50], 4).await;
        follows(&mut watching, 4, 50).await;
        server.stop().await;
    }

    #[tokio::test]
    async fn a_namespace_is_followed() {
        is_followed(&[Redis::start()]).await;
    }

    #[tokio::test]
    async fn a_namespace_is_followed_in_a_cluster() {
        is_followed(&cluster::masters()).await;
    }
}

/// Failovers to a replica.
mod failover {
    use dyndata::proto::watch_response::Kind;

    use super::{
        support::topology::{Cluster, FAILOVER, Sentinels},
        *,
    };

    async fn start(mode: &str, urls: &str) -> TestServer {
        let flags = [
            &format!("--redis-mode={mode}"),
            &format!("--redis-url={urls}"),
            "--indexed-namespaces=on",
        ];
        let server = TestServer::start(&flags);
        server.ready().await;
        server
    }

    /// The ids that a server has.
    fn ids_in(redis: &Redis) -> Vec<String> {
        let keys = redis.must(&["KEYS", "dyn_data:*"]);
        let keys: Vec<String> = redis::from_redis_value(keys).expect("keys");
        let id = |key: &String| key.rsplit('/').next().map(str::to_owned);
        keys.iter().filter_map(id).collect()
    }

    /// What a reader gets of all names.
    async fn read_all(server: &TestServer) -> BTreeMap<String, entry::Value> {
        let mut client = server.client().await;
        let request = BatchGetRequest {
            namespace: "on".to_owned(),
            ids: names(),
            ..BatchGetRequest::default()
        };
        let start = Instant::now();
        let entries = loop {
            match client.batch_get(request.clone()).await {
                Ok(entries) => break entries,
                Err(status) => assert!(start.elapsed() < PATIENCE, "not read: {status}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let present = entries.into_iter();
        let present = present.filter_map(|entry| Some((entry.id, entry.value?)));
        present.collect()
    }

    /// Kills a master that has acknowledged Marks which its replica does not have.
    async fn a_killed_master_is_followed(
        server: &TestServer,
        nodes: &mut [Redis],
        pair: [usize; 2],
    ) {
        let [master, replica] = nodes.get_disjoint_mut(pair).expect("two nodes");
        marks(server, &names()[..60], 1).await;
        eventually("the replica has all", || {
            ids_in(replica).len() == ids_in(master).len()
        });
        let mut lost = ids_in(master);
        lost.truncate(10);
        let mut client = server.client().await;
        let mut watchers = [
            Watching::begin(&mut client.0, ids("on", names())).await,
            Watching::begin(&mut client.0, all("on")).await,
        ];
        replica.freeze();
        master.must(&["CLIENT", "KILL", "TYPE", "replica"]);
        marks(server, &lost, 2).await;
        for watching in &mut watchers {
            watching
                .until("all changes", |watching| {
                    let present = watching.present();
                    lost.iter()
                        .all(|id| present[id] == entry::Value::IntValue(2))
                })
                .await;
        }
        master.kill();
        replica.thaw();
        marks_within(FAILOVER, server, &lost[..1], 3).await;
        let marked = Instant::now();
        let held = read_all(server).await;
        assert_eq!(held[&lost[0]], entry::Value::IntValue(3));
        assert_eq!(held[&lost[1]], entry::Value::IntValue(1), "it was lost");
        for watching in &mut watchers {
            let before = watching.snapshots;
            while watching.snapshots == before || watching.present() != held {
                // Within 3 s, unless the machine is busy.
                let left = PATIENCE.saturating_sub(marked.elapsed());
                let message = tokio::time::timeout(left, watching.message()).await;
                let message = message.expect("follows in time").expect("goes on");
                // What is known may have been lost, so that a change must not come before a snapshot.
                assert!(
                    watching.snapshots > before || message.kind() != Kind::Changes,
                    "{message:?}"
                );
            }
        }
    }

    #[tokio::test]
    async fn a_killed_master_with_sentinels_is_followed() {
        let mut store = Sentinels::start();
        let server = start("sentinel", &store.urls()).await;
        let master = store.master();
        a_killed_master_is_followed(&server, &mut store.redis, [master, 1 - master]).await;
        server.stop().await;
    }

    #[tokio::test]
    async fn a_killed_master_in_a_cluster_is_followed() {
        let mut store = Cluster::start();
        let server = start("cluster", &store.urls()).await;
        let pair = store.pairs()[0];
        a_killed_master_is_followed(&server, &mut store.nodes, pair).await;
        server.stop().await;
    }

    #[tokio::test]
    async fn an_ordered_failover_with_sentinels_is_followed() {
        let store = Sentinels::start();
        let server = start("sentinel", &store.urls()).await;
        marks(&server, &names()[..20], 1).await;
        let mut client = server.client().await;
        let mut watching = Watching::begin(&mut client.0, ids("on", names())).await;
        let new = &store.redis[1 - store.master()];
        store.order_failover();
        watching.snapshot().await;
        marks(&server, &names()[..40], 2).await;
        // The Marks may have gone to the old master, which loses them.
        let start = Instant::now();
        while watching.present() != read_all(&server).await {
            assert!(start.elapsed() < PATIENCE, "{:?}", watching.present());
            while let Ok(message) =
                tokio::time::timeout(Duration::from_millis(20), watching.message()).await
            {
                message.expect("the watch goes on");
            }
        }
        assert_eq!(trackers(new), 1);
        server.stop().await;
    }
}

mod in_cluster {
    use super::{support::topology::take_over, *};

    async fn start(nodes: &[Redis]) -> TestServer {
        let urls = cluster::url_flag(nodes);
        let server = TestServer::start(&["--redis-mode=cluster", &urls]);
        server.ready().await;
        server
    }

    fn expected(value: i64, count: usize) -> BTreeMap<String, entry::Value> {
        let names = names().into_iter().take(count);
        names
            .map(|name| (name, entry::Value::IntValue(value)))
            .collect()
    }

    #[tokio::test]
    async fn each_node_is_tracked_and_a_lost_connection_brings_a_snapshot() {
        let nodes = cluster::masters();
        let server = start(&nodes).await;
        marks(&server, &names()[..50], 1).await;
        let mut client = server.client().await;
        let mut watching = Watching::begin(&mut client.0, ids("on", names())).await;
        assert_eq!(watching.present(), expected(1, 50));
        assert!(nodes.iter().all(|node| trackers(node) == 1));
        marks(&server, &names()[..60], 2).await;
        watching
            .until("all changes", |watching| {
                watching.present() == expected(2, 60)
            })
            .await;
        nodes[1].must(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        marks(&server, &names()[..60], 3).await;
        watching.snapshot().await;
        watching
            .until("all changes", |watching| {
                watching.present() == expected(3, 60)
            })
            .await;
        assert_eq!(watching.snapshots, 2);
        server.stop().await;
    }

    /// There is no news of the nodes then that would wake the task which stops the feed.
    #[tokio::test]
    async fn nothing_waits_once_nobody_watches_nodes_that_cannot_be_tracked() {
        let nodes = cluster::masters();
        let server = start(&nodes).await;
        let mut client = server.client().await;
        let watching = Watching::begin(&mut client.0, ids("on", names())).await;
        for node in &nodes {
            node.must(&["ACL", "SETUSER", "default", "-subscribe"]);
            node.must(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
        let waits = "dyndata_watch_oldest_read_wait_seconds 0.0";
        let start = Instant::now();
        while server.http("/metrics").await.1.contains(waits) {
            assert!(start.elapsed() < PATIENCE, "nothing waits");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(watching);
        server.metric(waits).await;
        server.stop().await;
    }

    #[tokio::test]
    async fn a_slot_that_moves_is_followed() {
        let nodes = cluster::masters();
        let server = start(&nodes).await;
        let key = "dyn_data:on/7";
        let slot: usize =
            redis::from_redis_value(nodes[0].must(&["CLUSTER", "KEYSLOT", key])).expect("a slot");
        let slot = slot.to_string();
        marks(&server, &names()[..20], 1).await;
        let mut client = server.client().await;
        let mut watching = Watching::begin(&mut client.0, ids("on", names())).await;
        let from = cluster::owner(&nodes, key);
        let to = nodes
            .iter()
            .find(|node| node.port != from.port)
            .expect("another");
        let name = |node: &Redis| node.text(&["CLUSTER", "MYID"]);
        to.must(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &name(from)]);
        from.must(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &name(to)]);
        marks(&server, &names()[7..8], 2).await;
        watching.sees("7", read(int(2))).await;
        let port = to.port.to_string();
        from.must(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
        marks(&server, &names()[7..8], 3).await;
        watching.sees("7", read(int(3))).await;
        for node in [to, from] {
            node.must(&["CLUSTER", "SETSLOT", &slot, "NODE", &name(to)]);
        }
        for value in 4..9 {
            marks(&server, &names()[7..8], value).await;
            watching.sees("7", read(int(value))).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        server.stop().await;
    }

    #[tokio::test]
    async fn a_failover_is_followed() {
        let nodes = cluster::masters();
        let replica = cluster::node();
        replica.must(&["CLUSTER", "MEET", "127.0.0.1", &nodes[0].port.to_string()]);
        let name = nodes[0].text(&["CLUSTER", "MYID"]);
        eventually("the replica knows its master", || {
            replica.command(&["CLUSTER", "REPLICATE", &name]).is_ok()
        });
        eventually("the replica follows", || {
            replica
                .text(&["INFO", "replication"])
                .contains("master_link_status:up")
        });
        let server = start(&nodes).await;
        marks(&server, &names()[..50], 1).await;
        let mut client = server.client().await;
        let mut watching = Watching::begin(&mut client.0, ids("on", names())).await;
        take_over(&replica);
        marks(&server, &names()[..70], 2).await;
        watching
            .until("all changes", |watching| {
                watching.present() == expected(2, 70)
            })
            .await;
        eventually("the new master is tracked", || trackers(&replica) == 1);
        marks(&server, &names()[..80], 3).await;
        watching
            .until("all changes", |watching| {
                watching.present() == expected(3, 80)
            })
            .await;
        server.stop().await;
    }
}
