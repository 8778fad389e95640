//! Mark, Get and BatchGet on the embedded store. [`Store`](crate::store::Store) documents them.

use std::time::{Instant, SystemTime};

use super::shards::{Key, MemoryStore};
use crate::{
    model::{ExpireTime, Found, Id, Namespace, Ttl, Value},
    store::failure::{StoreError, WriteError},
};

impl MemoryStore {
    pub(crate) fn mark(
        &self,
        namespace: &Namespace,
        id: &Id,
        value: Value,
        ttl: Ttl,
    ) -> Result<SystemTime, WriteError> {
        let key = Key::new(namespace, id);
        // Read before the monotonic clock, so that the promise is never later than the expiry.
        let expire_time = SystemTime::now() + ttl.as_duration();
        let expiry = Instant::now() + ttl.as_duration();
        let inserted = self.insert(key, value, expiry);
        inserted.map_err(WriteError::not_executed)?;
        Ok(expire_time)
    }

    pub(crate) fn get(
        &self,
        namespace: &Namespace,
        id: &Id,
        expire_time: ExpireTime,
    ) -> Option<Found> {
        let found = self.read(&Key::new(namespace, id), |value, expiry| {
            let system_now = match expire_time {
                ExpireTime::Include => Some(SystemTime::now()),
                ExpireTime::Omit => None,
            };
            let left = expiry.checked_duration_since(Instant::now())?;
            (!left.is_zero()).then(|| Found {
                value: value.clone(),
                expire_time: system_now.map(|now| now + left),
            })
        });
        found.flatten()
    }

    pub(crate) fn batch_get(
        &self,
        namespace: &Namespace,
        ids: &[Id],
        expire_time: ExpireTime,
        max_bytes: usize,
    ) -> Result<Vec<Option<Found>>, StoreError> {
        // Checked before anything is copied. Otherwise a caller could make us copy far more than
        // the limit.
        let mut bytes = 0;
        for id in ids {
            let size = self.read(&Key::new(namespace, id), |value, _| value.size());
            bytes += size.unwrap_or(0);
            if bytes > max_bytes {
                return Err(StoreError::TooLarge { max: max_bytes });
            }
        }
        let found = ids.iter().map(|id| self.get(namespace, id, expire_time));
        Ok(found.collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::Limits;

    fn ttl(millis: i32) -> Ttl {
        let limits = Limits {
            default_ttl: Duration::from_secs(60),
            max_ttl: Duration::from_secs(60),
            max_batch: 1,
            max_value_bytes: 1,
            max_reply_bytes: 100,
        };
        let duration = prost_types::Duration {
            seconds: 0,
            nanos: millis * 1_000_000,
        };
        Ttl::parse(Some(duration), &limits).expect("a valid ttl")
    }

    fn id(id: &str) -> Id {
        Id::try_from(id.to_owned()).expect("a valid id")
    }

    #[test]
    fn a_full_store_refuses_new_ids_only_and_takes_room_back_from_what_expired() {
        let store = MemoryStore::new(2);
        let namespace = Namespace::default();
        let mark = |name, millis| store.mark(&namespace, &id(name), Value::Int(1), ttl(millis));
        assert!(mark("short", 20).is_ok());
        assert!(mark("long", 900).is_ok());
        assert_eq!(
            mark("third", 900),
            Err(WriteError::not_executed(StoreError::Full { max: 2 }))
        );
        assert!(
            mark("long", 900).is_ok(),
            "an id that is there is no new entry"
        );
        std::thread::sleep(Duration::from_millis(30));
        assert!(mark("third", 900).is_ok());
        assert_eq!(store.len(), 2);
        assert!(
            store
                .get(&namespace, &id("long"), ExpireTime::Omit)
                .is_some()
        );
    }

    #[test]
    fn the_sweep_removes_what_expired_and_keeps_what_was_marked_again() {
        let store = MemoryStore::new(10);
        let namespace = Namespace::default();
        let mark = |name, millis| store.mark(&namespace, &id(name), Value::Int(1), ttl(millis));
        assert!(mark("gone", 20).is_ok());
        assert!(mark("kept", 20).is_ok());
        assert!(mark("kept", 900).is_ok());
        std::thread::sleep(Duration::from_millis(30));
        store.sweep();
        assert_eq!(store.len(), 1);
        assert!(
            store
                .get(&namespace, &id("kept"), ExpireTime::Omit)
                .is_some()
        );
    }
}
