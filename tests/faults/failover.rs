//! Failovers by sentinels and in a cluster. Redis replicates asynchronously, so a failover may lose
//! acknowledged Marks. They are counted, and are no failure of the service.

use std::{thread::sleep, time::Duration};

use crate::{
    client::name,
    history::Operation,
    load::endings,
    report::Report,
    runner::{Case, Pace},
    support::{
        Dyndata, Redis, eventually, key,
        redis_server::is_redis_6,
        topology::{Cluster, DOWN_AFTER, Member, Sentinels, errors},
    },
    trial::{Fault, Losses, Trial, during},
    writers::Pressure,
};

pub const CASES: &[Case] = &[
    Case::new("sentinel: master killed", unknown_scripts),
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

/// The longest recovery, from the moment at which the master is gone.
pub const LIMIT: Duration = Duration::from_secs(3).saturating_add(DOWN_AFTER);

/// Faults with sentinels, for [`crate::chaos`].
pub const SENTINEL_FAULTS: &[(&str, InjectSentinelFault)] = &[
    ("master killed", kill_master),
    ("SENTINEL FAILOVER", order_failover),
    (
        "master killed, a sentinel hangs",
        kill_master_with_hung_sentinel,
    ),
    ("master stands still", freeze_master),
];
pub type InjectSentinelFault = fn(&mut Sentinels, &mut Trial);

pub const CLUSTER_FAULTS: &[(&str, InjectClusterFault)] = &[
    ("master killed", kill_a_master),
    ("node stands still", freeze_a_master),
    ("CLUSTERDOWN", down),
];
pub type InjectClusterFault = fn(&mut Cluster, &mut Trial);

fn sentinels(pace: &Pace, inject: InjectSentinelFault) -> Report {
    let mut store = Sentinels::start();
    let server = Dyndata::on(&store.urls(), &["--redis-mode=sentinel"]);
    let mut trial = Trial::start(&server, LIMIT, Losses::Failover);
    for _ in 0..pace.times(1, 3) {
        store.settled();
        trial.begin_fault();
        inject(&mut store, &mut trial);
    }
    trial.judge()
}

/// The new master has never seen the scripts. No call may fail for that reason: it would end with
/// INTERNAL, which the checker finds.
fn unknown_scripts(pace: &Pace) -> Report {
    let mut store = Sentinels::start();
    let servers = [(); 2].map(|()| Dyndata::on(&store.urls(), &["--redis-mode=sentinel"]));
    let mut trial = Trial::start_unready(&servers[0], LIMIT, Losses::Failover);
    trial.add_writers([&servers[0], &servers[1]], Pressure::of(pace));
    trial.add_counters([&servers[0], &servers[1]]);
    trial.calm();
    let mut replies = 0;
    for _ in 0..pace.times(1, 3) {
        store.settled();
        let next = 1 - store.master();
        let before = errors(&store.redis[next], "NOSCRIPT");
        trial.begin_fault();
        kill_master(&mut store, &mut trial);
        replies += errors(&store.redis[next], "NOSCRIPT") - before;
    }
    // Redis 6 replicates scripts.
    trial.check(
        replies > 0 || is_redis_6(),
        "no call found a script unknown to the new master",
    );
    let mut report = trial.judge();
    report
        .notes
        .push(format!("the new masters replied NOSCRIPT {replies} times"));
    report
}

fn kill_master(store: &mut Sentinels, trial: &mut Trial) {
    let master = store.master();
    store.redis[master].kill();
    trial.end_fault();
    store.redis[master].run();
}

fn order_failover(store: &mut Sentinels, trial: &mut Trial) {
    let (old, new) = (store.master(), 1 - store.master());
    let [old, new] = [&store.redis[old], &store.redis[new]];
    store.order_failover();
    let named = trial.load.recorder.now();
    // Only the service sends GET.
    let gets = |redis: &Redis| {
        let info = redis.text(&["INFO", "commandstats"]);
        info.lines().find_map(|line| {
            line.strip_prefix("cmdstat_get:")?
                .split(',')
                .next()
                .map(str::to_owned)
        })
    };
    eventually("the service uses the new master", || {
        let before = [gets(old), gets(new)];
        sleep(Duration::from_millis(100));
        before[0] == gets(old) && before[1] != gets(new)
    });
    trial.followed();
    trial.fault_ended_at(named);
}

fn kill_master_with_hung_sentinel(store: &mut Sentinels, trial: &mut Trial) {
    let master = store.master();
    // The service asks this sentinel first.
    store.sentinels[0].freeze();
    store.redis[master].kill();
    trial.end_fault();
    store.sentinels[0].thaw();
    store.redis[master].run();
}

/// When the old master runs again, nobody should use it.
fn freeze_master(store: &mut Sentinels, trial: &mut Trial) {
    let master = store.master();
    store.redis[master].freeze();
    trial.end_fault();
    store.redis[master].thaw();
    store.settled();
}

fn clusters(pace: &Pace, losses: Losses, inject: InjectClusterFault) -> Report {
    let mut store = Cluster::start();
    let server = Dyndata::on(&store.urls(), &["--redis-mode=cluster"]);
    let mut trial = Trial::start(&server, LIMIT, losses);
    for _ in 0..pace.times(1, 3) {
        store.settled();
        trial.begin_fault();
        inject(&mut store, &mut trial);
    }
    trial.judge()
}

fn kill_a_master(store: &mut Cluster, trial: &mut Trial) {
    let master = store.index(&store.masters()[0]);
    store.nodes[master].kill();
    trial.end_fault();
    store.nodes[master].run();
}

fn freeze_a_master(store: &mut Cluster, trial: &mut Trial) {
    let master = store.index(&store.masters()[0]);
    store.nodes[master].freeze();
    trial.end_fault();
    store.nodes[master].thaw();
}

/// Kills two masters and their replicas. Without a majority, no slot is served. There is no failover
/// either, so every node keeps its acknowledged Marks.
fn down(store: &mut Cluster, trial: &mut Trial) {
    let kept = store.masters()[0].name.clone();
    let replicas = store.nodes[0].text(&["CLUSTER", "REPLICAS", &kept]);
    let gone: Vec<_> = store
        .members(&store.nodes[0])
        .into_iter()
        .filter(|member| member.name != kept && !replicas.contains(&member.name))
        .map(|member| store.index(&member))
        .collect();
    for &node in &gone {
        store.nodes[node].kill();
    }
    sleep(2 * DOWN_AFTER);
    for &node in &gone {
        store.nodes[node].run();
    }
    trial.end_fault();
}

/// Slots migrate one after the other, key by key, while calls read and write them.
fn migrate(pace: &Pace) -> Report {
    let store = Cluster::start();
    let server = Dyndata::on(&store.urls(), &["--redis-mode=cluster"]);
    // No node dies, so every call has to succeed once the slot has moved.
    let mut trial = Trial::start(&server, LIMIT, Losses::None);
    // MIGRATE sends the remaining time to live, which starts again on arrival.
    trial.expect_late_expiry(Duration::from_millis(250));
    let mut moved = 0;
    for round in 0..pace.times(1, 4) {
        trial.begin_fault();
        for id in 0..20 {
            let id = id + 20 * u32::try_from(round).unwrap_or(0);
            moved += move_slot(&store, &key(&name(id)));
        }
        trial.end_fault();
    }
    trial.check(moved > 0, "no key was moved");
    let redirected = store.errors("ASK");
    trial.check(redirected > 0, "no call met a migrating slot");
    let again = store.errors("TRYAGAIN");
    let mut report = trial.judge_with(refused_only_while_moving);
    report.notes.push(format!(
        "{moved} keys moved; redis replied ASK {redirected} times, TRYAGAIN {again} times"
    ));
    report
}

/// Checks that calls during a migration succeed or get BACKEND_BUSY.
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

/// Moves the slot of a key to another master, as redis-cli does. Returns the number of moved keys.
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
        // One key at a time, and slowly, so that calls meet a half-moved slot.
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
    // The reply is NOKEY if the key has expired.
    source.must(&["MIGRATE", "127.0.0.1", &port, key, "0", "2000"]);
}
