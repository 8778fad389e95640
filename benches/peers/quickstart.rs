//! tonic's quick start: its server, its runtime, no store. It answers at once, with constants.

use std::time::Duration;

use clap::Parser as _;
use peer::proto::{
    BatchGetRequest, BatchGetResponse, Entry, GetRequest, GetResponse, MarkRequest, MarkResponse,
    dyn_data_server::{DynData, DynDataServer},
    entry,
};
use tonic::{Request, Response, Status, transport::Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = peer::Args::parse();
    Server::builder()
        .add_service(DynDataServer::new(QuickStart))
        .serve(args.listen)
        .await?;
    Ok(())
}

struct QuickStart;

#[tonic::async_trait]
impl DynData for QuickStart {
    async fn mark(&self, _: Request<MarkRequest>) -> Result<Response<MarkResponse>, Status> {
        Ok(Response::new(peer::marked(Duration::from_secs(60))))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        Ok(Response::new(GetResponse {
            entry: Some(constant(request.into_inner().id)),
        }))
    }

    async fn batch_get(
        &self,
        request: Request<BatchGetRequest>,
    ) -> Result<Response<BatchGetResponse>, Status> {
        let ids = request.into_inner().ids;
        Ok(Response::new(BatchGetResponse {
            entries: ids.into_iter().map(constant).collect(),
        }))
    }
}

fn constant(id: String) -> Entry {
    Entry {
        id,
        value: Some(entry::Value::IntValue(peer::CONSTANT)),
        expire_time: None,
    }
}
