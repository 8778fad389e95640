//! The calls that write, beyond Mark, on every store: their edges. What each call does with each
//! stored type is in `matrix.rs`.

mod support;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use dyndata::proto::{
    BatchMarkRequest, BatchUnmarkRequest, IncrementRequest, IncrementResponse, MarkIfRequest,
    TouchRequest, TtlPolicy, UnmarkRequest, Value,
    batch_mark_request::{Item, item},
    mark_if_request::{self, Condition},
    value::Kind,
};
use support::{
    Client, PATIENCE, Redis, TestServer, assert_error, assert_outcome, batch, blamed_field,
    in_an_indexed_namespace, int, mark, millis, namespace, now, on_every_store, read,
    seconds_since_epoch, text,
};
use tokio::{sync::mpsc, task::JoinSet};
use tonic::{
    Code::{FailedPrecondition, InvalidArgument, OutOfRange, ResourceExhausted, Unavailable},
    Status,
};

/// Runs each case in a namespace without an index and in one with an index.
macro_rules! in_both_namespaces {
    ($($case:ident),* $(,)?) => {
        on_every_store![$($case),*];
        in_an_indexed_namespace![$($case),*];
    };
}

in_both_namespaces![
    batch_mark_writes_the_last_item_of_each_id,
    batch_mark_writes_nothing_if_one_item_is_invalid,
    batch_mark_takes_a_thousand_items_and_no_more,
    batch_mark_takes_large_values,
    batch_mark_gives_each_item_its_own_ttl,
    empty_batches_are_refused,
    batch_unmark_counts_what_it_removes,
    unmark_if_equal_needs_a_value,
    values_of_different_types_differ,
    conditions_that_are_false_are_refused,
    a_condition_of_the_largest_value_is_taken_and_a_larger_one_refused,
    mark_if_starts_the_time_to_live,
    a_refused_mark_if_leaves_the_expiry,
    touch_restarts_the_time_to_live_and_creates_nothing,
    touch_answers_in_order_with_duplicates,
    increment_counts_from_nothing_and_by_any_delta,
    increment_keeps_or_restarts_the_expiry,
    increment_stays_within_its_bounds,
    increment_does_not_overflow,
    an_empty_range_is_refused,
    an_unknown_ttl_policy_is_refused,
    concurrent_increments_are_all_counted,
    one_of_many_locks_is_taken,
    a_request_beyond_its_bound_is_refused,
];

fn item(id: impl ToString, value: i64) -> Item {
    Item {
        id: id.to_string(),
        value: Some(item::Value::IntValue(value)),
        ttl: None,
    }
}

async fn batch_mark(client: &mut Client, marks: Vec<Item>) -> Result<(), Status> {
    let request = BatchMarkRequest {
        namespace: namespace(),
        marks,
    };
    client.0.batch_mark(request).await.map(|_| ())
}

fn mark_if(id: &str, value: i64, condition: Option<Condition>) -> MarkIfRequest {
    MarkIfRequest {
        namespace: namespace(),
        id: id.to_owned(),
        value: Some(mark_if_request::Value::IntValue(value)),
        condition,
        ..MarkIfRequest::default()
    }
}

fn equal(kind: Kind) -> Option<Condition> {
    Some(Condition::IfEqual(Value { kind: Some(kind) }))
}

fn increment(id: &str, delta: i64) -> IncrementRequest {
    IncrementRequest {
        namespace: namespace(),
        id: id.to_owned(),
        delta: Some(delta),
        ..IncrementRequest::default()
    }
}

async fn incremented(
    client: &mut Client,
    request: IncrementRequest,
) -> Result<IncrementResponse, Status> {
    Ok(client.0.increment(request).await?.into_inner())
}

fn left(expire_time: &Option<prost_types::Timestamp>) -> f64 {
    seconds_since_epoch(expire_time.as_ref().expect("an expire time")) - now()
}

async fn batch_mark_writes_the_last_item_of_each_id(mut client: Client) {
    let items = vec![item("a", 1), item("b", 2), item("a", 3)];
    batch_mark(&mut client, items).await.expect("marks");
    assert_eq!(client.get("a").await.expect("gets"), read(int(3)));
    assert_eq!(client.get("b").await.expect("gets"), read(int(2)));
}

async fn batch_mark_writes_nothing_if_one_item_is_invalid(mut client: Client) {
    let long_lived = Some(prost_types::Duration {
        seconds: 100_000,
        nanos: 0,
    });
    let without_value = Item {
        value: None,
        ..item("x", 1)
    };
    let with_ttl = Item {
        ttl: long_lived,
        ..item("x", 1)
    };
    for (invalid, reason, field) in [
        (item("", 1), "ID_INVALID", "marks[1].id"),
        (without_value, "VALUE_MISSING", "marks[1].value"),
        (with_ttl, "TTL_OUT_OF_RANGE", "marks[1].ttl"),
    ] {
        let marked = batch_mark(&mut client, vec![item("a", 1), invalid]).await;
        let status = assert_error(marked, InvalidArgument, reason);
        assert_eq!(blamed_field(&status), field);
        assert_outcome(&status, "not_executed");
        assert_eq!(client.get("a").await.expect("gets"), None);
    }
}

async fn batch_mark_takes_a_thousand_items_and_no_more(mut client: Client) {
    let items = |count: i64| (0..count).map(|number| item(number, number)).collect();
    let status = batch_mark(&mut client, items(1001)).await;
    let status = assert_error(status, InvalidArgument, "BATCH_TOO_LARGE");
    assert_eq!(blamed_field(&status), "marks");
    batch_mark(&mut client, items(1000)).await.expect("marks");
    let entries = client.batch_get(batch(0..1000)).await.expect("gets");
    for (number, entry) in entries.into_iter().enumerate() {
        let number = i64::try_from(number).expect("small");
        assert_eq!(entry.value, read(int(number)));
    }
}

async fn batch_mark_takes_large_values(mut client: Client) {
    // 3 MiB, of the 4 MiB that a request may have.
    let value = "v".repeat(65_536);
    let items = (0..48).map(|number| Item {
        id: number.to_string(),
        value: Some(item::Value::StringValue(value.clone())),
        ttl: None,
    });
    batch_mark(&mut client, items.collect())
        .await
        .expect("marks");
    for id in ["0", "47"] {
        assert_eq!(client.get(id).await.expect("gets"), read(text(&value)));
    }
}

async fn batch_mark_gives_each_item_its_own_ttl(mut client: Client) {
    let short = Item {
        ttl: Some(millis(50)),
        ..item("short", 1)
    };
    batch_mark(&mut client, vec![short, item("long", 2)])
        .await
        .expect("marks");
    let start = Instant::now();
    while client.get("short").await.expect("gets").is_some() {
        assert!(start.elapsed() < PATIENCE, "the short one stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(client.get("long").await.expect("gets"), read(int(2)));
}

async fn empty_batches_are_refused(mut client: Client) {
    let status = assert_error(
        batch_mark(&mut client, Vec::new()).await,
        InvalidArgument,
        "BATCH_EMPTY",
    );
    assert_eq!(blamed_field(&status), "marks");
    let unmarked = client.0.batch_unmark(BatchUnmarkRequest::default()).await;
    let status = assert_error(unmarked, InvalidArgument, "BATCH_EMPTY");
    assert_eq!(blamed_field(&status), "ids");
    let touched = client.0.touch(TouchRequest::default()).await;
    assert_error(touched, InvalidArgument, "BATCH_EMPTY");
}

async fn batch_unmark_counts_what_it_removes(mut client: Client) {
    let items = (0..500).map(|number| item(number, 1)).collect();
    batch_mark(&mut client, items).await.expect("marks");
    let request = BatchUnmarkRequest {
        namespace: namespace(),
        ids: (0..1000).map(|number| number.to_string()).collect(),
    };
    let reply = client.0.batch_unmark(request).await.expect("unmarks");
    assert_eq!(reply.into_inner().removed_count, 500);
    assert_eq!(client.get("0").await.expect("gets"), None);
}

async fn unmark_if_equal_needs_a_value(mut client: Client) {
    let request = UnmarkRequest {
        namespace: namespace(),
        id: "a".to_owned(),
        if_equal: Some(Value { kind: None }),
    };
    let unmarked = client.0.unmark(request).await;
    let status = assert_error(unmarked, InvalidArgument, "CONDITION_INVALID");
    assert_eq!(blamed_field(&status), "if_equal");
}

async fn values_of_different_types_differ(mut client: Client) {
    let kinds = [
        Kind::IntValue(1),
        Kind::StringValue("1".to_owned()),
        Kind::BytesValue(b"1".to_vec()),
    ];
    for (stored, value) in [int(1), text("1"), support::bytes(b"1")]
        .into_iter()
        .enumerate()
    {
        for (compared, kind) in kinds.iter().enumerate() {
            client.mark(mark("id", value.clone())).await.expect("marks");
            let request = UnmarkRequest {
                namespace: namespace(),
                id: "id".to_owned(),
                if_equal: Some(Value {
                    kind: Some(kind.clone()),
                }),
            };
            let reply = client.0.unmark(request).await.expect("answers");
            assert_eq!(reply.into_inner().removed, stored == compared);
        }
    }
}

async fn conditions_that_are_false_are_refused(mut client: Client) {
    for (condition, field) in [
        (Condition::IfAbsent(false), "if_absent"),
        (Condition::IfPresent(false), "if_present"),
        (Condition::IfEqual(Value { kind: None }), "if_equal"),
    ] {
        let marked = client.0.mark_if(mark_if("a", 1, Some(condition))).await;
        let status = assert_error(marked, InvalidArgument, "CONDITION_INVALID");
        assert_eq!(blamed_field(&status), field);
        assert_outcome(&status, "not_executed");
    }
}

async fn a_condition_of_the_largest_value_is_taken_and_a_larger_one_refused(mut client: Client) {
    let largest = "v".repeat(65_536);
    client
        .mark(mark("id", text(&largest)))
        .await
        .expect("marks");
    let mut request = mark_if("id", 1, equal(Kind::StringValue(largest.clone())));
    request.value = Some(mark_if_request::Value::StringValue(largest.clone()));
    let reply = client.0.mark_if(request).await.expect("answers");
    assert!(reply.into_inner().applied);
    let request = mark_if("id", 1, equal(Kind::StringValue(largest + "v")));
    let marked = client.0.mark_if(request).await;
    let status = assert_error(marked, InvalidArgument, "VALUE_TOO_LARGE");
    assert_eq!(blamed_field(&status), "if_equal");
}

async fn mark_if_starts_the_time_to_live(mut client: Client) {
    let mut request = mark_if("id", 1, Some(Condition::IfAbsent(true)));
    request.ttl = Some(millis(30_000));
    let before = now();
    let reply = client.0.mark_if(request).await.expect("answers");
    let promised = seconds_since_epoch(&reply.into_inner().expire_time.expect("applied"));
    assert!((before + 29.9..now() + 30.1).contains(&promised));
    let entry = client.get_with_expiry("id").await.expect("gets");
    let read = seconds_since_epoch(&entry.expire_time.expect("an expiry"));
    assert!(
        (promised - 2.0..promised + 1.0).contains(&read),
        "{promised}, {read}"
    );
}

async fn a_refused_mark_if_leaves_the_expiry(mut client: Client) {
    let mut first = mark("id", int(1));
    first.ttl = Some(millis(5_000));
    client.mark(first).await.expect("marks");
    let request = mark_if("id", 2, Some(Condition::IfAbsent(true)));
    let reply = client.0.mark_if(request).await.expect("answers");
    assert!(!reply.into_inner().applied);
    let entry = client.get_with_expiry("id").await.expect("gets");
    assert_eq!(entry.value, read(int(1)));
    assert!(left(&entry.expire_time) < 5.1);
}

async fn touch_restarts_the_time_to_live_and_creates_nothing(mut client: Client) {
    let mut request = mark("here", int(1));
    request.ttl = Some(millis(2_000));
    client.mark(request).await.expect("marks");
    let request = TouchRequest {
        namespace: namespace(),
        ids: vec!["here".to_owned(), "nobody".to_owned()],
        ttl: Some(millis(50_000)),
    };
    let reply = client.0.touch(request).await.expect("touches").into_inner();
    assert_eq!(reply.entries[0].value, read(int(1)));
    assert!((49.0..50.1).contains(&left(&reply.entries[0].expire_time)));
    assert_eq!(reply.entries[1].value, None);
    assert_eq!(reply.entries[1].expire_time, None);
    let entry = client.get_with_expiry("here").await.expect("gets");
    assert!(left(&entry.expire_time) > 40.0);
    assert_eq!(client.get("nobody").await.expect("gets"), None);
}

async fn touch_answers_in_order_with_duplicates(mut client: Client) {
    let items = vec![item("a", 1), item("b", 2)];
    batch_mark(&mut client, items).await.expect("marks");
    let ids = ["b", "x", "a", "b"];
    let request = TouchRequest {
        namespace: namespace(),
        ids: ids.map(str::to_owned).to_vec(),
        ..TouchRequest::default()
    };
    let reply = client.0.touch(request).await.expect("touches").into_inner();
    let found: Vec<_> = reply.entries.iter().map(|entry| &*entry.id).collect();
    assert_eq!(found, ids);
    let values: Vec<_> = reply.entries.into_iter().map(|entry| entry.value).collect();
    assert_eq!(values, [read(int(2)), None, read(int(1)), read(int(2))]);
}

async fn increment_counts_from_nothing_and_by_any_delta(mut client: Client) {
    let request = IncrementRequest {
        namespace: namespace(),
        id: "n".to_owned(),
        ..IncrementRequest::default()
    };
    let reply = incremented(&mut client, request).await.expect("counts");
    assert_eq!((reply.applied, reply.value), (true, 1));
    for (delta, value) in [(41, 42), (0, 42), (-50, -8), (i64::MIN + 8, i64::MIN)] {
        let reply = incremented(&mut client, increment("n", delta)).await;
        assert_eq!(reply.expect("counts").value, value);
        assert_eq!(client.get("n").await.expect("gets"), read(int(value)));
    }
    let reply = incremented(&mut client, increment("n", i64::MAX)).await;
    assert_eq!(reply.expect("counts").value, -1);
}

async fn increment_keeps_or_restarts_the_expiry(mut client: Client) {
    let with = |policy: TtlPolicy, ttl| IncrementRequest {
        ttl: Some(millis(ttl)),
        ttl_policy: policy.into(),
        ..increment("n", 1)
    };
    let keep = with(TtlPolicy::Keep, 40_000);
    let reply = incremented(&mut client, keep).await.expect("counts");
    assert!((39.0..40.1).contains(&left(&reply.expire_time)));
    let keep = with(TtlPolicy::Keep, 1_000);
    let reply = incremented(&mut client, keep).await.expect("counts");
    assert!((39.0..40.1).contains(&left(&reply.expire_time)));
    for policy in [TtlPolicy::Restart, TtlPolicy::Unspecified] {
        let restart = with(policy, 20_000);
        let reply = incremented(&mut client, restart).await.expect("counts");
        assert!((19.0..20.1).contains(&left(&reply.expire_time)));
        let entry = client.get_with_expiry("n").await.expect("gets");
        assert!((19.0..20.1).contains(&left(&entry.expire_time)));
    }
}

async fn increment_stays_within_its_bounds(mut client: Client) {
    let bounded = |delta, min, max| IncrementRequest {
        min,
        max,
        ..increment("n", delta)
    };
    for (delta, min, max, applied, value) in [
        (3, None, Some(3), true, 3),
        (1, None, Some(3), false, 3),
        (1, Some(0), Some(4), true, 4),
        (-5, Some(0), None, false, 4),
        (-4, Some(0), None, true, 0),
        (-1, Some(0), Some(i64::MAX), false, 0),
        (i64::MAX, None, Some(i64::MAX), true, i64::MAX),
        (1, None, Some(i64::MAX), false, i64::MAX),
        // A number outside the bounds may come back into them.
        (-10, None, Some(i64::MAX - 10), true, i64::MAX - 10),
        (0, Some(i64::MIN), Some(0), false, i64::MAX - 10),
    ] {
        let reply = incremented(&mut client, bounded(delta, min, max)).await;
        let reply = reply.expect("answers");
        assert_eq!((reply.applied, reply.value), (applied, value), "{delta}");
        assert!(reply.expire_time.is_some());
    }
    let nothing = IncrementRequest {
        max: Some(0),
        ..increment("nobody", 1)
    };
    let reply = incremented(&mut client, nothing).await.expect("answers");
    assert_eq!(
        (reply.applied, reply.value, reply.expire_time),
        (false, 0, None)
    );
    assert_eq!(client.get("nobody").await.expect("gets"), None);
}

async fn increment_does_not_overflow(mut client: Client) {
    for (start, delta) in [(i64::MAX, 1), (i64::MIN, -1), (-2, i64::MIN)] {
        client.mark(mark("n", int(start))).await.expect("marks");
        let overflowed = incremented(&mut client, increment("n", delta)).await;
        let status = assert_error(overflowed, OutOfRange, "COUNTER_OVERFLOW");
        assert_outcome(&status, "not_executed");
        assert_eq!(client.get("n").await.expect("gets"), read(int(start)));
    }
    client.mark(mark("n", text("7"))).await.expect("marks");
    let counted = incremented(&mut client, increment("n", 1)).await;
    let status = assert_error(counted, FailedPrecondition, "NOT_AN_INTEGER");
    assert_outcome(&status, "not_executed");
}

async fn an_empty_range_is_refused(mut client: Client) {
    let request = IncrementRequest {
        min: Some(2),
        max: Some(1),
        ..increment("n", 1)
    };
    let counted = incremented(&mut client, request).await;
    let status = assert_error(counted, InvalidArgument, "RANGE_INVALID");
    assert_eq!(blamed_field(&status), "min");
}

async fn an_unknown_ttl_policy_is_refused(mut client: Client) {
    let request = IncrementRequest {
        ttl_policy: 3,
        ..increment("n", 1)
    };
    let counted = incremented(&mut client, request).await;
    let status = assert_error(counted, InvalidArgument, "TTL_POLICY_INVALID");
    assert_eq!(blamed_field(&status), "ttl_policy");
}

async fn concurrent_increments_are_all_counted(client: Client) {
    let mut calls = JoinSet::new();
    for _ in 0..500 {
        let mut client = client.0.clone();
        calls.spawn(async move {
            let reply = client.increment(increment("n", 1)).await;
            reply.expect("counts").into_inner().value
        });
    }
    let values: HashSet<_> = calls.join_all().await.into_iter().collect();
    assert_eq!(values, (1..=500).collect());
}

async fn one_of_many_locks_is_taken(client: Client) {
    let mut calls = JoinSet::new();
    for owner in 0..100 {
        let mut client = client.0.clone();
        calls.spawn(async move {
            let request = mark_if("lock", owner, Some(Condition::IfAbsent(true)));
            let reply = client.mark_if(request).await.expect("answers");
            reply.into_inner().applied
        });
    }
    let taken = calls.join_all().await;
    assert_eq!(taken.into_iter().filter(|taken| *taken).count(), 1);
}

async fn a_request_beyond_its_bound_is_refused(mut client: Client) {
    let large = "v".repeat(5 << 20);
    let item = Item {
        id: "a".to_owned(),
        value: Some(item::Value::StringValue(large.clone())),
        ttl: None,
    };
    let marked = batch_mark(&mut client, vec![item]).await;
    let status = assert_error(marked, ResourceExhausted, "MESSAGE_TOO_LARGE");
    assert!(status.message().contains("4194304"), "{status:?}");
    // Calls that need less have a smaller bound.
    let request = IncrementRequest {
        namespace: namespace(),
        id: "v".repeat(300_000),
        ..IncrementRequest::default()
    };
    let counted = incremented(&mut client, request).await;
    assert_error(counted, ResourceExhausted, "MESSAGE_TOO_LARGE");
}

/// Redis forgets its scripts while calls run: no call fails for that.
#[tokio::test]
async fn scripts_that_redis_forgets_are_sent_again() {
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, &[]).await;
    let client = server.client().await;
    let (made, mut rounds) = mpsc::unbounded_channel();
    let mut calls = JoinSet::new();
    for caller in 0..8 {
        let (mut client, made) = (client.0.clone(), made.clone());
        calls.spawn(async move {
            let id = format!("n{caller}");
            let mut count = 0;
            // Ends when nobody counts the rounds any more.
            while made.send(()).is_ok() {
                let reply = client.increment(increment(&id, 1)).await;
                count += 1;
                assert_eq!(reply.expect("counts").into_inner().value, count);
                let marked = client.mark_if(mark_if("m", 1, None)).await;
                assert!(marked.expect("marks").into_inner().applied);
            }
            count
        });
    }
    for _ in 0..50 {
        redis.must(&["SCRIPT", "FLUSH"]);
        for _ in 0..8 {
            rounds.recv().await.expect("calls are made");
        }
    }
    drop(rounds);
    let counted: i64 = calls.join_all().await.into_iter().sum();
    assert!(counted > 100, "{counted}");
    server.stop().await;
}

/// A Redis user that may not run one command of a script: the commands before it have written.
#[tokio::test]
async fn a_script_that_lacks_a_right_has_an_unknown_outcome() {
    let redis = Redis::start();
    redis.must(&[
        "ACL", "SETUSER", "dyndata", "on", ">secret", "~*", "+@all", "-pexpire",
    ]);
    let url = redis.url().replace("redis://", "redis://dyndata:secret@");
    let server = TestServer::start(&[&format!("--redis-url={url}")]);
    server.ready().await;
    let mut client = server.client().await;
    let reply = incremented(&mut client, increment("n", 1)).await;
    assert_eq!(reply.expect("counts").value, 1);
    let status = assert_error(
        incremented(&mut client, increment("n", 1)).await,
        Unavailable,
        "BACKEND_AUTH",
    );
    assert_outcome(&status, "unknown");
    let pushback = status.metadata().get("grpc-retry-pushback-ms");
    assert_eq!(pushback.map(|ms| ms.as_bytes()), Some(&b"-1"[..]));
    assert_eq!(client.get("n").await.expect("gets"), read(int(2)));
    server.stop().await;
}

/// A fixed window of 100, 50 callers at once on two processes: exactly 100 are let through.
#[tokio::test]
async fn a_limiter_grants_exactly_its_maximum() {
    const MAX: usize = 100;
    let redis = Redis::start();
    let servers = [
        TestServer::on_redis(&redis, &[]).await,
        TestServer::on_redis(&redis, &[]).await,
    ];
    let granted = Arc::<AtomicUsize>::default();
    let mut calls = JoinSet::new();
    for caller in 0..50 {
        let client = servers[caller % 2].client().await;
        let granted = Arc::clone(&granted);
        calls.spawn(async move {
            let mut client = client.0;
            for _ in 0..10 {
                let request = IncrementRequest {
                    ttl_policy: TtlPolicy::Keep.into(),
                    max: Some(MAX as i64),
                    ..increment("window", 1)
                };
                let reply = client.increment(request).await.expect("answers");
                if reply.into_inner().applied {
                    granted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    calls.join_all().await;
    assert_eq!(granted.load(Ordering::Relaxed), MAX);
}
