//! Faults, with real processes and a recorded history that a checker judges.
//!
//! Every case runs the binary on real redis-servers under steady load, breaks something, and asks
//! of the history: was a value wrong, was "not marked" said of what is marked, did an acknowledged
//! Mark get lost, did a call outlive its deadline, was an error none of the contract's, how long
//! until all was well again? The answers are a table.
//!
//! Two judges read the histories. [`checker`] works on intervals, with one writer for each id, and
//! also looks at errors, deadlines and expire times. [`register`] looks for an order of all calls
//! on an id that [`writers`] marked from several connections.
//!
//! `cargo test --test faults [-- NAME...]` runs the short versions, of the cases that have one of
//! the names in theirs. With `DYNDATA_CHAOS_SECONDS` (`make chaos`) the cases are longer, and
//! faults in random order follow until the time is up; `DYNDATA_CHAOS_SEED` repeats an order.
#![allow(
    clippy::print_stdout,
    unreachable_pub,
    reason = "a program that prints a table; its modules are its own"
)]

#[path = "../support/mod.rs"]
mod support;

mod chaos;
mod checker;
mod client;
mod drain;
mod failover;
mod history;
mod load;
mod overload;
mod proxy;
mod register;
mod report;
mod runner;
mod selftest;
mod selftest_register;
mod service;
mod settings;
mod standalone;
mod starvation;
mod tamper;
mod topology;
mod trial;
mod writers;

use std::process::ExitCode;

fn main() -> ExitCode {
    drain::be_a_client_if_asked();
    runner::run(
        &[
            selftest::CASES,
            selftest_register::CASES,
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
