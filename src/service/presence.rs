//! Count and List: who is marked in an indexed namespace.

use super::context::{CallContext, Service};
use crate::{
    error::Error,
    model::{self, Namespace, Page, PageStart, page_size},
    proto::{CountRequest, CountResponse, Entry, ListRequest, ListResponse},
};

/// What an id of a page takes while the page is put together: its text, its expiry, and its entry in
/// the reply. Most ids are much shorter than the longest.
const BYTES_PER_ID: usize = 256;

/// Says how many ids are marked.
pub(super) async fn count(
    service: &Service,
    call: &CallContext,
    request: CountRequest,
) -> Result<CountResponse, Error> {
    let CountRequest { namespace } = &request;
    let namespace = check_indexed(service, call, namespace)?;
    let observer = service.observe(call);
    let count = observer.end(service.store.count(namespace).await)?;
    Ok(CountResponse {
        count: i64::try_from(count).unwrap_or(i64::MAX),
    })
}

/// Names the ids of one page.
pub(super) async fn list(
    service: &Service,
    call: &CallContext,
    request: ListRequest,
) -> Result<ListResponse, Error> {
    let ListRequest {
        namespace,
        page_size: size,
        page_token,
    } = &request;
    let namespace = check_indexed(service, call, namespace)?;
    let size = page_size(*size)?;
    let start = match page_token.as_str() {
        "" => None,
        token => Some(PageStart::parse(token, namespace)?),
    };
    let observer = service.observe(call);
    let listed = service.store.list(namespace, size, start).await;
    let Page { ids, next } = observer.end(listed)?;
    let entries = ids.into_iter().map(|(id, expire_time)| Entry {
        id: id.into(),
        value: None,
        expire_time: expire_time.map(model::timestamp),
    });
    Ok(ListResponse {
        entries: entries.collect(),
        next_page_token: next.map_or_else(String::new, |next| next.token(namespace)),
    })
}

/// What a List takes while it waits for the store.
pub(super) fn list_bytes(request: &ListRequest) -> Result<usize, Error> {
    Ok(BYTES_PER_ID * page_size(request.page_size)?)
}

/// The namespace of a request, if the caller may make the call there, and if it has an index.
fn check_indexed<'a>(
    service: &Service,
    call: &CallContext,
    namespace: &'a str,
) -> Result<Namespace<'a>, Error> {
    let namespace = Namespace::try_from(namespace)?;
    call.check_access(namespace)?;
    if service.store.is_indexed(namespace) {
        Ok(namespace)
    } else {
        Err(Error::NotIndexed)
    }
}
