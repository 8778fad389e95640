//! What is counted and timed, and how `/metrics` shows it.
//!
//! Labels come from fixed sets and from the settings only, so that no caller can create new time
//! series.

mod exposition;
pub(crate) mod process;
mod reading;
mod recorder;

pub(crate) use self::{
    exposition::{Metrics, TextFormat},
    reading::Reading,
    recorder::Recorder,
};
