//! BatchMark, BatchUnmark and Touch: the calls that write for many ids, one by one.

use super::context::{CallContext, Service};
use crate::{
    error::Error,
    model::{self, Batch, Marks, Namespace, Ttl},
    proto::{
        BatchMarkRequest, BatchMarkResponse, BatchUnmarkRequest, BatchUnmarkResponse, TouchRequest,
        TouchResponse,
    },
};

/// Writes many values.
pub(super) async fn batch_mark(
    service: &Service,
    call: &CallContext,
    request: BatchMarkRequest,
) -> Result<BatchMarkResponse, Error> {
    let BatchMarkRequest { namespace, marks } = request;
    let namespace = Namespace::try_from(namespace)?;
    call.check_access(&namespace)?;
    let marks = Marks::parse(marks, &service.limits)?;
    call.start_write();
    let observer = service.observe(call);
    let marked = service.store.batch_mark(&namespace, marks.into_items());
    observer.end(marked.await)?;
    Ok(BatchMarkResponse {})
}

/// Removes many values.
pub(super) async fn batch_unmark(
    service: &Service,
    call: &CallContext,
    request: BatchUnmarkRequest,
) -> Result<BatchUnmarkResponse, Error> {
    let BatchUnmarkRequest { namespace, ids } = request;
    let namespace = Namespace::try_from(namespace)?;
    call.check_access(&namespace)?;
    let batch = Batch::parse(ids, &service.limits)?;
    call.start_write();
    let observer = service.observe(call);
    let removed = service.store.batch_unmark(&namespace, batch.ids());
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
) -> Result<TouchResponse, Error> {
    let TouchRequest {
        namespace,
        ids,
        ttl,
    } = request;
    let namespace = Namespace::try_from(namespace)?;
    call.check_access(&namespace)?;
    let batch = Batch::parse(ids, &service.limits)?;
    let ttl = Ttl::parse(ttl, &service.limits)?;
    call.start_write();
    let observer = service.observe(call);
    let max_bytes = service.limits.max_reply_bytes;
    let touched = service.store.touch(&namespace, batch.ids(), ttl, max_bytes);
    let found = observer.end(touched.await)?;
    let entries = batch.into_ids().into_iter().zip(found);
    Ok(TouchResponse {
        entries: entries.map(|(id, found)| model::entry(id, found)).collect(),
    })
}
