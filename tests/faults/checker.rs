//! The judge of a history: one register per id that expires, written by Marks alone.
//!
//! A Mark that was acknowledged took effect between its beginning and its end. One that ended with
//! an error that leaves its outcome open may take effect at any time after its beginning, or
//! never. One that was refused before it could do anything must never be seen.
//!
//! In a failover, Redis may lose what it acknowledged just before. Marks inside a *lossy* span
//! are not held against reads; those that are seen to be lost are counted.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use tonic::Code;

use crate::history::{Call, Moment, Operation, Outcome, Refusal, Seen, Value};

/// Between the callers' clock and the one that Redis expires by.
pub const CLOCK: Duration = Duration::from_millis(25);

/// The whole status contract: code and reason.
const CONTRACT: &[(Code, &str)] = &[
    (Code::InvalidArgument, "ID_INVALID"),
    (Code::InvalidArgument, "NAMESPACE_INVALID"),
    (Code::InvalidArgument, "TTL_OUT_OF_RANGE"),
    (Code::InvalidArgument, "VALUE_MISSING"),
    (Code::InvalidArgument, "VALUE_TOO_LARGE"),
    (Code::InvalidArgument, "BATCH_EMPTY"),
    (Code::InvalidArgument, "BATCH_TOO_LARGE"),
    (Code::InvalidArgument, "MESSAGE_MALFORMED"),
    (Code::InvalidArgument, "TIMEOUT_INVALID"),
    (Code::Unimplemented, "COMPRESSION_UNSUPPORTED"),
    (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
    (Code::ResourceExhausted, "OVERLOADED"),
    (Code::ResourceExhausted, "BACKEND_OUT_OF_MEMORY"),
    (Code::Unavailable, "BACKEND_UNAVAILABLE"),
    (Code::Unavailable, "BACKEND_TIMEOUT"),
    (Code::Unavailable, "BACKEND_BUSY"),
    (Code::Unavailable, "BACKEND_READONLY"),
    (Code::Unavailable, "BACKEND_MISCONFIGURED"),
    (Code::Unavailable, "BACKEND_AUTH"),
    (Code::FailedPrecondition, "WRONG_TYPE"),
    (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
    (Code::Unauthenticated, "UNAUTHENTICATED"),
    (Code::PermissionDenied, "PERMISSION_DENIED"),
    (Code::Internal, "INTERNAL"),
];

/// What an error says about the write that it ended, in its ErrorInfo.
const NOT_EXECUTED: &str = "not_executed";
const UNKNOWN: &str = "unknown";

/// What a case allows.
#[derive(Debug, Clone, Default)]
pub struct Allowances {
    /// Spans in which an asynchronous failover may lose acknowledged Marks.
    pub lossy: Vec<(Moment, Moment)>,
    /// Whether the service itself is stopped: then connections may fail before a call is taken on.
    pub service_stops: bool,
    /// Spans in which the machine let callers or service wait: not the service's lateness.
    pub stalls: Vec<(Moment, Moment)>,
    /// How much longer Redis itself may let a value live.
    pub late_expiry: Duration,
}

/// What the judge found. Each finding is a sentence.
#[derive(Debug, Default)]
pub struct Findings {
    pub calls: usize,
    pub wrong_values: Vec<String>,
    pub false_absences: Vec<String>,
    /// Acknowledged Marks that were not there at the end.
    pub lost: Vec<String>,
    /// Acknowledged Marks that a failover is seen to have lost.
    pub lost_in_failover: usize,
    pub contract: Vec<String>,
    pub longest_overrun: Duration,
}

impl Findings {
    /// Puts two histories' findings together.
    pub fn add(&mut self, other: Self) {
        let Self {
            calls,
            wrong_values,
            false_absences,
            lost,
            lost_in_failover,
            contract,
            longest_overrun,
        } = other;
        self.calls += calls;
        self.wrong_values.extend(wrong_values);
        self.false_absences.extend(false_absences);
        self.lost.extend(lost);
        self.lost_in_failover += lost_in_failover;
        self.contract.extend(contract);
        self.longest_overrun = self.longest_overrun.max(longest_overrun);
    }
}

/// A Mark, as the judge needs it.
struct Mark {
    start: Moment,
    end: Moment,
    value: u64,
    ttl: Duration,
    fate: Fate,
    lossy: bool,
}

/// What a Mark did to its register.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It took effect before it ended.
    Acknowledged { expire_time: Moment },
    /// It takes effect once, at any later time, or never.
    Open,
    /// It never takes effect.
    NoEffect,
}

/// One id in one reply.
struct Read<'a> {
    start: Moment,
    end: Moment,
    seen: &'a Seen,
    closing: bool,
    lossy: bool,
}

/// All that happened to one id, in the order of the beginnings.
#[derive(Default)]
struct Register<'a> {
    marks: Vec<Mark>,
    reads: Vec<Read<'a>>,
}

/// Judges a whole history.
pub fn check(operations: &[Operation], allowances: &Allowances) -> Findings {
    let mut findings = Findings {
        calls: operations.len(),
        ..Findings::default()
    };
    let mut registers: BTreeMap<u32, Register<'_>> = BTreeMap::new();
    for operation in operations {
        answers(operation, allowances, &mut findings);
        let lossy = allowances
            .lossy
            .iter()
            .any(|(from, to)| operation.end >= *from && operation.start <= *to);
        let &Operation { start, end, .. } = operation;
        match (&operation.call, &operation.outcome) {
            (&Call::Mark { id, value, ttl }, outcome) => {
                registers.entry(id).or_default().marks.push(Mark {
                    start,
                    end,
                    value,
                    ttl,
                    fate: fate(outcome),
                    lossy,
                });
            }
            (Call::Read { ids }, Outcome::Found(entries)) => {
                for (id, seen) in ids.iter().zip(entries) {
                    registers.entry(*id).or_default().reads.push(Read {
                        start,
                        end,
                        seen,
                        closing: operation.closing,
                        lossy,
                    });
                }
            }
            (Call::Read { .. }, _) => {}
        }
    }
    for (id, register) in &registers {
        register.check(*id, allowances.late_expiry, &mut findings);
    }
    findings
}

/// Deadline and status contract of one call.
fn answers(operation: &Operation, allowances: &Allowances, findings: &mut Findings) {
    let overrun = overrun(operation, &allowances.stalls);
    findings.longest_overrun = findings.longest_overrun.max(overrun);
    let complaint = match &operation.outcome {
        Outcome::Marked(_) | Outcome::Found(_) => None,
        Outcome::Malformed(what) => {
            findings.wrong_values.push(what.clone());
            None
        }
        Outcome::Refused(refusal) => {
            breach(refusal).or_else(|| operation.is_mark().then(|| breach_of_write(refusal))?)
        }
        Outcome::NotAccepted(_) if allowances.service_stops => None,
        Outcome::NotAccepted(what) => Some(format!("the connection failed: {what}")),
        Outcome::CutOff(what) => Some(format!("cut off: {what}")),
        Outcome::Unanswered => Some("never answered".to_owned()),
    };
    if let Some(complaint) = complaint {
        findings.contract.push(format!(
            "{complaint}, at {:.3} s",
            operation.start.0 as f64 / 1e6
        ));
    }
}

/// By how much a call outlived its deadline.
fn overrun(operation: &Operation, stalls: &[(Moment, Moment)]) -> Duration {
    let deadline = operation.start.after(operation.deadline);
    if operation.end <= deadline {
        return Duration::ZERO;
    }
    // Several may tell of the same span of time; it counts once.
    let mut spans: Vec<_> = stalls.to_vec();
    spans.sort_unstable();
    let mut late = Duration::ZERO;
    let mut from = deadline;
    for (start, end) in spans {
        let (start, end) = (start.max(from), end.min(operation.end));
        late += end.since(start);
        from = from.max(end);
    }
    operation.end.since(deadline).saturating_sub(late)
}

/// What is wrong with an error status.
fn breach(refusal: &Refusal) -> Option<String> {
    let Refusal {
        code,
        info,
        pushback,
        message,
        outcome: _,
    } = refusal;
    let Some((domain, reason)) = info else {
        return Some(format!("{code:?} without ErrorInfo: {message}"));
    };
    if domain != "dyndata" {
        return Some(format!("{code:?} {reason} of the domain {domain}"));
    }
    if !CONTRACT.contains(&(*code, reason.as_str())) {
        return Some(format!("{code:?} {reason} is not in the contract"));
    }
    if reason == "INTERNAL" {
        return Some(format!("an internal error: {message}"));
    }
    if reason == "OVERLOADED" && !pushback {
        return Some("OVERLOADED without grpc-retry-pushback-ms".to_owned());
    }
    None
}

/// What is wrong with an error status of a write.
fn breach_of_write(refusal: &Refusal) -> Option<String> {
    let reason = refusal.reason();
    match refusal.outcome.as_deref() {
        Some(NOT_EXECUTED) => None,
        Some(UNKNOWN) if refusal.pushback => {
            // A retry policy would take it for advice to repeat.
            Some(format!("{reason} of unknown outcome with a pushback"))
        }
        Some(UNKNOWN) => None,
        Some(other) => Some(format!("{reason} with the outcome {other}")),
        None => Some(format!("{reason} without an outcome")),
    }
}

/// An error without an outcome says nothing about what the Mark did.
pub fn fate(outcome: &Outcome) -> Fate {
    match outcome {
        Outcome::Marked(expire_time) => Fate::Acknowledged {
            expire_time: *expire_time,
        },
        Outcome::Refused(refusal) if refusal.outcome.as_deref() == Some(NOT_EXECUTED) => {
            Fate::NoEffect
        }
        Outcome::NotAccepted(_) => Fate::NoEffect,
        Outcome::Found(_)
        | Outcome::Malformed(_)
        | Outcome::Refused(_)
        | Outcome::CutOff(_)
        | Outcome::Unanswered => Fate::Open,
    }
}

impl Mark {
    fn is_acknowledged(&self) -> bool {
        matches!(self.fate, Fate::Acknowledged { .. })
    }

    /// Until when it must be there, once it took effect.
    fn lives_until(&self) -> Moment {
        let at_least = self.start.after(self.ttl);
        match self.fate {
            Fate::Acknowledged { expire_time } => at_least.max(expire_time),
            Fate::Open | Fate::NoEffect => at_least,
        }
    }
}

/// What is held against a read: the Mark that it should have seen, if one is to blame.
struct Evidence {
    what: String,
    lost: Option<u64>,
    excused: bool,
}

impl Register<'_> {
    fn check(&self, id: u32, late_expiry: Duration, findings: &mut Findings) {
        let by_value: HashMap<u64, &Mark> =
            self.marks.iter().map(|mark| (mark.value, mark)).collect();
        let mut lost = BTreeSet::new();
        for mark in &self.marks {
            if let Fate::Acknowledged { expire_time } = mark.fate
                && expire_time > mark.end.after(mark.ttl + CLOCK)
            {
                findings.wrong_values.push(format!(
                    "id {id}: the Mark of {} promises more than its time to live",
                    mark.value
                ));
            }
        }
        for read in &self.reads {
            let evidence = match &read.seen.value {
                Value::Absent => self.absence(read, &by_value),
                Value::Marked(value) => self.value(read, *value, late_expiry, &by_value),
                Value::Foreign(text) => vec![Evidence {
                    what: format!("{text} was never marked"),
                    lost: None,
                    excused: false,
                }],
            };
            // One witness that is not excused is enough.
            let Some(worst) = evidence.iter().min_by_key(|evidence| evidence.excused) else {
                continue;
            };
            if worst.excused {
                lost.extend(evidence.iter().filter_map(|evidence| evidence.lost));
                continue;
            }
            let sentence = format!(
                "id {id}, read at {:.3} to {:.3} s: {}",
                read.start.0 as f64 / 1e6,
                read.end.0 as f64 / 1e6,
                worst.what
            );
            if read.closing && worst.lost.is_some() {
                findings.lost.push(sentence);
            } else if read.seen.value == Value::Absent {
                findings.false_absences.push(sentence);
            } else {
                findings.wrong_values.push(sentence);
            }
        }
        findings.lost_in_failover += lost.len();
    }

    /// What speaks against a value.
    fn value(
        &self,
        read: &Read<'_>,
        value: u64,
        late_expiry: Duration,
        by_value: &HashMap<u64, &Mark>,
    ) -> Vec<Evidence> {
        let plain = |what: String| {
            vec![Evidence {
                what,
                lost: None,
                excused: false,
            }]
        };
        let Some(mark) = by_value.get(&value) else {
            return plain(format!("{value} was never marked here"));
        };
        if mark.fate == Fate::NoEffect {
            return plain(format!("the Mark of {value} was refused"));
        }
        if mark.start >= read.end {
            return plain(format!("{value} is marked only later"));
        }
        if let Some(expire_time) = read.seen.expire_time {
            let latest = if mark.is_acknowledged() {
                mark.end
            } else {
                read.end
            };
            if expire_time > latest.after(mark.ttl + CLOCK + late_expiry) {
                return plain(format!("{value} has an expire time later than its expiry"));
            }
        }
        if !mark.is_acknowledged() {
            // It may have taken effect just now.
            return Vec::new();
        }
        if read.start > mark.end.after(mark.ttl + CLOCK + late_expiry) {
            return plain(format!("{value} has expired"));
        }
        let overwritten = self.marks.iter().filter(|later| {
            later.is_acknowledged() && later.start > mark.end && later.end < read.start
        });
        let mut evidence: Vec<_> = overwritten
            .map(|later| Evidence {
                what: format!(
                    "{value} was overwritten by {}, acknowledged before the read",
                    later.value
                ),
                lost: Some(later.value),
                excused: later.lossy,
            })
            .collect();
        // A value that was seen took effect, whatever its Mark was told.
        for earlier in self.reads.iter().filter(|other| other.end < read.start) {
            if let Value::Marked(newer) = &earlier.seen.value
                && let Some(newer) = by_value.get(newer)
                && newer.start > mark.end
            {
                evidence.push(Evidence {
                    what: format!("{value} again, after {} was read", newer.value),
                    lost: Some(newer.value),
                    excused: newer.lossy || earlier.lossy,
                });
            }
        }
        evidence
    }

    /// What speaks against "not marked".
    fn absence(&self, read: &Read<'_>, by_value: &HashMap<u64, &Mark>) -> Vec<Evidence> {
        let still = |until: Moment| until.before(CLOCK) > read.end;
        let acknowledged = self.marks.iter().filter(|mark| {
            mark.is_acknowledged() && mark.end < read.start && still(mark.lives_until())
        });
        let mut evidence: Vec<_> = acknowledged
            .map(|mark| Evidence {
                what: format!("not marked, but {} is acknowledged and lives", mark.value),
                lost: Some(mark.value),
                excused: mark.lossy,
            })
            .collect();
        for earlier in self.reads.iter().filter(|other| other.end < read.start) {
            let Value::Marked(value) = &earlier.seen.value else {
                continue;
            };
            let Some(mark) = by_value.get(value) else {
                continue;
            };
            if still(mark.lives_until()) || earlier.seen.expire_time.is_some_and(still) {
                evidence.push(Evidence {
                    what: format!("not marked, but {value} was read and lives"),
                    lost: Some(*value),
                    excused: mark.lossy || earlier.lossy,
                });
            }
        }
        evidence
    }
}
