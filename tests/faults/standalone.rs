//! Faults of a single Redis and of the connections to it: Redis dies or stands still, connections
//! break, and bytes arrive late, one by one, or never.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    history::Operation,
    load::{Rate, endings},
    proxy::{Mode, Proxy},
    report::Report,
    runner::{Case, Pace},
    support::{Dyndata, Redis, topology::errors},
    trial::{Fault, Losses, Trial, during},
    writers::Pressure,
};

/// The longest recovery after a restart, and of a connection that hung.
pub const LIMIT: Duration = Duration::from_secs(2);

pub const CASES: &[Case] = &[
    Case::new("redis: kill -9 and restart", |pace| direct(pace, kill)),
    Case::new("redis: SIGSTOP for 3 s", |pace| direct(pace, stop)),
    Case::new("redis: SIGSTOP for 300 ms", |pace| direct(pace, stutter)),
    Case::new("redis: CLIENT PAUSE", |pace| direct(pace, pause)),
    Case::new("redis: CLIENT KILL, again and again", |pace| {
        direct(pace, kill_clients)
    }),
    Case::new("redis: DEBUG SLEEP", |pace| direct(pace, sleep_in_command)),
    Case::new("redis: SCRIPT FLUSH, again and again", forgotten_scripts),
    Case::new("line: reset in mid-reply", |pace| {
        proxied(pace, Mode::ResetInReply)
    }),
    Case::new("line: half-open", |pace| proxied(pace, Mode::Silent)),
    Case::new("line: refused", |pace| proxied(pace, Mode::Refuse)),
    Case::new("line: reply swallowed, then closed", |pace| {
        with_writers(pace, Mode::SwallowReply)
    }),
    Case::new("line: closed, commands delivered later", |pace| {
        with_writers(pace, Mode::DeliverLate)
    }),
    Case::new("line: 300 ms delay", slow_line),
    Case::new("line: one byte at a time", trickle),
];

/// Injects a fault into a Redis, and returns when the fault is over.
pub type InjectFault = fn(&mut Redis);

/// All faults of a Redis itself, for [`crate::chaos`].
pub const FAULTS: &[(&str, InjectFault)] = &[
    ("kill -9", kill),
    ("SIGSTOP 3 s", stop),
    ("SIGSTOP 300 ms", stutter),
    ("CLIENT PAUSE", pause),
    ("CLIENT KILL", kill_clients),
    ("DEBUG SLEEP", sleep_in_command),
    ("SCRIPT FLUSH", forget_scripts),
];

fn direct(pace: &Pace, inject: InjectFault) -> Report {
    let mut redis = Redis::start_durable(&[]);
    let server = Dyndata::on(&redis.url(), &[]);
    let mut trial = Trial::start(&server, LIMIT, Losses::None);
    for _ in 0..pace.times(1, 4) {
        trial.begin_fault();
        inject(&mut redis);
        trial.end_fault();
    }
    trial.judge()
}

fn kill(redis: &mut Redis) {
    redis.kill();
    sleep(Duration::from_secs(1));
    redis.run();
}

fn stop(redis: &mut Redis) {
    redis.freeze();
    sleep(Duration::from_secs(3));
    redis.thaw();
}

/// Shorter than the timeout of a command.
fn stutter(redis: &mut Redis) {
    redis.freeze();
    sleep(Duration::from_millis(300));
    redis.thaw();
}

fn pause(redis: &mut Redis) {
    redis.must(&["CLIENT", "PAUSE", "1500", "ALL"]);
    sleep(Duration::from_millis(1500));
}

fn kill_clients(redis: &mut Redis) {
    for _ in 0..10 {
        redis.try_to(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        sleep(Duration::from_millis(150));
    }
}

fn sleep_in_command(redis: &mut Redis) {
    // Redis answers after the sleep.
    redis.must(&["DEBUG", "SLEEP", "1.5"]);
}

/// Redis forgets its scripts all the time, so most calls of a script find that Redis does not know it.
fn forget_scripts(redis: &mut Redis) {
    let mut connection = redis.connect();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        let flushed: redis::RedisResult<()> =
            redis::cmd("SCRIPT").arg("FLUSH").query(&mut connection);
        flushed.expect("SCRIPT FLUSH works");
        sleep(Duration::from_millis(2));
    }
}

/// No call may fail because Redis has forgotten the scripts. Such a call of a writer or of a counter
/// would end with INTERNAL, which the checker finds.
fn forgotten_scripts(pace: &Pace) -> Report {
    let mut redis = Redis::start_durable(&[]);
    let servers = [(); 2].map(|()| Dyndata::on(&redis.url(), &[]));
    let mut trial = Trial::with_rate(&servers[0], LIMIT, Losses::None, Rate::patient());
    trial.add_writers([&servers[0], &servers[1]], Pressure::of(pace));
    trial.add_counters([&servers[0], &servers[1]]);
    trial.calm();
    let before = errors(&redis, "NOSCRIPT");
    for _ in 0..pace.times(1, 6) {
        trial.begin_fault();
        forget_scripts(&mut redis);
        trial.end_fault();
    }
    let unknown = errors(&redis, "NOSCRIPT") - before;
    trial.check(
        unknown > 10,
        format!("only {unknown} calls of a script found it forgotten"),
    );
    let mut report = trial.judge_with(nothing_fails);
    report
        .notes
        .push(format!("redis replied NOSCRIPT {unknown} times"));
    report
}

fn proxied(pace: &Pace, mode: Mode) -> Report {
    with_proxy(pace, mode, Rate::default(), |_, _| Vec::new())
}

/// Sets a mode of the proxy for two seconds at a time.
fn with_proxy(
    pace: &Pace,
    mode: Mode,
    rate: Rate,
    demands: impl FnOnce(&[Operation], &[Fault]) -> Vec<String>,
) -> Report {
    let redis = Redis::start_durable(&[]);
    let proxy = Proxy::start(redis.port);
    let server = Dyndata::on(&proxy.url(), &[]);
    let mut trial = Trial::with_rate(&server, LIMIT, Losses::None, rate);
    trial.calm();
    for _ in 0..pace.times(1, 4) {
        trial.begin_fault();
        proxy.set(mode);
        sleep(Duration::from_secs(2));
        proxy.set(Mode::Pass);
        trial.end_fault();
    }
    trial.judge_with(demands)
}

/// Two services behind one proxy, and several writers for each id and each counter. If a command takes effect twice,
/// or later than its reply says, no order of the calls explains the reads.
fn with_writers(pace: &Pace, mode: Mode) -> Report {
    let redis = Redis::start_durable(&[]);
    let proxy = Proxy::start(redis.port);
    let servers = [(); 2].map(|()| Dyndata::on(&proxy.url(), &[]));
    let mut trial = Trial::with_rate(&servers[0], LIMIT, Losses::None, Rate::patient());
    trial.add_writers([&servers[0], &servers[1]], Pressure::of(pace));
    trial.add_counters([&servers[0], &servers[1]]);
    for _ in 0..pace.times(2, 6) {
        // After this time the backoff starts again, so that the next connection opens at once.
        sleep(Duration::from_secs(5));
        trial.begin_fault();
        proxy.set(mode);
        sleep(Duration::from_secs(2));
        proxy.set(Mode::Pass);
        trial.end_fault();
    }
    trial.judge()
}

/// A delay of 300 ms is shorter than the timeout of a command.
fn slow_line(pace: &Pace) -> Report {
    let mode = Mode::Delay(Duration::from_millis(300));
    with_proxy(pace, mode, Rate::patient(), nothing_fails)
}

fn trickle(pace: &Pace) -> Report {
    with_proxy(pace, Mode::Trickle, Rate::patient(), nothing_fails)
}

/// Checks that there are calls during the fault, and that none fails.
pub fn nothing_fails(operations: &[Operation], faults: &[Fault]) -> Vec<String> {
    faults
        .iter()
        .filter_map(|fault| {
            let calls = endings(during(operations, fault, Duration::ZERO));
            let all_succeed = calls.keys().eq(["OK"].iter());
            (!all_succeed).then(|| format!("not only successes during the fault: {calls:?}"))
        })
        .collect()
}
