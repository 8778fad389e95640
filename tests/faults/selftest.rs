//! Tests of the checker, with histories written by hand. Each has one error, or something that looks
//! like an error and is none.

use std::time::Duration;

use tonic::Code;

use crate::{
    checker::{Allowances, Findings, check},
    history::{Call, Moment, Operation, Outcome, Refusal, Seen, Stalls, Value},
    report::Report,
    runner::{Case, Pace},
};

pub const CASES: &[Case] = &[
    Case::new("checker: finds wrong values", |_| report(WRONG_VALUES)),
    Case::new("checker: finds false absences", |_| report(ABSENCES)),
    Case::new("checker: finds lost marks", |_| report(LOSSES)),
    Case::new("checker: finds breaches of the contract", |_| {
        report(BREACHES)
    }),
    Case::new("checker: accepts what is right", |_| report(INNOCENT)),
    Case::new("checker: excuses what a failover loses", excuses),
    Case::new("checker: excuses only lateness on a busy machine", lateness),
];

pub const TTL: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_millis(500);

/// A history, and the findings that the checker must have.
struct Example {
    name: &'static str,
    history: fn() -> Vec<Operation>,
    /// The number of wrong values, false absences, lost Marks, and breaches of the contract.
    counts: [usize; 4],
}

const WRONG_VALUES: &[Example] = &[
    Example {
        name: "a value that nobody marked",
        history: || vec![mark(0, 10, 1), read(20, 30, Value::Marked(2))],
        counts: [1, 0, 0, 0],
    },
    Example {
        name: "a value of a foreign form",
        history: || vec![read(20, 30, Value::Foreign("x".to_owned()))],
        counts: [1, 0, 0, 0],
    },
    Example {
        name: "a value from the future",
        history: || vec![read(0, 10, Value::Marked(1)), mark(20, 30, 1)],
        counts: [1, 0, 0, 0],
    },
    Example {
        name: "an overwritten value",
        history: || {
            vec![
                mark(0, 10, 1),
                mark(20, 30, 2),
                read(40, 50, Value::Marked(1)),
            ]
        },
        counts: [1, 0, 0, 0],
    },
    Example {
        name: "an expired value",
        history: || vec![mark(0, 10, 1), read(1_100, 1_110, Value::Marked(1))],
        counts: [1, 0, 0, 0],
    },
    Example {
        name: "the value of a Mark that was refused",
        history: || {
            vec![
                marked(0, 10, 1, refused(Code::ResourceExhausted, "OVERLOADED")),
                read(20, 30, Value::Marked(1)),
            ]
        },
        counts: [1, 0, 0, 0],
    },
    Example {
        name: "back in time, past a Mark of unknown outcome that was seen",
        history: || {
            vec![
                mark(0, 10, 1),
                marked(20, 30, 2, refused(Code::Unavailable, "BACKEND_TIMEOUT")),
                read(40, 50, Value::Marked(2)),
                read(60, 70, Value::Marked(1)),
            ]
        },
        counts: [1, 0, 0, 0],
    },
    Example {
        name: "a Mark that promises more than its time to live",
        history: || vec![marked(0, 10, 1, Outcome::Marked(millis(1_100)))],
        counts: [1, 0, 0, 0],
    },
    Example {
        name: "a read that promises more than is left",
        history: || vec![mark(0, 10, 1), read_until(20, 30, 1, 1_100)],
        counts: [1, 0, 0, 0],
    },
    Example {
        name: "entries of other ids",
        history: || {
            let mut read = read(20, 30, Value::Absent);
            read.outcome = Outcome::Malformed("other ids".to_owned());
            vec![read]
        },
        counts: [1, 0, 0, 0],
    },
];

const ABSENCES: &[Example] = &[
    Example {
        name: "absent although acknowledged",
        history: || vec![mark(0, 10, 1), read(20, 30, Value::Absent)],
        counts: [0, 1, 0, 0],
    },
    Example {
        name: "absent although a Mark of unknown outcome was seen",
        history: || {
            vec![
                marked(0, 10, 1, refused(Code::Unavailable, "BACKEND_UNAVAILABLE")),
                read(20, 30, Value::Marked(1)),
                read(40, 50, Value::Absent),
            ]
        },
        counts: [0, 1, 0, 0],
    },
    Example {
        name: "absent before the expire time that a read promised",
        history: || {
            vec![
                marked(0, 10, 1, refused(Code::Unavailable, "BACKEND_TIMEOUT")),
                // It took effect late, which is allowed.
                read_until(700, 710, 1, 1_690),
                read(1_500, 1_510, Value::Absent),
            ]
        },
        counts: [0, 1, 0, 0],
    },
    Example {
        name: "absent in the second entry of a batch",
        history: || {
            let mut batch = read(20, 30, Value::Absent);
            batch.call = Call::Read { ids: vec![8, 7] };
            batch.outcome = Outcome::Found(vec![seen(Value::Absent), seen(Value::Absent)]);
            vec![mark(0, 10, 1), batch]
        },
        counts: [0, 1, 0, 0],
    },
];

const LOSSES: &[Example] = &[
    Example {
        name: "absent at the end",
        history: || vec![mark(0, 10, 1), closing(20, 30, Value::Absent)],
        counts: [0, 0, 1, 0],
    },
    Example {
        name: "an older value at the end",
        history: || {
            vec![
                mark(0, 10, 1),
                mark(20, 30, 2),
                closing(40, 50, Value::Marked(1)),
            ]
        },
        counts: [0, 0, 1, 0],
    },
];

const BREACHES: &[Example] = &[
    Example {
        name: "an error without ErrorInfo",
        history: || {
            let mut refusal = refusal(Code::Unavailable, "");
            refusal.info = None;
            vec![marked(0, 10, 1, Outcome::Refused(refusal))]
        },
        counts: [0, 0, 0, 1],
    },
    Example {
        name: "another domain",
        history: || {
            let mut refusal = refusal(Code::Unavailable, "BACKEND_TIMEOUT");
            refusal.info = Some(("redis".to_owned(), "BACKEND_TIMEOUT".to_owned()));
            vec![marked(0, 10, 1, Outcome::Refused(refusal))]
        },
        counts: [0, 0, 0, 1],
    },
    Example {
        name: "a reason that is in no contract, one with another code, INTERNAL",
        history: || {
            vec![
                marked(0, 10, 1, refused(Code::Unavailable, "REDIS_SAD")),
                marked(0, 10, 2, refused(Code::Unknown, "BACKEND_TIMEOUT")),
                marked(0, 10, 3, refused(Code::Cancelled, "BACKEND_TIMEOUT")),
                marked(0, 10, 4, refused(Code::Internal, "INTERNAL")),
            ]
        },
        counts: [0, 0, 0, 4],
    },
    Example {
        name: "OVERLOADED without pushback",
        history: || {
            let mut refusal = refusal(Code::ResourceExhausted, "OVERLOADED");
            refusal.pushback = None;
            vec![marked(0, 10, 1, Outcome::Refused(refusal))]
        },
        counts: [0, 0, 0, 1],
    },
    Example {
        name: "an error of a Mark without an outcome, and one that advises to repeat it",
        history: || {
            let mut silent = refusal(Code::Unavailable, "BACKEND_UNAVAILABLE");
            silent.outcome = None;
            let mut advised = refusal(Code::Unavailable, "BACKEND_UNAVAILABLE");
            advised.pushback = Some(100);
            vec![
                marked(0, 10, 1, Outcome::Refused(silent)),
                marked(0, 10, 2, Outcome::Refused(advised)),
            ]
        },
        counts: [0, 0, 0, 2],
    },
    Example {
        name: "cut off, not accepted, unanswered",
        history: || {
            vec![
                marked(0, 10, 1, Outcome::CutOff("reset".to_owned())),
                marked(0, 10, 2, Outcome::NotAccepted("refused".to_owned())),
                marked(0, 10, 3, Outcome::Unanswered),
            ]
        },
        counts: [0, 0, 0, 3],
    },
];

const INNOCENT: &[Example] = &[
    Example {
        name: "a value, and nothing after its expiry",
        history: || {
            vec![
                read(0, 5, Value::Absent),
                mark(10, 20, 1),
                read_until(30, 40, 1, 1_010),
                read(1_000, 1_030, Value::Absent),
                read(1_030, 1_040, Value::Marked(1)),
                read(1_050, 1_060, Value::Absent),
            ]
        },
        // The read of 1 after the first absence is within the allowed clock difference.
        counts: [0, 0, 0, 0],
    },
    Example {
        name: "either value while the second is being marked",
        history: || {
            vec![
                mark(0, 10, 1),
                mark(20, 60, 2),
                read(30, 40, Value::Marked(1)),
                read(50, 70, Value::Marked(1)),
                read(65, 70, Value::Marked(2)),
            ]
        },
        counts: [0, 0, 0, 0],
    },
    Example {
        name: "a Mark of unknown outcome, before and after it takes effect late",
        history: || {
            vec![
                marked(0, 10, 1, refused(Code::Unavailable, "BACKEND_TIMEOUT")),
                mark(20, 30, 2),
                read(40, 50, Value::Marked(2)),
                read(60, 70, Value::Marked(1)),
            ]
        },
        counts: [0, 0, 0, 0],
    },
    Example {
        name: "an absence that began before the Mark was acknowledged",
        history: || vec![mark(0, 30, 1), read(20, 50, Value::Absent)],
        counts: [0, 0, 0, 0],
    },
];

fn report(examples: &[Example]) -> Report {
    let failures = examples.iter().filter_map(|example| {
        let findings = check(&(example.history)(), &Allowances::default());
        let counts = counts(&findings);
        (counts != example.counts).then(|| {
            format!(
                "{}: {counts:?}, not {:?}: {findings:?}",
                example.name, example.counts
            )
        })
    });
    Report::of(failures.collect())
}

fn excuses(_: &Pace) -> Report {
    let allowances = Allowances {
        lossy: vec![(millis(0), millis(50))],
        service_stops: true,
        stalls: Stalls::new(vec![(millis(590), millis(630))]),
        late_expiry: Duration::ZERO,
    };
    let mut failures = Vec::new();
    let mut expect = |name: &str, history: &[Operation], expected: ([usize; 4], usize)| {
        let findings = check(history, &allowances);
        let got = (counts(&findings), findings.lost_in_failover);
        if got != expected {
            failures.push(format!("{name}: {got:?}, not {expected:?}: {findings:?}"));
        }
    };
    expect(
        "one Mark is lost, and three reads show it",
        &[
            mark(0, 10, 1),
            read(60, 70, Value::Absent),
            read(80, 90, Value::Absent),
            closing(100, 110, Value::Absent),
        ],
        ([0; 4], 1),
    );
    expect(
        "a Mark after the failover is not excused",
        &[mark(60, 70, 1), read(80, 90, Value::Absent)],
        ([0, 1, 0, 0], 0),
    );
    expect(
        "a value that nobody marked is not excused",
        &[read(20, 30, Value::Marked(9))],
        ([1, 0, 0, 0], 0),
    );
    expect(
        "a service that stops may accept no call, but must not cut one off",
        &[
            marked(0, 10, 1, Outcome::NotAccepted("goaway".to_owned())),
            marked(0, 10, 2, Outcome::CutOff("reset".to_owned())),
        ],
        ([0, 0, 0, 1], 0),
    );
    let mut late = mark(0, 600, 1);
    late.outcome = Outcome::Unanswered;
    // The stall covers ten milliseconds of the overrun.
    let overrun = check(&[late], &allowances).longest_overrun;
    if overrun != Duration::from_millis(90) {
        failures.push(format!("an overrun of 90 ms is measured as {overrun:?}"));
    }
    Report::of(failures)
}

fn lateness(_: &Pace) -> Report {
    let late = || refused(Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    let slow = || refused(Code::Unavailable, "BACKEND_TIMEOUT");
    let lost = || refused(Code::Unavailable, "BACKEND_UNAVAILABLE");
    let not_accepted = || Outcome::NotAccepted("refused".to_owned());
    // The end of the call, its stalls, both in milliseconds, and whether it is excused.
    let examples = [
        ("late on a busy machine", late(), 510, 200, true),
        ("late on an idle machine", late(), 510, 100, false),
        ("late before its deadline", late(), 490, 490, false),
        ("slow on a busy machine", slow(), 510, 200, true),
        ("slow before the timeout of Redis", slow(), 490, 490, false),
        ("without Redis", lost(), 510, 510, false),
        ("never answered", Outcome::Unanswered, 3_510, 1_800, true),
        (
            "never answered, few stalls",
            Outcome::Unanswered,
            3_510,
            1_700,
            false,
        ),
        ("no connection in time", not_accepted(), 3_510, 1_800, true),
        ("refused at once", not_accepted(), 10, 10, false),
        (
            "cut off",
            Outcome::CutOff("reset".to_owned()),
            3_510,
            3_510,
            false,
        ),
        ("successful", mark(0, 0, 1).outcome, 510, 510, false),
    ];
    let failures = examples
        .into_iter()
        .filter_map(|(name, outcome, end, stalled, excused)| {
            let mut call = marked(0, end, 1, outcome);
            call.stalled = Duration::from_millis(stalled);
            (call.is_excused() != excused).then(|| format!("{name}: not excused={excused}"))
        });
    Report::of(failures.collect())
}

fn counts(findings: &Findings) -> [usize; 4] {
    [
        findings.wrong_values.len(),
        findings.false_absences.len(),
        findings.lost.len(),
        findings.contract.len(),
    ]
}

pub fn millis(millis: i64) -> Moment {
    Moment(millis * 1_000)
}

pub fn marked(start: i64, end: i64, value: u64, outcome: Outcome) -> Operation {
    Operation {
        start: millis(start),
        end: millis(end),
        deadline: DEADLINE,
        call: Call::Mark {
            id: 7,
            value,
            ttl: TTL,
        },
        outcome,
        closing: false,
        stalled: Duration::ZERO,
    }
}

/// An acknowledged Mark.
pub fn mark(start: i64, end: i64, value: u64) -> Operation {
    marked(start, end, value, Outcome::Marked(millis(start).after(TTL)))
}

pub fn seen(value: Value) -> Seen {
    Seen {
        value,
        expire_time: None,
    }
}

pub fn read(start: i64, end: i64, value: Value) -> Operation {
    Operation {
        call: Call::Read { ids: vec![7] },
        outcome: Outcome::Found(vec![seen(value)]),
        ..mark(start, end, 0)
    }
}

pub fn sees(start: i64, end: i64, value: u64) -> Operation {
    read(start, end, Value::Marked(value))
}

pub fn nothing(start: i64, end: i64) -> Operation {
    read(start, end, Value::Absent)
}

pub fn unknown(start: i64, end: i64, value: u64) -> Operation {
    marked(start, end, value, unknown_outcome())
}

pub fn unknown_outcome() -> Outcome {
    refused(Code::Unavailable, "BACKEND_TIMEOUT")
}

pub fn not_executed(start: i64, end: i64, value: u64) -> Operation {
    marked(start, end, value, not_executed_outcome())
}

pub fn not_executed_outcome() -> Outcome {
    let mut refusal = refusal(Code::Unavailable, "BACKEND_UNAVAILABLE");
    refusal.outcome = Some("not_executed".to_owned());
    Outcome::Refused(refusal)
}

fn closing(start: i64, end: i64, value: Value) -> Operation {
    Operation {
        closing: true,
        ..read(start, end, value)
    }
}

fn read_until(start: i64, end: i64, value: u64, expire_time: i64) -> Operation {
    Operation {
        outcome: Outcome::Found(vec![Seen {
            value: Value::Marked(value),
            expire_time: Some(millis(expire_time)),
        }]),
        ..read(start, end, Value::Absent)
    }
}

pub fn refusal(code: Code, reason: &str) -> Refusal {
    let pushback = (reason == "OVERLOADED").then_some(100);
    Refusal {
        code,
        info: Some(("dyndata".to_owned(), reason.to_owned())),
        // An overloaded server has not started the calls that it refuses.
        outcome: Some(
            if pushback.is_some() {
                "not_executed"
            } else {
                "unknown"
            }
            .to_owned(),
        ),
        pushback,
        message: String::new(),
    }
}

pub fn refused(code: Code, reason: &str) -> Outcome {
    Outcome::Refused(refusal(code, reason))
}
