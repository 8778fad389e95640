//! Who gets in: the bounds on how many calls and streams there are at a time.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::{error::Error, metrics::Recorder};

/// One of a connection's streams of health and reflection, for as long as it is open. They last as
/// long as their caller likes, may need no credentials, and are not among the calls in flight.
pub(super) struct StreamPlace(Arc<AtomicUsize>);

impl StreamPlace {
    /// A client needs one of each.
    const MAX: usize = 8;

    pub(super) fn take(streams: &Arc<AtomicUsize>) -> Result<Self, Error> {
        if streams.load(Ordering::Relaxed) >= Self::MAX {
            return Err(Error::Overloaded);
        }
        streams.fetch_add(1, Ordering::Relaxed);
        Ok(Self(Arc::clone(streams)))
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One of a worker's calls in flight, for as long as it is one.
pub(super) struct InFlight(Arc<Recorder>);

impl InFlight {
    pub(super) fn enter(recorder: &Arc<Recorder>, max: usize) -> Result<Self, Error> {
        let count = recorder.in_flight();
        // Only this thread counts, so that looking first is good enough.
        let calls = count.load(Ordering::Relaxed);
        if calls >= max {
            return Err(Error::Overloaded);
        }
        count.store(calls + 1, Ordering::Relaxed);
        Ok(Self(Arc::clone(recorder)))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let count = self.0.in_flight();
        count.store(count.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }
}
