//! Shared code of the tests: real redis-server processes, real servers on free ports, and a client.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    unused_macros,
    reason = "each test binary includes this module and uses a part of it"
)]

pub mod certificates;
pub mod cluster;
pub mod dyndata_process;
pub mod redis_server;
pub mod scripted_proxy;
pub mod topology;
pub mod watching;

use std::{
    thread,
    time::{Duration, Instant},
};

use dyndata::{
    Config, Server,
    proto::{
        BatchGetRequest, Entry, GetRequest, MarkRequest, dyn_data_client::DynDataClient, entry,
        mark_request,
    },
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

pub use dyndata_process::Dyndata;
pub use redis_server::{Directory, PATIENCE, Redis, eventually, free_port};
use scripted_proxy::ScriptedProxy;

/// Makes two tests of each case: one on the embedded store, one on a real redis-server.
macro_rules! on_every_store {
    ($($case:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test]
            async fn $case() {
                let server = super::support::TestServer::start(&[]);
                super::$case(server.client().await).await;
                server.stop().await;
            })*
        }
        mod redis {
            $(#[tokio::test]
            async fn $case() {
                let redis = super::support::Redis::start();
                let server = super::support::TestServer::on_redis(&redis, &[]).await;
                super::$case(server.client().await).await;
                server.stop().await;
            })*
        }
    };
}
pub(crate) use on_every_store;

/// Makes two more tests of each case, in which [`namespace`] is an indexed one.
macro_rules! in_an_indexed_namespace {
    ($($case:ident),* $(,)?) => {
        mod indexed_embedded {
            $(#[tokio::test]
            async fn $case() {
                super::support::use_indexed_namespace();
                let server = super::support::TestServer::start(super::support::INDEXED);
                super::$case(server.client().await).await;
                server.stop().await;
            })*
        }
        mod indexed_redis {
            $(#[tokio::test]
            async fn $case() {
                super::support::use_indexed_namespace();
                let redis = super::support::Redis::start();
                let server =
                    super::support::TestServer::on_redis(&redis, super::support::INDEXED).await;
                super::$case(server.client().await).await;
                server.stop().await;
            })*
        }
    };
}
pub(crate) use in_an_indexed_namespace;

/// The flag with which `online` is an indexed namespace.
pub const INDEXED: &[&str] = &["--indexed-namespaces=online,devices"];

thread_local! {
    static NAMESPACE: std::cell::Cell<&'static str> = const { std::cell::Cell::new("") };
}

/// Makes the short forms of calls in this test use the indexed namespace `online`. A test has a
/// thread of its own.
pub fn use_indexed_namespace() {
    NAMESPACE.set("online");
}

/// The namespace of the short forms of calls: the empty one, unless the test uses an indexed one, or
/// `DYNDATA_TEST_NAMESPACE` names one.
pub fn namespace() -> String {
    match NAMESPACE.get() {
        "" => namespace_of_environment().unwrap_or_default(),
        namespace => namespace.to_owned(),
    }
}

/// The indexed namespace in which the processes of this run serve, if there is one.
pub fn namespace_of_environment() -> Option<String> {
    std::env::var("DYNDATA_TEST_NAMESPACE").ok()
}

/// The key of an id of [`namespace`] in Redis. A namespace that is not empty must be an indexed one.
pub fn key(id: &str) -> String {
    match namespace().as_str() {
        "" => format!("dyn_data/{id}"),
        indexed => {
            let shard = crc16::State::<crc16::XMODEM>::calculate(id.as_bytes()) % 64;
            format!("dyn_data:{{{indexed}.{shard}}}/{id}")
        }
    }
}

/// A part of every secret in the tests: tokens, passwords, private values. It must appear in no
/// output. `tests/canary.sh` checks the output of all tests.
pub const CANARY: &str = "c4n4ry-7f3a9";

/// Fails if a text that somebody can read contains a secret, and shows the line.
#[track_caller]
pub fn assert_no_secret(what: &str, text: &str) {
    if let Some(line) = text.lines().find(|line| line.contains(CANARY)) {
        // The message must not contain the secret either.
        panic!("{what} has a secret: {}", line.replace(CANARY, "SECRET"));
    }
}

/// The hash of a token, as an access file has it.
pub fn sha256_hex(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let bytes = digest.as_ref().iter();
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

/// A running server on a thread of its own, stopped when this value is dropped.
#[derive(Debug)]
pub struct TestServer {
    pub addr: String,
    pub admin: Option<std::net::SocketAddr>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl TestServer {
    /// Starts a server with these flags of `dyndata serve`. The ports are free ones unless the flags
    /// name others.
    pub fn start(arguments: &[&str]) -> Self {
        assert!(
            std::env::var_os("REDIS_URL").is_none(),
            "REDIS_URL is set, and would decide which store is tested; unset it"
        );
        let mut all = Vec::new();
        for (flag, default) in [
            ("--workers", "--workers=2"),
            ("--listen", "--listen=127.0.0.1:0"),
            ("--admin-listen", "--admin-listen=127.0.0.1:0"),
            ("--drain-timeout", "--drain-timeout=5s"),
            // Longer than the default, for a busy machine.
            ("--redis-timeout", "--redis-timeout=2s"),
        ] {
            if !arguments.iter().any(|argument| argument.starts_with(flag)) {
                all.push(default);
            }
        }
        all.extend(arguments);
        let config = Config::parse_from(all).expect("valid settings");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (bound, addresses) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let server = Server::bind(config).await.expect("binds");
                bound
                    .send((server.local_addr().to_string(), server.admin_addr()))
                    .expect("the test waits");
                server.run(async { _ = stopped.await }).await.expect("runs");
            });
        });
        let (addr, admin) = addresses.recv().expect("the server binds");
        Self {
            addr,
            admin,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Starts a server on this Redis, and waits until it is ready.
    pub async fn on_redis(redis: &Redis, arguments: &[&str]) -> Self {
        let url = format!("--redis-url={}", redis.url());
        let mut all = vec![url.as_str()];
        all.extend(arguments);
        let server = Self::start(&all);
        server.ready().await;
        server
    }

    /// Starts a server with one worker, so with one connection to Redis, which goes through this
    /// proxy. Waits until the server is ready.
    pub async fn behind(proxy: &ScriptedProxy, arguments: &[&str]) -> Self {
        let url = format!("--redis-url={}", proxy.url());
        let server = Self::start(&[&[url.as_str(), "--workers=1"], arguments].concat());
        server.ready().await;
        server
    }

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&self) {
        let start = Instant::now();
        while self.http("/readyz").await.0 != 200 {
            assert!(start.elapsed() < PATIENCE, "never ready");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until `/metrics` has this line. Shows events inside the server that no reply shows.
    pub async fn metric(&self, line: &str) {
        let start = Instant::now();
        while !self
            .http("/metrics")
            .await
            .1
            .lines()
            .any(|have| have == line)
        {
            assert!(start.elapsed() < PATIENCE, "never in /metrics: {line}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.addr))
            .expect("a URL")
            .connect()
            .await
            .expect("connects")
    }

    pub async fn client(&self) -> Client {
        Client(DynDataClient::new(self.channel().await))
    }

    /// Status and body of a GET on the admin listener.
    pub async fn http(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let admin = self.admin.expect("an admin listener");
        let mut socket = tokio::net::TcpStream::connect(admin)
            .await
            .expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.expect("writes");
        let mut reply = String::new();
        socket.read_to_string(&mut reply).await.expect("reads");
        let (head, body) = reply.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        (status.expect("a status"), body.to_owned())
    }

    /// Tells the server to stop, without waiting.
    pub fn begin_stop(&mut self) {
        drop(self.stop.take());
    }

    /// Stops the server, and fails the test if the server panicked. The wait does not block this
    /// thread, on which the client has to answer the GOAWAY.
    pub async fn stop(mut self) {
        self.begin_stop();
        let Some(thread) = self.thread.take() else {
            return;
        };
        let start = Instant::now();
        while !thread.is_finished() {
            assert!(start.elapsed() < PATIENCE, "the server does not stop");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        thread.join().expect("the server ends well");
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.begin_stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the server panicked");
        }
    }
}

/// The generated client, with short forms of frequent calls.
#[derive(Debug, Clone)]
pub struct Client(pub DynDataClient<Channel>);

pub fn int(value: i64) -> mark_request::Value {
    mark_request::Value::IntValue(value)
}

pub fn text(value: &str) -> mark_request::Value {
    mark_request::Value::StringValue(value.to_owned())
}

pub fn bytes(value: &[u8]) -> mark_request::Value {
    mark_request::Value::BytesValue(value.to_vec())
}

/// The same value in the type of an entry.
pub fn read(value: mark_request::Value) -> Option<entry::Value> {
    Some(match value {
        mark_request::Value::IntValue(int) => entry::Value::IntValue(int),
        mark_request::Value::StringValue(text) => entry::Value::StringValue(text),
        mark_request::Value::BytesValue(bytes) => entry::Value::BytesValue(bytes),
    })
}

pub fn millis(millis: u64) -> prost_types::Duration {
    prost_types::Duration::try_from(Duration::from_millis(millis)).expect("fits")
}

pub fn mark(id: &str, value: mark_request::Value) -> MarkRequest {
    MarkRequest {
        namespace: namespace(),
        id: id.to_owned(),
        value: Some(value),
        ..MarkRequest::default()
    }
}

impl Client {
    pub async fn mark(
        &mut self,
        request: MarkRequest,
    ) -> Result<Option<prost_types::Timestamp>, Status> {
        let reply = self.0.mark(request).await?;
        Ok(reply.into_inner().expire_time)
    }

    pub async fn get_request(&mut self, request: GetRequest) -> Result<Entry, Status> {
        let reply = self.0.get(request).await?.into_inner();
        Ok(reply.entry.expect("Get always sets entry"))
    }

    /// The value of an id.
    pub async fn get(&mut self, id: &str) -> Result<Option<entry::Value>, Status> {
        let request = GetRequest {
            namespace: namespace(),
            id: id.to_owned(),
            ..GetRequest::default()
        };
        Ok(self.get_request(request).await?.value)
    }

    /// The entry of an id, with its expire time.
    pub async fn get_with_expiry(&mut self, id: &str) -> Result<Entry, Status> {
        let request = GetRequest {
            namespace: namespace(),
            id: id.to_owned(),
            include_expire_time: true,
        };
        self.get_request(request).await
    }

    pub async fn batch_get(&mut self, request: BatchGetRequest) -> Result<Vec<Entry>, Status> {
        Ok(self.0.batch_get(request).await?.into_inner().entries)
    }
}

/// The ids of a batch.
pub fn batch(ids: impl IntoIterator<Item = impl ToString>) -> BatchGetRequest {
    BatchGetRequest {
        namespace: namespace(),
        ids: ids.into_iter().map(|id| id.to_string()).collect(),
        ..BatchGetRequest::default()
    }
}

/// Checks code, reason and domain of an error, and returns its status.
#[track_caller]
pub fn assert_error<T: std::fmt::Debug>(
    result: Result<T, Status>,
    code: Code,
    reason: &str,
) -> Status {
    let status = result.expect_err(reason);
    assert_eq!(status.code(), code, "{status:?}");
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!(
        (info.domain.as_str(), info.reason.as_str()),
        ("dyndata", reason)
    );
    let is_unknown = info
        .metadata
        .get("outcome")
        .is_some_and(|it| it == "unknown");
    assert_eq!(
        status.get_details_retry_info().is_some(),
        code == Code::Unavailable && !is_unknown,
        "exactly the errors that may be retried have RetryInfo"
    );
    status
}

/// The field in the `BadRequest` of an error.
#[track_caller]
pub fn blamed_field(status: &Status) -> String {
    let bad_request = status.get_details_bad_request().expect("a BadRequest");
    let [violation] = bad_request.field_violations.as_slice() else {
        panic!("one violation: {bad_request:?}");
    };
    assert_eq!(violation.description, status.message());
    violation.field.clone()
}

pub fn seconds_since_epoch(time: &prost_types::Timestamp) -> f64 {
    time.seconds as f64 + f64::from(time.nanos) / 1e9
}

pub fn now() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("a clock after 1970")
        .as_secs_f64()
}

/// Checks the `outcome` in the error of a write.
#[track_caller]
pub fn assert_outcome(status: &Status, outcome: &str) {
    let info = status.get_details_error_info().expect("an ErrorInfo");
    let have = info.metadata.get("outcome").map(String::as_str);
    assert_eq!(have, Some(outcome), "{status:?}");
}
