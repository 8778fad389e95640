//! The three RPCs: parse the request into domain types, see that the caller may, ask the store,
//! reply.
//!
//! Knows nothing of Redis, sockets or HTTP/2.

use crate::{
    auth::{Grant, Right},
    error::Error,
    model::{self, Batch, Id, Limits, Namespace, Ttl, Value},
    proto::{
        BatchGetRequest, BatchGetResponse, GetRequest, GetResponse, MarkRequest, MarkResponse,
    },
    store::Store,
};

/// The name of the service on the wire.
pub(crate) const NAME: &str = "dyndata.v1.DynData";

/// The service of one worker.
#[derive(Debug)]
pub(crate) struct DynDataService {
    store: Store,
    limits: Limits,
}

impl DynDataService {
    /// Serves what is in `store`.
    pub(crate) fn new(store: Store, limits: Limits) -> Self {
        Self { store, limits }
    }

    /// Writes a value.
    pub(crate) async fn mark(
        &self,
        request: MarkRequest,
        grant: &Grant,
    ) -> Result<MarkResponse, Error> {
        let MarkRequest {
            namespace,
            id,
            ttl,
            value,
        } = request;
        let namespace = Namespace::try_from(namespace)?;
        grant.check(Right::Write, &namespace)?;
        let id = Id::try_from(id)?;
        let value = Value::parse(value, &self.limits)?;
        let ttl = Ttl::parse(ttl, &self.limits)?;
        let expire_time = self.store.mark(&namespace, &id, value, ttl).await?;
        Ok(MarkResponse {
            expire_time: Some(model::timestamp(expire_time)),
        })
    }

    /// Reads a value.
    pub(crate) async fn get(
        &self,
        request: GetRequest,
        grant: &Grant,
    ) -> Result<GetResponse, Error> {
        let GetRequest {
            namespace,
            id,
            include_expire_time,
        } = request;
        let namespace = Namespace::try_from(namespace)?;
        grant.check(Right::Read, &namespace)?;
        let id = Id::try_from(id)?;
        let found = self
            .store
            .get(&namespace, &id, include_expire_time.into())
            .await?;
        Ok(GetResponse {
            entry: Some(model::entry(id, found)),
        })
    }

    /// Reads many values.
    pub(crate) async fn batch_get(
        &self,
        request: BatchGetRequest,
        grant: &Grant,
    ) -> Result<BatchGetResponse, Error> {
        let BatchGetRequest {
            namespace,
            ids,
            include_expire_time,
        } = request;
        let namespace = Namespace::try_from(namespace)?;
        grant.check(Right::Read, &namespace)?;
        let batch = Batch::parse(ids, &self.limits)?;
        let found = self
            .store
            .batch_get(&namespace, batch.ids(), include_expire_time.into())
            .await?;
        let entries = batch
            .into_ids()
            .into_iter()
            .zip(found)
            .map(|(id, found)| model::entry(id, found))
            .collect();
        Ok(BatchGetResponse { entries })
    }
}
