//! BatchMark, BatchUnmark and Touch: the calls that write for many ids, one by one.

use bytes::Bytes;

use super::{
    context::{CallContext, Service},
    message::EntriesEncoder,
};
use crate::{
    codec::{replies::EntryField, requests},
    error::Error,
    model::{Batch, Marks, Namespace, Ttl},
    proto::{BatchMarkResponse, BatchUnmarkRequest, BatchUnmarkResponse, TouchRequest},
};

/// Writes many values.
pub(super) async fn batch_mark(
    service: &Service,
    call: &CallContext,
    request: requests::BatchMark<'_>,
) -> Result<BatchMarkResponse, Error> {
    let namespace = Namespace::try_from(request.namespace)?;
    call.check_access(namespace)?;
    let marks = Marks::parse(request.marks, &service.limits)?;
    call.start_write();
    let observer = service.observe(call);
    let marked = service.store.batch_mark(namespace, marks.items());
    observer.end(marked.await)?;
    Ok(BatchMarkResponse {})
}

/// Removes many values.
pub(super) async fn batch_unmark(
    service: &Service,
    call: &CallContext,
    request: BatchUnmarkRequest,
) -> Result<BatchUnmarkResponse, Error> {
    let BatchUnmarkRequest { namespace, ids } = &request;
    let namespace = Namespace::try_from(namespace.as_str())?;
    call.check_access(namespace)?;
    let batch = Batch::parse(ids.iter().map(String::as_str), &service.limits)?;
    call.start_write();
    let observer = service.observe(call);
    let removed = service.store.batch_unmark(namespace, batch.ids());
    let removed = observer.end(removed.await)?;
    Ok(BatchUnmarkResponse {
        removed_count: i32::try_from(removed).unwrap_or(i32::MAX),
    })
}

/// Restarts the time to live of many values.
pub(super) async fn touch(
    service: &Service,
    call: &CallContext,
    request: TouchRequest,
    mut reply: EntriesEncoder,
) -> Result<Bytes, Error> {
    let TouchRequest {
        namespace,
        ids,
        ttl,
    } = &request;
    let namespace = Namespace::try_from(namespace.as_str())?;
    call.check_access(namespace)?;
    let batch = Batch::parse(ids.iter().map(String::as_str), &service.limits)?;
    let ttl = Ttl::parse(*ttl, &service.limits)?;
    let max_bytes = service.limits.max_reply_bytes;
    call.start_write();
    let observer = service.observe(call);
    let touched = service
        .store
        .touch(namespace, batch.ids(), ttl, max_bytes, |id, found| {
            reply.push(&EntryField::new(id, found));
        });
    observer.end(touched.await)?;
    reply.finish()
}
