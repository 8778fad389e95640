//! Clients that do not finish their requests or do not read their replies, at the level of HTTP/2
//! frames.

mod support;

use std::{
    collections::HashSet,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use dyndata::proto::dyn_data_client::DynDataClient;
use support::{Dyndata, PATIENCE, Redis, TestServer, batch, mark, text};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const NO_ERROR: u32 = 0;
const CANCEL: u32 = 8;

const GET: &str = "/dyndata.v1.DynData/Get";
const MARK: &str = "/dyndata.v1.DynData/Mark";
const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const GRPC: &str = "application/grpc";
const GETS_STARTED: &str = r#"grpc_server_started_total{grpc_type="unary",grpc_service="dyndata.v1.DynData",grpc_method="Get"} "#;
/// A GetRequest for the id 42, with the gRPC prefix.
const GET_42: &[u8] = &[0, 0, 0, 0, 4, 0x12, 2, b'4', b'2'];
/// A HealthCheckRequest for the whole server.
const EMPTY: &[u8] = &[0, 0, 0, 0, 0];
/// A request for the list of services.
const LIST_SERVICES: &[u8] = &[0, 0, 0, 0, 2, 0x3a, 0];

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    fn ends_stream(&self) -> bool {
        self.kind == RST_STREAM
            || ((self.kind == DATA || self.kind == HEADERS) && self.flags & END_STREAM != 0)
    }

    fn reset_reason(&self) -> Option<u32> {
        let reason = self.payload.first_chunk().copied().map(u32::from_be_bytes);
        reason.filter(|_| self.kind == RST_STREAM)
    }
}

/// A connection that sends exactly the given bytes.
struct Peer {
    socket: TcpStream,
    next_stream: u32,
}

impl Peer {
    /// Connects with this window for each stream.
    fn connect(addr: &str, window: u32) -> Self {
        let mut socket = TcpStream::connect(addr).expect("connects");
        socket
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .expect("writes");
        let mut peer = Self {
            socket,
            next_stream: 1,
        };
        let mut setting = vec![0, 4];
        setting.extend(window.to_be_bytes());
        peer.send(&frame(SETTINGS, 0, 0, &setting));
        peer
    }

    fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("writes");
    }

    fn open(&mut self) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        stream
    }

    /// Sends a whole request. Returns its stream.
    fn request(&mut self, path: &str, content_type: &str, body: &[u8]) -> u32 {
        let stream = self.open();
        let mut bytes = head(stream, path, content_type);
        bytes.extend(frame(DATA, END_STREAM, stream, body));
        self.send(&bytes);
        stream
    }

    /// Sends the start of a request. Returns its stream.
    fn begin(&mut self, path: &str, body: &[u8]) -> u32 {
        let stream = self.open();
        let mut bytes = head(stream, path, GRPC);
        if !body.is_empty() {
            bytes.extend(frame(DATA, 0, stream, body));
        }
        self.send(&bytes);
        stream
    }

    /// The next frame. `None` if no frame arrives in this time.
    fn frame_within(&mut self, timeout: Duration) -> Option<Frame> {
        self.socket
            .set_read_timeout(Some(timeout))
            .expect("a timeout");
        let mut head = [0; 9];
        match self.socket.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return None;
            }
            Err(error) => panic!("the connection is gone: {error}"),
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.socket.read_exact(&mut payload).expect("reads");
        if head[3] == SETTINGS && head[4] == 0 {
            // From now on, the window of the server is a megabyte.
            self.send(&frame(SETTINGS, 1, 0, &[]));
        }
        Some(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        })
    }

    /// The frame that ends a stream.
    fn end_of(&mut self, stream: u32) -> Frame {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "stream {stream} never ends");
            if let Some(frame) = self.frame_within(PATIENCE)
                && frame.stream == stream
                && frame.ends_stream()
            {
                return frame;
            }
        }
    }

    /// Makes a Get, and checks that it succeeds.
    fn get(&mut self) {
        let stream = self.request(GET, GRPC, GET_42);
        let end = self.end_of(stream);
        assert_eq!(end.kind, HEADERS, "{end:?}");
        // Makes room for the next reply in the window of the connection.
        self.send(&frame(WINDOW_UPDATE, 0, 0, &4_096_u32.to_be_bytes()));
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn head(stream: u32, path: &str, content_type: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("content-type", content_type),
        ("te", "trailers"),
    ] {
        // A literal header, neither indexed nor compressed.
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("short"));
            block.extend(text.as_bytes());
        }
    }
    frame(HEADERS, END_HEADERS, stream, &block)
}

/// Resident memory of a process, in bytes.
fn resident_bytes(server: &Dyndata) -> u64 {
    let path = format!("/proc/{}/statm", server.pid());
    let statm = std::fs::read_to_string(path).expect("a process");
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .expect("a number");
    pages * 4096
}

/// The value of the first metric whose line starts with this text.
fn metric(server: &Dyndata, start_of_line: &str) -> usize {
    let reply = server.http("/metrics").expect("answers");
    reply
        .lines()
        .find(|line| line.starts_with(start_of_line))
        .and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .expect("a count")
}

/// The number of Gets that the server has started.
fn started_gets(server: &Dyndata) -> usize {
    metric(server, GETS_STARTED)
}

#[tokio::test]
async fn a_stream_with_an_unread_reply_is_reset_and_delays_no_shutdown() {
    for window in [0, 1] {
        for (what, path, content_type, body) in [
            ("Get", GET, GRPC, GET_42),
            ("health Check", CHECK, GRPC, EMPTY),
            ("health Watch", WATCH, GRPC, EMPTY),
            ("reflection", REFLECTION, GRPC, LIST_SERVICES),
            ("415", GET, "text/plain", GET_42),
        ] {
            let flags = ["--send-timeout=300ms", "--drain-timeout=60s"];
            let mut server = TestServer::start(&flags);
            server.ready().await;
            let mut client = server.client().await;
            client.mark(mark("42", text("value"))).await.expect("marks");
            let mut peer = Peer::connect(&server.addr, window);
            let stream = peer.request(path, content_type, body);
            let end = peer.end_of(stream);
            assert_eq!(end.reset_reason(), Some(CANCEL), "{what}, window {window}");
            // Another stream, during which the server is told to stop.
            peer.request(path, content_type, body);
            server.begin_stop();
            drop(client);
            let start = Instant::now();
            server.stop().await;
            assert!(start.elapsed() < PATIENCE, "{what}, window {window}");
        }
    }
}

#[tokio::test]
async fn errors_need_no_window() {
    let server = TestServer::start(&[]);
    let mut peer = Peer::connect(&server.addr, 0);
    for (path, body) in [
        (GET, EMPTY),
        (CHECK, &[0, 0, 0, 0, 3, 0x0a, 1, b'x'][..]),
        ("/nobody.v1.Nothing/Do", EMPTY),
    ] {
        let stream = peer.request(path, GRPC, body);
        let end = peer.end_of(stream);
        assert_eq!(end.kind, HEADERS, "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn streams_that_wait_for_something_else_are_left_alone() {
    let server = TestServer::start(&["--send-timeout=200ms"]);
    server.ready().await;
    let mut peer = Peer::connect(&server.addr, 65_535);
    peer.request(WATCH, GRPC, EMPTY);
    peer.begin(REFLECTION, LIST_SERVICES);
    while let Some(frame) = peer.frame_within(Duration::from_secs(5)) {
        assert!(!frame.ends_stream(), "{frame:?}");
    }
    peer.get();
    drop(peer);
    server.stop().await;
}

#[tokio::test]
async fn an_incomplete_request_has_a_time_limit_of_its_own() {
    let server = TestServer::start(&["--max-deadline=60s"]);
    server.ready().await;
    let mut peer = Peer::connect(&server.addr, 65_535);
    for (path, body) in [
        (GET, &[][..]),
        (MARK, &[0, 0, 0, 0, 9, 0x12]),
        (CHECK, &[0, 0, 0, 0, 9, 0x0a]),
        (REFLECTION, &[0, 0, 0, 0, 9, 0x0a]),
    ] {
        let stream = peer.begin(path, body);
        peer.end_of(stream);
    }
    drop(peer);
    server.stop().await;
}

#[tokio::test]
async fn requests_without_a_message_keep_nobody_else_out() {
    let server = TestServer::start(&[]);
    let mut client = server.client().await;
    let mut peers: Vec<_> = (0..10)
        .map(|_| Peer::connect(&server.addr, 65_535))
        .collect();
    for peer in &mut peers {
        for _ in 0..256 {
            peer.begin(GET, &[]);
        }
    }
    server.metric(&format!("{GETS_STARTED}2560")).await;
    for _ in 0..200 {
        client.get("42").await.expect("room for a complete call");
    }
    // There is also room for a call whose message follows a little later.
    let mut slow = Peer::connect(&server.addr, 65_535);
    let stream = slow.begin(GET, &GET_42[..3]);
    std::thread::sleep(Duration::from_millis(100));
    slow.send(&frame(DATA, END_STREAM, stream, &GET_42[3..]));
    let end = slow.end_of(stream);
    assert_eq!(end.kind, HEADERS, "{end:?}");
    drop((peers, slow, client));
    server.stop().await;
}

#[tokio::test]
async fn a_large_message_to_health_is_refused_before_it_comes() {
    let server = TestServer::start(&[]);
    let mut peer = Peer::connect(&server.addr, 65_535);
    let stream = peer.begin(CHECK, &[0, 0, 0, 0x20, 0]);
    let start = Instant::now();
    let end = peer.end_of(stream);
    assert_eq!((end.kind, end.reset_reason()), (HEADERS, None));
    assert!(start.elapsed() < Duration::from_secs(2), "not at once");
    drop(peer);
    server.stop().await;
}

#[tokio::test]
async fn many_small_questions_to_reflection_at_once_are_all_answered() {
    let server = TestServer::start(&[]);
    let mut peer = Peer::connect(&server.addr, 1 << 20);
    peer.send(&frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes()));
    let stream = peer.begin(REFLECTION, &[]);
    let mut questions = Vec::new();
    for number in 1..=400 {
        let flags = if number == 400 { END_STREAM } else { 0 };
        questions.extend(frame(DATA, flags, stream, LIST_SERVICES));
    }
    peer.send(&questions);
    let end = peer.end_of(stream);
    assert_eq!((end.kind, end.reset_reason()), (HEADERS, None));
    drop(peer);
    server.stop().await;
}

#[tokio::test]
async fn after_an_early_error_the_rest_of_the_request_is_discarded() {
    let server = TestServer::start(&[]);
    let mut peer = Peer::connect(&server.addr, 65_535);
    // A message of a million bytes is larger than the limit.
    let stream = peer.begin(MARK, &[0, 0, 15, 66, 64]);
    let end = peer.end_of(stream);
    assert_eq!(end.kind, HEADERS, "{end:?}");
    let piece = [0; 16_000];
    for number in 0..50 {
        let flags = if number == 49 { END_STREAM } else { 0 };
        peer.send(&frame(DATA, flags, stream, &piece));
    }
    let other = peer.request(GET, GRPC, GET_42);
    loop {
        let frame = peer.frame_within(PATIENCE).expect("an answer");
        assert_eq!(frame.reset_reason(), None, "{frame:?}");
        if frame.stream == other && frame.ends_stream() {
            break;
        }
    }
    // A request that never ends is finally reset, with NO_ERROR.
    let stream = peer.begin(MARK, &[0, 0, 15, 66, 64]);
    assert_eq!(peer.end_of(stream).kind, HEADERS);
    assert_eq!(peer.end_of(stream).reset_reason(), Some(NO_ERROR));
    peer.get();
    drop(peer);
    server.stop().await;
}

#[tokio::test]
async fn a_call_without_room_gets_an_error_before_its_stream_is_reset() {
    const CALLS: usize = 256;
    let server = TestServer::start(&[]);
    // More incomplete requests than all workers have room for.
    let mut peers: Vec<_> = (0..20)
        .map(|_| Peer::connect(&server.addr, 65_535))
        .collect();
    for peer in &mut peers {
        for _ in 0..CALLS {
            peer.begin(GET, &GET_42[..1]);
        }
    }
    for peer in &mut peers {
        let mut answered = HashSet::new();
        while answered.len() < CALLS {
            let frame = peer.frame_within(PATIENCE).expect("an answer");
            match frame.reset_reason() {
                Some(_) => assert!(answered.contains(&frame.stream), "no answer: {frame:?}"),
                None if frame.ends_stream() => _ = answered.insert(frame.stream),
                None => {}
            }
        }
    }
    drop(peers);
    server.stop().await;
}

/// The most memory that a server may use for clients without credentials. Before calls were counted,
/// twice as much was not enough. A debug build needs more than a release build.
const MAX_GROWTH: u64 = 48 << 20;

#[test]
fn small_unread_replies_need_little_memory() {
    let server = Dyndata::start(&["--send-timeout=60s"]);
    let value = [b'x'; 4000];
    // id 42, string_value of 4,000 bytes.
    let mut request = vec![0, 0, 0, 0x0f, 0xa7, 0x12, 2, b'4', b'2', 0x22, 0xa0, 0x1f];
    request.extend(value);
    let mut good = Peer::connect(&server.addr, 65_535);
    let stream = good.request(MARK, GRPC, &request);
    assert_eq!(good.end_of(stream).kind, HEADERS);
    let before = resident_bytes(&server);
    let mut peers = Vec::new();
    for _ in 0..200 {
        let mut peer = Peer::connect(&server.addr, 0);
        for _ in 0..100 {
            peer.request(GET, GRPC, GET_42);
        }
        peers.push(peer);
    }
    let start = Instant::now();
    while started_gets(&server) < 200 * 100 {
        assert!(start.elapsed() < 6 * PATIENCE, "calls never begin");
        std::thread::sleep(Duration::from_millis(100));
    }
    let growth = resident_bytes(&server).saturating_sub(before);
    assert!(growth < MAX_GROWTH, "{} KiB", growth / 1024);
    for _ in 0..100 {
        good.get();
    }
}

#[test]
fn incomplete_health_and_reflection_requests_need_little_memory() {
    let server = Dyndata::start(&[]);
    let before = resident_bytes(&server);
    let mut peers = Vec::new();
    let mut most = 0;
    for path in [CHECK, REFLECTION] {
        for _ in 0..20 {
            let mut peer = Peer::connect(&server.addr, 65_535);
            for _ in 0..100 {
                // The message announces two megabytes, and 8 KiB are sent.
                let mut body = vec![0, 0, 0x20, 0, 0];
                body.resize(8 * 1024, 0);
                peer.begin(path, &body);
            }
            peers.push(peer);
            most = most.max(resident_bytes(&server));
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    let growth = most.max(resident_bytes(&server)).saturating_sub(before);
    assert!(growth < MAX_GROWTH, "{} KiB", growth / 1024);
    Peer::connect(&server.addr, 65_535).get();
}

#[tokio::test]
async fn complete_requests_that_wait_for_redis_need_little_memory() {
    const CALLS: usize = 200;
    let redis = Redis::start();
    let server = Dyndata::start(&[
        "--redis-url",
        &redis.url(),
        "--redis-timeout=30s",
        "--max-deadline=60s",
    ]);
    server.ready();
    redis.pause(60_000);
    let before = resident_bytes(&server);
    let channel = Channel::from_shared(format!("http://{}", server.addr))
        .expect("a URL")
        .connect()
        .await
        .expect("connects");
    let mut calls = JoinSet::new();
    let mut results = Vec::new();
    for _ in 0..CALLS {
        let mut client = DynDataClient::new(channel.clone());
        calls.spawn(async move {
            let ids = (0..1000).map(|number| format!("{number:0256}"));
            client.batch_get(batch(ids)).await
        });
        // Waits until the request is complete, so that it does not count as incomplete.
        let start = Instant::now();
        while metric(&server, "dyndata_calls_in_flight ") != calls.len() {
            assert!(start.elapsed() < PATIENCE, "a call never begins");
            tokio::time::sleep(Duration::from_millis(2)).await;
            while let Some(result) = calls.try_join_next() {
                results.push(result.expect("no panic"));
            }
        }
    }
    let growth = resident_bytes(&server).saturating_sub(before);
    assert!(growth < MAX_GROWTH, "{} KiB", growth / 1024);
    assert!(!calls.is_empty(), "nothing had room");
    for result in results {
        let status = result.expect_err("no answer of Redis");
        let info = status.get_details_error_info().expect("an ErrorInfo");
        assert_eq!(info.reason, "OVERLOADED");
    }
}

#[tokio::test]
async fn large_batches_side_by_side_are_served() {
    let redis = Redis::start();
    // No limit of time is reached, however busy the machine is.
    let flags = ["--redis-timeout=5s", "--max-deadline=20s"];
    let server = Dyndata::on(&redis.url(), &flags);
    // All of them wait for Redis together.
    redis.pause(300);
    let mut calls = JoinSet::new();
    for _ in 0..10 {
        let channel = Channel::from_shared(format!("http://{}", server.addr))
            .expect("a URL")
            .connect()
            .await
            .expect("connects");
        for _ in 0..20 {
            let mut client = DynDataClient::new(channel.clone());
            calls.spawn(async move {
                let ids = (0..1000).map(|number| format!("user-{number}"));
                client.batch_get(batch(ids)).await
            });
        }
    }
    while let Some(result) = calls.join_next().await {
        let reply = result.expect("no panic").expect("an answer").into_inner();
        assert_eq!(reply.entries.len(), 1000);
    }
}
