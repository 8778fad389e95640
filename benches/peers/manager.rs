//! tonic's quick start with one redis-rs `ConnectionManager`, cloned for each call as its
//! documentation says, everything at its defaults.

use std::time::Duration;

use clap::Parser as _;
use peer::proto::{
    BatchGetRequest, BatchGetResponse, BatchMarkRequest, BatchMarkResponse, GetRequest,
    GetResponse, MarkRequest, MarkResponse,
    dyn_data_server::{DynData, DynDataServer},
};
use redis::{AsyncCommands as _, SetExpiry, SetOptions, aio::ConnectionManager};
use tonic::{Request, Response, Status, transport::Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = peer::Args::parse();
    let client = redis::Client::open(args.redis_url)?;
    let redis = client.get_connection_manager().await?;
    Server::builder()
        .add_service(DynDataServer::new(Shared { redis }))
        .serve(args.listen)
        .await?;
    Ok(())
}

struct Shared {
    redis: ConnectionManager,
}

#[tonic::async_trait]
impl DynData for Shared {
    async fn mark(&self, request: Request<MarkRequest>) -> Result<Response<MarkResponse>, Status> {
        let (key, value, ttl) = peer::parse_mark(request.into_inner())?;
        let mut redis = self.redis.clone();
        redis
            .set_options::<_, _, ()>(key, value, expiring(ttl))
            .await
            .map_err(peer::unavailable)?;
        Ok(Response::new(peer::marked(ttl)))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let id = request.into_inner().id;
        let mut redis = self.redis.clone();
        let stored = redis.get(peer::key(&id)).await.map_err(peer::unavailable)?;
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
        let mut redis = self.redis.clone();
        let stored: Vec<Option<Vec<u8>>> = redis.mget(keys).await.map_err(peer::unavailable)?;
        let entries = ids.into_iter().zip(stored);
        Ok(Response::new(BatchGetResponse {
            entries: entries
                .map(|(id, stored)| peer::entry(id, stored))
                .collect(),
        }))
    }

    async fn batch_mark(
        &self,
        request: Request<BatchMarkRequest>,
    ) -> Result<Response<BatchMarkResponse>, Status> {
        let mut pipeline = redis::pipe();
        for item in request.into_inner().marks {
            let (key, value, ttl) = peer::parse_item(item)?;
            pipeline.set_options(key, value, expiring(ttl)).ignore();
        }
        let mut redis = self.redis.clone();
        pipeline
            .query_async::<()>(&mut redis)
            .await
            .map_err(peer::unavailable)?;
        Ok(Response::new(BatchMarkResponse {}))
    }
}

fn expiring(ttl: Duration) -> SetOptions {
    SetOptions::default().with_expiration(SetExpiry::PX(ttl.as_millis() as u64))
}
