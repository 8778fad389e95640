//! The generator: it makes calls over HTTP/2 (or HTTP/1.1 for webdis) from one thread, and checks
//! every reply.
//!
//! The loop is closed: each stream sends its next call as soon as it has a reply. The generator must
//! cost little on a small machine. So it uses the `h2` crate directly, encodes the frames
//! beforehand, and compares replies byte for byte.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Error, Result, anyhow, ensure};
use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use hdrhistogram::Histogram;
use http::{HeaderMap, Request, StatusCode, header};
use tokio::{net::TcpStream, runtime, task::JoinSet, time};

use crate::{http1, workload::Workload};

/// The longest time that a call may take. After it, the run fails.
pub const CALL_LIMIT: Duration = Duration::from_secs(20);

/// DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED and UNAVAILABLE: the server is too busy.
const REFUSALS: [&str; 3] = ["4", "8", "14"];

/// The number of connections, and of calls at the same time on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub connections: usize,
    pub streams: usize,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{}x{}", self.connections, self.streams))
    }
}

/// The protocol of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Grpc,
    /// HTTP/1.1 has no streams, so every stream of a shape becomes a connection.
    Http1,
}

/// The result of a closed-loop run, by either generator.
pub struct Outcome<P> {
    /// Correct replies between the two probes.
    pub calls: u64,
    /// Correct replies in the whole run.
    pub all_calls: u64,
    /// Refused calls in the whole run.
    pub refused: u64,
    pub elapsed: Duration,
    /// In nanoseconds.
    pub latencies: Option<Histogram<u64>>,
    /// The results of the probe at the start and at the end.
    pub before: P,
    pub after: P,
}

/// State that the tasks of a run share. All tasks run on one thread, so there is no contention.
pub struct Control {
    pub workload: Workload,
    stop: AtomicBool,
    /// The largest number of calls.
    limit: AtomicU64,
    issued: AtomicU64,
    completed: AtomicU64,
    refused: AtomicU64,
    latencies: Mutex<Histogram<u64>>,
    failure: Mutex<Option<Error>>,
}

impl Control {
    pub fn new(workload: Workload) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            workload,
            stop: AtomicBool::new(false),
            limit: AtomicU64::new(u64::MAX),
            issued: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            latencies: Mutex::new(new_histogram()?),
            failure: Mutex::new(None),
        }))
    }

    /// The number of the next call. `None` if the run is over.
    pub fn next(&self) -> Option<u64> {
        if self.stop.load(Relaxed) {
            return None;
        }
        let number = self.issued.fetch_add(1, Relaxed);
        (number < self.limit.load(Relaxed)).then_some(number)
    }

    pub fn succeeded(&self, since: Instant) {
        self.completed.fetch_add(1, Relaxed);
        let nanoseconds = since.elapsed().as_nanos() as u64;
        if let Ok(mut latencies) = self.latencies.lock() {
            latencies.saturating_record(nanoseconds);
        }
    }

    /// Counts a refused call. Any other error ends the run. The first one is reported.
    pub fn failed(&self, error: Error) {
        if error.is::<Refused>() {
            self.refused.fetch_add(1, Relaxed);
            return;
        }
        self.stop.store(true, Relaxed);
        if let Ok(mut failure) = self.failure.lock() {
            failure.get_or_insert(error);
        }
    }

    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    pub fn completed(&self) -> u64 {
        self.completed.load(Relaxed)
    }

    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// The latencies since the last call of this function.
    pub fn take_latencies(&self) -> Result<Histogram<u64>> {
        let mut latencies = self.latencies.lock().map_err(|_| anyhow!("poisoned"))?;
        Ok(std::mem::replace(&mut latencies, new_histogram()?))
    }

    /// The error that ended the run, if there was one.
    pub fn result(&self) -> Result<()> {
        let mut failure = self.failure.lock().map_err(|_| anyhow!("poisoned"))?;
        failure.take().map_or(Ok(()), Err)
    }
}

/// A histogram of nanoseconds up to a minute, with three significant digits.
pub fn new_histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(100, 60_000_000_000, 3)?)
}

/// Makes calls for `warm_up` and then for `duration`. Calls `probe` right before and after
/// `duration`.
pub fn closed_loop<P>(
    target: SocketAddr,
    protocol: Protocol,
    workload: Workload,
    shape: Shape,
    (warm_up, duration): (Duration, Duration),
    mut probe: impl FnMut() -> Result<P>,
) -> Result<Outcome<P>> {
    let control = Control::new(workload)?;
    let limit = warm_up + duration + 2 * CALL_LIMIT;
    let run = async {
        let mut streams = JoinSet::new();
        match protocol {
            Protocol::Grpc => spawn_streams(&mut streams, target, shape, &control).await?,
            Protocol::Http1 => {
                for _ in 0..shape.connections * shape.streams {
                    let connection = http1::Connection::open(target).await?;
                    let control = Arc::clone(&control);
                    streams.spawn(async move {
                        if let Err(error) = http1_stream(connection, &control).await {
                            control.failed(error);
                        }
                    });
                }
            }
        }

        time::sleep(warm_up).await;
        control.take_latencies()?;
        let (start, calls, before) = (Instant::now(), control.completed(), probe()?);
        time::sleep(duration).await;
        let after = probe()?;
        let calls = control.completed() - calls;
        let elapsed = start.elapsed();
        let latencies = control.take_latencies()?;

        // Waits for the replies of running calls, so that the count of commands in Redis must match.
        control.stop();
        let drained = time::timeout(CALL_LIMIT, async {
            while streams.join_next().await.is_some() {}
        });
        let drained = drained.await;
        control.result()?;
        drained.with_context(|| format!("a call took more than {CALL_LIMIT:?}"))?;
        ensure!(calls > 0, "no call was answered in {elapsed:?}");
        Ok(Outcome {
            calls,
            all_calls: control.completed(),
            refused: control.refused(),
            elapsed,
            latencies: Some(latencies),
            before,
            after,
        })
    };
    runtime()?.block_on(within(limit, run))
}

/// Ends a run that takes longer than it can.
pub async fn within<T>(limit: Duration, run: impl Future<Output = Result<T>>) -> Result<T> {
    let done = time::timeout(limit, run).await;
    done.with_context(|| format!("the run did not end within {limit:?}"))?
}

/// Waits until a call is due, if calls begin at `start` at this rate a second. Calls that are due within
/// a few milliseconds do not wait for each other, because the timers of the runtime are not finer.
pub async fn wait_until_due(start: time::Instant, number: usize, rate: usize) {
    const TICK: Duration = Duration::from_millis(5);
    let due = start + Duration::from_secs(1) * number as u32 / rate as u32;
    if due > time::Instant::now() + TICK {
        time::sleep_until(due).await;
    }
}

/// Makes the first `count` calls of a workload.
pub fn call_all(target: SocketAddr, workload: Workload, shape: Shape, count: u64) -> Result<()> {
    let control = Control::new(workload)?;
    control.limit.store(count, Relaxed);
    let run = async {
        let mut streams = JoinSet::new();
        spawn_streams(&mut streams, target, shape, &control).await?;
        while streams.join_next().await.is_some() {}
        ensure!(control.refused() == 0, "{} refused", control.refused());
        control.result()
    };
    runtime()?.block_on(within(3 * CALL_LIMIT, run))
}

/// Calls until a reply is correct, because a server may listen before it is connected to Redis. Gives
/// up after twice [`CALL_LIMIT`].
pub fn wait_until_served(target: SocketAddr, workload: Workload) -> Result<()> {
    let template = request_template(&workload)?;
    runtime()?.block_on(async {
        let limit = Instant::now() + CALL_LIMIT;
        loop {
            let attempt = async {
                let client = connect(target, 1).await?.pop().context("no connection")?;
                call(&client, &template, &workload, 0).await
            };
            match time::timeout(CALL_LIMIT, attempt).await? {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > limit => return Err(error),
                Err(_) => time::sleep(Duration::from_millis(50)).await,
            }
        }
    })
}

pub fn runtime() -> Result<runtime::Runtime> {
    Ok(runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// Opens HTTP/2 connections whose windows are too large to limit the calls.
pub async fn connect(target: SocketAddr, count: usize) -> Result<Vec<SendRequest<Bytes>>> {
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = TcpStream::connect(target).await?;
        socket.set_nodelay(true)?;
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(1 << 24)
            .initial_connection_window_size(1 << 30)
            .max_concurrent_reset_streams(0);
        let (client, connection) = builder.handshake(socket).await?;
        // The task ends with the last client. The calls see its errors.
        tokio::spawn(connection);
        clients.push(client);
    }
    Ok(clients)
}

async fn spawn_streams(
    streams: &mut JoinSet<()>,
    target: SocketAddr,
    shape: Shape,
    control: &Arc<Control>,
) -> Result<()> {
    for client in connect(target, shape.connections).await? {
        for _ in 0..shape.streams {
            let (client, control) = (client.clone(), Arc::clone(control));
            streams.spawn(async move {
                if let Err(error) = stream(client, &control).await {
                    control.failed(error);
                }
            });
        }
    }
    Ok(())
}

async fn stream(client: SendRequest<Bytes>, control: &Control) -> Result<()> {
    let template = request_template(&control.workload)?;
    while let Some(number) = control.next() {
        let start = Instant::now();
        match call(&client, &template, &control.workload, number).await {
            Ok(()) => control.succeeded(start),
            Err(error) => control.failed(error),
        }
    }
    Ok(())
}

async fn http1_stream(mut connection: http1::Connection, control: &Control) -> Result<()> {
    while let Some(number) = control.next() {
        let start = Instant::now();
        let body = connection.call(&control.workload.request(number)).await?;
        control.workload.check(number, body)?;
        control.succeeded(start);
    }
    Ok(())
}

pub fn request_template(workload: &Workload) -> Result<Request<()>> {
    let uri = format!("http://127.0.0.1{}", workload.path);
    Ok(Request::post(uri)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(())?)
}

/// Makes one call, and checks status and reply.
pub async fn call(
    client: &SendRequest<Bytes>,
    template: &Request<()>,
    workload: &Workload,
    number: u64,
) -> Result<()> {
    let mut client = client.clone().ready().await?;
    let (response, mut sender) = client.send_request(template.clone(), false)?;
    sender.send_data(workload.request(number), true)?;

    let response = response.await?;
    ensure!(
        response.status() == StatusCode::OK,
        "HTTP status {}",
        response.status()
    );
    // A call that fails before its first message has the status in its headers.
    check_status(response.headers())?;
    let mut body = response.into_body();
    let mut reply = Bytes::new();
    let mut longer = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        if reply.is_empty() && longer.is_empty() {
            reply = data;
        } else {
            if longer.is_empty() {
                longer.extend_from_slice(&std::mem::take(&mut reply));
            }
            longer.extend_from_slice(&data);
        }
    }
    let trailers = body.trailers().await?.context("no trailers")?;
    ensure!(trailers.contains_key("grpc-status"), "no grpc-status");
    check_status(&trailers)?;
    workload.check(number, if longer.is_empty() { &reply } else { &longer })
}

fn check_status(headers: &HeaderMap) -> Result<()> {
    let Some(status) = headers.get("grpc-status") else {
        return Ok(());
    };
    if status == "0" {
        return Ok(());
    }
    let message = headers.get("grpc-message");
    let text = format!("grpc-status {status:?}, grpc-message {message:?}");
    if REFUSALS.iter().any(|refusal| status == refusal) {
        return Err(Refused(text).into());
    }
    Err(anyhow!(text))
}

/// The server, or Redis, is too busy. Such calls are counted, but not measured.
#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}
