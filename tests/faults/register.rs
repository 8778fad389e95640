//! Checks whether the history of one id is linearizable, with several writers at the same time.
//!
//! The history is linearizable if all its calls can be put in an order that fits their start and
//! end times, and in which every read returns what a register would return. The crate todc-utils
//! searches for such an order. Its algorithm is Wing and Gong's, and remembers what it has tried,
//! as Lowe proposed. A read of several ids counts as one read of each.
//!
//! - An acknowledged Mark takes effect once, between its start and its end.
//! - A Mark with the outcome `unknown` takes effect once at any later time, or never. The search
//!   time grows exponentially with their number. Those whose value was never read are left out.
//!   That changes no verdict, because every value is marked only once.
//! - A Mark with the outcome `not_executed` never takes effect, so no order explains a read of its
//!   value.
//! - A value becomes absent when it expires. The expiry may happen from the start of the Mark plus
//!   the time to live. It must have happened at the end of the Mark plus the time to live. Both
//!   limits allow for a difference between the clocks.
//! - At the end of a lossy span, the register may hold any value that the failover can have left.
//!   The first read after the span shows which. From then on, a value that this read showed to be
//!   lost must not come back. Reads inside a span are not ordered, because two masters may answer
//!   then. [`crate::checker`] checks their values.

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

/// Bounds the memory of a search. Each step keeps two bytes for every call of the history.
const MAX_STEPS: u32 = 1_000_000;
/// Number of calls to show before the read that no order explains.
const SHOWN: usize = 12;

/// The result of a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    /// There is no order. The text names the first read that no order explains, and the calls
    /// before it.
    Violated(String),
    /// The search gave up: there are too many orders.
    Undecided,
}

/// A span of time in which a failover may lose acknowledged Marks.
pub type Span = (Moment, Moment);

/// A Mark that took effect or may have.
#[derive(Debug, Clone, Copy)]
struct Write {
    start: Moment,
    /// `None` if the Mark may take effect at any later time.
    end: Option<Moment>,
    content: Content,
    /// True if the Mark was acknowledged and no failover can have lost it.
    kept: bool,
}

/// The content of a register: a value, with the earliest and latest moment of its expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Content {
    value: u64,
    earliest: Moment,
    latest: Option<Moment>,
}

/// A successful read.
#[derive(Debug, Clone, Copy)]
struct Read {
    start: Moment,
    end: Moment,
    seen: Option<Content>,
    /// Bit n is set if the n-th failover can have left this value, or this absence.
    left_by_failovers: u64,
}

/// The state of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Absent,
    Marked(Content),
    /// After the n-th failover, before the first read.
    AfterFailover(usize),
}

/// A step that changes or observes a register.
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
            (Event::Failover(number), _) => (true, State::AfterFailover(*number)),
            (Event::Read(read), State::AfterFailover(number)) => (
                read.left_by_failovers & 1 << number != 0 && read.is_in_time(),
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
    /// True if the value cannot have expired before the read.
    fn is_in_time(&self) -> bool {
        let latest = self.seen.and_then(|content| content.latest);
        latest.is_none_or(|latest| self.start <= latest.after(CLOCK))
    }
}

thread_local! {
    /// The steps left of [`MAX_STEPS`]. The search of the crate cannot be stopped from outside.
    static STEPS: Cell<u32> = const { Cell::new(0) };
}

/// Returns false after too many steps. As every further step fails, the search then ends soon.
fn take_step() -> bool {
    let left = STEPS.get();
    STEPS.set(left.saturating_sub(1));
    left > 0
}

/// Checks all calls on one id. Redis may expire a value later than promised, by `late_expiry`.
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
                        let what = "was read, but no Mark can have written it";
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
            let left_by_failovers = |span: &Span| match write {
                Some(write) => may_leave(span, write, &writes),
                None => may_leave_nothing(span, end, &writes),
            };
            reads.push(Read {
                start,
                end,
                seen: write.map(|write| write.content),
                left_by_failovers: (0..)
                    .zip(lossy)
                    .map(|(number, span)| u64::from(left_by_failovers(span)) << number)
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
        Some(false) => Verdict::Violated(calls.describe_violation()),
        None => Verdict::Undecided,
    }
}

fn overlaps(operation: &Operation, lossy: &[Span]) -> bool {
    let mut spans = lossy.iter();
    spans.any(|(from, to)| operation.end >= *from && operation.start <= *to)
}

/// The Marks that took effect or may have.
fn writes(operations: &[Operation], lossy: &[Span], late_expiry: Duration) -> Vec<Write> {
    let write = |operation: &Operation| {
        let Call::Mark { value, ttl, .. } = operation.call else {
            return None;
        };
        let end = match fate(&operation.outcome) {
            Fate::Acknowledged { .. } => Some(operation.end),
            Fate::Unknown => None,
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

/// True if the register may hold this value after the failover. A Mark that was acknowledged
/// before the span cannot be lost, and has overwritten all earlier values.
fn may_leave((from, to): &Span, write: &Write, writes: &[Write]) -> bool {
    write.start <= *to
        && !writes.iter().any(|newer| {
            newer.is_kept_before(*from) && write.end.is_some_and(|end| end < newer.start)
        })
}

/// True if the register may be empty after the failover, as a read that ended at `end` found it.
fn may_leave_nothing((from, _): &Span, end: Moment, writes: &[Write]) -> bool {
    !writes
        .iter()
        .any(|write| write.is_kept_before(*from) && write.content.earliest.before(CLOCK) > end)
}

/// All calls on one id, and the failovers.
struct Calls {
    writes: Vec<Write>,
    reads: Vec<Read>,
    /// The end of each lossy span.
    failovers: Vec<Moment>,
}

impl Calls {
    /// Searches for an order of the calls that had ended by `until`, or of all calls. Returns
    /// `None` if the search takes too many steps.
    fn is_linearizable(&self, until: Option<Moment>) -> Option<bool> {
        const NEVER: Moment = Moment(i64::MAX);
        let until = until.unwrap_or(NEVER);
        let writes = self.writes.iter().map(|write| {
            // A Mark that has not ended by then may take effect later.
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
            // Each call is a process of its own. At equal times, calls come before responses, so
            // that neither call is ordered before the other.
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

    /// Describes the first read that no order explains, and the calls just before its end.
    fn describe_violation(&self) -> String {
        let mut reads: Vec<_> = self.reads.iter().collect();
        reads.sort_by_key(|read| read.end);
        // If a part of the history has no order, a longer part has none either.
        let place =
            reads.partition_point(|read| self.is_linearizable(Some(read.end)) != Some(false));
        let Some(unexplained) = reads.get(place) else {
            return "there are too many orders to find the read".to_owned();
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
            .filter(|(start, _)| *start <= unexplained.end)
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
