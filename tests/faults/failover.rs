//! Masters that change: by sentinels, and in a cluster. What an asynchronous failover loses of
//! what was acknowledged is counted, and no fault of the service.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    client::name,
    history::Operation,
    load::endings,
    report::Report,
    runner::{Case, Pace},
    support::{Dyndata, Redis, eventually},
    topology::{Cluster, DOWN_AFTER, Member, Sentinels},
    trial::{Fault, Losses, Trial, during},
};

pub const CASES: &[Case] = &[
    Case::new("sentinel: master killed", |pace| {
        sentinels(pace, kill_master)
    }),
    Case::new("sentinel: SENTINEL FAILOVER", |pace| {
        sentinels(pace, order_failover)
    }),
    Case::new("sentinel: master killed, a sentinel hangs", |pace| {
        sentinels(pace, kill_master_with_hung_sentinel)
    }),
    Case::new("sentinel: master stands still", |pace| {
        sentinels(pace, freeze_master)
    }),
    Case::new("cluster: master killed", |pace| {
        clusters(pace, Losses::Failover, kill_a_master)
    }),
    Case::new("cluster: one node stands still", |pace| {
        clusters(pace, Losses::Failover, freeze_a_master)
    }),
    Case::new("cluster: a slot migrates", migrate),
    Case::new("cluster: CLUSTERDOWN", |pace| {
        clusters(pace, Losses::None, down)
    }),
];

/// After a failover, from the moment at which the master went.
pub const LIMIT: Duration = Duration::from_secs(3).saturating_add(DOWN_AFTER);

/// What is done to sentinels and those they watch, for faults in random order.
pub const SENTINEL_DEEDS: &[(&str, SentinelDeed)] = &[
    ("master killed", kill_master),
    ("SENTINEL FAILOVER", order_failover),
    (
        "master killed, a sentinel hangs",
        kill_master_with_hung_sentinel,
    ),
    ("master stands still", freeze_master),
];
pub type SentinelDeed = fn(&mut Sentinels, &mut Trial);

pub const CLUSTER_DEEDS: &[(&str, ClusterDeed)] = &[
    ("master killed", kill_a_master),
    ("node stands still", freeze_a_master),
    ("CLUSTERDOWN", down),
];
pub type ClusterDeed = fn(&mut Cluster, &mut Trial);

fn sentinels(pace: &Pace, deed: SentinelDeed) -> Report {
    let mut store = Sentinels::start();
    let server = Dyndata::on(&store.urls(), &["--redis-mode=sentinel"]);
    let mut trial = Trial::start(&server, LIMIT, Losses::Failover);
    for _ in 0..pace.times(1, 3) {
        store.settled();
        trial.fault();
        deed(&mut store, &mut trial);
    }
    trial.judge()
}

fn kill_master(store: &mut Sentinels, trial: &mut Trial) {
    let master = store.master();
    store.redis[master].kill();
    trial.over();
    store.redis[master].run();
}

/// Nothing dies: the old master goes on for a while, and everything that it is told is lost.
fn order_failover(store: &mut Sentinels, trial: &mut Trial) {
    let (old, new) = (store.master(), 1 - store.master());
    let [old, new] = [&store.redis[old], &store.redis[new]];
    let names = |sentinel: &Redis| -> Option<u16> {
        let addr = sentinel.must(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"]);
        let (_, port) = redis::from_redis_value::<(String, u16)>(addr).ok()?;
        Some(port)
    };
    for attempt in 0.. {
        assert!(attempt < 30, "the sentinels order no failover");
        // They refuse, or give up, as long as they do not know the replica well enough.
        store.sentinels[0].try_to(&["SENTINEL", "FAILOVER", "mymaster"]);
        let start = Instant::now();
        let mut ordered = false;
        while !ordered && start.elapsed() < Duration::from_secs(1) {
            ordered = store
                .sentinels
                .iter()
                .all(|sentinel| names(sentinel) == Some(new.port));
            sleep(Duration::from_millis(5));
        }
        if ordered {
            break;
        }
    }
    let named = trial.load.recorder.now();
    // Nobody but the service says GET.
    let gets = |redis: &Redis| {
        let info = redis.text(&["INFO", "commandstats"]);
        info.lines().find_map(|line| {
            line.strip_prefix("cmdstat_get:")?
                .split(',')
                .next()
                .map(str::to_owned)
        })
    };
    eventually("the service follows", || {
        let before = [gets(old), gets(new)];
        sleep(Duration::from_millis(100));
        before[0] == gets(old) && before[1] != gets(new)
    });
    trial.followed();
    trial.over_since(named);
}

fn kill_master_with_hung_sentinel(store: &mut Sentinels, trial: &mut Trial) {
    let master = store.master();
    // The first that is asked.
    store.sentinels[0].freeze();
    store.redis[master].kill();
    trial.over();
    store.sentinels[0].thaw();
    store.redis[master].run();
}

/// When it moves again it is a master that nobody should listen to.
fn freeze_master(store: &mut Sentinels, trial: &mut Trial) {
    let master = store.master();
    store.redis[master].freeze();
    trial.over();
    store.redis[master].thaw();
    store.settled();
}

fn clusters(pace: &Pace, losses: Losses, deed: ClusterDeed) -> Report {
    let mut store = Cluster::start();
    let server = Dyndata::on(&store.urls(), &["--redis-mode=cluster"]);
    let mut trial = Trial::start(&server, LIMIT, losses);
    for _ in 0..pace.times(1, 3) {
        store.settled();
        trial.fault();
        deed(&mut store, &mut trial);
    }
    trial.judge()
}

fn place(store: &Cluster, member: &Member) -> usize {
    let place = store.nodes.iter().position(|node| node.port == member.port);
    place.expect("a node of the cluster")
}

fn kill_a_master(store: &mut Cluster, trial: &mut Trial) {
    let master = place(store, &store.masters()[0]);
    store.nodes[master].kill();
    trial.over();
    store.nodes[master].run();
}

fn freeze_a_master(store: &mut Cluster, trial: &mut Trial) {
    let master = place(store, &store.masters()[0]);
    store.nodes[master].freeze();
    trial.over();
    store.nodes[master].thaw();
}

/// Two masters with their replicas are gone: there is no majority, so no slot is served. There is
/// no failover either, and every node keeps what it acknowledged.
fn down(store: &mut Cluster, trial: &mut Trial) {
    let kept = store.masters()[0].name.clone();
    let replicas = store.nodes[0].text(&["CLUSTER", "REPLICAS", &kept]);
    let gone: Vec<_> = store
        .members(&store.nodes[0])
        .into_iter()
        .filter(|member| member.name != kept && !replicas.contains(&member.name))
        .map(|member| place(store, &member))
        .collect();
    for &node in &gone {
        store.nodes[node].kill();
    }
    sleep(2 * DOWN_AFTER);
    for &node in &gone {
        store.nodes[node].run();
    }
    trial.over();
}

/// Slots move one after the other, key by key, while Marks and BatchGets touch them.
fn migrate(pace: &Pace) -> Report {
    let store = Cluster::start();
    let server = Dyndata::on(&store.urls(), &["--redis-mode=cluster"]);
    // Nothing dies here: every call has to succeed, as soon as the slot stands still.
    let mut trial = Trial::start(&server, LIMIT, Losses::None);
    // MIGRATE takes what is left of a time to live along, and starts it anew on arrival.
    trial.expect_late_expiry(Duration::from_millis(250));
    let mut moved = 0;
    for round in 0..pace.times(1, 4) {
        trial.fault();
        for id in 0..20 {
            let key = format!(
                "dyn_data/{}",
                name(id + 20 * u32::try_from(round).unwrap_or(0))
            );
            moved += move_slot(&store, &key);
        }
        trial.over();
    }
    trial.check(moved > 0, "no key was moved");
    let redirected = store.errors("ASK");
    trial.check(redirected > 0, "no call met a slot on its way");
    let again = store.errors("TRYAGAIN");
    let mut report = trial.judge_with(refused_only_while_moving);
    report.notes.push(format!(
        "{moved} keys moved; redis said ASK {redirected} times, TRYAGAIN {again} times"
    ));
    report
}

/// A call that meets a slot on its way may be told to try again, and nothing else.
fn refused_only_while_moving(operations: &[Operation], faults: &[Fault]) -> Vec<String> {
    let mut failures = Vec::new();
    for fault in faults {
        let mut seen = endings(during(operations, fault, Duration::ZERO));
        let succeeded = seen.remove("OK").unwrap_or(0);
        let busy = seen.remove("BACKEND_BUSY").unwrap_or(0);
        if !seen.is_empty() {
            failures.push(format!("failed while a slot moved: {seen:?}"));
        }
        if busy * 10 > succeeded {
            failures.push(format!(
                "{busy} calls were refused while {succeeded} succeeded"
            ));
        }
    }
    failures
}

/// Moves the slot of a key to another master, as redis-cli does; gives the number of its keys.
fn move_slot(store: &Cluster, key: &str) -> usize {
    let slot: u16 = redis::from_redis_value(store.nodes[0].must(&["CLUSTER", "KEYSLOT", key]))
        .expect("a number");
    let masters = store.masters();
    let holds = |member: &Member| {
        member
            .slots
            .iter()
            .any(|(from, to)| (*from..=*to).contains(&slot))
    };
    let from = masters.iter().find(|member| holds(member)).expect("served");
    let to = masters
        .iter()
        .find(|member| !holds(member))
        .expect("another");
    let (source, target) = (store.node(from.port), store.node(to.port));
    let slot = slot.to_string();
    target.must(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from.name]);
    source.must(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to.name]);
    let mut moved = 0;
    loop {
        // One at a time, and slowly, so that calls meet a slot that is half here and half there.
        let keys = source.must(&["CLUSTER", "GETKEYSINSLOT", &slot, "1"]);
        let keys: Vec<String> = redis::from_redis_value(keys).expect("keys");
        let Some(key) = keys.first() else { break };
        sleep(Duration::from_millis(30));
        migrate_key(source, target, key);
        sleep(Duration::from_millis(30));
        moved += 1;
    }
    for node in [target, source] {
        node.must(&["CLUSTER", "SETSLOT", &slot, "NODE", &to.name]);
    }
    moved
}

fn migrate_key(source: &Redis, target: &Redis, key: &str) {
    let port = target.port.to_string();
    // NOKEY, if it has expired meanwhile, is as good.
    source.must(&["MIGRATE", "127.0.0.1", &port, key, "0", "2000"]);
}
