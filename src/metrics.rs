//! What is counted and timed, and how `/metrics` shows it.

mod exposition;
pub(crate) mod process;
mod recorder;

pub(crate) use self::{
    exposition::{Format, Metrics, Reading},
    recorder::{Method, Operation, Recorder},
};
