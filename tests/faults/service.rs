//! Faults around the service itself: too many connections, callers that misbehave, connections that
//! the service closes, and a long outage of Redis.

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

/// The largest number of log lines that running out of files may add.
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
        trial.begin_fault();
        // The kernel accepts all of them, and the service cannot.
        let peers: Vec<_> = (0..100)
            .map(|_| TcpStream::connect(&server.addr).expect("the kernel accepts"))
            .collect();
        sleep(Duration::from_secs(2));
        trial.begin_repair();
        drop(peers);
        let took = time_to_first_reply(&server.addr);
        trial.check(
            took < LIMIT,
            format!("a new connection waited for {took:?}"),
        );
        trial.end_fault();
    }
    let lines = server.log().lines().count() - lines;
    trial.check(lines < LOG_LINES, format!("{lines} lines were logged"));
    // Connections from before must not notice.
    let mut report = trial.judge_with(nothing_fails);
    report.notes.push(format!("{lines} lines were logged"));
    report
}

/// How long it takes until a new connection gets a reply.
fn time_to_first_reply(addr: &str) -> Duration {
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

/// Runs a future on this thread.
pub fn on_a_runtime<T>(task: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(task)
}

/// One caller requests megabytes and reads nothing. The other callers must not notice.
fn stalled_client(pace: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let server = Dyndata::on(&redis.url(), &["--workers=1"]);
    let proxy = Proxy::start(server.port());
    // The replies take time in a build without optimization.
    let mut trial = Trial::with_rate(&server, LIMIT, Losses::None, Rate::patient());
    trial.calm();
    for _ in 0..pace.times(1, 3) {
        trial.begin_fault();
        stop_reading(&proxy, Duration::from_millis(1_500), || {});
        trial.end_fault();
    }
    trial.judge_with(nothing_fails)
}

/// Requests thirty replies of 600 kB at once, through a proxy that soon stops reading.
pub fn stop_reading(proxy: &Proxy, lasts: Duration, stalled: impl FnOnce()) {
    on_a_runtime(async {
        proxy.set(Mode::Pass);
        let channel = Channel::from_shared(format!("http://127.0.0.1:{}", proxy.port))
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
        // Some replies are sent before the proxy stalls.
        tokio::time::sleep(Duration::from_millis(20)).await;
        proxy.set(Mode::Stall);
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
        // Calls that met a GOAWAY may be repeated. There must be few of them.
        let mut endings = endings(operations.iter().filter(|it| !it.is_excused()));
        let refused = endings.remove("not accepted").unwrap_or(0);
        let succeeded = endings.remove("OK").unwrap_or(0);
        figures = format!("{refused} calls met a GOAWAY, {succeeded} succeeded");
        let mut failures = Vec::new();
        if !endings.is_empty() {
            failures.push(format!(
                "calls failed when their connection ended: {endings:?}"
            ));
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

/// Redis takes longer than any deadline.
fn short_deadlines(pace: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let proxy = Proxy::start(redis.port);
    let server = Dyndata::on(&proxy.url(), &[]);
    proxy.set(Mode::Delay(Duration::from_millis(200)));
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
            vec![format!("calls did not end by their deadline: {endings:?}")]
        }
    });
    let longest = report.findings.longest_overrun.as_micros();
    report.notes.push(format!("late by at most {longest} us"));
    report
}

/// During an outage, calls fail at once, and the service does not reconnect too often.
fn redis_down(pace: &Pace) -> Report {
    const WORKERS: usize = 2;
    // Number of attempts until the backoff has its longest pause.
    const FIRST: usize = 8;
    let seconds = pace.times(6, 30);
    let redis = Redis::start_durable(&[]);
    let proxy = Proxy::start(redis.port);
    let server = Dyndata::on(&proxy.url(), &["--workers=2"]);
    let mut trial = Trial::start(&server, LIMIT, Losses::None);
    trial.begin_fault();
    let before = proxy.accepted();
    proxy.set(Mode::Refuse);
    sleep(Duration::from_secs(2));
    trial.check(!server.is_ready(), "still ready after 2 s without Redis");
    let lives = server
        .http("/livez")
        .is_ok_and(|reply| reply.contains(" 200 "));
    trial.check(lives, "not alive without Redis");
    let settled = proxy.accepted();
    sleep(Duration::from_secs(seconds as u64 - 2));
    let connects = proxy.accepted() - before;
    let rate = (proxy.accepted() - settled) as f64 / (WORKERS * (seconds - 2)) as f64;
    trial.begin_repair();
    proxy.set(Mode::Pass);
    trial.end_fault();
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
        let took = calls.iter().map(|operation| operation.took_by_itself());
        let p99 = percentile(took, 99).unwrap_or(Duration::MAX);
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
