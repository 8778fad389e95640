//! The three RPCs: parse the request into domain types, ask the store, reply.
//!
//! Knows nothing of Redis, sockets or HTTP/2.

use tonic::{Request, Response, Status, async_trait};

use crate::{
    error::Error,
    model::{self, Batch, Id, Limits, Namespace, Ttl, Value},
    proto::{
        BatchGetRequest, BatchGetResponse, GetRequest, GetResponse, MarkRequest, MarkResponse,
        dyn_data_server::DynData,
    },
    store::Store,
};

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

    async fn mark(&self, request: MarkRequest) -> Result<MarkResponse, Error> {
        let MarkRequest {
            namespace,
            id,
            ttl,
            value,
        } = request;
        let namespace = Namespace::try_from(namespace)?;
        let id = Id::try_from(id)?;
        let value = Value::parse(value, &self.limits)?;
        let ttl = Ttl::parse(ttl, &self.limits)?;
        let expire_time = self.store.mark(&namespace, &id, value, ttl).await?;
        Ok(MarkResponse {
            expire_time: Some(model::timestamp(expire_time)),
        })
    }

    async fn get(&self, request: GetRequest) -> Result<GetResponse, Error> {
        let GetRequest {
            namespace,
            id,
            include_expire_time,
        } = request;
        let namespace = Namespace::try_from(namespace)?;
        let id = Id::try_from(id)?;
        let found = self
            .store
            .get(&namespace, &id, include_expire_time.into())
            .await?;
        Ok(GetResponse {
            entry: Some(model::entry(id, found)),
        })
    }

    async fn batch_get(&self, request: BatchGetRequest) -> Result<BatchGetResponse, Error> {
        let BatchGetRequest {
            namespace,
            ids,
            include_expire_time,
        } = request;
        let namespace = Namespace::try_from(namespace)?;
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

#[async_trait]
impl DynData for DynDataService {
    async fn mark(&self, request: Request<MarkRequest>) -> Result<Response<MarkResponse>, Status> {
        Ok(self.mark(request.into_inner()).await.map(Response::new)?)
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        Ok(self.get(request.into_inner()).await.map(Response::new)?)
    }

    async fn batch_get(
        &self,
        request: Request<BatchGetRequest>,
    ) -> Result<Response<BatchGetResponse>, Status> {
        Ok(self
            .batch_get(request.into_inner())
            .await
            .map(Response::new)?)
    }
}
