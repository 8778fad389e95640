//! One Redis and the line to it: processes that die and stand still, connections that break,
//! bytes that come late, one by one, or never.

use std::{thread::sleep, time::Duration};

use crate::{
    history::Operation,
    load::{Rate, endings},
    proxy::{Mode, Proxy},
    report::Report,
    runner::{Case, Pace},
    support::{Dyndata, Redis},
    trial::{Fault, Losses, Trial, during},
    writers::Pressure,
};

/// After a restart, and for a connection that hung and answers again.
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

/// A fault that a Redis does to itself; ends when it is over.
pub type Deed = fn(&mut Redis);

/// All of them, for faults in random order.
pub const DEEDS: &[(&str, Deed)] = &[
    ("kill -9", kill),
    ("SIGSTOP 3 s", stop),
    ("SIGSTOP 300 ms", stutter),
    ("CLIENT PAUSE", pause),
    ("CLIENT KILL", kill_clients),
    ("DEBUG SLEEP", sleep_in_command),
];

fn direct(pace: &Pace, deed: Deed) -> Report {
    let mut redis = Redis::start_durable(&[]);
    let server = Dyndata::on(&redis.url(), &[]);
    let mut trial = Trial::start(&server, LIMIT, Losses::None);
    for _ in 0..pace.times(1, 4) {
        trial.fault();
        deed(&mut redis);
        trial.over();
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

/// Shorter than the time that a command has.
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
    // Answers when it has slept.
    redis.must(&["DEBUG", "SLEEP", "1.5"]);
}

fn proxied(pace: &Pace, mode: Mode) -> Report {
    on_a_line(pace, mode, Rate::default(), |_, _| Vec::new())
}

/// One mode of the line, for two seconds at a time.
fn on_a_line(
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
        trial.fault();
        proxy.set(mode);
        sleep(Duration::from_secs(2));
        proxy.set(Mode::Pass);
        trial.over();
    }
    trial.judge_with(demands)
}

/// Two services on one line, and several writers for each id: a command that takes effect twice,
/// or later than its answer says, leaves reads that no order explains.
fn with_writers(pace: &Pace, mode: Mode) -> Report {
    let redis = Redis::start_durable(&[]);
    let line = Proxy::start(redis.port);
    let servers = [(); 2].map(|()| Dyndata::on(&line.url(), &[]));
    let mut trial = Trial::with_rate(&servers[0], LIMIT, Losses::None, Rate::patient());
    trial.add_writers([&servers[0], &servers[1]], Pressure::of(pace));
    for _ in 0..pace.times(2, 6) {
        // For the backoff to start anew: then the next connection comes at once.
        sleep(Duration::from_secs(5));
        trial.fault();
        line.set(mode);
        sleep(Duration::from_secs(2));
        line.set(Mode::Pass);
        trial.over();
    }
    trial.judge()
}

/// Late is not lost: 300 ms are within the time that a command has.
fn slow_line(pace: &Pace) -> Report {
    let mode = Mode::Delay(Duration::from_millis(300));
    on_a_line(pace, mode, Rate::patient(), nothing_fails)
}

fn trickle(pace: &Pace) -> Report {
    on_a_line(pace, Mode::Trickle, Rate::patient(), nothing_fails)
}

/// The fault is no reason to fail a call.
pub fn nothing_fails(operations: &[Operation], faults: &[Fault]) -> Vec<String> {
    faults
        .iter()
        .filter_map(|fault| {
            let failed =
                during(operations, fault, Duration::ZERO).filter(|operation| !operation.is_ok());
            let failed = endings(failed);
            (!failed.is_empty()).then(|| format!("failed under the fault: {failed:?}"))
        })
        .collect()
}
