//! Watch as its callers see it. Each case of the first part runs on each store.

mod support;

use std::{
    collections::BTreeMap,
    ops::Range,
    time::{Duration, Instant},
};

use dyndata::proto::{
    BatchMarkRequest, MarkRequest, UnmarkRequest, WatchRequest,
    batch_mark_request::{Item, item},
    entry,
};
use support::{
    Client, Redis, TestServer, assert_error, blamed_field, bytes, int, mark, millis,
    on_every_store, read, text,
    watching::{Watching, all, ids},
};
use tonic::Code::{FailedPrecondition, InvalidArgument};

on_every_store![
    a_snapshot_has_every_id_and_then_come_changes,
    an_expiry_is_noticed_without_help,
    the_same_value_again_is_no_event,
    a_longer_life_postpones_the_expiry,
    two_watchers_of_one_id_both_hear,
    namespaces_are_watched_apart,
    a_large_snapshot_is_split,
    exactly_one_target_must_be_set,
    invalid_ids_and_too_many_are_refused,
    a_watch_ends_at_the_deadline_of_its_caller,
];

fn present(value: i64) -> Option<entry::Value> {
    Some(entry::Value::IntValue(value))
}

fn mark_for(id: &str, value: i64, ttl: u64) -> MarkRequest {
    MarkRequest {
        ttl: Some(millis(ttl)),
        ..mark(id, int(value))
    }
}

async fn unmark(client: &mut Client, id: &str) {
    let request = UnmarkRequest {
        id: id.to_owned(),
        ..UnmarkRequest::default()
    };
    client.0.unmark(request).await.expect("unmarks");
}

async fn a_snapshot_has_every_id_and_then_come_changes(mut client: Client) {
    client.mark(mark("a", int(1))).await.expect("marks");
    client.mark(mark("b", text("é"))).await.expect("marks");
    let mut watching = Watching::begin(&mut client.0, ids("", ["a", "b", "c", "a"])).await;
    assert_eq!(watching.known.len(), 3);
    assert_eq!(watching.known["a"], present(1));
    assert_eq!(watching.known["b"], read(text("é")));
    assert_eq!(watching.known["c"], None);
    client.mark(mark("c", bytes(b"\xff"))).await.expect("marks");
    watching.sees("c", read(bytes(b"\xff"))).await;
    unmark(&mut client, "a").await;
    watching.sees("a", None).await;
    for value in 0..20 {
        client.mark(mark("a", int(value))).await.expect("marks");
    }
    watching.sees("a", present(19)).await;
    // Not watched.
    client.mark(mark("d", int(1))).await.expect("marks");
    watching.hears_nothing(Duration::from_millis(100)).await;
    assert_eq!(watching.snapshots, 1);
}

async fn an_expiry_is_noticed_without_help(mut client: Client) {
    let mut watching = Watching::begin(&mut client.0, ids("", ["a"])).await;
    // The longer one must be seen before it expires.
    for ttl in [1, 1_500] {
        let start = Instant::now();
        client.mark(mark_for("a", 1, ttl)).await.expect("marks");
        if ttl > 1 {
            watching.sees("a", present(1)).await;
        }
        watching.sees("a", None).await;
        let late = start.elapsed().saturating_sub(Duration::from_millis(ttl));
        // Without the expiry, only the next reading of all ids would notice, after 54 s at least.
        assert!(late < Duration::from_secs(5), "{late:?} late");
    }
}

async fn the_same_value_again_is_no_event(mut client: Client) {
    client.mark(mark("a", int(1))).await.expect("marks");
    let mut watching = Watching::begin(&mut client.0, ids("", ["a"])).await;
    for _ in 0..5 {
        client.mark(mark("a", int(1))).await.expect("marks");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    watching.hears_nothing(Duration::from_millis(100)).await;
    client.mark(mark("a", text("1"))).await.expect("marks");
    watching.sees("a", read(text("1"))).await;
}

async fn a_longer_life_postpones_the_expiry(mut client: Client) {
    client.mark(mark_for("a", 1, 1_500)).await.expect("marks");
    let mut watching = Watching::begin(&mut client.0, ids("", ["a"])).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(450)).await;
        client.mark(mark_for("a", 1, 1_500)).await.expect("marks");
    }
    watching.hears_nothing(Duration::from_millis(100)).await;
    watching.sees("a", None).await;
}

async fn two_watchers_of_one_id_both_hear(mut client: Client) {
    let mut first = Watching::begin(&mut client.0, ids("", ["a", "b"])).await;
    let mut second = Watching::begin(&mut client.0, ids("", ["b", "c"])).await;
    client.mark(mark("b", int(1))).await.expect("marks");
    first.sees("b", present(1)).await;
    second.sees("b", present(1)).await;
    drop(first);
    client.mark(mark("b", int(2))).await.expect("marks");
    second.sees("b", present(2)).await;
    client.mark(mark("c", int(3))).await.expect("marks");
    second.sees("c", present(3)).await;
    // A new watcher gets what is known already.
    let third = Watching::begin(&mut client.0, ids("", ["b"])).await;
    assert_eq!(third.known["b"], present(2));
}

async fn namespaces_are_watched_apart(mut client: Client) {
    let mut nameless = Watching::begin(&mut client.0, ids("", ["a"])).await;
    let mut orders = Watching::begin(&mut client.0, ids("orders", ["a"])).await;
    let request = MarkRequest {
        namespace: "orders".to_owned(),
        ..mark("a", int(7))
    };
    client.mark(request).await.expect("marks");
    orders.sees("a", present(7)).await;
    client.mark(mark("a", int(8))).await.expect("marks");
    nameless.sees("a", present(8)).await;
    assert_eq!(nameless.snapshots + orders.snapshots, 2, "no gap");
    assert_eq!((nameless.messages, orders.messages), (2, 2));
}

async fn a_large_snapshot_is_split(mut client: Client) {
    let names: Vec<_> = (0..40).map(|number| format!("id-{number}")).collect();
    let value = "x".repeat(5000);
    for name in &names {
        client.mark(mark(name, text(&value))).await.expect("marks");
    }
    let watching = Watching::begin(&mut client.0, ids("", &names)).await;
    assert_eq!(watching.present().len(), 40);
    assert!(watching.messages > 5, "{}", watching.messages);
}

async fn exactly_one_target_must_be_set(mut client: Client) {
    let both = WatchRequest {
        all: true,
        ..ids("", ["a"])
    };
    for request in [WatchRequest::default(), both] {
        let refused = client.0.watch(request).await;
        assert_error(refused, InvalidArgument, "WATCH_TARGET_INVALID");
    }
    let refused = client.0.watch(all("orders")).await;
    assert_error(refused, FailedPrecondition, "NOT_INDEXED");
    let refused = client.0.watch(ids("Not Valid", ["a"])).await;
    assert_error(refused, InvalidArgument, "NAMESPACE_INVALID");
}

async fn invalid_ids_and_too_many_are_refused(mut client: Client) {
    let refused = client.0.watch(ids("", ["a", "b\n"])).await;
    let status = assert_error(refused, InvalidArgument, "ID_INVALID");
    assert_eq!(blamed_field(&status), "ids[1]");
    let refused = client.0.watch(ids("", 0..10_001)).await;
    let status = assert_error(refused, InvalidArgument, "BATCH_TOO_LARGE");
    assert_eq!(blamed_field(&status), "ids");
    let watching = Watching::begin(&mut client.0, ids("", 0..10_000)).await;
    assert_eq!(watching.known.len(), 10_000);
}

async fn a_watch_ends_at_the_deadline_of_its_caller(mut client: Client) {
    let mut request = tonic::Request::new(ids("", ["a"]));
    request.set_timeout(Duration::from_secs(1));
    let mut watching = Watching::begin(&mut client.0, request).await;
    assert_eq!(watching.ends().await.code(), tonic::Code::DeadlineExceeded);
}

/// Watches of a whole namespace, and faults.
mod whole {
    use super::*;

    const INDEXED: &[&str] = &["--indexed-namespaces=online"];

    fn online(request: MarkRequest) -> MarkRequest {
        MarkRequest {
            namespace: "online".to_owned(),
            ..request
        }
    }

    async fn all_ids_are_told(server: TestServer) {
        let mut client = server.client().await;
        for number in 0..200 {
            let request = online(mark(&number.to_string(), int(number)));
            client.mark(request).await.expect("marks");
        }
        let mut watching = Watching::begin(&mut client.0, all("online")).await;
        assert_eq!(watching.known.len(), 200);
        assert!((0..200).all(|number| watching.known[&number.to_string()] == present(number)));
        let request = online(mark_for("new", 1, 1_500));
        client.mark(request).await.expect("marks");
        watching.sees("new", present(1)).await;
        watching.sees("new", None).await;
        client
            .mark(online(mark("new", int(2))))
            .await
            .expect("marks");
        watching.sees("new", present(2)).await;
        let request = UnmarkRequest {
            namespace: "online".to_owned(),
            id: "7".to_owned(),
            ..UnmarkRequest::default()
        };
        client.0.unmark(request).await.expect("unmarks");
        watching.sees("7", None).await;
        let mut second = Watching::begin(&mut client.0, all("online")).await;
        assert_eq!(second.present(), watching.present());
        assert_eq!(second.known.len(), 200, "ids that are gone are not told");
        drop(watching);
        client.mark(online(mark("7", int(8)))).await.expect("marks");
        second.sees("7", present(8)).await;
        let third = Watching::begin(&mut client.0, ids("online", ["7", "none"])).await;
        assert_eq!(third.known["7"], present(8));
        assert_eq!(third.known["none"], None);
        server.stop().await;
    }

    #[tokio::test]
    async fn all_ids_are_told_embedded() {
        all_ids_are_told(TestServer::start(INDEXED)).await;
    }

    #[tokio::test]
    async fn all_ids_are_told_redis() {
        let redis = Redis::start();
        all_ids_are_told(TestServer::on_redis(&redis, INDEXED).await).await;
    }

    /// Marks the ids with these numbers.
    async fn mark_many(client: &mut Client, numbers: Range<usize>, value: i64) {
        let mark = |number: usize| Item {
            id: number.to_string(),
            value: Some(item::Value::IntValue(value)),
            ttl: Some(millis(600_000)),
        };
        let request = BatchMarkRequest {
            namespace: "online".to_owned(),
            marks: numbers.map(mark).collect(),
        };
        client.0.batch_mark(request).await.expect("marks");
    }

    /// The table adds, tells and removes so many ids in steps.
    async fn many_ids_are_told(server: TestServer) {
        const BATCH: usize = 500;
        const COUNT: usize = 10_000;
        let mut client = server.client().await;
        for first in (0..COUNT).step_by(BATCH) {
            mark_many(&mut client, first..first + BATCH, 1).await;
        }
        let mut closed = Vec::new();
        let mut watches = Vec::new();
        for number in 0..6 {
            let request = match number % 2 {
                0 => all("online"),
                _ => ids("online", 0..COUNT),
            };
            let watching = Watching::start(&mut client.0, request).await;
            match number {
                0..4 => closed.push(watching.expect("begins")),
                _ => watches.push(watching.expect("begins")),
            }
            mark_many(&mut client, number * BATCH..(number + 1) * BATCH, 2).await;
            closed.truncate(1);
        }
        drop(closed);
        mark_many(&mut client, COUNT..COUNT + 10, 2).await;
        for (watching, count) in watches.iter_mut().zip([COUNT + 10, COUNT]) {
            let is_new = |number: usize| !(6 * BATCH..COUNT).contains(&number);
            let value = |number| entry::Value::IntValue(if is_new(number) { 2 } else { 1 });
            let held = (0..count).map(|number| (number.to_string(), value(number)));
            let held: BTreeMap<_, _> = held.collect();
            watching
                .until("all values", |watching| {
                    watching.snapshots == 1 && watching.present() == held
                })
                .await;
        }
        drop(watches);
        server.metric("dyndata_watched_ids 0").await;
        server.stop().await;
    }

    #[tokio::test]
    async fn many_ids_are_told_embedded() {
        many_ids_are_told(TestServer::start(INDEXED)).await;
    }

    #[tokio::test]
    async fn many_ids_are_told_redis() {
        let redis = Redis::start();
        many_ids_are_told(TestServer::on_redis(&redis, INDEXED).await).await;
    }
}
