//! tonic's quick start with a deadpool-redis pool of 16 connections, one checked out for each
//! call.

use clap::Parser as _;
use deadpool_redis::{Config, Connection, Pool, PoolConfig, Runtime, redis};
use peer::proto::{
    BatchGetRequest, BatchGetResponse, GetRequest, GetResponse, MarkRequest, MarkResponse,
    dyn_data_server::{DynData, DynDataServer},
};
use tonic::{Request, Response, Status, transport::Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = peer::Args::parse();
    let mut config = Config::from_url(args.redis_url);
    config.pool = Some(PoolConfig::new(16));
    let pool = config.create_pool(Some(Runtime::Tokio1))?;
    Server::builder()
        .add_service(DynDataServer::new(Pooled { pool }))
        .serve(args.listen)
        .await?;
    Ok(())
}

struct Pooled {
    pool: Pool,
}

impl Pooled {
    async fn checkout(&self) -> Result<Connection, Status> {
        self.pool.get().await.map_err(peer::unavailable)
    }
}

#[tonic::async_trait]
impl DynData for Pooled {
    async fn mark(&self, request: Request<MarkRequest>) -> Result<Response<MarkResponse>, Status> {
        let (key, value, ttl) = peer::parse_mark(request.into_inner())?;
        redis::cmd("SET")
            .arg(key)
            .arg(value)
            .arg("PX")
            .arg(ttl.as_millis() as u64)
            .query_async::<()>(&mut self.checkout().await?)
            .await
            .map_err(peer::unavailable)?;
        Ok(Response::new(peer::marked(ttl)))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let id = request.into_inner().id;
        let stored = redis::cmd("GET")
            .arg(peer::key(&id))
            .query_async(&mut self.checkout().await?)
            .await
            .map_err(peer::unavailable)?;
        Ok(Response::new(GetResponse {
            entry: Some(peer::entry(id, stored)),
        }))
    }

    async fn batch_get(
        &self,
        request: Request<BatchGetRequest>,
    ) -> Result<Response<BatchGetResponse>, Status> {
        let ids = request.into_inner().ids;
        let keys: Vec<String> = ids.iter().map(|id| peer::key(id)).collect();
        let stored: Vec<Option<Vec<u8>>> = redis::cmd("MGET")
            .arg(keys)
            .query_async(&mut self.checkout().await?)
            .await
            .map_err(peer::unavailable)?;
        let entries = ids.into_iter().zip(stored);
        Ok(Response::new(BatchGetResponse {
            entries: entries
                .map(|(id, stored)| peer::entry(id, stored))
                .collect(),
        }))
    }
}
