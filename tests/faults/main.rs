//! The fault suite: real processes, injected faults, and a check of every recorded history.
//!
//! Every case runs the binary on real redis-servers under a steady load and injects faults. Then it
//! checks the history. Was a value wrong? Was a marked id reported as not marked? Was an acknowledged
//! Mark lost? Did a call last longer than its deadline? Was an error not in the API? How long did the
//! recovery take? The results are printed as a table.
//!
//! Three checkers read the histories. [`checker`] compares the start and end times of calls, with one
//! writer for each id. It also checks errors, deadlines and expire times. [`register`] searches for
//! an order of all calls on an id that [`writers`] wrote from several connections. [`counters`]
//! checks that increments count once.
//!
//! On a busy machine, threads wait for a processor. [`starvation`] notes when. These stalls relax
//! the checks of time, and only those:
//!
//! - They do not count in the time of a recovery, of a drain, or of an answer without Redis.
//! - They do not count in the time that a call lasts beyond its deadline.
//! - A call that failed because its time ran out is excused if stalls take more than a quarter of
//!   it. If it got no reply at all, they must take more than half.
//! - A service that does not recover, or a load with too few calls, is excused if stalls take more
//!   than half of that time.
//!
//! A call that failed for another reason is never excused, and what was read and written is checked
//! as on an idle machine. The report of each case says how much of its time was in stalls.
//!
//! `cargo test --test faults [-- NAME...]` runs the short versions of all cases, or of those whose
//! name contains one of the names. With `DYNDATA_CHAOS_SECONDS` (`make chaos`) the cases are longer.
//! Faults in random order then follow until the time is up. `DYNDATA_CHAOS_SEED` repeats an order.
//! With `DYNDATA_TEST_NAMESPACE=online`, the calls are in an indexed namespace of this name.
#![allow(
    clippy::print_stdout,
    unreachable_pub,
    reason = "a program that prints a table, and whose modules are private"
)]

#[path = "../support/mod.rs"]
mod support;

mod chaos;
mod checker;
mod client;
mod counters;
mod drain;
mod example;
mod failover;
mod history;
mod load;
mod overload;
mod proxy;
mod register;
mod report;
mod runner;
mod selftest;
mod selftest_conditions;
mod selftest_counters;
mod selftest_register;
mod service;
mod settings;
mod standalone;
mod starvation;
mod tamper;
mod trial;
mod writers;

use std::process::ExitCode;

fn main() -> ExitCode {
    drain::be_a_client_if_asked();
    runner::run(
        &[
            selftest::CASES,
            selftest_register::CASES,
            selftest_counters::CASES,
            tamper::CASES,
            standalone::CASES,
            settings::CASES,
            failover::CASES,
            service::CASES,
            drain::CASES,
            overload::CASES,
            chaos::CASES,
        ]
        .concat(),
    )
}
