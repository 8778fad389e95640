//! Count and List on every store, and the index behind them on a real Redis.

mod support;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use dyndata::proto::{
    BatchMarkRequest, BatchUnmarkRequest, CountRequest, Entry, IncrementRequest, ListRequest,
    ListResponse, MarkRequest, TouchRequest, UnmarkRequest,
    batch_mark_request::{Item, item},
    dyn_data_client::DynDataClient,
};
use support::{
    Client, Dyndata, INDEXED, PATIENCE, Redis, TestServer, assert_error, blamed_field, cluster,
    eventually, int, key, mark, millis, namespace, now, seconds_since_epoch,
    topology::{Cluster, FAILOVER, Sentinels},
    use_indexed_namespace,
};
use tokio::task::JoinSet;
use tonic::{
    Code::{DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable},
    Status,
};

/// Makes a test of each case on the embedded store, on one Redis, and on a cluster.
macro_rules! on_every_server {
    ($($case:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test]
            async fn $case() {
                super::use_indexed_namespace();
                let server = super::TestServer::start(super::INDEXED);
                super::$case(server.client().await).await;
                server.stop().await;
            })*
        }
        mod one_redis {
            $(#[tokio::test]
            async fn $case() {
                super::use_indexed_namespace();
                let redis = super::Redis::start();
                let server = super::TestServer::on_redis(&redis, super::INDEXED).await;
                super::$case(server.client().await).await;
                server.stop().await;
            })*
        }
        mod redis_cluster {
            $(#[tokio::test]
            async fn $case() {
                super::use_indexed_namespace();
                let nodes = super::cluster::masters();
                let server = super::start_on_cluster(&nodes).await;
                super::$case(server.client().await).await;
                server.stop().await;
            })*
        }
    };
}

on_every_server![
    what_is_marked_is_counted_and_listed,
    every_writing_call_keeps_the_index,
    a_namespace_without_ids_has_an_empty_page,
    pages_together_have_every_id,
    page_sizes_and_tokens_that_are_wrong_are_refused,
    a_namespace_that_is_not_indexed_is_refused,
];

async fn start_on_cluster(nodes: &[Redis]) -> TestServer {
    let url = cluster::url_flag(nodes);
    let server = TestServer::start(&["--redis-mode=cluster", &url, INDEXED[0]]);
    server.ready().await;
    server
}

async fn try_count(client: &mut Client) -> Result<i64, Status> {
    let request = CountRequest {
        namespace: namespace(),
    };
    Ok(client.0.count(request).await?.into_inner().count)
}

async fn count(client: &mut Client) -> i64 {
    try_count(client).await.expect("counts")
}

async fn page(client: &mut Client, size: i32, token: &str) -> Result<ListResponse, Status> {
    let request = ListRequest {
        namespace: namespace(),
        page_size: size,
        page_token: token.to_owned(),
    };
    Ok(client.0.list(request).await?.into_inner())
}

/// All entries, in pages of this size.
async fn list(client: &mut Client, size: i32) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut token = String::new();
    loop {
        let page = page(client, size, &token).await.expect("lists");
        entries.extend(page.entries);
        token = page.next_page_token;
        if token.is_empty() {
            return entries;
        }
    }
}

fn ids_of(entries: &[Entry]) -> BTreeSet<String> {
    entries.iter().map(|entry| entry.id.clone()).collect()
}

fn short(id: &str, ttl: u64) -> MarkRequest {
    MarkRequest {
        ttl: Some(millis(ttl)),
        ..mark(id, int(1))
    }
}

async fn mark_many(client: &mut Client, ids: &[String]) {
    for ids in ids.chunks(1000) {
        let marks = ids.iter().map(|id| Item {
            id: id.clone(),
            value: Some(item::Value::IntValue(1)),
            ttl: Some(millis(600_000)),
        });
        let request = BatchMarkRequest {
            namespace: namespace(),
            marks: marks.collect(),
        };
        client.0.batch_mark(request).await.expect("marks");
    }
}

async fn what_is_marked_is_counted_and_listed(mut client: Client) {
    let before = now();
    for id in ["a", "b", "ü {x}/y"] {
        client.mark(mark(id, int(1))).await.expect("marks");
    }
    client.mark(short("c", 40)).await.expect("marks");
    // Another namespace has an index of its own.
    let elsewhere = MarkRequest {
        namespace: "devices".to_owned(),
        ..mark("d", int(1))
    };
    client.mark(elsewhere).await.expect("marks");
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(count(&mut client).await, 3);
    let entries = list(&mut client, 0).await;
    let expected = ["a", "b", "ü {x}/y"].map(str::to_owned);
    assert_eq!(ids_of(&entries), expected.into());
    for entry in entries {
        assert_eq!(entry.value, None);
        let expiry = seconds_since_epoch(&entry.expire_time.expect("an expire time"));
        assert!((before + 59.9..now() + 60.01).contains(&expiry), "{expiry}");
    }
}

async fn every_writing_call_keeps_the_index(mut client: Client) {
    let all: Vec<_> = (0..10).map(|number| number.to_string()).collect();
    mark_many(&mut client, &all).await;
    assert_eq!(count(&mut client).await, 10);
    let unmark = UnmarkRequest {
        namespace: namespace(),
        id: "0".to_owned(),
        if_equal: None,
    };
    client.0.unmark(unmark).await.expect("unmarks");
    let batch_unmark = BatchUnmarkRequest {
        namespace: namespace(),
        ids: ["1", "2", "none"].map(str::to_owned).into(),
    };
    let removed = client.0.batch_unmark(batch_unmark).await.expect("unmarks");
    assert_eq!(removed.into_inner().removed_count, 2);
    assert_eq!(count(&mut client).await, 7);
    // A Touch that shortens the time to live, also in the index.
    let touch = TouchRequest {
        namespace: namespace(),
        ids: ["3", "none"].map(str::to_owned).into(),
        ttl: Some(millis(30)),
    };
    client.0.touch(touch).await.expect("touches");
    let increment = IncrementRequest {
        namespace: namespace(),
        id: "n".to_owned(),
        ttl: Some(millis(30)),
        ..IncrementRequest::default()
    };
    client.0.increment(increment.clone()).await.expect("counts");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(count(&mut client).await, 6);
    let increment = IncrementRequest {
        ttl: None,
        ..increment
    };
    client.0.increment(increment).await.expect("counts");
    assert_eq!(count(&mut client).await, 7);
    let listed = ids_of(&list(&mut client, 0).await);
    let expected = ["4", "5", "6", "7", "8", "9", "n"].map(str::to_owned);
    assert_eq!(listed, expected.into());
}

async fn a_namespace_without_ids_has_an_empty_page(mut client: Client) {
    assert_eq!(count(&mut client).await, 0);
    let page = page(&mut client, 0, "").await.expect("lists");
    assert_eq!(page, ListResponse::default());
}

async fn pages_together_have_every_id(mut client: Client) {
    let ids: Vec<_> = (0..3000).map(|number| format!("id {number}")).collect();
    mark_many(&mut client, &ids).await;
    assert_eq!(count(&mut client).await, 3000);
    for size in [0, 7, 100, 999, i32::MAX] {
        let entries = list(&mut client, size).await;
        assert_eq!(ids_of(&entries), ids.iter().cloned().collect(), "{size}");
    }
    let first = page(&mut client, 10, "").await.expect("lists");
    assert!(!first.entries.is_empty() && first.entries.len() < 300);
}

async fn page_sizes_and_tokens_that_are_wrong_are_refused(mut client: Client) {
    let ids: Vec<_> = (0..1000).map(|number| number.to_string()).collect();
    mark_many(&mut client, &ids).await;
    for size in [-1, i32::MIN] {
        let result = page(&mut client, size, "").await;
        let status = assert_error(result, InvalidArgument, "PAGE_SIZE_INVALID");
        assert_eq!(blamed_field(&status), "page_size");
    }
    let token = page(&mut client, 1, "")
        .await
        .expect("lists")
        .next_page_token;
    assert!(!token.is_empty());
    for wrong in [
        "0",
        "token",
        &token[1..],
        &token.to_uppercase(),
        &format!("{token}00"),
    ] {
        let result = page(&mut client, 1, wrong).await;
        let status = assert_error(result, InvalidArgument, "PAGE_TOKEN_INVALID");
        assert_eq!(blamed_field(&status), "page_token");
    }
    let elsewhere = ListRequest {
        namespace: "devices".to_owned(),
        page_size: 1,
        page_token: token,
    };
    let result = client.0.list(elsewhere).await;
    assert_error(result, InvalidArgument, "PAGE_TOKEN_INVALID");
}

async fn a_namespace_that_is_not_indexed_is_refused(mut client: Client) {
    for namespace in ["", "orders"] {
        let request = CountRequest {
            namespace: namespace.to_owned(),
        };
        let result = client.0.count(request).await;
        assert_error(result, FailedPrecondition, "NOT_INDEXED");
        let request = ListRequest {
            namespace: namespace.to_owned(),
            ..ListRequest::default()
        };
        let result = client.0.list(request).await;
        assert_error(result, FailedPrecondition, "NOT_INDEXED");
    }
}

/// The next page, once the store answers.
async fn page_eventually(client: &mut Client, token: &str) -> ListResponse {
    page_within(client, token, PATIENCE).await
}

/// The next page, once the store answers. Repeats the call with the same token, as callers do.
async fn page_within(client: &mut Client, token: &str, patience: Duration) -> ListResponse {
    let start = Instant::now();
    loop {
        match page(client, 100, token).await {
            Ok(page) => return page,
            Err(status) => {
                let may_be_repeated = matches!(status.code(), Unavailable | DeadlineExceeded);
                assert!(may_be_repeated, "{status}");
                assert!(start.elapsed() < patience, "not listed: {status}");
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The tables of Redis differ after its restart, so that a cursor of before would skip ids.
#[tokio::test]
async fn a_list_is_complete_across_a_restart_of_redis() {
    use_indexed_namespace();
    let mut redis = Redis::start_durable(&[]);
    let server = TestServer::on_redis(&redis, INDEXED).await;
    let mut client = server.client().await;
    // More than 128 in each shard, which Redis does not keep in a plain list any more.
    let ids: Vec<_> = (0..20_000).map(|number| format!("id {number}")).collect();
    mark_many(&mut client, &ids).await;
    let mut listed = BTreeSet::new();
    let mut token = String::new();
    for number in 0.. {
        if number % 70 == 10 {
            redis.kill();
            redis.run();
        }
        let page = page_eventually(&mut client, &token).await;
        listed.extend(ids_of(&page.entries));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, ids.into_iter().collect());
    server.stop().await;
}

/// Marks many ids, and lists some of them. Returns all ids, those that are listed, and the token of the
/// next page.
async fn begin_a_list(client: &mut Client) -> (Vec<String>, BTreeSet<String>, String) {
    // More than 128 in each shard, which Redis does not keep in a plain list any more.
    let ids: Vec<_> = (0..20_000).map(|number| format!("id {number}")).collect();
    mark_many(client, &ids).await;
    let mut listed = BTreeSet::new();
    let mut token = String::new();
    for _ in 0..20 {
        let page = page(client, 100, &token).await.expect("lists");
        listed.extend(ids_of(&page.entries));
        token = page.next_page_token;
    }
    (ids, listed, token)
}

/// Has replicas take over between two pages. They have everything that was acknowledged.
async fn lists_and_counts_are_complete_across_a_failover<S: Failover>(
    server: TestServer,
    store: S,
) {
    let mut client = server.client().await;
    let (ids, mut listed, mut token) = begin_a_list(&mut client).await;
    let replicas = store.replicas();
    eventually("the replicas have all values and indexes", || {
        let sizes = replicas.iter().map(|at| {
            let size = store.servers()[*at].must(&["DBSIZE"]);
            redis::from_redis_value::<i64>(size).expect("a number")
        });
        sizes.sum::<i64>() == 20_064
    });
    let failover = tokio::task::spawn_blocking(move || {
        store.fail_over();
        store
    });
    while !failover.is_finished() {
        // A call may fail meanwhile, but not count wrong.
        if let Ok(count) = try_count(&mut client).await {
            assert_eq!(count, 20_000);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let store = failover.await.expect("fails over");
    let key = key(&ids[0]);
    let has_changed = |at: &usize| store.servers()[*at].text(&["GET", &key]) == "2";
    let start = Instant::now();
    // The old master may acknowledge Marks for a while.
    while !replicas.iter().any(has_changed) {
        assert!(start.elapsed() < PATIENCE, "the new masters are not used");
        _ = client.mark(mark(&ids[0], int(2))).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    while !token.is_empty() {
        let page = page_eventually(&mut client, &token).await;
        listed.extend(ids_of(&page.entries));
        token = page.next_page_token;
    }
    assert_eq!(count(&mut client).await, 20_000);
    let missing = ids.iter().filter(|id| !listed.contains(*id)).count();
    assert_eq!(missing, 0, "ids are missing in the list");
    server.stop().await;
}

/// Servers with replicas that can take over.
trait Failover: Send + 'static {
    fn servers(&self) -> &[Redis];

    /// The indexes of the replicas in `servers`.
    fn replicas(&self) -> Vec<usize>;

    /// Has the replicas take over, and waits until they have.
    fn fail_over(&self);
}

impl Failover for Sentinels {
    fn servers(&self) -> &[Redis] {
        &self.redis
    }

    fn replicas(&self) -> Vec<usize> {
        vec![1 - self.master()]
    }

    fn fail_over(&self) {
        self.order_failover();
    }
}

impl Failover for Cluster {
    fn servers(&self) -> &[Redis] {
        &self.nodes
    }

    fn replicas(&self) -> Vec<usize> {
        let pairs = self.pairs().into_iter();
        pairs.map(|[_, replica]| replica).collect()
    }

    fn fail_over(&self) {
        self.order_failovers();
    }
}

#[tokio::test]
async fn lists_and_counts_are_complete_across_a_failover_of_sentinels() {
    use_indexed_namespace();
    let store = Sentinels::start();
    let url = format!("--redis-url={}", store.urls());
    let server = TestServer::start(&["--redis-mode=sentinel", &url, INDEXED[0]]);
    server.ready().await;
    lists_and_counts_are_complete_across_a_failover(server, store).await;
}

/// The master dies between two pages. The token stays valid, although its cursor means nothing to
/// the new master.
#[tokio::test]
async fn a_list_is_complete_after_a_master_of_sentinels_was_killed() {
    use_indexed_namespace();
    let mut store = Sentinels::start();
    let url = format!("--redis-url={}", store.urls());
    let server = TestServer::start(&["--redis-mode=sentinel", &url, INDEXED[0]]);
    server.ready().await;
    let mut client = server.client().await;
    let (ids, mut listed, mut token) = begin_a_list(&mut client).await;
    // The ids that do not stay may be in the list or not.
    let (leaving, staying) = ids.split_at(1_000);
    let request = BatchUnmarkRequest {
        namespace: namespace(),
        ids: leaving.to_vec(),
    };
    client.0.batch_unmark(request).await.expect("unmarks");
    store.wait_for_replica();
    let master = store.master();
    store.redis[master].kill();
    while !token.is_empty() {
        let page = page_within(&mut client, &token, FAILOVER).await;
        listed.extend(ids_of(&page.entries));
        token = page.next_page_token;
    }
    let missing = staying.iter().filter(|id| !listed.contains(*id)).count();
    assert_eq!(missing, 0, "ids are missing in the list");
    assert_eq!(count(&mut client).await, 19_000);
    server.stop().await;
}

#[tokio::test]
async fn lists_and_counts_are_complete_across_failovers_in_a_cluster() {
    use_indexed_namespace();
    let store = Cluster::start();
    let server = start_on_cluster(&store.nodes).await;
    lists_and_counts_are_complete_across_a_failover(server, store).await;
}

/// Nobody reads the index, and what has expired leaves it all the same.
#[tokio::test]
async fn what_has_expired_is_swept_from_the_index() {
    use_indexed_namespace();
    let redis = Redis::start();
    let server = TestServer::on_redis(&redis, INDEXED).await;
    let mut client = server.client().await;
    for number in 0..100 {
        client
            .mark(short(&number.to_string(), 1))
            .await
            .expect("marks");
    }
    client.mark(mark("stays", int(1))).await.expect("marks");
    let index_sizes = || {
        let shards = 0..64;
        let sizes = shards.map(|shard| -> i64 {
            let key = format!("dyn_data_index:{{online.{shard}}}");
            redis::from_redis_value(redis.must(&["ZCARD", &key])).expect("a number")
        });
        sizes.sum::<i64>()
    };
    let start = Instant::now();
    while index_sizes() != 1 {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "{}",
            index_sizes()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(count(&mut client).await, 1);
    server.stop().await;
}

/// The line of the metric of marked ids.
fn indexed_ids(namespace: &str, ids: u64) -> String {
    format!(r#"dyndata_indexed_ids{{namespace="{namespace}"}} {ids}"#)
}

/// Waits until `/metrics` says how many ids are marked in the namespace `online`. The sweep takes
/// about 10 seconds for its first round, and 15 at most.
async fn wait_for_indexed_ids(server: &TestServer, ids: u64) {
    let start = Instant::now();
    let line = indexed_ids("online", ids);
    loop {
        let (_, metrics) = server.http("/metrics").await;
        if metrics.lines().any(|have| have == line) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "never: {line}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn the_metric_of_ids_follows(server: TestServer) {
    use_indexed_namespace();
    let mut client = server.client().await;
    let ids: Vec<_> = (0..100).map(|number| format!("id {number}")).collect();
    mark_many(&mut client, &ids).await;
    wait_for_indexed_ids(&server, 100).await;
    server.metric(&indexed_ids("devices", 0)).await;
    // 20 leave, 30 expire, and 1 comes.
    let request = BatchUnmarkRequest {
        namespace: namespace(),
        ids: ids[..20].to_vec(),
    };
    client.0.batch_unmark(request).await.expect("unmarks");
    for id in &ids[20..50] {
        client.mark(short(id, 1)).await.expect("marks");
    }
    client.mark(mark("new", int(1))).await.expect("marks");
    wait_for_indexed_ids(&server, 51).await;
    assert_eq!(count(&mut client).await, 51);
    server.stop().await;
}

#[tokio::test]
async fn the_metric_of_ids_follows_on_the_embedded_store() {
    the_metric_of_ids_follows(TestServer::start(INDEXED)).await;
}

#[tokio::test]
async fn the_metric_of_ids_follows_on_one_redis() {
    let redis = Redis::start();
    the_metric_of_ids_follows(TestServer::on_redis(&redis, INDEXED).await).await;
}

#[tokio::test]
async fn the_metric_of_ids_follows_on_a_cluster() {
    let nodes = cluster::masters();
    the_metric_of_ids_follows(start_on_cluster(&nodes).await).await;
}

/// An old number would look like a current one.
#[tokio::test]
async fn the_metric_of_ids_is_absent_while_redis_is_away() {
    use_indexed_namespace();
    let mut redis = Redis::start_durable(&[]);
    let server = TestServer::on_redis(&redis, INDEXED).await;
    let mut client = server.client().await;
    client.mark(mark("a", int(1))).await.expect("marks");
    wait_for_indexed_ids(&server, 1).await;
    redis.kill();
    let is_shown = || async {
        let (_, metrics) = server.http("/metrics").await;
        metrics.contains("dyndata_indexed_ids{namespace=\"online\"}")
    };
    let start = Instant::now();
    while is_shown().await {
        assert!(start.elapsed() < Duration::from_secs(30), "still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    redis.run();
    server.ready().await;
    wait_for_indexed_ids(&server, 1).await;
    server.stop().await;
}

#[tokio::test]
async fn without_indexed_namespaces_there_is_no_metric_of_ids() {
    let server = TestServer::start(&[]);
    let (_, metrics) = server.http("/metrics").await;
    assert!(!metrics.contains("dyndata_indexed_ids"), "{metrics}");
    server.stop().await;
}

/// What one call did to one id.
#[derive(Debug, Clone, Copy)]
struct Write {
    started: Instant,
    ended: Instant,
    /// The time to live of a Mark or an Increment. `None` for an Unmark.
    ttl: Option<Duration>,
}

/// The writes of an id by its only writer.
type Life = Vec<Write>;

/// How far the clock of Redis, which has whole milliseconds, may be from ours.
const CLOCK: Duration = Duration::from_millis(2);

/// How much longer a value may live, because the server estimates the clock of Redis.
const ESTIMATE: Duration = Duration::from_millis(5);

/// Two moments and the time between them.
type Span = (Instant, Instant);

/// When an id is certainly marked.
fn certainly_marked(life: &Life) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    // Since when and until when the id is certainly marked, if it is.
    let mut until: Option<Span> = None;
    for (at, write) in life.iter().enumerate() {
        let Write {
            started,
            ended,
            ttl,
        } = *write;
        let Some(ttl) = ttl else {
            until = None;
            continue;
        };
        // While the call runs, the old value or the new one is there, if both live long enough.
        let lives = |end: Instant| end >= ended + CLOCK;
        let expiry = (started + ttl).checked_sub(CLOCK).expect("late enough");
        let begin = match until {
            Some((begin, end)) if lives(end) && lives(expiry) => begin,
            _ => ended,
        };
        until = Some((begin, expiry));
        let next = life.get(at + 1);
        let end = next.map_or(expiry, |next| expiry.min(next.started));
        match spans.last_mut() {
            Some(last) if last.0 == begin => last.1 = end,
            _ if begin <= end => spans.push((begin, end)),
            _ => {}
        }
    }
    spans
}

/// When an id may be marked.
fn possibly_marked(life: &Life) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for (at, write) in life.iter().enumerate() {
        let Some(ttl) = write.ttl else {
            continue;
        };
        let expiry = write.ended + ttl + CLOCK + ESTIMATE;
        let next = life.get(at + 1);
        let end = next.map_or(expiry, |next| expiry.min(next.ended));
        match spans.last_mut() {
            Some(last) if write.started <= last.1 => last.1 = end.max(last.1),
            _ => spans.push((write.started, end)),
        }
    }
    spans
}

/// Spans of many ids, sorted so that counting does not have to look at each of them. Those of one id
/// do not touch each other.
struct Spans {
    by_begin: Vec<Span>,
    ends: Vec<Instant>,
    /// The times between two spans of one id, by their begin.
    gaps: Vec<Span>,
}

impl Spans {
    fn of(ids: impl Iterator<Item = Vec<Span>>) -> Self {
        let (mut by_begin, mut gaps) = (Vec::new(), Vec::new());
        for spans in ids {
            gaps.extend(spans.windows(2).map(|pair| (pair[0].1, pair[1].0)));
            by_begin.extend(spans);
        }
        let mut ends: Vec<_> = by_begin.iter().map(|span| span.1).collect();
        by_begin.sort_unstable();
        ends.sort_unstable();
        gaps.sort_unstable();
        Self {
            by_begin,
            ends,
            gaps,
        }
    }

    /// How many ids have a span that contains this one.
    fn around(&self, (from, to): Span) -> usize {
        let begun = self.by_begin.partition_point(|span| span.0 <= from);
        let ended = self.ends.partition_point(|end| *end < to);
        let later = self.by_begin[begun..].iter();
        let later = later.take_while(|span| span.0 < to);
        // Those that have ended and have not begun in time.
        let within = later.filter(|span| span.1 < to).count();
        begun + within - ended
    }

    /// How many ids have a span that has a moment of this one.
    fn touching(&self, (from, to): Span) -> usize {
        let begun = self.by_begin.partition_point(|span| span.0 <= to);
        let ended = self.ends.partition_point(|end| *end < from);
        let later = self.gaps.partition_point(|gap| gap.0 < from);
        let later = self.gaps[later..].iter();
        let later = later.take_while(|gap| gap.0 <= to);
        // An id with a span before a gap and one after it counts once.
        let again = later.filter(|gap| gap.1 <= to).count();
        begun - ended - again
    }
}

#[test]
fn sorted_spans_are_counted_like_those_of_each_id() {
    let start = Instant::now();
    let moment = |millis: u64| start + Duration::from_millis(millis);
    for _ in 0..200 {
        let spans_of_id = || {
            let mut times: Vec<_> = (0..6).map(|_| fastrand::u64(..30)).collect();
            times.sort_unstable();
            times.dedup();
            let pairs = times.chunks_exact(2);
            pairs
                .map(|pair| (moment(pair[0]), moment(pair[1])))
                .collect()
        };
        let ids: Vec<Vec<Span>> = (0..20).map(|_| spans_of_id()).collect();
        let sorted = Spans::of(ids.iter().cloned());
        for _ in 0..50 {
            let from = fastrand::u64(..30);
            let span = (moment(from), moment(fastrand::u64(from..30)));
            let count = |matches: fn(Span, Span) -> bool| {
                let has = |spans: &&Vec<Span>| spans.iter().any(|it| matches(*it, span));
                ids.iter().filter(has).count()
            };
            let around = count(|it, span| it.0 <= span.0 && span.1 <= it.1);
            assert_eq!(sorted.around(span), around);
            let touching = count(|it, span| it.0 <= span.1 && span.0 <= it.1);
            assert_eq!(sorted.touching(span), touching);
        }
    }
}

/// How much the test of Count writes.
#[derive(Clone, Copy)]
struct Scale {
    ids_of_writer: usize,
    longest_ttl: Duration,
    time: Duration,
}

impl Scale {
    const WRITERS: usize = 8;

    /// Small, unless `DYNDATA_TEST_COUNT_IDS` says how many ids to write.
    fn of_environment() -> Self {
        let Ok(ids) = std::env::var("DYNDATA_TEST_COUNT_IDS") else {
            return Self {
                ids_of_writer: 40,
                longest_ttl: Duration::from_secs(2),
                time: Duration::from_secs(4),
            };
        };
        let ids: usize = ids.parse().expect("a number");
        Self {
            ids_of_writer: ids.div_ceil(Self::WRITERS),
            longest_ttl: Duration::from_secs(10),
            time: Duration::from_secs(40),
        }
    }

    fn ttl(self) -> Duration {
        Duration::from_millis(fastrand::u64(50..self.longest_ttl.as_millis() as u64))
    }
}

/// No write and no count may fail, even on a busy machine.
const REDIS_TIMEOUT: &str = "--redis-timeout=4s";

/// Two processes write ids at random and count them.
async fn every_count_is_within_its_bounds(servers: [Dyndata; 2]) {
    let scale = Scale::of_environment();
    let end = Instant::now() + scale.time;
    let mut writers = JoinSet::new();
    let mut counters = JoinSet::new();
    for writer in 0..Scale::WRITERS {
        let mut client = client_of(&servers[writer % 2]).await;
        writers.spawn(async move {
            let mut lives = vec![Life::new(); scale.ids_of_writer];
            while Instant::now() < end {
                let started = Instant::now();
                let written = write(&mut client, writer, scale).await;
                let ended = Instant::now();
                for (at, ttl) in written {
                    lives[at].push(Write {
                        started,
                        ended,
                        ttl,
                    });
                }
            }
            lives
        });
    }
    for server in &servers {
        let mut client = client_of(server).await;
        counters.spawn(async move {
            let mut counts = Vec::new();
            while Instant::now() < end {
                let from = Instant::now();
                let count = count(&mut client).await;
                counts.push(((from, Instant::now()), count));
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            counts
        });
    }
    let lives: Vec<_> = writers.join_all().await.into_iter().flatten().collect();
    let counts: Vec<_> = counters.join_all().await.into_iter().flatten().collect();
    assert!(counts.len() > 20, "{}", counts.len());
    let certain = Spans::of(lives.iter().map(certainly_marked));
    let possible = Spans::of(lives.iter().map(possibly_marked));
    let mut widths = Vec::new();
    for (span, count) in counts.iter().copied() {
        let least = certain.around(span) as i64;
        let most = possible.touching(span) as i64;
        assert!(
            (least..=most).contains(&count),
            "{least} <= {count} <= {most}"
        );
        widths.push(most - least);
    }
    report(&lives, &counts, &widths);
    // Bounds that are far apart would check nothing.
    let width = widths.iter().sum::<i64>() as f64 / widths.len() as f64;
    assert!(width < 80.0 + lives.len() as f64 / 25.0, "{width}");
}

/// Says what was checked, for those who want to know with `--nocapture`.
#[expect(clippy::print_stdout, reason = "the test shows it only if asked to")]
fn report(lives: &[Life], counts: &[(Span, i64)], widths: &[i64]) {
    let writes = lives.iter().map(Vec::len).sum::<usize>();
    let counts: Vec<_> = counts.iter().map(|(_, count)| count).collect();
    println!(
        "{} ids, {writes} writes, {} counts of up to {} ids; bounds {} to {} apart, {} on average",
        lives.len(),
        counts.len(),
        counts.iter().max().expect("some"),
        widths.iter().min().expect("some"),
        widths.iter().max().expect("some"),
        widths.iter().sum::<i64>() / widths.len() as i64,
    );
}

async fn client_of(server: &Dyndata) -> Client {
    let client = DynDataClient::connect(format!("http://{}", server.addr)).await;
    Client(client.expect("connects"))
}

/// Writes ids of a writer in one of several ways. Returns their numbers, and their times to live if
/// they are marked then.
async fn write(client: &mut Client, writer: usize, scale: Scale) -> Vec<(usize, Option<Duration>)> {
    let id = |at: usize| format!("{writer} {at}");
    let in_millis = |ttl: Duration| millis(ttl.as_millis() as u64);
    let at = fastrand::usize(..scale.ids_of_writer);
    let ttl = scale.ttl();
    // So many ids are never marked one by one.
    let batch = scale.ids_of_writer / 100;
    match fastrand::u8(..4) {
        0 => {
            let request = UnmarkRequest {
                namespace: namespace(),
                id: id(at),
                if_equal: None,
            };
            client.0.unmark(request).await.expect("unmarks");
            vec![(at, None)]
        }
        1 => {
            let request = IncrementRequest {
                namespace: namespace(),
                id: id(at),
                ttl: Some(in_millis(ttl)),
                ..IncrementRequest::default()
            };
            client.0.increment(request).await.expect("counts");
            vec![(at, Some(ttl))]
        }
        2 if batch > 0 => {
            let numbers = (at..at + batch).map(|at| at % scale.ids_of_writer);
            let written: Vec<_> = numbers.map(|at| (at, scale.ttl())).collect();
            let marks = written.iter().map(|(at, ttl)| Item {
                id: id(*at),
                value: Some(item::Value::IntValue(1)),
                ttl: Some(in_millis(*ttl)),
            });
            let request = BatchMarkRequest {
                namespace: namespace(),
                marks: marks.collect(),
            };
            client.0.batch_mark(request).await.expect("marks");
            let written = written.into_iter();
            written.map(|(at, ttl)| (at, Some(ttl))).collect()
        }
        _ => {
            let request = MarkRequest {
                ttl: Some(in_millis(ttl)),
                ..mark(&id(at), int(1))
            };
            client.mark(request).await.expect("marks");
            vec![(at, Some(ttl))]
        }
    }
}

#[tokio::test]
async fn every_count_on_one_redis_is_within_its_bounds() {
    use_indexed_namespace();
    let redis = Redis::start();
    let flags = [INDEXED[0], REDIS_TIMEOUT];
    let servers = [(); 2].map(|()| Dyndata::on(&redis.url(), &flags));
    every_count_is_within_its_bounds(servers).await;
}

#[tokio::test]
async fn every_count_on_a_cluster_is_within_its_bounds() {
    use_indexed_namespace();
    let nodes = cluster::masters();
    let url = cluster::url_flag(&nodes);
    let servers = [(); 2].map(|()| {
        let flags = ["--redis-mode=cluster", &url, INDEXED[0], REDIS_TIMEOUT];
        let server = Dyndata::start(&flags);
        server.ready();
        server
    });
    every_count_is_within_its_bounds(servers).await;
}
