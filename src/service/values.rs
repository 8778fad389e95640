//! The calls about values, and the handlers of Mark, Get and BatchGet.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    batches, conditional,
    context::{CallContext, Service},
    message::{EntriesEncoder, UnaryReplyEncoder, decode},
    presence,
};
use crate::{
    codec::{replies::EntryField, requests},
    error::Error,
    model::{self, Batch, Id, MarkItem, Namespace},
    proto::{BatchUnmarkRequest, ListRequest, MarkResponse, TouchRequest},
    rpc::Rpc,
};

/// While a request waits for the store, memory holds it twice: as it came, and as a command for the
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
            encoder.encode(&mark(&service, &context, &message).await?)
        }
        Rpc::Get => get(&service, &context, &message, encoder).await,
        // Boxed, so that the future of a Get or Mark has no room for these.
        _ => Box::pin(call_boxed(service, context, message, encoder)).await,
    }
}

/// The calls that name many ids, and those that are rarer. Their futures are larger.
async fn call_boxed(
    service: Arc<Service>,
    context: CallContext,
    message: Bytes,
    mut encoder: UnaryReplyEncoder,
) -> Result<Bytes, Error> {
    let length = message.len();
    let size_with = |items: usize| length + OVERHEAD_PER_ID * items;
    match context.rpc {
        Rpc::BatchGet => {
            let request = requests::BatchGet::parse(&message)?;
            let copies = match request.include_expire_time {
                true => COPIES_WITH_EXPIRE_TIME,
                false => COPIES,
            };
            let size = size_with(request.ids.len());
            encoder.reserve_for_request(copies * size)?;
            batch_get(&service, &context, request, encoder.entries(size)).await
        }
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
            let request = requests::BatchMark::parse(&message)?;
            encoder.reserve_for_request(COPIES * size_with(request.marks.len()))?;
            let reply = batches::batch_mark(&service, &context, request).await?;
            encoder.encode(&reply)
        }
        Rpc::BatchUnmark => {
            let request: BatchUnmarkRequest = decode(message)?;
            encoder.reserve_for_request(COPIES * size_with(request.ids.len()))?;
            let reply = batches::batch_unmark(&service, &context, request).await?;
            encoder.encode(&reply)
        }
        Rpc::Touch => {
            let request: TouchRequest = decode(message)?;
            let size = size_with(request.ids.len());
            encoder.reserve_for_request(COPIES * size)?;
            batches::touch(&service, &context, request, encoder.entries(size)).await
        }
        Rpc::Count => {
            let reply = presence::count(&service, &context, decode(message)?).await?;
            encoder.encode(&reply)
        }
        Rpc::List => {
            let request: ListRequest = decode(message)?;
            encoder.reserve_for_request(presence::list_bytes(&request)?)?;
            let reply = presence::list(&service, &context, request).await?;
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
    message: &[u8],
) -> Result<MarkResponse, Error> {
    let request = requests::Mark::parse(message)?;
    let namespace = Namespace::try_from(request.namespace)?;
    call.check_access(namespace)?;
    let MarkItem { id, value, ttl } = MarkItem::parse(request.mark, &service.limits)?;
    call.start_write();
    let observer = service.observe(call);
    let marked = service.store.mark(namespace, id, &value, ttl).await;
    let expire_time = observer.end(marked)?;
    Ok(MarkResponse {
        expire_time: Some(model::timestamp(expire_time)),
    })
}

/// Reads a value.
async fn get(
    service: &Service,
    call: &CallContext,
    message: &[u8],
    encoder: UnaryReplyEncoder,
) -> Result<Bytes, Error> {
    let request = requests::Get::parse(message)?;
    let namespace = Namespace::try_from(request.namespace)?;
    call.check_access(namespace)?;
    let id = Id::try_from(request.id)?;
    let expire_time = request.include_expire_time.into();
    let observer = service.observe(call);
    let getting = service.store.get(namespace, id, expire_time, |found| {
        encoder.encode(&EntryField::new(id, found))
    });
    observer.end(getting.await)?
}

/// Reads many values.
async fn batch_get(
    service: &Service,
    call: &CallContext,
    request: requests::BatchGet<'_>,
    mut reply: EntriesEncoder,
) -> Result<Bytes, Error> {
    let namespace = Namespace::try_from(request.namespace)?;
    call.check_access(namespace)?;
    let batch = Batch::parse(request.ids.into_iter(), &service.limits)?;
    let expire_time = request.include_expire_time.into();
    let max_bytes = service.limits.max_reply_bytes;
    let observer = service.observe(call);
    let getting = service.store.batch_get(
        namespace,
        batch.ids(),
        expire_time,
        max_bytes,
        |id, found| {
            reply.push(&EntryField::new(id, found));
        },
    );
    observer.end(getting.await)?;
    reply.finish()
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
