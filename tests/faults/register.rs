//! Checks whether the history of one id is linearizable, with several writers at the same time.
//!
//! The history is linearizable if all its calls can be put in an order that fits their start and
//! end times, and in which every read returns what a register would return. The crate todc-utils
//! searches for such an order. Its algorithm is Wing and Gong's, and remembers what it has tried,
//! as Lowe proposed. A read of several ids counts as one read of each.
//!
//! - An acknowledged write takes effect once, between its start and its end.
//! - A write with the outcome `unknown` takes effect once at any later time, or never. The search
//!   time grows exponentially with their number. A Mark or MarkIf whose value nobody saw or expected
//!   is left out. That changes no verdict, because every value is written only once, and all values of an id
//!   live equally long. The exception is an Unmark that found another value than the expected one,
//!   because its reply does not say which. It may have found what nobody else saw.
//! - A write with the outcome `not_executed` never takes effect, so no order explains a read of its
//!   value.
//! - A MarkIf is one step that reads a value, and writes if its condition holds. So the value in its
//!   reply must be what the register holds at that moment. The reply must also agree with the
//!   condition. If the outcome is unknown, the MarkIf may take effect at any later time at which its
//!   condition holds. The same is true for an Unmark with `if_equal`.
//! - A value becomes absent when it expires. The expiry may happen from the start of the Mark plus
//!   the time to live. It must have happened at the end of the Mark plus the time to live. Both
//!   limits allow for a difference between the clocks.
//! - At the end of a lossy span, the register may hold any value that the failover can have left.
//!   The first read after the span shows which. From then on, a value that this read showed to be
//!   lost must not come back. Reads inside a span are not ordered, because two masters may answer
//!   then. [`crate::checker`] checks their values.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
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
    history::{Call, Condition, Moment, Operation, Outcome, Value},
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

/// A span of time in which a failover may lose acknowledged writes.
pub type Span = (Moment, Moment);

/// The end of a write that may take effect at any later time.
const NEVER: Moment = Moment(i64::MAX);
/// A moment after the end of every call that was answered.
const AFTER_ALL: Moment = Moment(i64::MAX - 1);

/// The content of a register: a value, with the earliest and latest moment of its expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Content {
    value: u64,
    earliest: Moment,
    latest: Option<Moment>,
}

/// A write that took effect or may have.
#[derive(Debug, Clone, Copy)]
struct Write {
    start: Moment,
    /// `None` if the write may take effect at any later time.
    end: Option<Moment>,
    /// `None` if the write removes the value.
    content: Option<Content>,
    /// True if the write was acknowledged and no failover can have lost it.
    kept: bool,
}

/// What a call sees in a register, or has to see before it writes.
#[derive(Debug, Clone, Copy)]
struct Sight {
    /// The call looks at the register between these moments.
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
    /// After all calls that were answered. Nobody sees what takes effect now.
    Over,
}

/// A step that changes or observes a register.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// Writes a value, or nothing, if the register holds what the call has to see.
    Write(Option<Content>, Option<Sight>),
    Read(Sight),
    /// An Unmark finds something else than this value.
    Miss {
        end: Moment,
        expected: Content,
    },
    Failover(usize),
    Over,
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
        let next = take_step().then(|| event.after(state)).flatten();
        (next.is_some(), next.unwrap_or(*state))
    }
}

impl Event {
    /// The state after this event, if it can happen in this state.
    fn after(&self, state: &State) -> Option<State> {
        match (self, state) {
            (_, State::Over) | (Self::Over, _) => Some(State::Over),
            (Self::Failover(number), _) => Some(State::AfterFailover(*number)),
            (Self::Read(sight), _) => sight.reveals(state),
            (Self::Miss { end, expected }, State::Marked(content)) if content == expected => {
                content.may_expire_before(*end).then_some(State::Absent)
            }
            (Self::Miss { .. }, _) => Some(*state),
            (Self::Write(content, condition), _) => {
                let holds = condition.is_none_or(|sight| sight.reveals(state).is_some());
                holds.then(|| content.map_or(State::Absent, State::Marked))
            }
        }
    }

    /// True if the reply to the call says what is in the register.
    fn observes(&self) -> bool {
        match self {
            Self::Read(_) | Self::Miss { .. } | Self::Write(_, Some(_)) => true,
            Self::Write(_, None) | Self::Failover(_) | Self::Over => false,
        }
    }
}

impl Content {
    fn may_expire_before(&self, moment: Moment) -> bool {
        self.earliest.before(CLOCK) <= moment
    }
}

impl Sight {
    /// What is in the register, if it can be what the call sees.
    fn reveals(&self, state: &State) -> Option<State> {
        let seen = self.seen.map_or(State::Absent, State::Marked);
        let is_possible = match state {
            State::AfterFailover(number) => self.left_by_failovers & 1 << number != 0,
            State::Marked(content) if self.seen.is_none() => content.may_expire_before(self.end),
            state => *state == seen,
        };
        (is_possible && self.is_in_time()).then_some(seen)
    }

    /// True if the value cannot have expired before.
    fn is_in_time(&self) -> bool {
        let latest = self.seen.and_then(|content| content.latest);
        latest.is_none_or(|latest| self.start <= latest.after(CLOCK))
    }
}

impl Write {
    fn is_kept_before(&self, moment: Moment) -> bool {
        self.kept && self.end.is_some_and(|end| end < moment)
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
    let history = match Calls::new(operations, lossy, late_expiry) {
        Ok(history) => history,
        Err(violation) => return Verdict::Violated(violation),
    };
    match history.is_linearizable(None) {
        Some(true) => Verdict::Linearizable,
        Some(false) => Verdict::Violated(history.describe_violation()),
        None => Verdict::Undecided,
    }
}

fn overlaps(operation: &Operation, lossy: &[Span]) -> bool {
    let mut spans = lossy.iter();
    spans.any(|(from, to)| operation.end >= *from && operation.start <= *to)
}

/// The effect that a call has or may have.
fn write(operation: &Operation, lossy: &[Span], late_expiry: Duration) -> Option<Write> {
    let written = match operation.call {
        Call::Mark { value, ttl, .. } | Call::MarkIf { value, ttl, .. } => Some((value, ttl)),
        Call::UnmarkIf { .. } => None,
        Call::Read { .. } | Call::Increment { .. } | Call::ReadCounter { .. } => return None,
    };
    let end = match fate(&operation.outcome) {
        Fate::Acknowledged => Some(operation.end),
        Fate::Unknown => None,
        Fate::NoEffect => return None,
    };
    Some(Write {
        start: operation.start,
        end,
        content: written.map(|(value, ttl)| Content {
            value,
            earliest: operation.start.after(ttl),
            latest: end.map(|end| end.after(ttl + late_expiry)),
        }),
        kept: end.is_some() && !overlaps(operation, lossy),
    })
}

/// Says what is wrong if a reply does not agree with the condition of its call.
fn contradiction(operation: &Operation) -> Option<String> {
    let Call::MarkIf {
        value, condition, ..
    } = operation.call
    else {
        return None;
    };
    let (applied, previous) = match &operation.outcome {
        Outcome::Applied { previous, .. } => (true, &previous.value),
        Outcome::NotApplied(previous) => (false, &previous.value),
        _ => return None,
    };
    let holds = match condition {
        Condition::Absent => *previous == Value::Absent,
        Condition::Equal(expected) => *previous == Value::Marked(expected),
    };
    (applied != holds).then(|| {
        format!("the MarkIf of {value} found {previous:?}: {condition:?}, but applied is {applied}")
    })
}

/// True if the register may hold what this write left there after the failover. A write that was
/// acknowledged before the span cannot be lost, and has overwritten all that was before.
fn may_leave((from, to): &Span, write: &Write, writes: &[Write]) -> bool {
    write.start <= *to
        && !writes.iter().any(|newer| {
            newer.is_kept_before(*from) && write.end.is_some_and(|end| end < newer.start)
        })
}

/// True if the register may be empty after the failover, as a call that ended at `end` found it.
fn may_leave_nothing(span @ (from, _): &Span, end: Moment, writes: &[Write]) -> bool {
    let lives_on = |write: &Write| {
        let content = write.content.as_ref();
        write.is_kept_before(*from) && content.is_some_and(|it| !it.may_expire_before(end))
    };
    let removes = |write: &Write| write.content.is_none() && may_leave(span, write, writes);
    !writes.iter().any(lives_on) || writes.iter().any(removes)
}

/// A call on the register, or a failover.
struct Step {
    start: Moment,
    /// `None` if it may happen at any later time.
    end: Option<Moment>,
    event: Event,
    text: String,
}

/// All calls on one id, and the failovers.
struct Calls(Vec<Step>);

/// The writes of a history, and the failovers that may lose them.
struct Writes<'a> {
    all: Vec<Write>,
    by_value: HashMap<u64, Content>,
    lossy: &'a [Span],
}

impl Writes<'_> {
    /// What a call sees that looks at the register between these moments. `None` if no write has
    /// left this value.
    fn sight(&self, start: Moment, end: Moment, value: &Value) -> Option<Sight> {
        let seen = match value {
            Value::Absent => None,
            Value::Marked(value) => Some(*self.by_value.get(value)?),
            Value::Foreign(_) => return None,
        };
        let may_leave = |span: &Span| match seen {
            Some(_) => self
                .all
                .iter()
                .any(|write| write.content == seen && may_leave(span, write, &self.all)),
            None => may_leave_nothing(span, end, &self.all),
        };
        let left_by_failovers = (0..)
            .zip(self.lossy)
            .map(|(number, span)| u64::from(may_leave(span)) << number)
            .sum();
        Some(Sight {
            start,
            end,
            seen,
            left_by_failovers,
        })
    }
}

impl Calls {
    /// Fails if a reply alone shows a violation.
    fn new(
        operations: &[Operation],
        lossy: &[Span],
        late_expiry: Duration,
    ) -> Result<Self, String> {
        let write = |operation| write(operation, lossy, late_expiry);
        let all: Vec<_> = operations.iter().filter_map(write).collect();
        let contents = all.iter().filter_map(|write| write.content);
        let writes = Writes {
            by_value: contents.map(|content| (content.value, content)).collect(),
            all,
            lossy,
        };
        // When each value was seen first, inside a lossy span or not.
        let mut first_seen: HashMap<u64, Moment> = HashMap::new();
        for operation in operations {
            if let Some(contradiction) = contradiction(operation) {
                return Err(contradiction);
            }
            for (_, seen) in operation.seen() {
                match &seen.value {
                    Value::Absent => {}
                    Value::Marked(value) if writes.by_value.contains_key(value) => {
                        let first = first_seen.entry(*value).or_insert(operation.end);
                        *first = operation.end.min(*first);
                    }
                    Value::Marked(value) => {
                        let what = "was read, but no call can have written it";
                        return Err(format!("{value} {what}"));
                    }
                    Value::Foreign(text) => return Err(format!("{text} was never marked")),
                }
            }
        }
        let misses = operations.iter().filter_map(|operation| {
            matches!(operation.outcome, Outcome::NotUnmarked).then_some(operation.end)
        });
        let last_miss = misses.max().unwrap_or(Moment(i64::MIN));
        let expected: HashSet<u64> = operations.iter().filter_map(expected_value).collect();
        let mut steps = Vec::new();
        for operation in operations {
            let (start, end) = (operation.start, operation.end);
            let in_order = !overlaps(operation, lossy);
            let mut add = |end, event, text| {
                steps.push(Step {
                    start,
                    end,
                    event,
                    text,
                });
            };
            if let Some(write) = write(operation) {
                let value = write.content.map(|content| content.value);
                let seen = value.and_then(|value| first_seen.get(&value).copied());
                let matters = write.end.is_some()
                    || seen.is_some()
                    || value.is_none_or(|value| expected.contains(&value))
                    || start < last_miss;
                // A value that was seen had been written by then.
                let until = write.end.or(seen).unwrap_or(NEVER);
                let condition = condition(operation);
                let sight = condition.as_ref().map(|it| writes.sight(start, until, it));
                match sight {
                    _ if !matters => {}
                    // Two masters may answer, so the state is not known.
                    _ if write.end.is_some() && !in_order => {
                        add(
                            write.end,
                            Event::Write(write.content, None),
                            describe(operation),
                        );
                    }
                    Some(None) if write.end.is_some() => {
                        return Err(format!("nobody can have done: {}", describe(operation)));
                    }
                    // What the write has to find was never there.
                    Some(None) => {}
                    sight => {
                        let event = Event::Write(write.content, sight.flatten());
                        add(write.end, event, describe(operation));
                    }
                }
            } else if in_order && let Outcome::NotUnmarked = operation.outcome {
                if let Call::UnmarkIf { if_equal, .. } = operation.call
                    && let Some(expected) = writes.by_value.get(&if_equal)
                {
                    let expected = *expected;
                    add(
                        Some(end),
                        Event::Miss { end, expected },
                        describe(operation),
                    );
                }
            } else if in_order {
                for (_, seen) in operation.seen() {
                    if let Some(sight) = writes.sight(start, end, &seen.value) {
                        add(Some(end), Event::Read(sight), describe(operation));
                    }
                }
            }
        }
        steps.extend(lossy.iter().enumerate().map(|(number, (_, end))| Step {
            start: *end,
            end: Some(*end),
            event: Event::Failover(number),
            text: "failover".to_owned(),
        }));
        Ok(Self(steps))
    }

    /// Searches for an order of the calls that had ended by `until`, or of all calls. Returns
    /// `None` if the search takes too many steps.
    fn is_linearizable(&self, until: Option<Moment>) -> Option<bool> {
        let until = until.unwrap_or(AFTER_ALL);
        let steps = self.0.iter().filter(|step| step.start <= until);
        let steps = steps.filter_map(|step| match (step.end, step.event) {
            (Some(end), event) if end <= until => Some((step.start, end, event)),
            (None, event) => Some((step.start, NEVER, event)),
            // A write that has not ended by then may take effect later.
            (Some(_), Event::Write(content, _)) => {
                Some((step.start, NEVER, Event::Write(content, None)))
            }
            (Some(_), _) => None,
        });
        let mut moments = Vec::new();
        let steps = steps.chain([(AFTER_ALL, AFTER_ALL, Event::Over)]);
        for (number, (start, end, event)) in steps.enumerate() {
            // Each call is a process of its own. At equal times, calls come before responses, so
            // that neither call is ordered before the other.
            moments.push((start, 0, number, Action::Call(event)));
            moments.push((end, 1, number, Action::Response(event)));
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

    /// Describes the first call that no order explains, and the calls just before its end.
    fn describe_violation(&self) -> String {
        let answered = |step: &&Step| step.end.is_some() && step.event.observes();
        let mut answered: Vec<_> = self.0.iter().filter(answered).collect();
        answered.sort_by_key(|step| step.end);
        // If a part of the history has no order, a longer part has none either.
        let place = answered.partition_point(|step| self.is_linearizable(step.end) != Some(false));
        let Some(until) = answered.get(place).and_then(|step| step.end) else {
            return "there are too many orders to find the call".to_owned();
        };
        let at = |moment: Moment| moment.0 as f64 / 1e6;
        let mut lines: Vec<_> = self
            .0
            .iter()
            .filter(|step| match step.event {
                Event::Write(..) => step.start <= until,
                _ => step.end.is_some_and(|end| end <= until),
            })
            .collect();
        lines.sort_by_key(|step| step.start);
        let from = lines.len().saturating_sub(SHOWN);
        let lines: Vec<_> = lines[from..]
            .iter()
            .map(|step| {
                let end = step
                    .end
                    .map_or_else(|| "?".to_owned(), |end| format!("{:.4}", at(end)));
                format!("{:.4}-{end} {}", at(step.start), step.text)
            })
            .collect();
        format!(
            "no order explains the call that ended at {:.4} of: {}",
            at(until),
            lines.join("; ")
        )
    }
}

/// What the register has to hold so that a write takes effect. `None`: anything.
fn condition(operation: &Operation) -> Option<Value> {
    match operation.call {
        Call::MarkIf { condition, .. } => Some(match condition {
            Condition::Absent => Value::Absent,
            Condition::Equal(value) => Value::Marked(value),
        }),
        Call::UnmarkIf { if_equal, .. } => Some(Value::Marked(if_equal)),
        _ => None,
    }
}

fn expected_value(operation: &Operation) -> Option<u64> {
    match condition(operation)? {
        Value::Marked(value) => Some(value),
        Value::Absent | Value::Foreign(_) => None,
    }
}

/// A call and its answer, in a few words.
fn describe(operation: &Operation) -> String {
    let name = |value: &Value| match value {
        Value::Absent => "nothing".to_owned(),
        Value::Marked(value) => value.to_string(),
        Value::Foreign(text) => text.clone(),
    };
    let found = operation.seen().next();
    let found = found.map_or_else(String::new, |(_, seen)| name(&seen.value));
    let condition = condition(operation).as_ref().map(name);
    let condition = condition.unwrap_or_default();
    match &operation.call {
        Call::Mark { value, .. } => format!("mark {value}"),
        Call::MarkIf { value, .. } => {
            let found = if found.is_empty() { "?" } else { &found };
            format!("mark {value} if {condition} is there, found {found}")
        }
        Call::UnmarkIf { .. } => format!("unmark {condition}, {}", operation.ending()),
        Call::Read { .. } => format!("read {found}"),
        Call::Increment { .. } | Call::ReadCounter { .. } => "count".to_owned(),
    }
}
