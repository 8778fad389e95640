//! Tests of the check of counters, with histories written by hand, and with a real service whose
//! counter is changed in Redis.

use std::{thread::sleep, time::Duration};

use crate::{
    client::name,
    counters::{Counters, FIRST_ID, check},
    example::Example,
    history::{Call, Operation, Outcome, Recorder},
    report::Report,
    runner::{Case, Pace},
    selftest::{mark, not_executed_outcome, unknown_outcome},
    support::{Dyndata, Redis, eventually, key},
};

pub const CASES: &[Case] = &[
    Case::new("checker, counters: finds wrong counts", |_| {
        report(WRONG, Expected::Violated)
    }),
    Case::new("checker, counters: accepts right counts", |_| {
        report(RIGHT, Expected::Right)
    }),
    Case::new("checker, counters: notices one too many", doubled),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Right,
    Violated,
}

const WRONG: &[Example] = &[
    Example {
        name: "an acknowledged increment counts twice",
        history: || vec![counted(0, 10, 1), counted(20, 30, 3), read(40, 50, 3)],
        lossy: &[],
    },
    Example {
        name: "an increment counts once more after all have ended",
        history: || vec![counted(0, 10, 1), counted(20, 30, 2), read(40, 50, 3)],
        lossy: &[],
    },
    Example {
        name: "an increment of unknown outcome counts twice",
        history: || vec![counted(0, 10, 1), unknown(20, 30), read(40, 50, 3)],
        lossy: &[],
    },
    Example {
        name: "an increment that was not executed counts",
        history: || vec![counted(0, 10, 1), not_executed(20, 30), read(40, 50, 2)],
        lossy: &[],
    },
    Example {
        name: "an acknowledged increment is lost",
        history: || vec![counted(0, 10, 1), counted(20, 30, 2), read(40, 50, 1)],
        lossy: &[],
    },
    Example {
        name: "a lost increment is hidden by one of unknown outcome",
        history: || {
            vec![
                counted(0, 10, 1),
                counted(20, 30, 2),
                unknown(35, 45),
                read(36, 44, 1),
                read(50, 60, 2),
            ]
        },
        lossy: &[],
    },
    Example {
        name: "two increments at the same time have the same value",
        history: || {
            vec![
                counted(0, 10, 1),
                counted(0, 10, 1),
                unknown(0, 10),
                read(20, 30, 2),
            ]
        },
        lossy: &[],
    },
    Example {
        name: "a value falls",
        history: || {
            vec![
                unknown(0, 10),
                unknown(0, 10),
                read(20, 30, 2),
                read(40, 50, 1),
            ]
        },
        lossy: &[],
    },
    Example {
        name: "an increment of unknown outcome counts before it began",
        history: || vec![read(0, 10, 1), unknown(20, 30), read(40, 50, 1)],
        lossy: &[],
    },
    Example {
        name: "nobody has read the counter at the end",
        history: || vec![read(0, 5, 0), counted(10, 20, 1)],
        lossy: &[],
    },
    Example {
        name: "a failover makes an increment count twice",
        history: || {
            vec![
                counted(0, 10, 1),
                counted(20, 30, 2),
                read(60, 70, 1),
                unknown(75, 76),
                read(80, 90, 4),
            ]
        },
        lossy: &[(15, 50)],
    },
    Example {
        name: "after a failover, two increments have the same value",
        history: || {
            vec![
                counted(0, 10, 1),
                counted(60, 70, 1),
                counted(60, 70, 1),
                read(80, 90, 2),
            ]
        },
        lossy: &[(5, 50)],
    },
    Example {
        name: "a value falls after a failover",
        history: || {
            vec![
                counted(0, 10, 1),
                counted(20, 30, 2),
                read(60, 70, 2),
                read(80, 90, 1),
            ]
        },
        lossy: &[(15, 50)],
    },
    Example {
        name: "an increment is lost long before a failover",
        history: || {
            vec![
                counted(0, 10, 1),
                counted(20, 30, 2),
                read(40, 50, 1),
                read(200, 210, 1),
            ]
        },
        lossy: &[(100, 150)],
    },
];

const RIGHT: &[Example] = &[
    Example {
        name: "increments at the same time, in another order than they end",
        history: || {
            vec![
                counted(0, 30, 1),
                counted(0, 20, 3),
                counted(0, 10, 2),
                read(40, 50, 3),
            ]
        },
        lossy: &[],
    },
    Example {
        name: "of two increments of unknown outcome, one counts, and late",
        history: || {
            vec![
                unknown(0, 10),
                unknown(0, 10),
                counted(20, 30, 1),
                read(40, 50, 1),
                read(60, 70, 2),
            ]
        },
        lossy: &[],
    },
    Example {
        name: "an increment that was not executed does not count",
        history: || vec![not_executed(0, 10), counted(20, 30, 1), read(40, 50, 1)],
        lossy: &[],
    },
    Example {
        name: "a failover loses increments, and both masters answer meanwhile",
        history: || {
            vec![
                counted(0, 10, 1),
                counted(20, 30, 2),
                counted(32, 40, 2),
                read(60, 70, 1),
                counted(80, 90, 2),
                read(100, 110, 2),
            ]
        },
        lossy: &[(15, 50)],
    },
];

fn report(examples: &[Example], expected: Expected) -> Report {
    let failures = examples.iter().filter_map(|example| {
        let violations = check(&(example.history)(), &example.spans()).violations;
        let is_right = violations.is_empty() == (expected == Expected::Right);
        (!is_right).then(|| format!("{}: {violations:?}, not {expected:?}", example.name))
    });
    Report::of(failures.collect())
}

/// Somebody else adds 1 to a counter. The callers must find one increment too many.
fn doubled(_: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let server = Dyndata::on(&redis.url(), &[]);
    let counters = Counters::start(&[&server.addr], &Recorder::new());
    let key = &key(&name(FIRST_ID));
    eventually("a counter is there", || {
        !redis.text(&["GET", key]).is_empty()
    });
    sleep(Duration::from_millis(300));
    redis.must(&["INCR", key]);
    sleep(Duration::from_millis(300));
    let (summary, findings) = counters.finish(&[]);
    let is_noticed = !summary.violations.is_empty() && findings.contract.is_empty();
    Report::of(if is_noticed {
        Vec::new()
    } else {
        vec![format!("not noticed: {summary:?}, {findings:?}")]
    })
}

fn increment(start: i64, end: i64, outcome: Outcome) -> Operation {
    Operation {
        call: Call::Increment { id: 7 },
        outcome,
        ..mark(start, end, 0)
    }
}

fn counted(start: i64, end: i64, value: i64) -> Operation {
    increment(start, end, Outcome::Counted(value))
}

fn unknown(start: i64, end: i64) -> Operation {
    increment(start, end, unknown_outcome())
}

fn not_executed(start: i64, end: i64) -> Operation {
    increment(start, end, not_executed_outcome())
}

fn read(start: i64, end: i64, value: i64) -> Operation {
    Operation {
        call: Call::ReadCounter { id: 7 },
        outcome: Outcome::Counted(value),
        ..mark(start, end, 0)
    }
}
