//! The calls about values on the embedded store. [`Store`](crate::store::Store) documents them.

use std::time::{Instant, SystemTime};

use super::{
    clocks::Clocks,
    key::Key,
    shards::{Change, MemoryStore},
};
use crate::{
    model::{
        Condition, Counter, ExpireTime, Found, Id, Increment, MarkItem, MarkedIf, Namespace, Step,
        Ttl, TtlPolicy, Value,
    },
    store::failure::{StoreError, WriteError},
};

impl MemoryStore {
    pub(crate) fn mark(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        value: &Value<'_>,
        ttl: Ttl,
    ) -> Result<SystemTime, WriteError> {
        let clocks = Clocks::read();
        let expiry = clocks.instant + ttl.as_duration();
        let value = value.clone().into_owned();
        self.update(&Key::new(namespace, id), |_| {
            (Change::Write(value, expiry), ())
        })
        .map_err(WriteError::not_executed)?;
        Ok(clocks.system + ttl.as_duration())
    }

    pub(crate) fn get<T>(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        expire_time: ExpireTime,
        see: impl FnOnce(Option<Found<'_>>) -> T,
    ) -> T {
        self.read(&Key::new(namespace, id), |slot| {
            let found = slot.and_then(|(value, expiry)| {
                let system_now = match expire_time {
                    ExpireTime::Include => Some(SystemTime::now()),
                    ExpireTime::Omit => None,
                };
                let left = expiry.checked_duration_since(Instant::now())?;
                (!left.is_zero()).then(|| Found {
                    value: value.borrowed(),
                    expire_time: system_now.map(|now| now + left),
                })
            });
            see(found)
        })
    }

    pub(crate) fn batch_get<'a>(
        &self,
        namespace: Namespace<'_>,
        ids: &[Id<'a>],
        expire_time: ExpireTime,
        max_bytes: usize,
        mut see: impl FnMut(Id<'a>, Option<Found<'_>>),
    ) -> Result<(), StoreError> {
        // Checked before anything is copied. Otherwise a caller could make us copy far more than
        // the limit.
        self.check_size(namespace, ids, max_bytes)?;
        for id in ids {
            self.get(namespace, *id, expire_time, |found| see(*id, found));
        }
        Ok(())
    }

    pub(crate) fn batch_mark(
        &self,
        namespace: Namespace<'_>,
        items: &[MarkItem<'_>],
    ) -> Result<(), WriteError> {
        for (index, MarkItem { id, value, ttl }) in items.iter().enumerate() {
            self.mark(namespace, *id, value, *ttl)
                .map_err(|failed| match index {
                    0 => failed,
                    // The items before are written.
                    _ => WriteError::unknown(failed.error),
                })?;
        }
        Ok(())
    }

    pub(crate) fn unmark(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        if_equal: Option<&Value<'_>>,
    ) -> bool {
        self.update_existing(&Key::new(namespace, id), |marked| match marked {
            Some((value, _)) if if_equal.is_none_or(|equal| equal == value) => {
                (Change::Remove, true)
            }
            _ => (Change::Keep, false),
        })
    }

    pub(crate) fn batch_unmark(&self, namespace: Namespace<'_>, ids: &[Id<'_>]) -> usize {
        let removed = ids.iter().filter(|id| self.unmark(namespace, **id, None));
        removed.count()
    }

    pub(crate) fn mark_if(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        value: &Value<'_>,
        ttl: Ttl,
        condition: &Condition<'_>,
    ) -> Result<MarkedIf<'static>, WriteError> {
        let clocks = Clocks::read();
        let expiry = clocks.instant + ttl.as_duration();
        self.update(&Key::new(namespace, id), |marked| {
            let marked = marked.map(|(value, _)| value);
            let previous = marked.map(|value| value.clone().into_owned());
            let holds = condition.holds(marked);
            let change = match holds {
                true => Change::Write(value.clone().into_owned(), expiry),
                false => Change::Keep,
            };
            let result = MarkedIf {
                expire_time: holds.then(|| clocks.system + ttl.as_duration()),
                previous,
            };
            (change, result)
        })
        .map_err(WriteError::not_executed)
    }

    pub(crate) fn touch<'a>(
        &self,
        namespace: Namespace<'_>,
        ids: &[Id<'a>],
        ttl: Ttl,
        max_bytes: usize,
        mut see: impl FnMut(Id<'a>, Option<Found<'_>>),
    ) -> Result<(), WriteError> {
        // The values are looked at first, so that a request for too much changes nothing.
        self.check_size(namespace, ids, max_bytes)
            .map_err(WriteError::not_executed)?;
        let clocks = Clocks::read();
        let expiry = clocks.instant + ttl.as_duration();
        for id in ids {
            self.update_existing(&Key::new(namespace, *id), |marked| {
                let found = marked.map(|(value, _)| Found {
                    value: value.borrowed(),
                    expire_time: Some(clocks.system + ttl.as_duration()),
                });
                let change = match found {
                    Some(_) => Change::ExpireAt(expiry),
                    None => Change::Keep,
                };
                see(*id, found);
                (change, ())
            });
        }
        Ok(())
    }

    pub(crate) fn increment(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        increment: &Increment,
    ) -> Result<Counter, WriteError> {
        let clocks = Clocks::read();
        let restarted = clocks.instant + increment.ttl.as_duration();
        let incremented = self.update(&Key::new(namespace, id), |marked| {
            let (number, expiry) = match marked {
                Some((Value::Int(number), expiry)) => (*number, Some(expiry)),
                Some(_) => return (Change::Keep, Err(StoreError::NotAnInteger)),
                None => (0, None),
            };
            let counter = |applied, value, expiry: Option<Instant>| {
                Ok(Counter {
                    applied,
                    value,
                    expire_time: expiry.map(|expiry| clocks.system_time_of(expiry)),
                })
            };
            match increment.step(number) {
                Step::To(result) => {
                    let expiry = match (increment.policy, expiry) {
                        (TtlPolicy::Keep, Some(expiry)) => expiry,
                        _ => restarted,
                    };
                    let change = Change::Write(Value::Int(result), expiry);
                    (change, counter(true, result, Some(expiry)))
                }
                Step::OutOfBounds => (Change::Keep, counter(false, number, expiry)),
                Step::Overflow => (Change::Keep, Err(StoreError::CounterOverflow)),
            }
        });
        incremented
            .and_then(|result| result)
            .map_err(WriteError::not_executed)
    }

    /// Fails if the values have more than `max_bytes` together.
    fn check_size(
        &self,
        namespace: Namespace<'_>,
        ids: &[Id<'_>],
        max_bytes: usize,
    ) -> Result<(), StoreError> {
        let mut bytes = 0;
        for id in ids {
            bytes += self.read(&Key::new(namespace, *id), |slot| {
                slot.map_or(0, |(value, _)| value.size())
            });
            if bytes > max_bytes {
                return Err(StoreError::TooLarge { max: max_bytes });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{IndexedNamespaces, Limits};

    fn ttl(millis: i32) -> Ttl {
        let limits = Limits {
            default_ttl: Duration::from_secs(60),
            max_ttl: Duration::from_secs(60),
            max_batch: 1,
            max_value_bytes: 1,
            max_reply_bytes: 100,
            max_request_bytes: 100,
        };
        let duration = prost_types::Duration {
            seconds: i64::from(millis / 1000),
            nanos: millis % 1000 * 1_000_000,
        };
        Ttl::parse(Some(duration), &limits).expect("a valid ttl")
    }

    fn id(id: &str) -> Id<'_> {
        Id::try_from(id).expect("a valid id")
    }

    #[test]
    fn a_full_store_refuses_new_ids_only_and_takes_room_back_from_what_expired() {
        let store = MemoryStore::new(2, IndexedNamespaces::default());
        let namespace = Namespace::default();
        let mark = |name, millis| store.mark(namespace, id(name), &Value::Int(1), ttl(millis));
        assert!(mark("short", 500).is_ok());
        assert!(mark("long", 60_000).is_ok());
        assert_eq!(
            mark("third", 60_000),
            Err(WriteError::not_executed(StoreError::Full { max: 2 }))
        );
        assert!(
            mark("long", 60_000).is_ok(),
            "an id that is there is no new entry"
        );
        std::thread::sleep(Duration::from_millis(510));
        assert!(mark("third", 60_000).is_ok());
        assert_eq!(store.len(), 2);
        let found = |found: Option<Found<'_>>| found.is_some();
        assert!(store.get(namespace, id("long"), ExpireTime::Omit, found));
    }

    #[test]
    fn the_sweep_removes_what_expired_and_keeps_what_was_marked_again() {
        let store = MemoryStore::new(10, IndexedNamespaces::default());
        let namespace = Namespace::default();
        let mark = |name, millis| store.mark(namespace, id(name), &Value::Int(1), ttl(millis));
        assert!(mark("gone", 20).is_ok());
        assert!(mark("kept", 20).is_ok());
        assert!(mark("kept", 60_000).is_ok());
        std::thread::sleep(Duration::from_millis(30));
        store.sweep();
        assert_eq!(store.len(), 1);
        let found = |found: Option<Found<'_>>| found.is_some();
        assert!(store.get(namespace, id("kept"), ExpireTime::Omit, found));
    }
}
