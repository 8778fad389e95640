//! The generator: calls over HTTP/2 (or HTTP/1.1 for webdis) from one thread, every answer
//! checked.
//!
//! Closed loop: each stream asks again as soon as it is answered. A generator that costs little
//! matters on a small machine: it speaks to the `h2` crate directly, sends frames that were
//! encoded beforehand, and compares replies byte for byte.

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

use crate::{http1, keys::Workload};

/// How long a call may take before the run is given up.
pub const CALL_LIMIT: Duration = Duration::from_secs(20);

/// gRPC's DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED and UNAVAILABLE: not now.
const REFUSALS: [&str; 3] = ["4", "8", "14"];

/// How many connections, and how many calls at a time on each.
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

/// What the generator speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Grpc,
    /// HTTP/1.1 has no streams: every stream of a shape becomes a connection.
    Http1,
}

/// What one closed-loop run saw, by whichever generator.
pub struct Outcome<P> {
    /// Calls answered, all of them rightly, between the two probes.
    pub calls: u64,
    /// Calls answered in the whole run.
    pub all_calls: u64,
    /// Calls that were told to come back later, in the whole run.
    pub refused: u64,
    pub elapsed: Duration,
    /// In nanoseconds.
    pub latencies: Option<Histogram<u64>>,
    /// What the caller's probe said at the beginning and at the end.
    pub before: P,
    pub after: P,
}

/// What the tasks of a run share. All of them run on one thread, so that nothing here is ever
/// contended.
pub struct Control {
    pub workload: Workload,
    stop: AtomicBool,
    /// How many calls are made at most.
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

    /// The number of the next call, unless the run is over.
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

    /// Ends the run, unless the server is merely too busy: that is counted. The first failure is
    /// the one that is told.
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

    /// The latencies since the last time.
    pub fn take_latencies(&self) -> Result<Histogram<u64>> {
        let mut latencies = self.latencies.lock().map_err(|_| anyhow!("poisoned"))?;
        Ok(std::mem::replace(&mut latencies, new_histogram()?))
    }

    /// The failure, if there was one.
    pub fn result(&self) -> Result<()> {
        let mut failure = self.failure.lock().map_err(|_| anyhow!("poisoned"))?;
        failure.take().map_or(Ok(()), Err)
    }
}

/// Nanoseconds up to a minute, to three digits.
pub fn new_histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(100, 60_000_000_000, 3)?)
}

/// Asks for `duration` after `warm_up`; `probe` is called right before and after.
pub fn closed_loop<P>(
    target: SocketAddr,
    protocol: Protocol,
    workload: Workload,
    shape: Shape,
    (warm_up, duration): (Duration, Duration),
    mut probe: impl FnMut() -> Result<P>,
) -> Result<Outcome<P>> {
    let control = Control::new(workload)?;
    runtime()?.block_on(async {
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

        // What is under way is still answered, so that Redis's count of commands must agree.
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
    })
}

/// Makes each of the first `count` calls once.
pub fn call_all(target: SocketAddr, workload: Workload, shape: Shape, count: u64) -> Result<()> {
    let control = Control::new(workload)?;
    control.limit.store(count, Relaxed);
    runtime()?.block_on(async {
        let mut streams = JoinSet::new();
        spawn_streams(&mut streams, target, shape, &control).await?;
        while streams.join_next().await.is_some() {}
        ensure!(control.refused() == 0, "{} refused", control.refused());
        control.result()
    })
}

/// Asks until it is answered rightly: a server may listen before it has reached Redis.
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

/// HTTP/2 connections whose windows never limit what is measured.
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
        // It ends with its last client; what goes wrong is seen by the calls.
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
    let uri = format!("http://127.0.0.1{}", workload.operation.path());
    Ok(Request::post(uri)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(())?)
}

/// One call, its status and its reply checked.
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
    // A call that fails before its first message has its status in the headers.
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

/// The server is too busy, or waits for a Redis that is. An answer, but not one to be measured.
#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}
