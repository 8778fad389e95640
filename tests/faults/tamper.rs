//! The whole path, checked: a real service whose Redis is tampered with behind its back, and whose
//! answers are held up, has to be found out.

use std::{thread::sleep, time::Duration};

use crate::{
    checker::{Allowances, Findings, check},
    client::name,
    load::{AtTheEnd, Load, Rate},
    proxy::{Mode, Proxy},
    report::Report,
    runner::{Case, Pace},
    support::{Dyndata, Redis, eventually},
};

pub const CASES: &[Case] = &[
    Case::new("checker: notices that Redis is emptied", emptied),
    Case::new("checker: notices that a value is put back", put_back),
    Case::new("checker: notices a value that nobody marked", foreign),
    Case::new("checker: notices late answers", late),
];

/// A real service under load, with a Redis that is tampered with behind its back.
fn tampered(tamper: impl FnOnce(&Redis)) -> Findings {
    let redis = Redis::start_durable(&[]);
    let server = Dyndata::on(&redis.url(), &[]);
    let load = Load::start(&server.addr, Rate::default());
    eventually("there are calls", || load.recorder.successes() > 200);
    tamper(&redis);
    sleep(Duration::from_millis(500));
    check(&load.finish(), &Allowances::default())
}

fn demand(holds: bool, findings: &Findings) -> Report {
    Report::of(if holds {
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
    demand(noticed && findings.wrong_values.is_empty(), &findings)
}

fn put_back(_: &Pace) -> Report {
    // A key that is marked at least twice meanwhile, as every long-lived one is.
    let findings = tampered(|redis| {
        let key = "dyn_data/{0}0";
        let value = |redis: &Redis| redis.text(&["GET", key]);
        eventually("it is marked", || !value(redis).is_empty());
        let old = value(redis);
        eventually("it is marked again", || value(redis) != old);
        sleep(Duration::from_millis(50));
        redis.must(&["SET", key, &old, "PX", "3600000"]);
    });
    let noticed = !findings.wrong_values.is_empty() || !findings.lost.is_empty();
    demand(noticed, &findings)
}

fn foreign(_: &Pace) -> Report {
    let findings = tampered(|redis| {
        for id in 0..50 {
            let key = format!("dyn_data/{}", name(id));
            // A number like any other, of which no Mark knows.
            redis.must(&["SET", &key, "3000000", "PX", "3600000"]);
        }
    });
    demand(!findings.wrong_values.is_empty(), &findings)
}

/// The line between callers and service holds replies up for longer than they are let wait.
fn late(_: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let server = Dyndata::on(&redis.url(), &[]);
    let line = Proxy::start(server.port());
    line.set(Mode::Delay(Duration::from_millis(300)));
    let rate = Rate {
        deadline_millis: (100, 100),
        at_the_end: AtTheEnd::Nothing,
        ..Rate::default()
    };
    let load = Load::start(&format!("127.0.0.1:{}", line.port), rate);
    sleep(Duration::from_secs(1));
    let findings = check(&load.finish(), &Allowances::default());
    demand(
        findings.longest_overrun > Duration::from_millis(150),
        &findings,
    )
}
