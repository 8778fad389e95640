//! Is the history of one id linearizable? Several writers may have marked it at the same time.
//!
//! The search is Wing and Gong's with Lowe's memory of what was tried already, from the crate
//! todc-utils. It finds an order of all calls that agrees with their beginnings and ends and in
//! which every read gives what a register would, or finds that there is none. Reads of several
//! ids are a read of each.
//!
//! - A Mark that was acknowledged takes effect once, between its beginning and its end.
//! - A Mark whose outcome is `unknown` takes effect once at any later time, or never. The search
//!   is exponential in these. Those whose value nobody read are left out, which changes nothing
//!   because every value is marked only once.
//! - A Mark whose outcome is `not_executed` never takes effect, so a read of its value has no
//!   order.
//! - A value is absent from its expiry on. The expiry is a step of the register by itself, which
//!   may happen from the beginning of its Mark plus the time to live, and must have happened at
//!   the end of its Mark plus the time to live, give or take what the clocks differ.
//! - At the end of a lossy span the register may hold whatever the failover can have left, and
//!   the first read after the span tells what that is. So what a read has shown to be gone never
//!   comes back. Reads inside a span are not ordered, because two masters may answer then;
//!   [`crate::checker`] looks at their values.

use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use todc_utils::{
    linearizability::{
        WGLChecker,
        history::{Action, History},
    },
    specifications::Specification,
};

use crate::{
    checker::{CLOCK, Fate, fate},
    history::{Call, Moment, Operation, Outcome, Value},
};

/// Bounds the memory of a search: each step keeps two bytes for every call of the history.
const MAX_STEPS: u32 = 1_000_000;
/// How many calls before the one that has no place are shown.
const SHOWN: usize = 12;

/// What a search came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    /// There is no order. Says which call has no place, and what came before.
    Violated(String),
    /// There are too many orders to try.
    Undecided,
}

/// A span in which a failover may lose what was acknowledged.
pub type Span = (Moment, Moment);

/// A Mark that may have taken effect.
#[derive(Debug, Clone, Copy)]
struct Write {
    start: Moment,
    /// None if it may take effect at any time.
    end: Option<Moment>,
    content: Content,
    /// Whether no failover can have lost it after it was acknowledged.
    kept: bool,
}

/// What a register holds, with the first and last moment of its expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Content {
    value: u64,
    earliest: Moment,
    latest: Option<Moment>,
}

/// A read that was answered.
#[derive(Debug, Clone, Copy)]
struct Read {
    start: Moment,
    end: Moment,
    seen: Option<Content>,
    /// Bit n is set if the n-th failover can have left what was seen.
    left_by: u64,
}

/// The state of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Absent,
    Marked(Content),
    /// After the n-th failover, before anybody looked.
    LeftBy(usize),
}

/// What may happen to it.
#[derive(Debug, Clone, Copy)]
enum Event {
    Write(Content),
    Read(Read),
    Failover(usize),
}

/// A register whose values expire.
struct Register;

impl Specification for Register {
    type State = State;
    type Operation = Event;

    fn init() -> State {
        State::Absent
    }

    fn apply(event: &Event, state: &State) -> (bool, State) {
        if !take_step() {
            return (false, *state);
        }
        match (event, state) {
            (Event::Write(content), _) => (true, State::Marked(*content)),
            (Event::Failover(number), _) => (true, State::LeftBy(*number)),
            (Event::Read(read), State::LeftBy(number)) => (
                read.left_by & 1 << number != 0 && read.is_in_time(),
                read.seen.map_or(State::Absent, State::Marked),
            ),
            (Event::Read(read), State::Marked(content)) => match read.seen {
                Some(seen) => (seen == *content && read.is_in_time(), *state),
                None => (content.earliest.before(CLOCK) <= read.end, State::Absent),
            },
            (Event::Read(read), State::Absent) => (read.seen.is_none(), State::Absent),
        }
    }
}

impl Write {
    fn is_kept_before(&self, moment: Moment) -> bool {
        self.kept && self.end.is_some_and(|end| end < moment)
    }
}

impl Read {
    /// Whether what was seen can still have been there.
    fn is_in_time(&self) -> bool {
        let latest = self.seen.and_then(|content| content.latest);
        latest.is_none_or(|latest| self.start <= latest.after(CLOCK))
    }
}

thread_local! {
    /// What is left of [`MAX_STEPS`]: the search itself cannot be stopped.
    static STEPS: Cell<u32> = const { Cell::new(0) };
}

/// Returns false once the search has taken too many steps. It then comes to its end by itself.
fn take_step() -> bool {
    let left = STEPS.get();
    STEPS.set(left.saturating_sub(1));
    left > 0
}

/// Judges all calls on one id. Redis may let values live longer by `late_expiry`.
pub fn check(operations: &[Operation], lossy: &[Span], late_expiry: Duration) -> Verdict {
    let writes = writes(operations, lossy, late_expiry);
    let by_value: HashMap<u64, &Write> = writes
        .iter()
        .map(|write| (write.content.value, write))
        .collect();
    let mut reads = Vec::new();
    for operation in operations {
        let (Call::Read { .. }, Outcome::Found(entries)) = (&operation.call, &operation.outcome)
        else {
            continue;
        };
        for entry in entries {
            let write = match &entry.value {
                Value::Absent => None,
                Value::Marked(value) => match by_value.get(value) {
                    Some(write) => Some(*write),
                    None => {
                        let what = "was read, but no Mark of it can have taken effect";
                        return Verdict::Violated(format!("{value} {what}"));
                    }
                },
                Value::Foreign(text) => {
                    return Verdict::Violated(format!("{text} was never marked"));
                }
            };
            let (start, end) = (operation.start, operation.end);
            if overlaps(operation, lossy) {
                continue;
            }
            let left_by = |span: &Span| match write {
                Some(write) => can_leave(span, write, &writes),
                None => can_leave_nothing(span, end, &writes),
            };
            reads.push(Read {
                start,
                end,
                seen: write.map(|write| write.content),
                left_by: (0..)
                    .zip(lossy)
                    .map(|(number, span)| u64::from(left_by(span)) << number)
                    .sum(),
            });
        }
    }
    let seen: BTreeSet<u64> = reads
        .iter()
        .filter_map(|read| Some(read.seen?.value))
        .collect();
    let writes = writes
        .into_iter()
        .filter(|write| write.end.is_some() || seen.contains(&write.content.value));
    let calls = Calls {
        writes: writes.collect(),
        reads,
        failovers: lossy.iter().map(|(_, to)| *to).collect(),
    };
    match calls.is_linearizable(None) {
        Some(true) => Verdict::Linearizable,
        Some(false) => Verdict::Violated(calls.witness()),
        None => Verdict::Undecided,
    }
}

fn overlaps(operation: &Operation, lossy: &[Span]) -> bool {
    let mut spans = lossy.iter();
    spans.any(|(from, to)| operation.end >= *from && operation.start <= *to)
}

/// The Marks that took effect or may.
fn writes(operations: &[Operation], lossy: &[Span], late_expiry: Duration) -> Vec<Write> {
    let write = |operation: &Operation| {
        let Call::Mark { value, ttl, .. } = operation.call else {
            return None;
        };
        let end = match fate(&operation.outcome) {
            Fate::Acknowledged { .. } => Some(operation.end),
            Fate::Open => None,
            Fate::NoEffect => return None,
        };
        Some(Write {
            start: operation.start,
            end,
            content: Content {
                value,
                earliest: operation.start.after(ttl),
                latest: end.map(|end| end.after(ttl + late_expiry)),
            },
            kept: end.is_some() && !overlaps(operation, lossy),
        })
    };
    operations.iter().filter_map(write).collect()
}

/// Whether a failover can leave this value: what was acknowledged before the span is not lost,
/// and has overwritten what came before it.
fn can_leave((from, to): &Span, write: &Write, writes: &[Write]) -> bool {
    write.start <= *to
        && !writes.iter().any(|newer| {
            newer.is_kept_before(*from) && write.end.is_some_and(|end| end < newer.start)
        })
}

/// Whether a failover can leave nothing, as a read that ended at `end` says.
fn can_leave_nothing((from, _): &Span, end: Moment, writes: &[Write]) -> bool {
    !writes
        .iter()
        .any(|write| write.is_kept_before(*from) && write.content.earliest.before(CLOCK) > end)
}

/// All that happened to one id.
struct Calls {
    writes: Vec<Write>,
    reads: Vec<Read>,
    /// When each lossy span ended.
    failovers: Vec<Moment>,
}

impl Calls {
    /// Looks for an order of what had ended by `until`, or of everything. None if that takes too
    /// many steps.
    fn is_linearizable(&self, until: Option<Moment>) -> Option<bool> {
        const NEVER: Moment = Moment(i64::MAX);
        let until = until.unwrap_or(NEVER);
        let writes = self.writes.iter().map(|write| {
            // What has not ended may take effect still.
            let end = write.end.filter(|end| *end <= until).unwrap_or(NEVER);
            (write.start, end, Event::Write(write.content))
        });
        let reads = self.reads.iter().filter(|read| read.end <= until);
        let reads = reads.map(|read| (read.start, read.end, Event::Read(*read)));
        let failovers = self.failovers.iter().enumerate();
        let failovers = failovers.map(|(number, end)| (*end, *end, Event::Failover(number)));
        let mut moments = Vec::new();
        let calls = writes.chain(reads).chain(failovers);
        let calls = calls.filter(|(start, ..)| *start <= until);
        for (number, (start, end, event)) in calls.enumerate() {
            // Each call is a process of its own. Of two things at one moment, neither is first.
            moments.push((start, 0, number, Action::Call(event)));
            moments.push((end, 1, number, Action::Response(event)));
        }
        if moments.is_empty() {
            return Some(true);
        }
        moments.sort_by_key(|(moment, order, number, _)| (*moment, *order, *number));
        let actions = moments
            .into_iter()
            .map(|(.., number, action)| (number, action));
        STEPS.set(MAX_STEPS);
        let is_linearizable =
            WGLChecker::<Register>::is_linearizable(History::from_actions(actions.collect()));
        (STEPS.get() > 0).then_some(is_linearizable)
    }

    /// Which read is the first that has no place, and what happened just before it ended.
    fn witness(&self) -> String {
        let mut reads: Vec<_> = self.reads.iter().collect();
        reads.sort_by_key(|read| read.end);
        // Without an order for some of it, there is none for more of it.
        let place =
            reads.partition_point(|read| self.is_linearizable(Some(read.end)) != Some(false));
        let Some(witness) = reads.get(place) else {
            return "too many orders to say where".to_owned();
        };
        let at = |moment: Moment| moment.0 as f64 / 1e6;
        let mut lines: Vec<_> = reads[..=place]
            .iter()
            .map(|read| {
                let value = read
                    .seen
                    .map_or_else(|| "nothing".to_owned(), |seen| seen.value.to_string());
                let (start, end) = (at(read.start), at(read.end));
                (read.start, format!("{start:.4}-{end:.4} read {value}"))
            })
            .chain(self.writes.iter().map(|write| {
                let end = write
                    .end
                    .map_or_else(|| "?".to_owned(), |end| format!("{:.4}", at(end)));
                let value = write.content.value;
                (
                    write.start,
                    format!("{:.4}-{end} mark {value}", at(write.start)),
                )
            }))
            .filter(|(start, _)| *start <= witness.end)
            .collect();
        lines.sort();
        let from = lines.len().saturating_sub(SHOWN);
        let lines: Vec<_> = lines[from..]
            .iter()
            .map(|(_, line)| line.as_str())
            .collect();
        format!("no order explains the last read of: {}", lines.join("; "))
    }
}
