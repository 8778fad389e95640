//! What happened, as the callers saw it: every call with its beginning, its end and its outcome.
//!
//! Only Marks write, every value is unique, and an id has one time to live for ever, so that a
//! later Mark never shortens what an earlier one promised. That is what lets [`crate::checker`]
//! judge a history without knowing in which order Redis worked.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Microseconds since the history began; before it, if negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub i64);

impl Moment {
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(micros(span)))
    }

    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(micros(span)))
    }

    /// How long after `earlier` it is; nothing if it is not.
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
    /// Part of the reading of every id at the end, when nothing is wrong any more.
    pub closing: bool,
}

/// What was asked.
#[derive(Debug, Clone)]
pub enum Call {
    Mark { id: u32, value: u64, ttl: Duration },
    Read { ids: Vec<u32> },
}

/// How it ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// OK, with the promised expire time.
    Marked(Moment),
    /// OK, with what each id holds, in the order of the call.
    Found(Vec<Seen>),
    /// OK, but not the answer to this call.
    Malformed(String),
    /// The server said why not.
    Refused(Refusal),
    /// The connection failed, and the server cannot have taken the call on.
    NotAccepted(String),
    /// The connection failed under the call.
    CutOff(String),
    /// Nothing came until long after the deadline.
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
    /// Whether it has `grpc-retry-pushback-ms`.
    pub pushback: bool,
    pub message: String,
}

impl Refusal {
    pub fn reason(&self) -> &str {
        self.info.as_ref().map_or("(none)", |(_, reason)| reason)
    }
}

/// What an entry of a reply holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub value: Value,
    pub expire_time: Option<Moment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Absent,
    Marked(u64),
    /// Of a form that no Mark of the test has.
    Foreign(String),
}

impl Operation {
    pub fn is_ok(&self) -> bool {
        matches!(self.outcome, Outcome::Marked(_) | Outcome::Found(_))
    }

    pub fn is_mark(&self) -> bool {
        matches!(self.call, Call::Mark { .. })
    }

    pub fn took(&self) -> Duration {
        self.end.since(self.start)
    }

    /// The reason of the contract, or what there is instead of one.
    pub fn ending(&self) -> &str {
        match &self.outcome {
            Outcome::Marked(_) | Outcome::Found(_) => "OK",
            Outcome::Malformed(_) => "malformed",
            Outcome::Refused(refusal) => refusal.reason(),
            Outcome::NotAccepted(_) => "not accepted",
            Outcome::CutOff(_) => "cut off",
            Outcome::Unanswered => "unanswered",
        }
    }
}

/// Collects operations as they end.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    began_wall: SystemTime,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    operations: Vec<Operation>,
    /// Calls that began after this moment are counted, for as long as they succeed.
    watched_from: Moment,
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

    /// Another history on the same clock.
    pub fn beside(&self) -> Self {
        Self {
            began: self.began,
            began_wall: self.began_wall,
            state: Mutex::default(),
        }
    }

    pub fn now(&self) -> Moment {
        Moment(micros(self.began.elapsed()))
    }

    /// A wall clock time, in seconds and nanoseconds since 1970, as a moment.
    pub fn moment(&self, time: &prost_types::Timestamp) -> Moment {
        let began = self.began_wall.duration_since(UNIX_EPOCH).map_or(0, micros);
        Moment(time.seconds * 1_000_000 + i64::from(time.nanos) / 1_000 - began)
    }

    pub fn record(&self, operation: Operation) {
        let mut state = self.state();
        if operation.start >= state.watched_from {
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

    /// From now on, how many calls in a row have succeeded?
    pub fn watch(&self) -> Moment {
        let now = self.now();
        let mut state = self.state();
        state.watched_from = now;
        state.successes = 0;
        now
    }

    pub fn successes(&self) -> usize {
        self.state().successes
    }

    /// Callers or service stood still: the machine had other things to do.
    pub fn stalled(&self, from: Moment, to: Moment) {
        self.state().stalls.push((from, to));
    }

    pub fn stalls(&self) -> Vec<(Moment, Moment)> {
        self.state().stalls.clone()
    }

    /// When a call last ended with an error.
    pub fn last_failure(&self) -> Moment {
        self.state().last_failure
    }

    /// Everything so far, in the order of its beginning.
    pub fn operations(&self) -> Vec<Operation> {
        let mut operations = self.state().operations.clone();
        operations.sort_by_key(|operation| operation.start);
        operations
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
