//! A history written by hand, for the checkers that know failovers.

use crate::{history::Operation, register::Span, selftest::millis};

/// A history, and the spans in which a failover may lose something.
#[derive(Debug, Clone, Copy)]
pub struct Example {
    pub name: &'static str,
    pub history: fn() -> Vec<Operation>,
    /// In milliseconds.
    pub lossy: &'static [(i64, i64)],
}

impl Example {
    /// A history without a failover.
    pub const fn strict(name: &'static str, history: fn() -> Vec<Operation>) -> Self {
        Self {
            name,
            history,
            lossy: &[],
        }
    }

    pub fn spans(&self) -> Vec<Span> {
        let spans = self.lossy.iter();
        spans
            .map(|(from, to)| (millis(*from), millis(*to)))
            .collect()
    }
}
