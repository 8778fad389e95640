//! Several Redis processes: a master with sentinels, and a cluster.

use std::{
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use super::redis_server::{DURABLE, Redis, eventually};

/// After this time without an answer, a master is down, or a node has failed.
pub const DOWN_AFTER: Duration = Duration::from_secs(1);
/// The longest time until a replica has taken over from a dead master, on a busy machine. Sentinels
/// that do not agree try again after ten seconds.
pub const FAILOVER: Duration = Duration::from_secs(60);
/// The longest time until all nodes agree.
const PATIENCE: Duration = Duration::from_secs(20);

/// A master, a replica, and three sentinels. Two sentinels have to agree on a failover.
pub struct Sentinels {
    /// One of the two is the master.
    pub redis: [Redis; 2],
    pub sentinels: Vec<Redis>,
}

impl Sentinels {
    pub fn start() -> Self {
        let arguments: &[&str] = &[
            "--repl-diskless-sync-delay",
            "0",
            "--repl-ping-replica-period",
            "1",
        ];
        let redis = [(); 2].map(|()| Redis::prepare(arguments));
        let mut this = Self {
            redis,
            sentinels: Vec::new(),
        };
        for redis in &mut this.redis {
            redis.run();
        }
        let [master, replica] = &this.redis;
        replica.must(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]);
        eventually("the replica is in sync", || in_sync(replica));
        for _ in 0..3 {
            let mut sentinel = Redis::prepare(&[]);
            let config = format!(
                "sentinel monitor mymaster 127.0.0.1 {} 2\n\
                 sentinel down-after-milliseconds mymaster {}\n\
                 sentinel failover-timeout mymaster 5000\n",
                master.port,
                DOWN_AFTER.as_millis()
            );
            sentinel.run_as_sentinel(&config);
            this.sentinels.push(sentinel);
        }
        this.settled();
        this
    }

    /// Waits until all sentinels know each other and the replica, and the master is up.
    pub fn settled(&self) {
        let start = Instant::now();
        loop {
            let agree = self.sentinels.iter().all(|sentinel| {
                let text = sentinel.text(&["INFO", "sentinel"]);
                text.contains("status=ok") && text.contains("slaves=1,sentinels=3")
            });
            let ready = self.sentinels.iter().all(|sentinel| {
                sentinel
                    .command(&["SENTINEL", "CKQUORUM", "mymaster"])
                    .is_ok()
            });
            let roles = self.redis.iter().filter(|redis| is_master(redis)).count() == 1
                && self.redis.iter().any(in_sync);
            if agree && ready && roles {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "the sentinels do not settle");
            sleep(Duration::from_millis(20));
        }
    }

    pub fn urls(&self) -> String {
        urls(&self.sentinels)
    }

    /// The index of the master in `redis`.
    pub fn master(&self) -> usize {
        usize::from(!is_master(&self.redis[0]))
    }

    /// Waits until the replica has every write that the master has acknowledged so far.
    pub fn wait_for_replica(&self) {
        let mut master = self.redis[self.master()].connect();
        let timeout = master.set_read_timeout(Some(2 * PATIENCE));
        timeout.expect("a timeout");
        let millis = PATIENCE.as_millis().to_string();
        // WAIT is about the writes of its own connection, and so about all writes before them.
        let mut pipe = redis::pipe();
        pipe.cmd("SET").arg("the last write").arg("").ignore();
        pipe.cmd("WAIT").arg(1).arg(millis);
        let (replicas,): (u32,) = pipe.query(&mut master).expect("the master answers");
        assert_eq!(replicas, 1, "the replica does not follow");
    }

    /// Has the sentinels make the replica the master, and waits until all of them say so. The old
    /// master goes on for a while, and loses everything that is written to it.
    pub fn order_failover(&self) {
        let new = self.redis[1 - self.master()].port;
        let named = |sentinel: &Redis| -> Option<u16> {
            let addr = sentinel.must(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"]);
            let (_, port) = redis::from_redis_value::<(String, u16)>(addr).ok()?;
            Some(port)
        };
        let is_named = || self.sentinels.iter().all(|it| named(it) == Some(new));
        for _ in 0..30 {
            // The sentinels refuse, or give up, until they know the replica well enough.
            self.sentinels[0].try_to(&["SENTINEL", "FAILOVER", "mymaster"]);
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(1) {
                if is_named() {
                    return;
                }
                sleep(Duration::from_millis(5));
            }
        }
        panic!("the sentinels order no failover");
    }
}

/// Makes a replica in a cluster the master of its slots, after it has received all writes.
pub fn take_over(replica: &Redis) {
    let start = Instant::now();
    while !is_master(replica) {
        assert!(start.elapsed() < PATIENCE, "the replica does not take over");
        // The nodes refuse, or give up after five seconds, until they know each other well enough.
        let wait = match replica.command(&["CLUSTER", "FAILOVER"]) {
            Ok(_) => Duration::from_secs(6),
            Err(_) => Duration::from_millis(20),
        };
        let asked = Instant::now();
        while !is_master(replica) && asked.elapsed() < wait {
            sleep(Duration::from_millis(5));
        }
    }
}

fn is_master(redis: &Redis) -> bool {
    redis.text(&["INFO", "replication"]).contains("role:master")
}

fn in_sync(redis: &Redis) -> bool {
    let info = redis.text(&["INFO", "replication"]);
    info.contains("role:slave") && info.contains("master_link_status:up")
}

/// Three masters with a replica each.
pub struct Cluster {
    pub nodes: Vec<Redis>,
}

/// A node in `CLUSTER NODES`.
#[derive(Debug, Clone)]
pub struct Member {
    pub name: String,
    pub port: u16,
    pub is_master: bool,
    /// The name of the master of a replica.
    pub follows: Option<String>,
    /// The ranges of slots of a master.
    pub slots: Vec<(u16, u16)>,
}

impl Cluster {
    pub fn start() -> Self {
        let timeout = DOWN_AFTER.as_millis().to_string();
        let mut nodes: Vec<_> = (0..6)
            .map(|_| {
                Redis::prepare(
                    &[
                        DURABLE,
                        &[
                            "--cluster-enabled",
                            "yes",
                            "--cluster-node-timeout",
                            &timeout,
                            "--cluster-replica-validity-factor",
                            "0",
                            "--repl-diskless-sync-delay",
                            "0",
                            "--repl-ping-replica-period",
                            "1",
                        ],
                    ]
                    .concat(),
                )
            })
            .collect();
        for node in &mut nodes {
            node.run();
        }
        let created = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)))
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .output()
            .expect("redis-cli runs");
        assert!(
            created.status.success(),
            "{}",
            String::from_utf8_lossy(&created.stdout)
        );
        let this = Self { nodes };
        this.settled();
        this
    }

    /// Waits until every node knows that all slots are served, and every replica is in sync.
    pub fn settled(&self) {
        let start = Instant::now();
        loop {
            let whole = self.nodes.iter().all(|node| {
                let info = node.text(&["CLUSTER", "INFO"]);
                let members = node.text(&["CLUSTER", "NODES"]);
                info.contains("cluster_state:ok")
                    && info.contains("cluster_slots_ok:16384")
                    && members
                        .lines()
                        .filter(|line| line.contains("slave "))
                        .count()
                        == 3
                    && !members.contains("fail")
            });
            if whole && self.nodes.iter().filter(|node| in_sync(node)).count() == 3 {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "the cluster does not settle");
            sleep(Duration::from_millis(20));
        }
    }

    pub fn urls(&self) -> String {
        urls(&self.nodes)
    }

    /// How often the nodes have replied an error of this kind.
    pub fn errors(&self, kind: &str) -> u64 {
        self.nodes.iter().map(|node| errors(node, kind)).sum()
    }

    pub fn node(&self, port: u16) -> &Redis {
        let node = self.nodes.iter().find(|node| node.port == port);
        node.expect("a node of the cluster")
    }

    /// The members of the cluster, as this node knows them.
    pub fn members(&self, asked: &Redis) -> Vec<Member> {
        let text = asked.text(&["CLUSTER", "NODES"]);
        text.lines().filter_map(Member::parse).collect()
    }

    /// The masters that have slots.
    pub fn masters(&self) -> Vec<Member> {
        let mut members = self.members(&self.nodes[0]);
        members.retain(|member| member.is_master && !member.slots.is_empty());
        members
    }

    /// The indexes in `nodes` of each master that has slots, and of its replica.
    pub fn pairs(&self) -> Vec<[usize; 2]> {
        let members = self.members(&self.nodes[0]);
        let replica = |master: &Member| {
            let mut members = members.iter();
            members.find(|member| member.follows.as_deref() == Some(&master.name))
        };
        let pair = |master: Member| {
            let replica = replica(&master).expect("a replica");
            [&master, replica].map(|member| self.index(member))
        };
        self.masters().into_iter().map(pair).collect()
    }

    /// The index of a member in `nodes`.
    pub fn index(&self, member: &Member) -> usize {
        let place = self.nodes.iter().position(|node| node.port == member.port);
        place.expect("a node of the cluster")
    }

    /// Makes each replica the master of its slots, after it has received all writes.
    pub fn order_failovers(&self) {
        for [_, replica] in self.pairs() {
            take_over(&self.nodes[replica]);
        }
    }
}

impl Member {
    /// `<name> <ip:port@bus> <flags> <master> <ping> <pong> <epoch> <link> <slot>...`
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let name = words.next()?.to_owned();
        let port = words.next()?.split(['@', ':']).nth(1)?.parse().ok()?;
        let is_master = words.next()?.split(',').any(|flag| flag == "master");
        let follows = words.next().filter(|name| *name != "-");
        let follows = follows.map(str::to_owned);
        let slots = words.skip(4).filter_map(|range| {
            let (from, to) = range.split_once('-').unwrap_or((range, range));
            Some((from.parse().ok()?, to.parse().ok()?))
        });
        Some(Self {
            name,
            port,
            is_master,
            follows,
            slots: slots.collect(),
        })
    }
}

/// How often a Redis has replied an error of this kind.
pub fn errors(redis: &Redis, kind: &str) -> u64 {
    let start = format!("errorstat_{kind}:count=");
    let info = redis.text(&["INFO", "errorstats"]);
    let mut lines = info.lines();
    lines
        .find_map(|line| line.strip_prefix(&start)?.parse().ok())
        .unwrap_or(0)
}

fn urls(nodes: &[Redis]) -> String {
    let urls: Vec<_> = nodes.iter().map(Redis::url).collect();
    urls.join(",")
}
