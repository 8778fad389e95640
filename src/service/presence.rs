//! Count and List: who is marked in an indexed namespace.

use super::context::{CallContext, Service};
use crate::{
    error::Error,
    model::{Namespace, PageStart, page_size},
    proto::{CountRequest, CountResponse, ListRequest, ListResponse},
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
    check_indexed(service, call, namespace)?;
    Err(Error::Unimplemented)
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
    let _size = page_size(*size)?;
    let _start = match page_token.as_str() {
        "" => None,
        token => Some(PageStart::parse(token, namespace)?),
    };
    Err(Error::Unimplemented)
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
