//! Deadlines of calls, and the `grpc-timeout` header.
//!
//! A timer for each call would be one of the larger costs of a Get, and almost none of the timers
//! would ever fire. Instead, each worker has a list of its running calls, and a task that checks
//! all of them every few milliseconds while there are any. So a call ends at most [`TICK`] late.
//! `docs/performance.md` has the figures.
//!
//! Source of the header's form:
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests>

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName};
use slab::Slab;
use tokio::sync::Notify;

use crate::{decimal, error::Error};

/// How often the task checks the running calls.
const TICK: Duration = Duration::from_millis(5);
/// After this many ticks without a call, the task sleeps until there is a call.
const IDLE_TICKS: u32 = 100;
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The deadlines of the running calls of one worker. Clones share them. The lock is never contended:
/// all calls of a worker, and the task, are on one thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deadlines {
    shared: Arc<DeadlineList>,
}

#[derive(Debug, Default)]
struct DeadlineList {
    calls: Mutex<DeadlineEntries>,
    /// Wakes the task when there is a call again.
    work: Notify,
}

#[derive(Debug, Default)]
struct DeadlineEntries {
    running: Slab<DeadlineEntry>,
    /// Whether the task has stopped ticking.
    asleep: bool,
}

#[derive(Debug)]
struct DeadlineEntry {
    deadline: Instant,
    state: EntryState,
}

#[derive(Debug)]
enum EntryState {
    Running(Option<Waker>),
    Expired,
}

impl Deadlines {
    /// Puts a call on the list.
    pub(crate) fn enter(&self, deadline: Instant) -> Deadline {
        let mut calls = self.shared.calls();
        let place = calls.running.insert(DeadlineEntry {
            deadline,
            state: EntryState::Running(None),
        });
        if calls.asleep {
            calls.asleep = false;
            self.shared.work.notify_one();
        }
        drop(calls);
        Deadline {
            shared: Arc::clone(&self.shared),
            place,
        }
    }

    /// The task that ends calls whose deadline has passed. To be run once for each worker.
    pub(crate) async fn run(self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut idle = 0;
        loop {
            ticks.tick().await;
            idle = if self.expire(Instant::now()) > 0 {
                0
            } else {
                idle + 1
            };
            if idle >= IDLE_TICKS {
                // No call can begin between this and the wait: both are on this thread.
                self.shared.calls().asleep = true;
                self.shared.work.notified().await;
                idle = 0;
            }
        }
    }

    /// Ends the calls whose deadline has passed. Returns how many calls there are in all.
    fn expire(&self, now: Instant) -> usize {
        let mut calls = self.shared.calls();
        for (_, call) in &mut calls.running {
            if call.deadline <= now
                && let EntryState::Running(waker) =
                    std::mem::replace(&mut call.state, EntryState::Expired)
                && let Some(waker) = waker
            {
                waker.wake();
            }
        }
        calls.running.len()
    }
}

impl DeadlineList {
    fn calls(&self) -> MutexGuard<'_, DeadlineEntries> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call's place on the list. Dropping it removes the call.
#[derive(Debug)]
pub(crate) struct Deadline {
    shared: Arc<DeadlineList>,
    place: usize,
}

impl Deadline {
    /// Ready once the deadline has passed. Cheap to poll again and again.
    pub(crate) fn poll_passed(&self, cx: &Context<'_>) -> Poll<()> {
        let mut calls = self.shared.calls();
        match &mut calls.running[self.place].state {
            EntryState::Expired => Poll::Ready(()),
            EntryState::Running(Some(waker)) if waker.will_wake(cx.waker()) => Poll::Pending,
            EntryState::Running(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.shared.calls().running.remove(self.place);
    }
}

/// The caller's timeout, if the caller has set one: 1 to 8 digits and a unit. A timeout of 0 has
/// passed already.
pub(crate) fn grpc_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let Some(value) = headers.get(GRPC_TIMEOUT) else {
        return Ok(None);
    };
    match parse(value.as_bytes()) {
        Some(Duration::ZERO) => Err(Error::DeadlineExceeded),
        Some(timeout) => Ok(Some(timeout)),
        None => Err(Error::TimeoutInvalid),
    }
}

fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) {
        return None;
    }
    let amount = decimal::unsigned(digits)?;
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_known_and_nothing_else() {
        for (value, duration) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("250m", Some(Duration::from_millis(250))),
            ("0u", Some(Duration::ZERO)),
            ("7n", Some(Duration::from_nanos(7))),
            ("", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("123456789S", None),
            ("-1S", None),
            ("-0S", None),
            ("1.5S", None),
            (" 1S", None),
        ] {
            assert_eq!(parse(value.as_bytes()), duration, "{value}");
        }
    }

    #[test]
    fn only_calls_whose_time_is_up_are_ended() {
        let deadlines = Deadlines::default();
        let now = Instant::now();
        let soon = deadlines.enter(now + Duration::from_millis(10));
        let later = deadlines.enter(now + Duration::from_millis(20));
        let cx = Context::from_waker(Waker::noop());
        assert!(soon.poll_passed(&cx).is_pending());
        assert_eq!(deadlines.expire(now + Duration::from_millis(10)), 2);
        assert!(soon.poll_passed(&cx).is_ready());
        assert!(later.poll_passed(&cx).is_pending());
        drop(soon);
        assert_eq!(deadlines.expire(now + Duration::from_millis(20)), 1);
        assert!(later.poll_passed(&cx).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_sleeps_without_calls_and_wakes_with_one() {
        let deadlines = Deadlines::default();
        let task = tokio::spawn(deadlines.clone().run());
        tokio::time::sleep(TICK * (IDLE_TICKS + 10)).await;
        assert!(deadlines.shared.calls().asleep);
        let call = deadlines.enter(Instant::now());
        std::future::poll_fn(|cx| call.poll_passed(cx)).await;
        assert!(!deadlines.shared.calls().asleep);
        task.abort();
    }
}
