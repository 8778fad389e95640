//! The limits on how many calls and streams there are at a time.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::{error::Error, metrics::Recorder};

/// When one worker has this many streams of health and reflection...
const MAX_WORKER_STREAMS: usize = 2048;
/// ... each of its connections may have only this many. A client needs two or three.
const FAIR_CONNECTION_STREAMS: usize = 8;

/// Counts the streams of health and reflection of one connection and of its worker. Clones share
/// both counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct StreamPlaces {
    connection: Arc<AtomicUsize>,
    worker: Arc<AtomicUsize>,
}

impl StreamPlaces {
    /// The counts of a new connection of the same worker.
    pub(crate) fn for_connection(&self) -> Self {
        Self {
            connection: Arc::default(),
            worker: Arc::clone(&self.worker),
        }
    }

    /// Takes a place for one more stream. While the worker has few streams, only
    /// `--max-concurrent-streams` limits those of a connection.
    pub(crate) fn take(&self) -> Result<StreamPlace, Error> {
        if self.worker.load(Ordering::Relaxed) >= MAX_WORKER_STREAMS
            && self.connection.load(Ordering::Relaxed) >= FAIR_CONNECTION_STREAMS
        {
            return Err(Error::Overloaded);
        }
        self.connection.fetch_add(1, Ordering::Relaxed);
        self.worker.fetch_add(1, Ordering::Relaxed);
        Ok(StreamPlace(self.clone()))
    }
}

/// The place of one stream, for as long as it is open.
#[derive(Debug)]
pub(crate) struct StreamPlace(StreamPlaces);

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.0.connection.fetch_sub(1, Ordering::Relaxed);
        self.0.worker.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts one call of a worker as in flight until it is dropped.
pub(crate) struct InFlight(Arc<Recorder>);

impl InFlight {
    pub(crate) fn enter(recorder: &Arc<Recorder>, max: usize) -> Result<Self, Error> {
        let count = recorder.in_flight();
        // Only this thread writes the count, so nothing can come between the check and the store.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_worker_has_a_few_streams_for_every_connection() {
        let worker = StreamPlaces::default();
        let greedy = worker.for_connection();
        let mut places: Vec<_> = (0..MAX_WORKER_STREAMS)
            .map(|_| greedy.take().expect("room"))
            .collect();
        assert!(greedy.take().is_err());
        let modest = worker.for_connection();
        places.extend((0..FAIR_CONNECTION_STREAMS).map(|_| modest.take().expect("room")));
        assert!(modest.take().is_err());
        places.clear();
        assert!(modest.take().is_ok());
    }
}
