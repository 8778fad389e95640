//! Histories of MarkIf and of Unmark with a condition, for [`crate::selftest_register`].

use crate::{
    example::Example,
    history::{Call, Condition, Operation, Outcome, Value},
    selftest::{TTL, mark, millis, not_executed, nothing, seen, sees, unknown, unknown_outcome},
};

/// Histories with a condition that was not obeyed.
pub const BROKEN_CONDITIONS: &[Example] = &[
    Example::strict("a MarkIf is applied although the value differs", || {
        vec![
            mark(0, 10, 1),
            mark(20, 30, 2),
            applied(40, 50, 3, IF_ONE, TWO),
        ]
    }),
    Example::strict(
        "a MarkIf is not applied although the value is equal",
        || vec![mark(0, 10, 1), not_applied(40, 50, 3, IF_ONE, ONE)],
    ),
    Example::strict(
        "another writer comes between the reading and the writing of a MarkIf",
        || {
            vec![
                mark(0, 10, 1),
                mark(20, 30, 2),
                applied(40, 50, 3, IF_ONE, ONE),
            ]
        },
    ),
    Example::strict(
        "two MarkIfs at the same time replace the same value",
        || {
            vec![
                mark(0, 10, 1),
                applied(20, 40, 2, IF_ONE, ONE),
                applied(20, 40, 3, IF_ONE, ONE),
            ]
        },
    ),
    Example::strict(
        "a MarkIf writes although its reply says not applied",
        || {
            vec![
                mark(0, 10, 1),
                not_applied(20, 30, 3, IF_TWO, ONE),
                sees(40, 50, 3),
            ]
        },
    ),
    Example::strict("a MarkIf that was not applied found an old value", || {
        vec![
            mark(0, 10, 1),
            mark(20, 30, 2),
            not_applied(40, 50, 3, IF_TWO, ONE),
        ]
    }),
    Example::strict("if_absent overwrites a value that lives", || {
        vec![mark(0, 10, 1), applied(20, 30, 2, IF_ABSENT, Value::Absent)]
    }),
    Example::strict("if_absent says itself that it overwrote a value", || {
        vec![mark(0, 10, 1), applied(20, 30, 2, IF_ABSENT, ONE)]
    }),
    Example::strict("two if_absent at the same time are both applied", || {
        vec![
            applied(0, 30, 1, IF_ABSENT, Value::Absent),
            applied(0, 30, 2, IF_ABSENT, Value::Absent),
        ]
    }),
    Example::strict(
        "if_absent of unknown outcome overwrites a value that lives",
        || {
            vec![
                mark(0, 10, 1),
                unknown_if(20, 30, 2, IF_ABSENT),
                sees(40, 50, 2),
            ]
        },
    ),
    Example::strict(
        "a MarkIf of unknown outcome writes although the value differs",
        || {
            vec![
                mark(0, 10, 1),
                mark(20, 30, 2),
                unknown_if(40, 50, 3, IF_ONE),
                sees(60, 70, 3),
            ]
        },
    ),
    Example::strict("a MarkIf of unknown outcome is applied twice", || {
        vec![
            mark(0, 10, 1),
            unknown_if(20, 30, 2, IF_ONE),
            sees(40, 50, 2),
            applied(60, 70, 3, IF_TWO, TWO),
            sees(80, 90, 2),
        ]
    }),
    Example::strict("a MarkIf that was not executed is read", || {
        let mut refused = not_executed(20, 30, 2);
        refused.call = mark_if(2, IF_ONE);
        vec![mark(0, 10, 1), refused, sees(40, 50, 2)]
    }),
    Example::strict("a MarkIf that was acknowledged is lost", || {
        vec![
            mark(0, 10, 1),
            applied(20, 30, 2, IF_ONE, ONE),
            sees(40, 50, 1),
        ]
    }),
    Example::strict(
        "an Unmark removes another value than the expected one",
        || {
            vec![
                mark(0, 10, 1),
                mark(20, 30, 2),
                unmark(40, 50, 1, Outcome::Unmarked),
            ]
        },
    ),
    Example::strict("an Unmark says that it removed nothing, but it did", || {
        vec![
            mark(0, 10, 1),
            mark(20, 30, 2),
            unmark(40, 50, 1, Outcome::NotUnmarked),
            nothing(60, 70),
        ]
    }),
    Example::strict("an Unmark does not remove the expected value", || {
        vec![mark(0, 10, 1), unmark(20, 30, 1, Outcome::NotUnmarked)]
    }),
    Example::strict("a value again after it was removed", || {
        vec![
            mark(0, 10, 1),
            unmark(20, 30, 1, Outcome::Unmarked),
            sees(40, 50, 1),
        ]
    }),
    Example::strict("an Unmark of unknown outcome removes another value", || {
        vec![
            mark(0, 10, 1),
            mark(20, 30, 2),
            unmark(40, 50, 1, unknown_outcome()),
            nothing(60, 70),
        ]
    }),
    Example {
        name: "after a failover, a MarkIf finds what another call showed to be lost",
        history: || {
            vec![
                mark(0, 10, 1),
                mark(20, 30, 2),
                sees(60, 70, 1),
                applied(80, 90, 3, IF_TWO, TWO),
            ]
        },
        lossy: &[(15, 50)],
    },
    Example {
        name: "a failover brings back what was removed long before",
        history: || {
            vec![
                mark(0, 10, 1),
                unmark(20, 30, 1, Outcome::Unmarked),
                sees(200, 210, 1),
            ]
        },
        lossy: &[(100, 150)],
    },
];

/// Histories in which every condition was obeyed.
pub const CONDITIONS: &[Example] = &[
    Example::strict(
        "of two MarkIfs at the same time, one is applied and the other finds its value",
        || {
            vec![
                applied(0, 10, 1, IF_ABSENT, Value::Absent),
                not_applied(20, 40, 3, IF_ONE, TWO),
                applied(20, 40, 2, IF_ONE, ONE),
                sees(50, 60, 2),
            ]
        },
    ),
    Example::strict("if_absent after the value has expired", || {
        vec![
            mark(0, 10, 1),
            not_applied(500, 510, 2, IF_ABSENT, ONE),
            applied(1_030, 1_040, 3, IF_ABSENT, Value::Absent),
            sees(1_050, 1_060, 3),
        ]
    }),
    Example::strict(
        "if_absent of unknown outcome takes effect after the value has expired",
        || {
            vec![
                mark(0, 10, 1),
                unknown_if(500, 510, 2, IF_ABSENT),
                sees(520, 530, 1),
                sees(1_040, 1_050, 2),
            ]
        },
    ),
    Example::strict(
        "a MarkIf of unknown outcome takes effect later, when its condition holds",
        || {
            vec![
                mark(0, 10, 1),
                unknown_if(20, 30, 3, IF_TWO),
                sees(40, 50, 1),
                mark(60, 70, 2),
                sees(80, 90, 3),
            ]
        },
    ),
    Example::strict("MarkIfs of unknown outcome that never take effect", || {
        let unknown = (10..30).map(|value| unknown_if(0, 10, value, IF_ABSENT));
        unknown.chain([mark(20, 30, 1), sees(40, 50, 1)]).collect()
    }),
    Example::strict(
        "an Unmark finds a value of unknown outcome that nobody reads",
        || {
            vec![
                mark(0, 10, 1),
                unknown(20, 30, 2),
                unmark(40, 50, 1, Outcome::NotUnmarked),
                mark(60, 70, 3),
                sees(80, 90, 3),
            ]
        },
    ),
    Example::strict(
        "an Unmark of unknown outcome removes the value later",
        || {
            vec![
                mark(0, 10, 1),
                unmark(20, 30, 1, unknown_outcome()),
                sees(40, 50, 1),
                nothing(60, 70),
                applied(80, 90, 2, IF_ABSENT, Value::Absent),
            ]
        },
    ),
    Example {
        name: "after a failover, a MarkIf is the first call",
        history: || {
            vec![
                mark(0, 10, 1),
                applied(20, 30, 2, IF_ONE, ONE),
                applied(60, 70, 3, IF_ONE, ONE),
                sees(80, 90, 3),
            ]
        },
        lossy: &[(15, 50)],
    },
    Example {
        name: "a failover brings back what was removed just before",
        history: || {
            vec![
                mark(0, 10, 1),
                unmark(20, 30, 1, Outcome::Unmarked),
                sees(60, 70, 1),
            ]
        },
        lossy: &[(15, 50)],
    },
    Example {
        name: "a failover keeps the removal",
        history: || {
            vec![
                mark(0, 10, 1),
                unmark(20, 30, 1, Outcome::Unmarked),
                nothing(60, 70),
            ]
        },
        lossy: &[(15, 50)],
    },
];

const IF_ABSENT: Condition = Condition::Absent;
const IF_ONE: Condition = Condition::Equal(1);
const IF_TWO: Condition = Condition::Equal(2);
const ONE: Value = Value::Marked(1);
const TWO: Value = Value::Marked(2);

fn mark_if(value: u64, condition: Condition) -> Call {
    Call::MarkIf {
        id: 7,
        value,
        ttl: TTL,
        condition,
    }
}

pub fn applied(start: i64, end: i64, value: u64, condition: Condition, found: Value) -> Operation {
    Operation {
        call: mark_if(value, condition),
        outcome: Outcome::Applied {
            expire_time: millis(start).after(TTL),
            previous: seen(found),
        },
        ..mark(start, end, value)
    }
}

pub fn not_applied(
    start: i64,
    end: i64,
    value: u64,
    condition: Condition,
    found: Value,
) -> Operation {
    Operation {
        call: mark_if(value, condition),
        outcome: Outcome::NotApplied(seen(found)),
        ..mark(start, end, value)
    }
}

pub fn unknown_if(start: i64, end: i64, value: u64, condition: Condition) -> Operation {
    Operation {
        call: mark_if(value, condition),
        ..unknown(start, end, value)
    }
}

fn unmark(start: i64, end: i64, if_equal: u64, outcome: Outcome) -> Operation {
    Operation {
        call: Call::UnmarkIf { id: 7, if_equal },
        outcome,
        ..mark(start, end, 0)
    }
}
