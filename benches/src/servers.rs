//! Redis and the subjects of a run, and the keys that they share.

use anyhow::{Context as _, Result};

use crate::{
    keys::{IDS, KeySet},
    redis::Redis,
    redis_server::Directory,
    subjects::{Kind, Programs, Subject},
};

/// What runs during the benchmark.
pub struct Servers {
    pub programs: Programs,
    pub redis: Redis,
    /// Stored once and then only read.
    pub keys: KeySet,
    /// Written by Mark and BatchMark, with other values each time.
    pub marks: KeySet,
    subjects: Vec<Subject>,
    // Dropped last, because the servers write into it.
    pub scratch: Directory,
}

impl Servers {
    /// Starts Redis, and no subject.
    pub fn start(programs: Programs) -> Result<Self> {
        let mut redis = Redis::start()?;
        let keys = KeySet::random(IDS);
        redis.fill(&keys)?;
        Ok(Self {
            programs,
            redis,
            keys,
            marks: KeySet::random(IDS),
            subjects: Vec::new(),
            scratch: Directory::new(),
        })
    }

    /// Starts a subject. If it runs already, it is replaced.
    pub fn start_subject(&mut self, kind: Kind) -> Result<()> {
        self.stop_subject(kind);
        self.programs.check(kind)?;
        let redis = self.redis.address;
        let subject = Subject::start(kind, &self.programs, redis, &self.keys, &self.scratch);
        let subject = subject.with_context(|| format!("cannot start {}", kind.name()))?;
        self.subjects.push(subject);
        Ok(())
    }

    pub fn stop_subject(&mut self, kind: Kind) {
        self.subjects.retain(|subject| subject.kind != kind);
    }

    /// A subject that runs. The error of one that has ended contains its output.
    pub fn subject(&mut self, kind: Kind) -> Result<&Subject> {
        let mut subjects = self.subjects.iter_mut();
        let subject = subjects.find(|subject| subject.kind == kind);
        let subject = subject.with_context(|| format!("{} is not running", kind.name()))?;
        subject.process.check()?;
        Ok(subject)
    }
}
