//! Checks a history: every id is a register whose value expires.
//!
//! An acknowledged Mark took effect between its start and its end. A Mark that failed with an
//! unknown outcome may take effect at any time after its start, or never. The value of a Mark that
//! was not executed must never be read. A MarkIf is a read of the value that it found, and a Mark
//! unless its condition did not hold.
//!
//! An absence is not checked if the value may have been removed. [`crate::register`] checks it.
//!
//! In a failover, Redis may lose Marks that it acknowledged just before. If a Mark inside a *lossy*
//! span is missing later, that is counted and is no failure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use tonic::Code;

use crate::history::{Call, Moment, Operation, Outcome, Refusal, Seen, Stalls, Value};

/// The largest difference allowed between the clocks of the callers and of Redis.
pub const CLOCK: Duration = Duration::from_millis(25);

/// All errors of the API: code and reason.
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

/// The `outcome` in the ErrorInfo of a failed Mark.
const NOT_EXECUTED: &str = "not_executed";
const UNKNOWN: &str = "unknown";

/// What a case excuses.
#[derive(Debug, Clone, Default)]
pub struct Allowances {
    /// Spans of time in which a failover may lose acknowledged Marks.
    pub lossy: Vec<(Moment, Moment)>,
    /// True if the service itself stops. Calls may then fail before the service accepts them.
    pub service_stops: bool,
    /// When the machine was too busy. Lateness in these spans is not the service's.
    pub stalls: Stalls,
    /// How much later than promised Redis itself may expire a value.
    pub late_expiry: Duration,
}

/// The result of a check. Each finding is a sentence.
#[derive(Debug, Default)]
pub struct Findings {
    pub calls: usize,
    pub wrong_values: Vec<String>,
    pub false_absences: Vec<String>,
    /// Acknowledged Marks whose value was missing at the end.
    pub lost: Vec<String>,
    /// Number of acknowledged Marks that a failover has lost.
    pub lost_in_failover: usize,
    pub contract: Vec<String>,
    pub longest_overrun: Duration,
}

impl Findings {
    /// Adds the findings of another history.
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

/// A Mark in the history of a register.
struct Mark {
    start: Moment,
    end: Moment,
    value: u64,
    ttl: Duration,
    fate: Fate,
    /// The expire time in the reply.
    expire_time: Option<Moment>,
    lossy: bool,
}

/// What is known about the effect of a write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It took effect before its end.
    Acknowledged,
    /// It takes effect once at any later time, or never.
    Unknown,
    /// It never takes effect.
    NoEffect,
}

/// The entry of one id in one reply.
struct Read<'a> {
    start: Moment,
    end: Moment,
    seen: &'a Seen,
    closing: bool,
    lossy: bool,
}

/// All calls on one id, sorted by their start.
#[derive(Default)]
struct Register<'a> {
    marks: Vec<Mark>,
    reads: Vec<Read<'a>>,
    /// True if an Unmark has removed a value or may have.
    removed: bool,
}

/// Checks a whole history.
pub fn check(operations: &[Operation], allowances: &Allowances) -> Findings {
    let mut findings = Findings {
        calls: operations.len(),
        ..Findings::default()
    };
    let mut registers: BTreeMap<u32, Register<'_>> = BTreeMap::new();
    for operation in operations {
        check_answer(operation, allowances, &mut findings);
        let lossy = allowances
            .lossy
            .iter()
            .any(|(from, to)| operation.end >= *from && operation.start <= *to);
        let &Operation { start, end, .. } = operation;
        let fate = fate(&operation.outcome);
        match &operation.call {
            &Call::Mark { id, value, ttl } | &Call::MarkIf { id, value, ttl, .. } => {
                registers.entry(id).or_default().marks.push(Mark {
                    start,
                    end,
                    value,
                    ttl,
                    fate,
                    expire_time: operation.outcome.expire_time(),
                    lossy,
                });
            }
            Call::UnmarkIf { id, .. } => {
                registers.entry(*id).or_default().removed |= fate != Fate::NoEffect;
            }
            Call::Read { .. } | Call::Increment { .. } | Call::ReadCounter { .. } => {}
        }
        for (id, seen) in operation.seen() {
            registers.entry(id).or_default().reads.push(Read {
                start,
                end,
                seen,
                closing: operation.closing,
                lossy,
            });
        }
    }
    for (id, register) in &registers {
        register.check(*id, allowances.late_expiry, &mut findings);
    }
    findings
}

/// Checks the deadline and the error status of one call.
fn check_answer(operation: &Operation, allowances: &Allowances, findings: &mut Findings) {
    let overrun = overrun(operation, &allowances.stalls);
    findings.longest_overrun = findings.longest_overrun.max(overrun);
    let complaint = match &operation.outcome {
        Outcome::Marked(_)
        | Outcome::Applied { .. }
        | Outcome::NotApplied(_)
        | Outcome::Unmarked
        | Outcome::NotUnmarked
        | Outcome::Found(_)
        | Outcome::Counted(_) => None,
        Outcome::Malformed(what) => {
            findings.wrong_values.push(what.clone());
            None
        }
        Outcome::Refused(refusal) => {
            breach(refusal).or_else(|| write_breach(&operation.call, refusal))
        }
        Outcome::NotAccepted(_) if allowances.service_stops => None,
        Outcome::NotAccepted(_) | Outcome::Unanswered if operation.is_excused() => None,
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

/// How long after its deadline a call ended, without the stalls of the machine.
fn overrun(operation: &Operation, stalls: &Stalls) -> Duration {
    let deadline = operation.start.after(operation.deadline);
    let late = operation.end.since(deadline);
    late.saturating_sub(stalls.between(deadline, operation.end))
}

/// Says what is wrong with an error status.
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
    if reason == "OVERLOADED" && pushback.is_none() {
        return Some("OVERLOADED without grpc-retry-pushback-ms".to_owned());
    }
    None
}

/// Says what is wrong with the error status of a write.
fn write_breach(call: &Call, refusal: &Refusal) -> Option<String> {
    // A retry policy takes a pushback as a request to repeat the call, and -1 as a ban. A Mark or an
    // Unmark may be repeated if the caller's policy says so. An Increment or a MarkIf may not.
    let pushback = match call {
        Call::Read { .. } | Call::ReadCounter { .. } => return None,
        Call::Mark { .. } | Call::UnmarkIf { .. } => None,
        Call::MarkIf { .. } | Call::Increment { .. } => Some(-1),
    };
    let reason = refusal.reason();
    match refusal.outcome.as_deref() {
        Some(NOT_EXECUTED) => None,
        Some(UNKNOWN) if refusal.pushback != pushback => Some(format!(
            "{reason} of unknown outcome with the pushback {:?}, not {pushback:?}",
            refusal.pushback
        )),
        Some(UNKNOWN) => None,
        Some(other) => Some(format!("{reason} with the outcome {other}")),
        None => Some(format!("{reason} without an outcome")),
    }
}

/// What an outcome says about the effect of a write. An error without an outcome leaves it
/// unknown whether the call took effect.
pub fn fate(outcome: &Outcome) -> Fate {
    match outcome {
        Outcome::Marked(_) | Outcome::Applied { .. } | Outcome::Unmarked | Outcome::Counted(_) => {
            Fate::Acknowledged
        }
        Outcome::NotApplied(_) | Outcome::NotUnmarked | Outcome::NotAccepted(_) => Fate::NoEffect,
        Outcome::Refused(refusal) if refusal.outcome.as_deref() == Some(NOT_EXECUTED) => {
            Fate::NoEffect
        }
        Outcome::Found(_)
        | Outcome::Malformed(_)
        | Outcome::Refused(_)
        | Outcome::CutOff(_)
        | Outcome::Unanswered => Fate::Unknown,
    }
}

impl Mark {
    fn is_acknowledged(&self) -> bool {
        self.fate == Fate::Acknowledged
    }

    /// The moment until which the value must be there, once the Mark took effect.
    fn lives_until(&self) -> Moment {
        let at_least = self.start.after(self.ttl);
        self.expire_time.map_or(at_least, |time| at_least.max(time))
    }
}

/// A reason why the result of a read is wrong.
struct Evidence {
    what: String,
    /// The value that the read should have found, if a Mark is missing.
    lost: Option<u64>,
    /// True if a failover may have caused it.
    excused: bool,
}

impl Register<'_> {
    fn check(&self, id: u32, late_expiry: Duration, findings: &mut Findings) {
        let by_value: HashMap<u64, &Mark> =
            self.marks.iter().map(|mark| (mark.value, mark)).collect();
        let mut lost = BTreeSet::new();
        for mark in &self.marks {
            if let Some(expire_time) = mark.expire_time
                && expire_time > mark.end.after(mark.ttl + CLOCK)
            {
                findings.wrong_values.push(format!(
                    "id {id}: the Mark of {} promises an expire time after its time to live",
                    mark.value
                ));
            }
        }
        for read in &self.reads {
            let evidence = match &read.seen.value {
                Value::Absent if self.removed => continue,
                Value::Absent => self.evidence_against_absence(read, &by_value),
                Value::Marked(value) => {
                    self.evidence_against_value(read, *value, late_expiry, &by_value)
                }
                Value::Foreign(text) => vec![Evidence {
                    what: format!("{text} was never marked"),
                    lost: None,
                    excused: false,
                }],
            };
            // One piece of evidence that is not excused makes the read wrong.
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

    /// Reasons why a read cannot have found this value.
    fn evidence_against_value(
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
            return plain(format!("the Mark of {value} had no effect"));
        }
        if mark.start >= read.end {
            return plain(format!("the Mark of {value} started only later"));
        }
        if let Some(expire_time) = read.seen.expire_time {
            let latest = if mark.is_acknowledged() {
                mark.end
            } else {
                read.end
            };
            if expire_time > latest.after(mark.ttl + CLOCK + late_expiry) {
                return plain(format!(
                    "the expire time of {value} is later than its expiry"
                ));
            }
        }
        if !mark.is_acknowledged() {
            // It may have taken effect just before the read.
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
        // A value that was read took effect, whatever the reply to its Mark said.
        for earlier in self.reads.iter().filter(|other| other.end < read.start) {
            if let Value::Marked(newer) = &earlier.seen.value
                && let Some(newer) = by_value.get(newer)
                && newer.start > mark.end
            {
                evidence.push(Evidence {
                    what: format!("{value} again, after the newer {} was read", newer.value),
                    lost: Some(newer.value),
                    excused: newer.lossy || earlier.lossy,
                });
            }
        }
        evidence
    }

    /// Reasons why a read cannot have found nothing.
    fn evidence_against_absence(
        &self,
        read: &Read<'_>,
        by_value: &HashMap<u64, &Mark>,
    ) -> Vec<Evidence> {
        let still = |until: Moment| until.before(CLOCK) > read.end;
        let acknowledged = self.marks.iter().filter(|mark| {
            mark.is_acknowledged() && mark.end < read.start && still(mark.lives_until())
        });
        let mut evidence: Vec<_> = acknowledged
            .map(|mark| Evidence {
                what: format!(
                    "not marked, although {} was acknowledged and has not expired",
                    mark.value
                ),
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
                    what: format!("not marked, although {value} was read and has not expired"),
                    lost: Some(*value),
                    excused: mark.lossy || earlier.lossy,
                });
            }
        }
        evidence
    }
}
