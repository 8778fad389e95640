//! A Redis Cluster of three masters without replicas.

use std::process::Command;

use super::redis_server::{Redis, eventually};

/// A node that belongs to no cluster yet.
pub fn node() -> Redis {
    Redis::start_with(&[
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        "1000",
        "--cluster-require-full-coverage",
        "no",
        "--repl-diskless-sync-delay",
        "0",
        "--enable-debug-command",
        "yes",
    ])
}

/// Three masters. If one of them is lost, the others serve what they have.
pub fn masters() -> Vec<Redis> {
    let nodes: Vec<_> = (0..3).map(|_| node()).collect();
    create(&nodes);
    nodes
}

/// Makes a cluster of these nodes.
pub fn create(nodes: &[Redis]) {
    let created = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)))
        .arg("--cluster-yes")
        .output()
        .expect("redis-cli runs");
    assert!(created.status.success(), "{created:?}");
    eventually("the nodes serve", || nodes.iter().all(says_ok));
}

/// Whether a node says that the cluster serves.
pub fn says_ok(node: &Redis) -> bool {
    node.text(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
}

/// `--redis-url` with all nodes.
pub fn url_flag(nodes: &[Redis]) -> String {
    let urls: Vec<_> = nodes.iter().map(Redis::url).collect();
    format!("--redis-url={}", urls.join(","))
}

/// The node that has the slot of a key.
pub fn owner<'a>(nodes: &'a [Redis], key: &str) -> &'a Redis {
    let slot: usize =
        redis::from_redis_value(nodes[0].must(&["CLUSTER", "KEYSLOT", key])).expect("a slot");
    // redis-cli deals the slots out in order.
    let last = [5460, 10922, 16383];
    let at = last.iter().position(|last| slot <= *last).expect("a slot");
    &nodes[at]
}
