//! The service itself: too many connections, callers that misbehave, connections that end.

use std::{
    net::TcpStream,
    thread::sleep,
    time::{Duration, Instant},
};

use dyndata::proto::{
    BatchGetRequest, GetRequest, MarkRequest, dyn_data_client::DynDataClient, mark_request,
};
use tonic::transport::Channel;

use crate::{
    history::Operation,
    load::{AtTheEnd, Rate, endings, percentile},
    proxy::{Mode, Proxy},
    report::Report,
    runner::{Case, Pace},
    standalone::{LIMIT, nothing_fails},
    support::{Dyndata, Redis},
    trial::{Fault, Losses, Trial, during},
};

pub const CASES: &[Case] = &[
    Case::new("service: EMFILE", out_of_files),
    Case::new("service: a client that stops reading", stalled_client),
    Case::new("service: connections of limited age", aged_connections),
    Case::alone("service: deadlines of 1 to 50 ms", short_deadlines),
    Case::alone("service: Redis down, answers and connects", redis_down),
];

/// The most lines that running out of files may add to the log.
const LOG_LINES: usize = 50;

fn out_of_files(pace: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let url = format!("--redis-url={}", redis.url());
    let through = ["sh", "-c", r#"ulimit -n 64 && exec "$0" "$@""#];
    let server = Dyndata::start_through(&through, &[&url]);
    server.ready();
    let mut trial = Trial::start(&server, LIMIT, Losses::None);
    let lines = server.log().lines().count();
    for _ in 0..pace.times(1, 3) {
        trial.fault();
        // The kernel takes them all; the service cannot.
        let peers: Vec<_> = (0..100)
            .map(|_| TcpStream::connect(&server.addr).expect("the kernel accepts"))
            .collect();
        sleep(Duration::from_secs(2));
        trial.lift();
        drop(peers);
        let took = newcomer_waits(&server.addr);
        trial.check(took < LIMIT, format!("a newcomer waited for {took:?}"));
        trial.over();
    }
    let lines = server.log().lines().count() - lines;
    trial.check(lines < LOG_LINES, format!("{lines} lines were logged"));
    // Whoever was connected before has lost nothing.
    let mut report = trial.judge_with(nothing_fails);
    report.notes.push(format!("{lines} lines were logged"));
    report
}

/// How long it takes until somebody who connects now is served.
fn newcomer_waits(addr: &str) -> Duration {
    let start = Instant::now();
    on_a_runtime(async {
        while start.elapsed() < 2 * LIMIT {
            let attempt = async {
                let url = format!("http://{addr}");
                let channel = Channel::from_shared(url).ok()?.connect().await.ok()?;
                let request = GetRequest {
                    id: "newcomer".to_owned(),
                    ..GetRequest::default()
                };
                DynDataClient::new(channel).get(request).await.ok()
            };
            let patience = Duration::from_millis(200);
            if tokio::time::timeout(patience, attempt)
                .await
                .is_ok_and(|reply| reply.is_some())
            {
                break;
            }
        }
    });
    start.elapsed()
}

/// Runs something that waits, on this thread.
pub fn on_a_runtime<T>(task: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(task)
}

/// One caller asks for megabytes and reads none of them; the others must not notice.
fn stalled_client(pace: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let server = Dyndata::on(&redis.url(), &["--workers=1"]);
    let line = Proxy::start(server.port());
    // Making the replies takes a while in a build without optimization.
    let mut trial = Trial::with_rate(&server, LIMIT, Losses::None, Rate::patient());
    trial.calm();
    for _ in 0..pace.times(1, 3) {
        trial.fault();
        greedy(&line, Duration::from_millis(1_500), || {});
        trial.over();
    }
    trial.judge_with(nothing_fails)
}

/// Thirty replies of 600 kB at once, over a line that soon takes nothing any more.
pub fn greedy(line: &Proxy, lasts: Duration, stalled: impl FnOnce()) {
    on_a_runtime(async {
        line.set(Mode::Pass);
        let channel = Channel::from_shared(format!("http://127.0.0.1:{}", line.port))
            .expect("a URL")
            .connect()
            .await
            .expect("connects");
        let mut client = DynDataClient::new(channel);
        let mark = MarkRequest {
            id: "large".to_owned(),
            value: Some(mark_request::Value::BytesValue(vec![7; 60_000])),
            ..MarkRequest::default()
        };
        client.mark(mark).await.expect("marks");
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..30 {
            let mut client = client.clone();
            let request = BatchGetRequest {
                ids: vec!["large".to_owned(); 10],
                ..BatchGetRequest::default()
            };
            calls.spawn(async move { client.batch_get(request).await });
        }
        // Some replies are on their way before nothing moves any more.
        tokio::time::sleep(Duration::from_millis(20)).await;
        line.set(Mode::Stall);
        stalled();
        tokio::time::sleep(lasts).await;
    });
}

fn aged_connections(pace: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let server = Dyndata::on(&redis.url(), &["--max-connection-age=1s"]);
    let mut trial = Trial::start_unready(&server, LIMIT, Losses::None);
    trial.expect_goaway();
    sleep(Duration::from_secs(pace.times(5, 30) as u64));
    let mut figures = String::new();
    let mut report = trial.judge_with(|operations, _| {
        // Calls that met a GOAWAY may be sent again; there must be few of them.
        let mut endings = endings(operations.iter());
        let refused = endings.remove("not accepted").unwrap_or(0);
        let succeeded = endings.remove("OK").unwrap_or(0);
        figures = format!("{refused} calls met a GOAWAY, {succeeded} succeeded");
        let mut failures = Vec::new();
        if !endings.is_empty() {
            failures.push(format!("connections that ended failed calls: {endings:?}"));
        }
        if refused * 20 > succeeded {
            failures.push(format!(
                "{refused} calls were not accepted, {succeeded} were"
            ));
        }
        failures
    });
    report.notes.push(figures);
    report
}

/// Redis takes longer than any caller waits.
fn short_deadlines(pace: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let line = Proxy::start(redis.port);
    let server = Dyndata::on(&line.url(), &[]);
    line.set(Mode::Delay(Duration::from_millis(200)));
    let rate = Rate {
        deadline_millis: (1, 50),
        at_the_end: AtTheEnd::Nothing,
        ..Rate::default()
    };
    let trial = Trial::with_rate(&server, LIMIT, Losses::None, rate);
    sleep(Duration::from_secs(pace.times(4, 20) as u64));
    let mut report = trial.judge_with(|operations, _| {
        let endings = endings(operations.iter());
        if endings.keys().eq(["DEADLINE_EXCEEDED"].iter()) {
            Vec::new()
        } else {
            vec![format!("ended otherwise than by the deadline: {endings:?}")]
        }
    });
    let longest = report.findings.longest_overrun.as_micros();
    report.notes.push(format!("late by at most {longest} us"));
    report
}

/// An outage: answers come at once, and Redis is not stormed.
fn redis_down(pace: &Pace) -> Report {
    const WORKERS: usize = 2;
    // Attempts until the backoff is at its longest.
    const FIRST: usize = 8;
    let seconds = pace.times(6, 30);
    let redis = Redis::start_durable(&[]);
    let line = Proxy::start(redis.port);
    let server = Dyndata::on(&line.url(), &["--workers=2"]);
    let mut trial = Trial::start(&server, LIMIT, Losses::None);
    trial.fault();
    let before = line.accepted();
    line.set(Mode::Refuse);
    sleep(Duration::from_secs(2));
    trial.check(!server.is_ready(), "still ready after 2 s without Redis");
    let lives = server
        .http("/livez")
        .is_ok_and(|reply| reply.contains(" 200 "));
    trial.check(lives, "not alive without Redis");
    let settled = line.accepted();
    sleep(Duration::from_secs(seconds as u64 - 2));
    let connects = line.accepted() - before;
    let rate = (line.accepted() - settled) as f64 / (WORKERS * (seconds - 2)) as f64;
    trial.lift();
    line.set(Mode::Pass);
    trial.over();
    // Two good probes, half a second apart.
    trial.check(server.is_ready(), "not ready although calls succeed");
    trial.check(
        connects <= WORKERS * (seconds + FIRST),
        format!("{connects} connects in {seconds} s with {WORKERS} workers"),
    );
    trial.check(
        rate < 1.6,
        format!("{rate:.2} connects a second and worker, after two seconds"),
    );
    let mut figures = String::new();
    let mut report = trial.judge_with(|operations, faults| {
        let down = |fault: &Fault| {
            during(operations, fault, Duration::from_millis(100)).collect::<Vec<&Operation>>()
        };
        let calls: Vec<_> = faults.iter().flat_map(down).collect();
        let p99 = percentile(calls.iter().copied(), 99).unwrap_or_default();
        let within = calls
            .iter()
            .filter(|operation| operation.took() <= Duration::from_millis(20))
            .count();
        figures = format!(
            "{connects} connects in {seconds} s, after 2 s {rate:.2} a second and worker; p99 of answers {:.1} ms, {:.2} % within 20 ms: {:?}",
            p99.as_secs_f64() * 1e3,
            within as f64 * 100.0 / calls.len() as f64,
            endings(calls.iter().copied())
        );
        if p99 < Duration::from_millis(100) {
            Vec::new()
        } else {
            vec![format!("answers took {p99:?}")]
        }
    });
    report.notes.push(figures);
    report
}
