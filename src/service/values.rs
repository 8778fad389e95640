//! The calls about values, and the handlers of Mark, Get and BatchGet.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    batches, conditional,
    context::{CallContext, Service},
    message::{UnaryReplyEncoder, decode},
};
use crate::{
    error::Error,
    model::{self, Batch, Id, Namespace, Ttl, Value},
    proto::{
        BatchGetRequest, BatchGetResponse, BatchMarkRequest, BatchUnmarkRequest, GetRequest,
        GetResponse, MarkRequest, MarkResponse, TouchRequest,
    },
    rpc::Rpc,
};

/// While a request waits for the store, memory holds it twice: decoded, and as a command for the
/// store.
const COPIES: usize = 2;
/// With expire times, the command names every id twice.
const COPIES_WITH_EXPIRE_TIME: usize = 3;
/// What each copy of an id takes besides its bytes.
const OVERHEAD_PER_ID: usize = 32;

/// Answers one call: takes the bytes of the request message, gives those of the reply message.
pub(crate) async fn call(
    service: Arc<Service>,
    context: CallContext,
    message: Bytes,
    mut encoder: UnaryReplyEncoder,
) -> Result<Bytes, Error> {
    let length = message.len();
    match context.rpc {
        Rpc::Mark => {
            encoder.reserve_for_request(COPIES * length)?;
            let reply = mark(&service, &context, decode(message)?).await?;
            encoder.encode(&reply)
        }
        Rpc::Get => encoder.encode(&get(&service, &context, decode(message)?).await?),
        Rpc::BatchGet => {
            let request: BatchGetRequest = decode(message)?;
            let copies = match request.include_expire_time {
                true => COPIES_WITH_EXPIRE_TIME,
                false => COPIES,
            };
            let ids = request.ids.len();
            encoder.reserve_for_request(copies * (length + OVERHEAD_PER_ID * ids))?;
            let reply = batch_get(&service, &context, request).await?;
            encoder.encode(&reply)
        }
        // Boxed, so that the future of a Get has no room for these.
        _ => Box::pin(call_boxed(service, context, message, encoder)).await,
    }
}

/// The calls whose futures are large, or that are rarer.
async fn call_boxed(
    service: Arc<Service>,
    context: CallContext,
    message: Bytes,
    mut encoder: UnaryReplyEncoder,
) -> Result<Bytes, Error> {
    let length = message.len();
    match context.rpc {
        Rpc::Unmark => {
            encoder.reserve_for_request(COPIES * length)?;
            let reply = conditional::unmark(&service, &context, decode(message)?).await?;
            encoder.encode(&reply)
        }
        Rpc::MarkIf => {
            encoder.reserve_for_request(COPIES * length)?;
            let reply = conditional::mark_if(&service, &context, decode(message)?).await?;
            encoder.encode(&reply)
        }
        Rpc::Increment => {
            let reply = conditional::increment(&service, &context, decode(message)?).await?;
            encoder.encode(&reply)
        }
        Rpc::BatchMark => {
            let request: BatchMarkRequest = decode(message)?;
            let items = request.marks.len();
            encoder.reserve_for_request(COPIES * (length + OVERHEAD_PER_ID * items))?;
            let reply = batches::batch_mark(&service, &context, request).await?;
            encoder.encode(&reply)
        }
        Rpc::BatchUnmark => {
            let request: BatchUnmarkRequest = decode(message)?;
            let ids = request.ids.len();
            encoder.reserve_for_request(COPIES * (length + OVERHEAD_PER_ID * ids))?;
            let reply = batches::batch_unmark(&service, &context, request).await?;
            encoder.encode(&reply)
        }
        Rpc::Touch => {
            let request: TouchRequest = decode(message)?;
            let ids = request.ids.len();
            encoder.reserve_for_request(COPIES * (length + OVERHEAD_PER_ID * ids))?;
            let reply = batches::touch(&service, &context, request).await?;
            encoder.encode(&reply)
        }
        // Not of this family.
        _ => Err(Error::Unimplemented),
    }
}

/// Writes a value.
async fn mark(
    service: &Service,
    call: &CallContext,
    request: MarkRequest,
) -> Result<MarkResponse, Error> {
    let MarkRequest {
        namespace,
        id,
        ttl,
        value,
    } = request;
    let namespace = Namespace::try_from(namespace)?;
    call.check_access(&namespace)?;
    let id = Id::try_from(id)?;
    let value = Value::parse(value, &service.limits)?;
    let ttl = Ttl::parse(ttl, &service.limits)?;
    call.start_write();
    let observer = service.observe(call);
    let marked = service.store.mark(&namespace, &id, value, ttl).await;
    let expire_time = observer.end(marked)?;
    Ok(MarkResponse {
        expire_time: Some(model::timestamp(expire_time)),
    })
}

/// Reads a value.
async fn get(
    service: &Service,
    call: &CallContext,
    request: GetRequest,
) -> Result<GetResponse, Error> {
    let GetRequest {
        namespace,
        id,
        include_expire_time,
    } = request;
    let namespace = Namespace::try_from(namespace)?;
    call.check_access(&namespace)?;
    let id = Id::try_from(id)?;
    let observer = service.observe(call);
    let expire_time = include_expire_time.into();
    let found = observer.end(service.store.get(&namespace, &id, expire_time).await)?;
    Ok(GetResponse {
        entry: Some(model::entry(id, found)),
    })
}

/// Reads many values.
async fn batch_get(
    service: &Service,
    call: &CallContext,
    request: BatchGetRequest,
) -> Result<BatchGetResponse, Error> {
    let BatchGetRequest {
        namespace,
        ids,
        include_expire_time,
    } = request;
    let namespace = Namespace::try_from(namespace)?;
    call.check_access(&namespace)?;
    let batch = Batch::parse(ids, &service.limits)?;
    let observer = service.observe(call);
    let getting = service.store.batch_get(
        &namespace,
        batch.ids(),
        include_expire_time.into(),
        service.limits.max_reply_bytes,
    );
    let found = observer.end(getting.await)?;
    let entries = batch
        .into_ids()
        .into_iter()
        .zip(found)
        .map(|(id, found)| model::entry(id, found))
        .collect();
    Ok(BatchGetResponse { entries })
}

#[cfg(test)]
mod tests {
    use super::call;

    /// The size of the futures that an async function gives.
    fn size_of_future<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_call_is_small() {
        // Each future is copied to the heap, where up to 1 KiB is cheapest.
        assert!(size_of_future(call) <= 1024, "{}", size_of_future(call));
    }
}
