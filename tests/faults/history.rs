//! The history of a run, as the callers saw it: every call with its start, its end and its outcome.
//!
//! [`crate::checker`] can check a history without knowing the order in which Redis executed the
//! calls. It relies on two rules: every value is unique, and the time to live of an id never changes,
//! so that a later Mark never shortens the life of a value.
//! Counters have ids of their own, and [`crate::counters`] checks them.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::starvation;

/// A call without an answer is given up this long after its deadline.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// The timeout of a Redis command, unless a case sets another.
const REDIS_TIMEOUT: Duration = Duration::from_millis(500);

/// Microseconds since the start of the history. Negative before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub i64);

impl Moment {
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(micros(span)))
    }

    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(micros(span)))
    }

    /// The time since `earlier`. Zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// One call.
#[derive(Debug, Clone)]
pub struct Operation {
    pub start: Moment,
    pub end: Moment,
    pub deadline: Duration,
    pub call: Call,
    pub outcome: Outcome,
    /// True for the reads of all ids at the end, when there is no fault any more.
    pub closing: bool,
    /// How long the machine was too busy during the call.
    pub stalled: Duration,
}

/// The request of a call.
#[derive(Debug, Clone)]
pub enum Call {
    Mark {
        id: u32,
        value: u64,
        ttl: Duration,
    },
    /// Marks a value if a condition holds.
    MarkIf {
        id: u32,
        value: u64,
        ttl: Duration,
        condition: Condition,
    },
    /// Removes the value if it is this one.
    UnmarkIf {
        id: u32,
        if_equal: u64,
    },
    Read {
        ids: Vec<u32>,
    },
    /// Adds 1 to a counter.
    Increment {
        id: u32,
    },
    /// Reads a counter.
    ReadCounter {
        id: u32,
    },
}

/// The condition of a MarkIf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Absent,
    Equal(u64),
}

/// How a call ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// OK, with the expire time.
    Marked(Moment),
    /// OK: the condition held. With the expire time, and what was there before.
    Applied { expire_time: Moment, previous: Seen },
    /// OK: the condition did not hold, because this is there.
    NotApplied(Seen),
    /// OK: the value was the expected one, and is removed.
    Unmarked,
    /// OK: the value was not the expected one, and stays.
    NotUnmarked,
    /// OK, with an entry for each id, in the order of the request.
    Found(Vec<Seen>),
    /// OK, with the value of a counter.
    Counted(i64),
    /// OK, but the reply does not match the request.
    Malformed(String),
    /// An error status from the server.
    Refused(Refusal),
    /// The connection failed before the server can have accepted the call.
    NotAccepted(String),
    /// The connection failed during the call.
    CutOff(String),
    /// No answer until long after the deadline.
    Unanswered,
}

/// An error status.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub code: tonic::Code,
    /// Domain and reason of its ErrorInfo.
    pub info: Option<(String, String)>,
    /// The `outcome` in its ErrorInfo's metadata.
    pub outcome: Option<String>,
    /// The value of `grpc-retry-pushback-ms`.
    pub pushback: Option<i64>,
    pub message: String,
}

impl Refusal {
    pub fn reason(&self) -> &str {
        self.info.as_ref().map_or("(none)", |(_, reason)| reason)
    }
}

/// The content of an entry in a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub value: Value,
    pub expire_time: Option<Moment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Absent,
    Marked(u64),
    /// A value of a form that no Mark of the test writes.
    Foreign(String),
}

impl Operation {
    pub fn is_ok(&self) -> bool {
        self.outcome.is_ok()
    }

    /// True if the call failed, and not because the machine was too busy for it.
    pub fn failed_by_itself(&self) -> bool {
        !self.is_ok() && !self.is_excused()
    }

    /// True if the call failed only because its time ran out, and the machine was too busy for a
    /// large part of that time. A failure for any other reason is never excused.
    pub fn is_excused(&self) -> bool {
        self.limit().is_some_and(|(limit, least_stalls)| {
            self.took() >= limit && self.stalled > self.took().mul_f64(least_stalls)
        })
    }

    /// The time that ran out, if that is how the call ended, and the share of the call that must be
    /// in stalls for an excuse. A call without a reply needs the larger share.
    fn limit(&self) -> Option<(Duration, f64)> {
        match &self.outcome {
            Outcome::Refused(refusal) => match refusal.reason() {
                "DEADLINE_EXCEEDED" => Some((self.deadline, 0.25)),
                "BACKEND_TIMEOUT" => Some((REDIS_TIMEOUT, 0.25)),
                _ => None,
            },
            // The caller gave up. A connection that is refused or breaks ends a call sooner.
            Outcome::NotAccepted(_) | Outcome::Unanswered => Some((self.deadline + PATIENCE, 0.5)),
            _ => None,
        }
    }

    pub fn is_mark(&self) -> bool {
        matches!(self.call, Call::Mark { .. })
    }

    pub fn is_write(&self) -> bool {
        match self.call {
            Call::Mark { .. }
            | Call::MarkIf { .. }
            | Call::UnmarkIf { .. }
            | Call::Increment { .. } => true,
            Call::Read { .. } | Call::ReadCounter { .. } => false,
        }
    }

    /// What a reply says about ids: the entries of a read, or what a MarkIf found.
    pub fn seen(&self) -> impl Iterator<Item = (u32, &Seen)> {
        let (ids, entries): (&[u32], &[Seen]) = match (&self.call, &self.outcome) {
            (Call::Read { ids }, Outcome::Found(entries)) => (ids, entries),
            (
                Call::MarkIf { id, .. },
                Outcome::Applied { previous: seen, .. } | Outcome::NotApplied(seen),
            ) => (std::slice::from_ref(id), std::slice::from_ref(seen)),
            _ => (&[], &[]),
        };
        ids.iter().copied().zip(entries)
    }

    pub fn took(&self) -> Duration {
        self.end.since(self.start)
    }

    /// The duration without the stalls of the machine.
    pub fn took_by_itself(&self) -> Duration {
        self.took().saturating_sub(self.stalled)
    }

    /// The reason of the error, or a word for an end without one.
    pub fn ending(&self) -> &str {
        match &self.outcome {
            Outcome::Marked(_)
            | Outcome::Applied { .. }
            | Outcome::NotApplied(_)
            | Outcome::Unmarked
            | Outcome::NotUnmarked
            | Outcome::Found(_)
            | Outcome::Counted(_) => "OK",
            Outcome::Malformed(_) => "malformed",
            Outcome::Refused(refusal) => refusal.reason(),
            Outcome::NotAccepted(_) => "not accepted",
            Outcome::CutOff(_) => "cut off",
            Outcome::Unanswered => "unanswered",
        }
    }
}

impl Outcome {
    /// The expire time in the reply to a write.
    pub fn expire_time(&self) -> Option<Moment> {
        match self {
            Self::Marked(expire_time) | Self::Applied { expire_time, .. } => Some(*expire_time),
            _ => None,
        }
    }

    pub fn is_ok(&self) -> bool {
        match self {
            Self::Marked(_)
            | Self::Applied { .. }
            | Self::NotApplied(_)
            | Self::Unmarked
            | Self::NotUnmarked
            | Self::Found(_)
            | Self::Counted(_) => true,
            Self::Malformed(_)
            | Self::Refused(_)
            | Self::NotAccepted(_)
            | Self::CutOff(_)
            | Self::Unanswered => false,
        }
    }
}

/// The spans of time in which the machine was too busy to run the callers, the service or Redis. They
/// are disjoint and in order.
#[derive(Debug, Clone, Default)]
pub struct Stalls(Vec<(Moment, Moment)>);

impl Stalls {
    pub fn new(mut spans: Vec<(Moment, Moment)>) -> Self {
        spans.sort_unstable();
        let mut disjoint: Vec<(Moment, Moment)> = Vec::with_capacity(spans.len());
        for (from, to) in spans {
            match disjoint.last_mut() {
                Some((_, end)) if *end >= from => *end = to.max(*end),
                _ => disjoint.push((from, to)),
            }
        }
        Self(disjoint)
    }

    /// How much of the time between two moments is in stalls.
    pub fn between(&self, from: Moment, to: Moment) -> Duration {
        let first = self.0.partition_point(|(_, end)| *end <= from);
        let spans = self.0[first..].iter().take_while(|(start, _)| *start < to);
        spans
            .map(|(start, end)| to.min(*end).since(from.max(*start)))
            .sum()
    }

    pub fn longest(&self) -> Duration {
        let lengths = self.0.iter().map(|(from, to)| to.since(*from));
        lengths.max().unwrap_or_default()
    }
}

/// Collects the calls of a run.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    began_wall: SystemTime,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    operations: Vec<Operation>,
    /// Successful calls that started after this moment are counted. A failed call sets the count
    /// back to 0.
    counted_from: Moment,
    successes: usize,
    last_failure: Moment,
    stalls: Vec<(Moment, Moment)>,
}

impl Recorder {
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            began_wall: SystemTime::now(),
            state: Mutex::default(),
        }
    }

    /// A new, empty history on the same clock.
    pub fn on_same_clock(&self) -> Self {
        Self {
            began: self.began,
            began_wall: self.began_wall,
            state: Mutex::default(),
        }
    }

    pub fn now(&self) -> Moment {
        Moment(micros(self.began.elapsed()))
    }

    /// Converts a wall-clock time to a moment.
    pub fn moment(&self, time: &prost_types::Timestamp) -> Moment {
        let began = self.began_wall.duration_since(UNIX_EPOCH).map_or(0, micros);
        Moment(time.seconds * 1_000_000 + i64::from(time.nanos) / 1_000 - began)
    }

    pub fn record(&self, operation: Operation) {
        let mut state = self.state();
        if operation.start >= state.counted_from {
            state.successes = if operation.is_ok() {
                state.successes + 1
            } else {
                0
            };
        }
        if !operation.is_ok() {
            state.last_failure = state.last_failure.max(operation.end);
        }
        state.operations.push(operation);
    }

    /// Starts to count successful calls in a row from now on.
    pub fn count_from_now(&self) -> Moment {
        let now = self.now();
        let mut state = self.state();
        state.counted_from = now;
        state.successes = 0;
        now
    }

    /// Number of successful calls in a row, of those that started after the count began.
    pub fn successes(&self) -> usize {
        self.state().successes
    }

    /// Notes a span in which the machine was too busy to run the callers or the service.
    pub fn add_stall(&self, from: Moment, to: Moment) {
        self.state().stalls.push((from, to));
    }

    pub fn stalls(&self) -> Stalls {
        let mut spans = self.state().stalls.clone();
        let moment = |instant: Instant| {
            let since = instant.saturating_duration_since(self.began);
            Moment(micros(since))
        };
        let waits = starvation::waits_since(self.began);
        spans.extend(waits.iter().map(|(from, to)| (moment(*from), moment(*to))));
        Stalls::new(spans)
    }

    /// The end of the last failed call.
    pub fn last_failure(&self) -> Moment {
        self.state().last_failure
    }

    /// All calls so far, sorted by their start.
    pub fn operations(&self) -> Vec<Operation> {
        let mut operations = self.state().operations.clone();
        operations.sort_by_key(|operation| operation.start);
        let stalls = self.stalls();
        for operation in &mut operations {
            operation.stalled = stalls.between(operation.start, operation.end);
        }
        operations
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
