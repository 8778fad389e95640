//! Tests of the check for several writers, with histories written by hand and generated ones. Some
//! have an order and some have none.

use std::time::Duration;

use crate::{
    example::Example,
    history::{Call, Condition, Operation, Outcome, Value},
    register::{Verdict, check},
    report::Report,
    runner::{Case, Pace},
    selftest::{mark, not_executed, nothing, read, sees, unknown},
    selftest_conditions::{BROKEN_CONDITIONS, CONDITIONS, applied, not_applied, unknown_if},
};

pub const CASES: &[Case] = &[
    Case::new("checker, several writers: finds disorder", |_| {
        report(&[DISORDER, BROKEN_CONDITIONS].concat(), Expected::Violated)
    }),
    Case::new("checker, several writers: accepts an order", |_| {
        report(&[ORDER, CONDITIONS].concat(), Expected::Linearizable)
    }),
    Case::new("checker, several writers: long histories", at_random),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Linearizable,
    Violated,
}

const DISORDER: &[Example] = &[
    Example {
        name: "a Mark whose reply was swallowed is repeated after a newer one",
        history: || {
            vec![
                mark(0, 60, 1),
                sees(10, 15, 1),
                mark(20, 30, 2),
                sees(35, 40, 2),
                sees(70, 80, 1),
            ]
        },
        lossy: &[],
    },
    Example {
        name: "a Mark that was acknowledged is delivered once more",
        history: || {
            vec![
                mark(0, 10, 1),
                mark(20, 30, 2),
                sees(40, 50, 2),
                sees(60, 70, 1),
            ]
        },
        lossy: &[],
    },
    Example {
        name: "a Mark of unknown outcome takes effect twice",
        history: || {
            vec![
                unknown(0, 10, 1),
                sees(20, 30, 1),
                mark(40, 50, 2),
                sees(60, 70, 2),
                sees(80, 90, 1),
            ]
        },
        lossy: &[],
    },
    Example {
        name: "a Mark of unknown outcome is read before it began",
        history: || vec![sees(0, 10, 1), unknown(20, 30, 1)],
        lossy: &[],
    },
    Example {
        name: "a Mark that was not executed is read",
        history: || vec![not_executed(0, 10, 1), sees(20, 30, 1)],
        lossy: &[],
    },
    Example {
        name: "a stale read after a newer Mark was acknowledged",
        history: || vec![mark(0, 10, 1), mark(20, 30, 2), sees(35, 40, 1)],
        lossy: &[],
    },
    Example {
        name: "the old value is read after the new one, while it is being marked",
        history: || {
            vec![
                mark(0, 10, 1),
                mark(20, 100, 2),
                sees(30, 40, 2),
                sees(50, 60, 1),
            ]
        },
        lossy: &[],
    },
    Example {
        name: "two Marks at the same time are read in turns",
        history: || {
            vec![
                mark(0, 100, 1),
                mark(0, 100, 2),
                sees(10, 20, 1),
                sees(30, 40, 2),
                sees(50, 60, 1),
            ]
        },
        lossy: &[],
    },
    Example {
        name: "not marked, although it lives",
        history: || vec![mark(0, 10, 1), nothing(20, 30)],
        lossy: &[],
    },
    Example {
        name: "an expired value",
        history: || vec![mark(0, 10, 1), sees(1_100, 1_110, 1)],
        lossy: &[],
    },
    Example {
        name: "a value again after it was absent",
        history: || vec![mark(0, 40, 1), nothing(990, 1_000), sees(1_005, 1_010, 1)],
        lossy: &[],
    },
    Example {
        name: "a failover loses what was acknowledged long before",
        history: || vec![mark(0, 10, 1), mark(20, 30, 2), sees(100, 110, 1)],
        lossy: &[(50, 90)],
    },
    Example {
        name: "what a failover lost comes back",
        history: || {
            vec![
                mark(0, 10, 1),
                mark(20, 30, 2),
                sees(60, 70, 1),
                sees(80, 90, 2),
            ]
        },
        lossy: &[(15, 50)],
    },
    Example {
        name: "what a failover lost comes back after nothing was there",
        history: || vec![mark(20, 30, 2), nothing(60, 70), sees(80, 90, 2)],
        lossy: &[(15, 50)],
    },
    Example {
        name: "what a failover lost comes back in the next one",
        history: || {
            vec![
                mark(20, 30, 2),
                nothing(60, 70),
                mark(80, 90, 3),
                sees(200, 210, 2),
            ]
        },
        lossy: &[(15, 50), (150, 190)],
    },
    Example {
        name: "a failover brings what nobody marked",
        history: || vec![not_executed(20, 30, 2), sees(60, 70, 2)],
        lossy: &[(15, 50)],
    },
];

const ORDER: &[Example] = &[
    Example {
        name: "two Marks at the same time, in either order",
        history: || {
            vec![
                mark(0, 100, 1),
                mark(0, 100, 2),
                sees(10, 20, 2),
                sees(30, 40, 1),
            ]
        },
        lossy: &[],
    },
    Example {
        name: "a Mark of unknown outcome takes effect after a newer one",
        history: || {
            vec![
                unknown(0, 10, 1),
                mark(20, 30, 2),
                sees(40, 50, 2),
                sees(60, 70, 1),
                sees(80, 90, 1),
            ]
        },
        lossy: &[],
    },
    Example {
        name: "Marks of unknown outcome that never take effect",
        history: || {
            let mut history: Vec<_> = (10..30).map(|value| unknown(0, 10, value)).collect();
            history.extend([mark(20, 30, 1), sees(40, 50, 1)]);
            history
        },
        lossy: &[],
    },
    Example {
        name: "four Marks of unknown outcome take effect in another order",
        history: || {
            let mut history: Vec<_> = (1..=4).map(|value| unknown(0, 10, value)).collect();
            history.push(mark(20, 30, 5));
            let seen = [5, 3, 1, 4, 2];
            history.extend(
                (0..)
                    .zip(seen)
                    .map(|(n, value)| sees(40 + n * 10, 45 + n * 10, value)),
            );
            history
        },
        lossy: &[],
    },
    Example {
        name: "a Mark that was not executed is never read",
        history: || vec![mark(0, 10, 1), not_executed(20, 30, 2), sees(40, 50, 1)],
        lossy: &[],
    },
    Example {
        name: "values expire, and are marked again",
        history: || {
            vec![
                nothing(0, 5),
                mark(10, 20, 1),
                sees(1_000, 1_010, 1),
                nothing(1_030, 1_040),
                mark(1_050, 1_060, 2),
                sees(1_070, 1_080, 2),
                nothing(2_070, 2_080),
            ]
        },
        lossy: &[],
    },
    Example {
        name: "a failover loses the last Mark, and another one is made",
        history: || {
            vec![
                mark(0, 10, 1),
                mark(20, 30, 2),
                sees(32, 34, 2),
                sees(60, 70, 1),
                mark(80, 90, 3),
                sees(100, 110, 3),
            ]
        },
        lossy: &[(15, 50)],
    },
    Example {
        name: "both masters answer during a failover",
        history: || {
            vec![
                mark(0, 10, 1),
                mark(20, 30, 2),
                sees(32, 34, 1),
                sees(36, 38, 2),
                sees(40, 42, 1),
                sees(60, 70, 2),
            ]
        },
        lossy: &[(15, 50)],
    },
    Example {
        name: "what a failover lost is not needed for the next one",
        history: || {
            vec![
                mark(0, 10, 1),
                mark(20, 30, 2),
                sees(60, 70, 1),
                sees(200, 210, 1),
            ]
        },
        lossy: &[(15, 50), (150, 190)],
    },
    Example {
        name: "a Mark of unknown outcome takes effect after the failover",
        history: || {
            vec![
                mark(0, 10, 1),
                unknown(20, 30, 2),
                sees(60, 70, 1),
                sees(80, 90, 2),
            ]
        },
        lossy: &[(15, 50)],
    },
];

fn report(examples: &[Example], expected: Expected) -> Report {
    let failures = examples.iter().filter_map(|example| {
        let verdict = check(&(example.history)(), &example.spans(), Duration::ZERO);
        complaint(&verdict, expected).map(|complaint| format!("{}: {complaint}", example.name))
    });
    Report::of(failures.collect())
}

fn complaint(verdict: &Verdict, expected: Expected) -> Option<String> {
    let is_right = match expected {
        Expected::Linearizable => *verdict == Verdict::Linearizable,
        Expected::Violated => matches!(verdict, Verdict::Violated(_)),
    };
    (!is_right).then(|| format!("{verdict:?}, not {expected:?}"))
}

/// The history of a simulated register with three writers and three readers has an order. After one
/// read is changed to an older value, it has none.
fn at_random(_: &Pace) -> Report {
    let mut failures = Vec::new();
    for seed in 0..10 {
        let mut history = simulated(&mut fastrand::Rng::with_seed(seed));
        let verdict = check(&history, &[], Duration::ZERO);
        if let Some(complaint) = complaint(&verdict, Expected::Linearizable) {
            failures.push(format!("seed {seed}: {complaint}"));
        }
        let last = history.iter().rposition(|operation| !operation.is_write());
        let last = last.expect("it has reads");
        // Ten acknowledged Marks earlier, so that newer Marks had ended before the read.
        let old = history[..last]
            .iter()
            .filter(|operation| matches!(operation.outcome, Outcome::Marked(_)))
            .rev()
            .nth(10);
        let old = old.and_then(|operation| match operation.call {
            Call::Mark { value, .. } => Some(value),
            _ => None,
        });
        let Operation { start, end, .. } = history[last];
        history[last] = Operation {
            start,
            end,
            ..sees(0, 0, old.expect("it has Marks"))
        };
        if let Some(complaint) =
            complaint(&check(&history, &[], Duration::ZERO), Expected::Violated)
        {
            failures.push(format!("seed {seed}, with a stale read: {complaint}"));
        }
    }
    Report::of(failures)
}

/// The calls of six callers on a register. Each call takes effect at a random moment between its
/// start and its end. Some writes have an unknown outcome, and take effect later. Half of the writes
/// are MarkIfs that expect what was there a moment ago.
fn simulated(random: &mut fastrand::Rng) -> Vec<Operation> {
    const CALLERS: usize = 6;
    const CALLS: usize = 200;
    const UNKNOWN: usize = CALLS / 5;
    let mut free = [0; CALLERS];
    let mut planned = Vec::new();
    for number in 1..=CALLS {
        let caller = (0..CALLERS).min_by_key(|caller| free[*caller]).unwrap_or(0);
        let start = free[caller] + random.i64(1..30);
        let end = start + random.i64(2..12);
        free[caller] = end;
        let is_write = caller < CALLERS / 2;
        let is_unknown = is_write && number % UNKNOWN < CALLERS / 2;
        let at = match is_unknown {
            true => end + random.i64(1..60),
            false => random.i64(start + 1..end),
        };
        planned.push((at, start, end, number as u64, is_write, is_unknown));
    }
    planned.sort_unstable();
    let mut value = Value::Absent;
    // What was there at each moment.
    let mut states = vec![(0, Value::Absent)];
    let mut history = Vec::new();
    for (at, start, end, number, is_write, is_unknown) in planned {
        if !is_write {
            history.push(read(start, end, value.clone()));
            continue;
        }
        // A caller expects what another one read before this call began.
        let known = states.partition_point(|(since, _)| *since < start) - 1;
        let condition = match (random.bool(), &states[known].1) {
            (true, Value::Marked(value)) => Some(Condition::Equal(*value)),
            (true, _) => Some(Condition::Absent),
            (false, _) => None,
        };
        let holds = match condition {
            None => true,
            Some(Condition::Absent) => value == Value::Absent,
            Some(Condition::Equal(expected)) => value == Value::Marked(expected),
        };
        history.push(match condition {
            None if is_unknown => unknown(start, end, number),
            None => mark(start, end, number),
            Some(condition) if is_unknown => unknown_if(start, end, number, condition),
            Some(condition) if holds => applied(start, end, number, condition, value.clone()),
            Some(condition) => not_applied(start, end, number, condition, value.clone()),
        });
        if holds {
            value = Value::Marked(number);
            states.push((at, value.clone()));
        }
    }
    for operation in &mut history {
        if let Call::Mark { ttl, .. } | Call::MarkIf { ttl, .. } = &mut operation.call {
            *ttl = Duration::from_secs(3600);
        }
    }
    history.sort_by_key(|operation| operation.start);
    history
}
