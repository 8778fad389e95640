//! The two clocks of the embedded store: entries expire by the one, and callers see the other.

use std::time::{Instant, SystemTime};

/// The same moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    pub(super) system: SystemTime,
    pub(super) instant: Instant,
}

impl Clocks {
    pub(super) fn read() -> Self {
        // The system clock is read first, so that no expire time is later than the expiry.
        let system = SystemTime::now();
        Self {
            system,
            instant: Instant::now(),
        }
    }

    pub(super) fn system_time_of(self, instant: Instant) -> SystemTime {
        self.system + instant.saturating_duration_since(self.instant)
    }
}
