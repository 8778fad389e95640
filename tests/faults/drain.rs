//! After SIGTERM, no accepted call fails. The process ends in time with exit code 0, whatever its
//! peers do.

use std::{
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use dyndata::proto::health::{HealthCheckRequest, health_client::HealthClient};
use dyndata::proto::{GetRequest, dyn_data_client::DynDataClient};
use tonic::{Status, transport::Channel};

use crate::{
    checker::{self, Allowances},
    client::failed,
    history::Outcome,
    load::{AtTheEnd, Load, Rate, endings},
    proxy::{Mode, Proxy},
    report::Report,
    runner::{Case, Pace},
    service::{on_a_runtime, stop_reading},
    starvation::waited_since,
    support::{Dyndata, Redis, eventually, redis_server::signal},
};

pub const CASES: &[Case] = &[
    Case::alone("SIGTERM: under load", under_load),
    Case::new("SIGTERM: a peer that says nothing", silent_peer),
    Case::new("SIGTERM: an open health watch", open_watch),
    Case::new("SIGTERM: a client that stops reading", stalled),
    Case::new("SIGTERM: a SIGSTOPped client", stopped),
];

const DRAIN: Duration = Duration::from_secs(2);
/// Time for the process to end after the drain timeout.
const GRACE: Duration = Duration::from_millis(500);
/// The environment variable that turns a process of this program into a client.
const CLIENT: &str = "DYNDATA_FAULTS_CLIENT";

fn serve(redis: &Redis) -> Dyndata {
    Dyndata::on(&redis.url(), &["--drain-timeout=2s"])
}

/// Sends SIGTERM. Returns how long the process took to end, and what was wrong.
fn terminate(server: &mut Dyndata) -> (Duration, Option<String>) {
    let start = Instant::now();
    server.terminate();
    let ended = server.ended(DRAIN + 10 * GRACE);
    let took = start.elapsed().saturating_sub(waited_since(start));
    let wrong = match ended {
        None => Some(format!("still there after {took:?}")),
        Some(status) if !status.success() => Some(format!("ended with {status}")),
        Some(_) if took > DRAIN + GRACE => Some(format!("ended after {took:?}")),
        Some(_) => None,
    };
    (took, wrong)
}

fn ended(took: Duration, wrong: Option<String>) -> Report {
    let mut report = Report::of(wrong.into_iter().collect());
    report.limit_recovery(Some(took), DRAIN + GRACE);
    report
}

/// Redis answers slowly, so that many calls are in flight at any time.
fn under_load(pace: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let proxy = Proxy::start(redis.port);
    proxy.set(Mode::Delay(Duration::from_millis(100)));
    let mut in_flight = Vec::new();
    let rounds = (0..pace.times(5, 100)).map(|_| {
        // Every round marks the same values.
        redis.must(&["FLUSHALL"]);
        let mut server = Dyndata::on(&proxy.url(), &["--drain-timeout=2s"]);
        let rate = Rate {
            callers: 6,
            calls_per_second: 600,
            at_the_end: AtTheEnd::Nothing,
            // Without deadlines that a busy machine misses.
            ..Rate::patient()
        };
        let load = Load::start(&server.addr, rate);
        let channels = Channels::start(&server.addr);
        sleep(Duration::from_millis(400));
        let (term, signalled) = (Instant::now(), load.recorder.now());
        let (took, wrong) = terminate(&mut server);
        let mut failures: Vec<_> = wrong.into_iter().collect();
        failures.extend(channels.finish(term));
        let operations = load.finish();
        let allowances = Allowances {
            service_stops: true,
            ..Allowances::default()
        };
        let findings = checker::check(&operations, &allowances);
        let mut endings = endings(operations.iter().filter(|it| !it.is_excused()));
        endings.remove("not accepted");
        if !endings.keys().eq(["OK"].iter()) {
            failures.push(format!("accepted calls failed: {endings:?}"));
        }
        let finished = operations.iter().filter(|operation| {
            operation.is_ok() && operation.start < signalled && operation.end > signalled
        });
        in_flight.push(finished.count());
        let mut report = Report::new(findings, failures);
        report.limit_recovery(Some(took), DRAIN + GRACE);
        report
    });
    let mut report = Report::of_all(rounds);
    let fewest = in_flight.iter().min().copied().unwrap_or(0);
    if fewest < 10 {
        let failure = format!("only {fewest} calls were in flight at a signal");
        report.failures.push(failure);
    }
    report.notes.push(format!(
        "{} times, each with {fewest} or more calls in flight",
        in_flight.len()
    ));
    report
}

/// The start and the result of a call on a channel.
type Ended = (Instant, Result<(), Status>);

/// Callers on tonic's own channels. Each makes one call after the other.
struct Channels {
    stop: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<Ended>>>,
    thread: thread::JoinHandle<()>,
}

impl Channels {
    fn start(addr: &str) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let calls = Arc::<Mutex<Vec<Ended>>>::default();
        let url = format!("http://{addr}");
        let thread = thread::spawn({
            let (stop, calls) = (Arc::clone(&stop), Arc::clone(&calls));
            move || {
                on_a_runtime(async {
                    let mut callers = tokio::task::JoinSet::new();
                    for _ in 0..4 {
                        let channel = Channel::from_shared(url.clone()).expect("a URL");
                        let client = DynDataClient::new(channel.connect_lazy());
                        callers.spawn(call(client, Arc::clone(&stop), Arc::clone(&calls)));
                    }
                    callers.join_all().await;
                });
            }
        });
        Self {
            stop,
            calls,
            thread,
        }
    }

    /// The failures of calls that started before the signal.
    fn finish(self, term: Instant) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.join().is_err() {
            return vec!["a caller on a channel panicked".to_owned()];
        }
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failures: Vec<_> = calls
            .iter()
            .filter(|(start, _)| *start < term)
            .filter_map(|(_, result)| result.as_ref().err())
            // A channel does not say whether its connection was new. These connections were not.
            .filter_map(|status| match failed(status, true) {
                Outcome::NotAccepted(_) => None,
                outcome => Some(format!("on a channel: {outcome:?}")),
            })
            .collect();
        if !calls.iter().any(|(_, result)| result.is_ok()) {
            failures.push("no call on a channel succeeded".to_owned());
        }
        failures
    }
}

async fn call(
    mut client: DynDataClient<Channel>,
    stop: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<Ended>>>,
) {
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let request = GetRequest {
            id: "channel".to_owned(),
            ..GetRequest::default()
        };
        let result = client.get(request).await.map(drop);
        let failed = result.is_err();
        calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((start, result));
        if failed {
            // The server is gone, so there is no need to retry all the time.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn silent_peer(_: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let mut server = serve(&redis);
    let _peer = TcpStream::connect(&server.addr).expect("connects");
    eventually("the peer is accepted", || {
        let metrics = server.http("/metrics").unwrap_or_default();
        metrics.lines().any(|line| line == "dyndata_connections 1")
    });
    let (took, wrong) = terminate(&mut server);
    ended(took, wrong)
}

fn open_watch(_: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let mut server = serve(&redis);
    let url = format!("http://{}", server.addr);
    let (opened, is_open) = std::sync::mpsc::channel();
    let watch = thread::spawn(move || {
        on_a_runtime(async {
            let channel = Channel::from_shared(url).expect("a URL").connect().await?;
            let mut client = HealthClient::new(channel);
            let reply = client.watch(HealthCheckRequest::default()).await;
            let mut statuses = reply.expect("watches").into_inner();
            let mut seen = Vec::new();
            while let Ok(Some(status)) = statuses.message().await {
                seen.push(status.status);
                _ = opened.send(());
            }
            Ok::<_, tonic::transport::Error>(seen)
        })
    });
    is_open.recv().expect("the watch opens");
    let (took, wrong) = terminate(&mut server);
    let mut report = ended(took, wrong);
    match watch.join() {
        // SERVING, then NOT_SERVING, then the end of the stream.
        Ok(Ok(seen)) if seen == [1, 2] => {}
        other => report.failures.push(format!("the watch saw {other:?}")),
    }
    report
}

/// The server sends replies that the client does not read.
fn stalled(_: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let mut server = serve(&redis);
    let proxy = Proxy::start(server.port());
    let (wrote, written) = std::sync::mpsc::channel();
    let proxy = Arc::new(proxy);
    let client = thread::spawn({
        let proxy = Arc::clone(&proxy);
        move || stop_reading(&proxy, 2 * DRAIN, || _ = wrote.send(()))
    });
    written.recv().expect("the client stalls");
    let (took, wrong) = terminate(&mut server);
    proxy.set(Mode::Refuse);
    _ = client.join();
    ended(took, wrong)
}

/// The client process is suspended with calls in flight, so it does not answer the ping of GOAWAY.
fn stopped(_: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let mut server = serve(&redis);
    let mut client = Client::start(&server.addr);
    let callers = format!("dyndata_connections {}", Rate::default().callers);
    eventually("the client calls", || {
        let metrics = server.http("/metrics").unwrap_or_default();
        metrics.lines().any(|line| line == callers)
    });
    signal(client.0.id(), "STOP");
    let (took, wrong) = terminate(&mut server);
    signal(client.0.id(), "CONT");
    client.end();
    ended(took, wrong)
}

/// Another process of this program, as a client.
struct Client(Child);

impl Client {
    fn start(addr: &str) -> Self {
        let program = std::env::current_exe().expect("this program");
        let process = Command::new(program)
            .env(CLIENT, addr)
            .stdout(Stdio::null())
            .spawn();
        Self(process.expect("runs"))
    }

    fn end(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.end();
    }
}

/// Makes this process a client until it is killed, if the environment says so.
pub fn be_a_client_if_asked() {
    let Ok(addr) = std::env::var(CLIENT) else {
        return;
    };
    let load = Load::start(&addr, Rate::default());
    // The end, if nobody kills it.
    sleep(Duration::from_secs(60));
    drop(load);
    std::process::exit(0);
}
