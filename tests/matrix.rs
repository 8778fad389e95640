//! Every writing call on everything that can be stored, on every store: what the call answers, and
//! what is stored afterwards. Each cell of the matrix has its expected text.

#![allow(clippy::print_stdout, reason = "the number of cells is for the reader")]

mod support;

use std::{collections::BTreeSet, time::Duration};

use dyndata::proto::{
    BatchMarkRequest, BatchUnmarkRequest, Entry, IncrementRequest, ListRequest, MarkIfRequest,
    TouchRequest, TtlPolicy, UnmarkRequest, Value, batch_mark_request, entry,
    mark_if_request::Condition, value::Kind,
};
use support::{Client, Redis, TestServer, cluster, int, mark, millis};
use tonic::Status;
use tonic_types::StatusExt as _;

/// What is stored under the id before the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    Nothing,
    Int,
    Text,
    Bytes,
    /// Text without dyndata's tag, as another program writes it.
    Foreign,
    List,
    /// Its time has passed, but nothing has removed it yet.
    Expired,
    /// A number that another program has written without an expiry.
    WithoutTtl,
}

impl Stored {
    const ALL: [Self; 8] = [
        Self::Nothing,
        Self::Int,
        Self::Text,
        Self::Bytes,
        Self::Foreign,
        Self::List,
        Self::Expired,
        Self::WithoutTtl,
    ];

    /// The embedded store has only what dyndata itself writes.
    fn is_of_redis(self) -> bool {
        matches!(self, Self::Foreign | Self::List | Self::WithoutTtl)
    }
}

/// A call, and its expected answers in the order of [`Stored::ALL`]. After the bar is what a Get
/// finds afterwards: the value, and `+` if it has an expiry.
type Row = (&'static str, [&'static str; 8]);

const MATRIX: &[Row] = &[
    (
        "Mark 7",
        [
            "marked|7+",
            "marked|7+",
            "marked|7+",
            "marked|7+",
            "marked|7+",
            "marked|7+",
            "marked|7+",
            "marked|7+",
        ],
    ),
    (
        "BatchMark 7",
        [
            "marked|7+",
            "marked|7+",
            "marked|7+",
            "marked|7+",
            "marked|7+",
            "marked|7+",
            "marked|7+",
            "marked|7+",
        ],
    ),
    (
        "Unmark",
        [
            "kept|-",
            "removed|-",
            "removed|-",
            "removed|-",
            "removed|-",
            "removed|-",
            "kept|-",
            "removed|-",
        ],
    ),
    (
        "BatchUnmark",
        [
            "removed 0|-",
            "removed 1|-",
            "removed 1|-",
            "removed 1|-",
            "removed 1|-",
            "removed 1|-",
            "removed 0|-",
            "removed 1|-",
        ],
    ),
    (
        "Unmark if 5",
        [
            "kept|-",
            "removed|-",
            "kept|\"abc\"+",
            "kept|b\"\\xff\\x01\"+",
            "kept|\"abc\"+",
            "WRONG_TYPE|list",
            "kept|-",
            "removed|-",
        ],
    ),
    (
        "Unmark if \"5\"",
        [
            "kept|-",
            "kept|5+",
            "kept|\"abc\"+",
            "kept|b\"\\xff\\x01\"+",
            "kept|\"abc\"+",
            "WRONG_TYPE|list",
            "kept|-",
            "kept|5",
        ],
    ),
    (
        "Unmark if \"abc\"",
        [
            "kept|-",
            "kept|5+",
            "removed|-",
            "kept|b\"\\xff\\x01\"+",
            "removed|-",
            "WRONG_TYPE|list",
            "kept|-",
            "kept|5",
        ],
    ),
    (
        "MarkIf 7",
        [
            "applied, was -|7+",
            "applied, was 5|7+",
            "applied, was \"abc\"|7+",
            "applied, was b\"\\xff\\x01\"|7+",
            "applied, was \"abc\"|7+",
            "WRONG_TYPE|list",
            "applied, was -|7+",
            "applied, was 5|7+",
        ],
    ),
    (
        "MarkIf 7 if absent",
        [
            "applied, was -|7+",
            "refused, was 5|5+",
            "refused, was \"abc\"|\"abc\"+",
            "refused, was b\"\\xff\\x01\"|b\"\\xff\\x01\"+",
            "refused, was \"abc\"|\"abc\"+",
            "WRONG_TYPE|list",
            "applied, was -|7+",
            "refused, was 5|5",
        ],
    ),
    (
        "MarkIf 7 if present",
        [
            "refused, was -|-",
            "applied, was 5|7+",
            "applied, was \"abc\"|7+",
            "applied, was b\"\\xff\\x01\"|7+",
            "applied, was \"abc\"|7+",
            "WRONG_TYPE|list",
            "refused, was -|-",
            "applied, was 5|7+",
        ],
    ),
    (
        "MarkIf 7 if 5",
        [
            "refused, was -|-",
            "applied, was 5|7+",
            "refused, was \"abc\"|\"abc\"+",
            "refused, was b\"\\xff\\x01\"|b\"\\xff\\x01\"+",
            "refused, was \"abc\"|\"abc\"+",
            "WRONG_TYPE|list",
            "refused, was -|-",
            "applied, was 5|7+",
        ],
    ),
    (
        "MarkIf 7 if \"abc\"",
        [
            "refused, was -|-",
            "refused, was 5|5+",
            "applied, was \"abc\"|7+",
            "refused, was b\"\\xff\\x01\"|b\"\\xff\\x01\"+",
            "applied, was \"abc\"|7+",
            "WRONG_TYPE|list",
            "refused, was -|-",
            "refused, was 5|5",
        ],
    ),
    (
        "MarkIf 7 if b\"\\xff\\x01\"",
        [
            "refused, was -|-",
            "refused, was 5|5+",
            "refused, was \"abc\"|\"abc\"+",
            "applied, was b\"\\xff\\x01\"|7+",
            "refused, was \"abc\"|\"abc\"+",
            "WRONG_TYPE|list",
            "refused, was -|-",
            "refused, was 5|5",
        ],
    ),
    (
        "Touch",
        [
            "-|-",
            "5+|5+",
            "\"abc\"+|\"abc\"+",
            "b\"\\xff\\x01\"+|b\"\\xff\\x01\"+",
            "\"abc\"+|\"abc\"+",
            "-|list",
            "-|-",
            "5+|5+",
        ],
    ),
    (
        "Increment 2",
        [
            "applied 2+|2+",
            "applied 7+|7+",
            "NOT_AN_INTEGER|\"abc\"+",
            "NOT_AN_INTEGER|b\"\\xff\\x01\"+",
            "NOT_AN_INTEGER|\"abc\"+",
            "WRONG_TYPE|list",
            "applied 2+|2+",
            "applied 7+|7+",
        ],
    ),
    (
        "Increment 2, keep",
        [
            "applied 2+|2+",
            "applied 7+|7+",
            "NOT_AN_INTEGER|\"abc\"+",
            "NOT_AN_INTEGER|b\"\\xff\\x01\"+",
            "NOT_AN_INTEGER|\"abc\"+",
            "WRONG_TYPE|list",
            "applied 2+|2+",
            "applied 7|7",
        ],
    ),
    (
        "Increment 2, max 6",
        [
            "applied 2+|2+",
            "refused 5+|5+",
            "NOT_AN_INTEGER|\"abc\"+",
            "NOT_AN_INTEGER|b\"\\xff\\x01\"+",
            "NOT_AN_INTEGER|\"abc\"+",
            "WRONG_TYPE|list",
            "applied 2+|2+",
            "refused 5|5",
        ],
    ),
    (
        "Increment 2, min 6",
        [
            "refused 0|-",
            "applied 7+|7+",
            "NOT_AN_INTEGER|\"abc\"+",
            "NOT_AN_INTEGER|b\"\\xff\\x01\"+",
            "NOT_AN_INTEGER|\"abc\"+",
            "WRONG_TYPE|list",
            "refused 0|-",
            "applied 7+|7+",
        ],
    ),
];

fn shown(value: &Option<entry::Value>) -> String {
    match value {
        None => "-".to_owned(),
        Some(entry::Value::IntValue(int)) => int.to_string(),
        Some(entry::Value::StringValue(text)) => format!("{text:?}"),
        Some(entry::Value::BytesValue(bytes)) => format!("b\"{}\"", bytes.escape_ascii()),
    }
}

fn with_expiry(entry: &Entry) -> String {
    let expiry = if entry.expire_time.is_some() { "+" } else { "" };
    format!("{}{expiry}", shown(&entry.value))
}

fn reason(status: Status) -> String {
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!(
        info.metadata.get("outcome").map(String::as_str),
        Some("not_executed")
    );
    info.reason
}

/// What a Get finds.
async fn state(client: &mut Client, id: &str) -> String {
    match client.get_with_expiry(id).await {
        Ok(entry) => with_expiry(&entry),
        Err(status) => {
            let info = status.get_details_error_info().expect("an ErrorInfo");
            assert_eq!(info.reason, "WRONG_TYPE");
            "list".to_owned()
        }
    }
}

/// The value of a condition, as the names of the rows write it.
fn equal_to(text: &str) -> Value {
    let kind = match text {
        "5" => Kind::IntValue(5),
        "\"5\"" => Kind::StringValue("5".to_owned()),
        "\"abc\"" => Kind::StringValue("abc".to_owned()),
        "b\"\\xff\\x01\"" => Kind::BytesValue(vec![0xff, 1]),
        other => panic!("what is {other}?"),
    };
    Value { kind: Some(kind) }
}

/// Makes the call of a row.
async fn call(client: &mut Client, name: &str, id: &str) -> String {
    let id = id.to_owned();
    let (verb, condition) = name.split_once(" if ").unwrap_or((name, ""));
    let result = match verb {
        "Mark 7" => client
            .mark(mark(&id, int(7)))
            .await
            .map(|_| "marked".to_owned()),
        "BatchMark 7" => {
            let item = batch_mark_request::Item {
                id,
                value: Some(batch_mark_request::item::Value::IntValue(7)),
                ttl: None,
            };
            let request = BatchMarkRequest {
                namespace: support::namespace(),
                marks: vec![item],
            };
            let reply = client.0.batch_mark(request).await;
            reply.map(|_| "marked".to_owned())
        }
        "Unmark" => {
            let request = UnmarkRequest {
                namespace: support::namespace(),
                id,
                if_equal: (!condition.is_empty()).then(|| equal_to(condition)),
            };
            let reply = client.0.unmark(request).await;
            reply.map(|reply| match reply.into_inner().removed {
                true => "removed".to_owned(),
                false => "kept".to_owned(),
            })
        }
        "BatchUnmark" => {
            let request = BatchUnmarkRequest {
                namespace: support::namespace(),
                ids: vec![id.clone(), id],
            };
            let reply = client.0.batch_unmark(request).await;
            reply.map(|reply| format!("removed {}", reply.into_inner().removed_count))
        }
        "MarkIf 7" => {
            let condition = match condition {
                "" => None,
                "absent" => Some(Condition::IfAbsent(true)),
                "present" => Some(Condition::IfPresent(true)),
                value => Some(Condition::IfEqual(equal_to(value))),
            };
            let request = MarkIfRequest {
                namespace: support::namespace(),
                id: id.clone(),
                value: Some(dyndata::proto::mark_if_request::Value::IntValue(7)),
                condition,
                ..MarkIfRequest::default()
            };
            client.0.mark_if(request).await.map(|reply| {
                let reply = reply.into_inner();
                assert_eq!(reply.applied, reply.expire_time.is_some());
                let previous = reply.previous.expect("always set");
                assert_eq!((previous.id, previous.expire_time), (id, None));
                let applied = if reply.applied { "applied" } else { "refused" };
                format!("{applied}, was {}", shown(&previous.value))
            })
        }
        "Touch" => {
            let request = TouchRequest {
                namespace: support::namespace(),
                ids: vec![id],
                ..TouchRequest::default()
            };
            let reply = client.0.touch(request).await;
            reply.map(|reply| with_expiry(&reply.into_inner().entries[0]))
        }
        increment => {
            let bound = |name: &str| {
                let (_, value) = increment.split_once(name)?;
                value.trim().parse().ok()
            };
            let policy = match increment.ends_with("keep") {
                true => TtlPolicy::Keep,
                false => TtlPolicy::Restart,
            };
            let request = IncrementRequest {
                namespace: support::namespace(),
                id,
                delta: Some(2),
                ttl_policy: policy.into(),
                min: bound("min"),
                max: bound("max"),
                ..IncrementRequest::default()
            };
            client.0.increment(request).await.map(|reply| {
                let reply = reply.into_inner();
                let applied = if reply.applied { "applied" } else { "refused" };
                let expiry = if reply.expire_time.is_some() { "+" } else { "" };
                format!("{applied} {}{expiry}", reply.value)
            })
        }
    };
    result.unwrap_or_else(reason)
}

/// The key of an id.
fn key(id: &str) -> String {
    match support::namespace().as_str() {
        "" => format!("dyn_data/{id}"),
        namespace => {
            let shard = crc16::State::<crc16::XMODEM>::calculate(id.as_bytes()) % 64;
            format!("dyn_data:{{{namespace}.{shard}}}/{id}")
        }
    }
}

/// Stores what a column says, through dyndata or as another program.
async fn prepare(client: &mut Client, stored: Stored, id: &str, raw: &impl Fn(&str, &[&str])) {
    let key = key(id);
    match stored {
        Stored::Nothing => {}
        Stored::Int => _ = client.mark(mark(id, int(5))).await.expect("marks"),
        Stored::Text => {
            let marked = client.mark(mark(id, support::text("abc"))).await;
            marked.expect("marks");
        }
        Stored::Bytes => {
            let marked = client.mark(mark(id, support::bytes(&[0xff, 1]))).await;
            marked.expect("marks");
        }
        Stored::Foreign => raw(&key, &["SET", &key, "abc", "PX", "60000"]),
        Stored::List => raw(&key, &["RPUSH", &key, "a"]),
        Stored::WithoutTtl => raw(&key, &["SET", &key, "5"]),
        Stored::Expired => {
            let mut request = mark(id, int(5));
            request.ttl = Some(millis(1));
            client.mark(request).await.expect("marks");
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
}

/// Runs the matrix; gives the number of its cells.
async fn run(mut client: Client, has_redis: bool, raw: impl Fn(&str, &[&str])) -> usize {
    let mut cells = 0;
    let mut indexed = BTreeSet::new();
    let mut not_indexed = BTreeSet::new();
    let mut wrong = Vec::new();
    for (name, expected) in MATRIX {
        for (stored, expected) in Stored::ALL.into_iter().zip(expected) {
            if stored.is_of_redis() && !has_redis {
                continue;
            }
            let id = format!("{name} on {stored:?} {{brace}}");
            prepare(&mut client, stored, &id, &raw).await;
            let answer = call(&mut client, name, &id).await;
            let found = format!("{answer}|{}", state(&mut client, &id).await);
            if found != *expected {
                wrong.push(format!("{id}: {found}, not {expected}"));
            }
            cells += 1;
            if found.ends_with("|-") {
                not_indexed.insert(id);
            } else if !stored.is_of_redis() || found.contains("applied") || found == "marked|7+" {
                indexed.insert(id);
            }
        }
    }
    if !support::namespace().is_empty() {
        // What another program has written, and no call has changed, may be listed or not.
        let listed = list(&mut client).await;
        let missing: Vec<_> = indexed.difference(&listed).collect();
        assert!(missing.is_empty(), "not listed: {missing:?}");
        let extra: Vec<_> = not_indexed.intersection(&listed).collect();
        assert!(extra.is_empty(), "listed: {extra:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    cells
}

/// All ids of the namespace.
async fn list(client: &mut Client) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    let mut page_token = String::new();
    loop {
        let request = ListRequest {
            namespace: support::namespace(),
            page_size: 20,
            page_token,
        };
        let page = client.0.list(request).await.expect("lists").into_inner();
        ids.extend(page.entries.into_iter().map(|entry| entry.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return ids;
        }
    }
}

#[tokio::test]
async fn the_matrix_on_the_embedded_store() {
    let server = TestServer::start(&[]);
    let cells = run(server.client().await, false, |_, _| {}).await;
    println!("embedded store: {cells} cells, all as expected");
    assert_eq!(cells, MATRIX.len() * 5);
}

#[tokio::test]
async fn the_matrix_on_one_redis() {
    let redis = Redis::start_with(&["--enable-debug-command", "yes"]);
    // What has expired stays until somebody looks.
    redis.must(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    let server = TestServer::on_redis(&redis, &[]).await;
    let raw = |_: &str, words: &[&str]| _ = redis.must(words);
    let cells = run(server.client().await, true, raw).await;
    println!("one Redis: {cells} cells, all as expected");
    assert_eq!(cells, MATRIX.len() * 8);
}

#[tokio::test]
async fn the_matrix_on_a_cluster() {
    let nodes = cluster::masters();
    for node in &nodes {
        node.must(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    }
    let server = TestServer::start(&["--redis-mode=cluster", &cluster::url_flag(&nodes)]);
    server.ready().await;
    let raw = |key: &str, words: &[&str]| _ = cluster::owner(&nodes, key).must(words);
    let cells = run(server.client().await, true, raw).await;
    println!("cluster: {cells} cells, all as expected");
    assert_eq!(cells, MATRIX.len() * 8);
}

#[tokio::test]
async fn the_matrix_in_an_indexed_namespace_on_the_embedded_store() {
    support::use_indexed_namespace();
    let server = TestServer::start(support::INDEXED);
    let cells = run(server.client().await, false, |_, _| {}).await;
    println!("embedded store: {cells} cells, all as expected");
    assert_eq!(cells, MATRIX.len() * 5);
}

#[tokio::test]
async fn the_matrix_in_an_indexed_namespace_on_one_redis() {
    support::use_indexed_namespace();
    let redis = Redis::start_with(&["--enable-debug-command", "yes"]);
    // What has expired stays until somebody looks.
    redis.must(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    let server = TestServer::on_redis(&redis, support::INDEXED).await;
    let raw = |_: &str, words: &[&str]| _ = redis.must(words);
    let cells = run(server.client().await, true, raw).await;
    println!("one Redis: {cells} cells, all as expected");
    assert_eq!(cells, MATRIX.len() * 8);
}

#[tokio::test]
async fn the_matrix_in_an_indexed_namespace_on_a_cluster() {
    support::use_indexed_namespace();
    let nodes = cluster::masters();
    for node in &nodes {
        node.must(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    }
    let url = cluster::url_flag(&nodes);
    let server = TestServer::start(&["--redis-mode=cluster", &url, support::INDEXED[0]]);
    server.ready().await;
    let raw = |key: &str, words: &[&str]| _ = cluster::owner(&nodes, key).must(words);
    let cells = run(server.client().await, true, raw).await;
    println!("cluster: {cells} cells, all as expected");
    assert_eq!(cells, MATRIX.len() * 8);
}
