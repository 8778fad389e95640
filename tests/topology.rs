//! Which node the service uses when cluster nodes or sentinels disagree, on real processes.

mod support;

use std::time::{Duration, Instant};

use support::{
    Client, Directory, Dyndata, PATIENCE, Redis, TestServer, assert_error, eventually, int, mark,
    redis_server::signal,
};
use tonic::{Code, Status};

/// How long a test checks that something does not happen.
const WATCHED: Duration = Duration::from_secs(4);

/// The number of keys of a server.
fn keys(redis: &Redis) -> i64 {
    redis::from_redis_value(redis.must(&["DBSIZE"])).expect("a number")
}

fn urls<'a>(servers: impl IntoIterator<Item = &'a Redis>) -> String {
    let urls: Vec<_> = servers.into_iter().map(Redis::url).collect();
    urls.join(",")
}

fn start(mode: &str, urls: &str, more: &[&str]) -> TestServer {
    let (mode, urls) = (
        format!("--redis-mode={mode}"),
        format!("--redis-url={urls}"),
    );
    TestServer::start(&[&[mode.as_str(), urls.as_str()], more].concat())
}

/// Waits until all of these ids can be marked.
async fn eventually_marks(client: &mut Client, ids: &[String]) {
    let start = Instant::now();
    while let Err(status) = mark_all(client, ids).await {
        assert!(start.elapsed() < PATIENCE, "still not marked: {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn mark_all(client: &mut Client, ids: &[String]) -> Result<(), Status> {
    for id in ids {
        client.mark(mark(id, int(1))).await?;
    }
    Ok(())
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

mod cluster {
    use super::{
        support::cluster::{create, masters, node, says_ok},
        *,
    };

    #[tokio::test]
    async fn a_node_that_was_reset_does_not_take_the_others_down() {
        let nodes = masters();
        let server = start("cluster", &urls(&nodes), &[]);
        server.ready().await;
        let mut client = server.client().await;
        // The first node has the slots up to 5460.
        let slot = |id: &String| -> u16 {
            let key = format!("dyn_data/{id}");
            redis::from_redis_value(nodes[1].must(&["CLUSTER", "KEYSLOT", &key])).expect("a slot")
        };
        let (lost, kept): (Vec<_>, Vec<_>) = ids(60).into_iter().partition(|id| slot(id) <= 5460);
        mark_all(&mut client, &kept).await.expect("all nodes serve");

        nodes[0].must(&["FLUSHALL"]);
        nodes[0].must(&["CLUSTER", "RESET", "HARD"]);
        eventually("the reset node serves nothing", || !says_ok(&nodes[0]));
        let start = Instant::now();
        while start.elapsed() < WATCHED {
            mark_all(&mut client, &kept)
                .await
                .expect("two nodes are well");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.ready().await;
        let refused = client.mark(mark(&lost[0], int(1))).await;
        refused.expect_err("no node has its slot");
        server.stop().await;
    }

    #[tokio::test]
    async fn a_start_with_an_empty_node_as_first_seed_finds_the_cluster() {
        let (empty, nodes) = (node(), masters());
        let server = start("cluster", &urls([&empty].into_iter().chain(&nodes)), &[]);
        server.ready().await;
        let mut client = server.client().await;
        mark_all(&mut client, &ids(60))
            .await
            .expect("all nodes serve");
        server.stop().await;
    }

    #[tokio::test]
    async fn a_start_with_a_hung_node_as_first_seed_finds_the_cluster() {
        let (hung, nodes) = (node(), masters());
        hung.freeze();
        let server = start("cluster", &urls([&hung].into_iter().chain(&nodes)), &[]);
        server.ready().await;
        let mut client = server.client().await;
        mark_all(&mut client, &ids(60))
            .await
            .expect("all nodes serve");
        server.stop().await;
        hung.thaw();
    }

    /// The outdated node reports that it has all slots.
    #[tokio::test]
    async fn an_outdated_slot_map_is_not_used_even_if_it_comes_first() {
        let (outdated, nodes) = (node(), masters());
        // ADDSLOTS with every slot, because Redis 6 has no ADDSLOTSRANGE.
        let slots: Vec<_> = (0..16_384).map(|slot: u16| slot.to_string()).collect();
        let slots = slots.iter().map(String::as_str);
        let command: Vec<_> = ["CLUSTER", "ADDSLOTS"].into_iter().chain(slots).collect();
        outdated.must(&command);
        eventually("the outdated node serves", || says_ok(&outdated));
        let server = start("cluster", &urls([&outdated].into_iter().chain(&nodes)), &[]);
        server.ready().await;
        let mut client = server.client().await;
        mark_all(&mut client, &ids(60))
            .await
            .expect("all nodes serve");
        assert_eq!(keys(&outdated), 0, "marks went to the outdated node");
        server.stop().await;
    }

    /// The store is up, because the other nodes serve. Each worker has a link to each node.
    #[tokio::test]
    async fn a_node_that_is_away_shows_in_the_links() {
        let mut nodes = masters();
        let server = start("cluster", &urls(&nodes), &["--workers=2"]);
        for line in ["up 1", "links 6", "links_up 6"] {
            server.metric(&format!("dyndata_store_{line}")).await;
        }
        nodes[1].kill();
        server.metric("dyndata_store_links_up 4").await;
        eventually("the others serve alone", || says_ok(&nodes[0]));
        let start = Instant::now();
        while start.elapsed() < WATCHED {
            for line in ["up 1", "links 6", "links_up 4"] {
                server.metric(&format!("dyndata_store_{line}")).await;
            }
        }
        nodes[1].run();
        server.metric("dyndata_store_links_up 6").await;
        server.stop().await;
    }

    #[tokio::test]
    async fn the_slot_map_is_kept_when_every_node_forgets_it() {
        let nodes = masters();
        let server = start("cluster", &urls(&nodes), &["--workers=1"]);
        server.ready().await;
        let mut client = server.client().await;
        for node in &nodes {
            node.must(&["CLUSTER", "RESET", "HARD"]);
        }
        let start = Instant::now();
        while server.http("/readyz").await.0 == 200 {
            assert!(start.elapsed() < PATIENCE, "still ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The old map leads to nodes that refuse. Without a map, there would be no node to ask.
        let refused = client.mark(mark("1", int(1))).await;
        assert_error(refused, Code::Unavailable, "BACKEND_BUSY");
        create(&nodes);
        eventually_marks(&mut client, &ids(60)).await;
        server.stop().await;
    }
}

mod sentinel {
    use super::*;

    /// A sentinel that reports `master` as the master since `epoch`. Sentinels of different masters
    /// do not find each other, so each keeps its own view.
    struct Sentinel {
        redis: Redis,
    }

    impl Sentinel {
        fn of(master: u16, epoch: u32) -> Self {
            Self::with(master, epoch, "")
        }

        fn with(master: u16, epoch: u32, more: &str) -> Self {
            let mut this = Self {
                redis: Redis::prepare(&[]),
            };
            this.report_master("127.0.0.1", master, epoch, more);
            this
        }

        /// Starts the sentinel again, on the same port, with another master.
        fn report_master(&mut self, host: &str, master: u16, epoch: u32, more: &str) {
            self.redis.kill();
            let config = format!(
                "{more}\n\
                 sentinel monitor mymaster {host} {master} 3\n\
                 sentinel down-after-milliseconds mymaster 60000\n\
                 sentinel config-epoch mymaster {epoch}\n"
            );
            self.redis.run_as_sentinel(&config);
        }
    }

    fn start_behind(sentinels: &[Sentinel], more: &[&str]) -> TestServer {
        let urls = urls(sentinels.iter().map(|sentinel| &sentinel.redis));
        start("sentinel", &urls, more)
    }

    /// The metric that counts the connections to Redis.
    async fn connects(server: &TestServer) -> String {
        let (_, metrics) = server.http("/metrics").await;
        let line = metrics
            .lines()
            .find(|line| line.starts_with("dyndata_store_connects_total"));
        line.expect("a metric").to_owned()
    }

    /// Tries to Mark for a while, and checks that no Mark is acknowledged.
    async fn assert_nothing_is_marked(server: &TestServer) {
        let mut client = server.client().await;
        let start = Instant::now();
        while start.elapsed() < WATCHED {
            let refused = client.mark(mark("42", int(1))).await;
            assert_error(refused, Code::Unavailable, "BACKEND_UNAVAILABLE");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn a_deposed_master_is_not_taken_because_the_new_one_cannot_be_reached() {
        let deposed = Redis::start();
        let mut new = Redis::prepare(&[]);
        let sentinels = [
            Sentinel::of(deposed.port, 1),
            Sentinel::of(new.port, 2),
            Sentinel::of(new.port, 2),
        ];
        let server = start_behind(&sentinels, &[]);
        assert_nothing_is_marked(&server).await;
        assert_eq!(keys(&deposed), 0);
        new.run();
        server.ready().await;
        let mut client = server.client().await;
        mark_all(&mut client, &ids(10))
            .await
            .expect("the new master");
        assert_eq!((keys(&deposed), keys(&new)), (0, 10));
        server.stop().await;
    }

    #[tokio::test]
    async fn the_highest_epoch_wins_over_the_majority() {
        let (deposed, new) = (Redis::start(), Redis::start());
        let sentinels = [
            Sentinel::of(deposed.port, 4),
            Sentinel::of(deposed.port, 4),
            Sentinel::of(new.port, 5),
        ];
        let server = start_behind(&sentinels, &[]);
        server.ready().await;
        let mut client = server.client().await;
        let start = Instant::now();
        while start.elapsed() < WATCHED {
            mark_all(&mut client, &ids(10)).await.expect("a master");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!((keys(&deposed), keys(&new)), (0, 10));
        server.stop().await;
    }

    #[tokio::test]
    async fn a_master_is_left_when_one_sentinel_has_a_higher_epoch() {
        let (deposed, new) = (Redis::start(), Redis::start());
        let mut sentinels = [(); 3].map(|()| Sentinel::of(deposed.port, 1));
        let server = start_behind(&sentinels, &[]);
        server.ready().await;
        let mut client = server.client().await;
        mark_all(&mut client, &ids(10)).await.expect("a master");
        assert_eq!((keys(&deposed), keys(&new)), (10, 0));

        sentinels[1].report_master("127.0.0.1", new.port, 2, "");
        let start = Instant::now();
        while keys(&new) == 0 {
            assert!(start.elapsed() < PATIENCE, "the new master is not used");
            _ = mark_all(&mut client, &ids(1)).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.stop().await;
    }

    #[tokio::test]
    async fn a_stale_sentinel_causes_no_reconnect() {
        let (deposed, new) = (Redis::start(), Redis::start());
        let sentinels = [
            Sentinel::of(deposed.port, 1),
            Sentinel::of(new.port, 2),
            Sentinel::of(new.port, 2),
        ];
        let server = start_behind(&sentinels, &[]);
        server.ready().await;
        let before = connects(&server).await;
        // Each worker asks the sentinels once a second, so it has asked the stale one.
        tokio::time::sleep(2 * WATCHED).await;
        assert_eq!(connects(&server).await, before);
        assert_eq!(keys(&deposed), 0);
        server.stop().await;
    }

    #[tokio::test]
    async fn equal_epochs_need_a_majority() {
        let (first, second) = (Redis::start(), Redis::start());
        let mut sentinels = [
            Sentinel::of(first.port, 3),
            Sentinel::of(second.port, 3),
            Sentinel::of(second.port, 3),
        ];
        sentinels[2].redis.kill();
        let server = start_behind(&sentinels, &[]);
        assert_nothing_is_marked(&server).await;
        sentinels[2].report_master("127.0.0.1", second.port, 3, "");
        server.ready().await;
        let mut client = server.client().await;
        mark_all(&mut client, &ids(10)).await.expect("a master");
        assert_eq!((keys(&first), keys(&second)), (0, 10));
        server.stop().await;
    }

    /// The user of the sentinels may only ask for the address of the master.
    #[tokio::test]
    async fn without_epochs_the_majority_decides() {
        let user = "user default on nopass ~* &* +@all -sentinel \
                    +sentinel|get-master-addr-by-name";
        let (first, second) = (Redis::start(), Redis::start());
        let sentinels = [
            Sentinel::with(first.port, 9, user),
            Sentinel::with(second.port, 1, user),
            Sentinel::with(second.port, 1, user),
        ];
        let server = start_behind(&sentinels, &[]);
        server.ready().await;
        let mut client = server.client().await;
        let start = Instant::now();
        while start.elapsed() < WATCHED {
            mark_all(&mut client, &ids(10)).await.expect("a master");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!((keys(&first), keys(&second)), (0, 10));
        server.stop().await;
    }

    /// Two of three sentinels hang. The third one decides, and calls go on.
    #[tokio::test]
    async fn hung_sentinels_do_not_end_a_connection() {
        let master = Redis::start();
        let sentinels = [(); 3].map(|()| Sentinel::of(master.port, 1));
        let server = start_behind(&sentinels, &[]);
        server.ready().await;
        let before = connects(&server).await;
        let mut client = server.client().await;
        sentinels[0].redis.freeze();
        sentinels[1].redis.freeze();
        let start = Instant::now();
        while start.elapsed() < WATCHED {
            mark_all(&mut client, &ids(10)).await.expect("a master");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(connects(&server).await, before);
        // The answer of one sentinel is enough for a new connection.
        master.try_to(&["CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES"]);
        eventually_marks(&mut client, &ids(10)).await;
        server.stop().await;
        sentinels[0].redis.thaw();
        sentinels[1].redis.thaw();
    }

    #[tokio::test]
    async fn sentinels_may_want_a_password_and_announce_a_host_name() {
        let master = Redis::start();
        master.must(&["CONFIG", "SET", "requirepass", "secret"]);
        let more = "requirepass secret\n\
                    sentinel resolve-hostnames yes\n\
                    sentinel announce-hostnames yes";
        let mut sentinels = [(); 3].map(|()| Redis::prepare(&[]));
        for sentinel in &mut sentinels {
            sentinel.use_password("secret");
        }
        let sentinels = sentinels.map(|redis| {
            let mut sentinel = Sentinel { redis };
            sentinel.report_master("localhost", master.port, 1, more);
            sentinel
        });
        let urls: Vec<_> = sentinels
            .iter()
            .map(|sentinel| format!("redis://:secret@127.0.0.1:{}", sentinel.redis.port))
            .collect();
        let server = start("sentinel", &urls.join(","), &[]);
        server.ready().await;
        let before = connects(&server).await;
        let mut client = server.client().await;
        let start = Instant::now();
        while start.elapsed() < WATCHED {
            mark_all(&mut client, &ids(10)).await.expect("a master");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(connects(&server).await, before);
        server.stop().await;
    }
}

/// The process does not wait for a hung lookup when it ends.
#[test]
fn a_hung_name_resolution_does_not_hold_the_shutdown() {
    let directory = Directory::new();
    // Nothing answers on this socket, so that a lookup takes half a minute.
    let silent = std::net::UdpSocket::bind("127.83.71.9:53");
    let config = "nameserver 127.83.71.9\noptions timeout:30 attempts:1\n";
    let config = directory.write("resolv.conf", config);
    let url = "--redis-url=redis://hangs.test.example:6379";
    let started = Dyndata::start_with_file(&config, "/etc/resolv.conf", &[url]);
    let (Ok(_silent), Ok(mut server)) = (silent, started) else {
        // `src/event_loop.rs` has a unit test of the same that runs without root.
        return;
    };
    eventually("a lookup hangs", || {
        server
            .http("/readyz")
            .is_ok_and(|reply| reply.contains("connecting timed out"))
    });
    let start = Instant::now();
    signal(server.pid(), "TERM");
    let ended = server.ended(Duration::from_secs(20));
    assert!(
        ended.is_some_and(|status| status.success()) && start.elapsed() < Duration::from_secs(5),
        "ended as {ended:?} after {:?}",
        start.elapsed()
    );
}
