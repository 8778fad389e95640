//! Tests the load and the checker on a real service: changes in Redis that no Mark made, and late
//! answers, must be found.

use std::{thread::sleep, time::Duration};

use crate::{
    checker::{Allowances, Findings, check},
    client::name,
    load::{AtTheEnd, Load, Rate},
    proxy::{Mode, Proxy},
    report::Report,
    runner::{Case, Pace},
    support::{Dyndata, Redis, eventually, key},
};

pub const CASES: &[Case] = &[
    Case::new("checker: notices that Redis is emptied", emptied),
    Case::new("checker: notices that a value is put back", put_back),
    Case::new("checker: notices a value that nobody marked", foreign),
    Case::new("checker: notices late answers", late),
];

/// Runs a real service under load, changes the data in Redis directly, and checks the history.
fn tampered(tamper: impl FnOnce(&Redis)) -> Findings {
    let redis = Redis::start_durable(&[]);
    let server = Dyndata::on(&redis.url(), &[]);
    let load = Load::start(&server.addr, Rate::default());
    eventually("there are calls", || load.recorder.successes() > 200);
    tamper(&redis);
    sleep(Duration::from_millis(500));
    check(&load.finish(), &Allowances::default())
}

fn report(is_noticed: bool, findings: &Findings) -> Report {
    Report::of(if is_noticed {
        Vec::new()
    } else {
        vec![format!("not noticed: {findings:?}")]
    })
}

fn emptied(_: &Pace) -> Report {
    let findings = tampered(|redis| {
        redis.must(&["FLUSHALL"]);
    });
    let noticed = !findings.false_absences.is_empty() && !findings.lost.is_empty();
    report(noticed && findings.wrong_values.is_empty(), &findings)
}

fn put_back(_: &Pace) -> Report {
    // A key that is marked at least twice, as every one with a long time to live is.
    let findings = tampered(|redis| {
        let key = &key(&name(0));
        let value = |redis: &Redis| redis.text(&["GET", key]);
        eventually("it is marked", || !value(redis).is_empty());
        let old = value(redis);
        eventually("it is marked again", || value(redis) != old);
        sleep(Duration::from_millis(50));
        redis.must(&["SET", key, &old, "PX", "3600000"]);
    });
    let noticed = !findings.wrong_values.is_empty() || !findings.lost.is_empty();
    report(noticed, &findings)
}

fn foreign(_: &Pace) -> Report {
    let findings = tampered(|redis| {
        for id in 0..50 {
            let key = key(&name(id));
            // A number that no Mark has written.
            redis.must(&["SET", &key, "3000000", "PX", "3600000"]);
        }
    });
    report(!findings.wrong_values.is_empty(), &findings)
}

/// A proxy between callers and service delays replies until after the deadline.
fn late(_: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let server = Dyndata::on(&redis.url(), &[]);
    let proxy = Proxy::start(server.port());
    proxy.set(Mode::Delay(Duration::from_millis(300)));
    let rate = Rate {
        deadline_millis: (100, 100),
        at_the_end: AtTheEnd::Nothing,
        ..Rate::default()
    };
    let load = Load::start(&format!("127.0.0.1:{}", proxy.port), rate);
    sleep(Duration::from_secs(1));
    let findings = check(&load.finish(), &Allowances::default());
    report(
        findings.longest_overrun > Duration::from_millis(150),
        &findings,
    )
}
