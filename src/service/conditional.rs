//! Unmark, MarkIf and Increment: the calls that decide by what is marked, in one step.

use super::context::{CallContext, Service};
use crate::{
    auth::Right,
    error::Error,
    model::{self, Condition, Found, Id, Increment, Namespace, Ttl, Value},
    proto::{
        IncrementRequest, IncrementResponse, MarkIfRequest, MarkIfResponse, UnmarkRequest,
        UnmarkResponse,
    },
};

/// Removes a value.
pub(super) async fn unmark(
    service: &Service,
    call: &CallContext,
    request: UnmarkRequest,
) -> Result<UnmarkResponse, Error> {
    let UnmarkRequest {
        namespace,
        id,
        if_equal,
    } = request;
    let namespace = Namespace::try_from(namespace.as_str())?;
    call.check_access(namespace)?;
    if if_equal.is_some() {
        // The answer tells whether the value is equal.
        call.check_right(Right::Read, namespace)?;
    }
    let id = Id::try_from(id.as_str())?;
    let if_equal = if_equal
        .map(|value| model::equal_to(value, &service.limits))
        .transpose()?;
    call.start_write();
    let observer = service.observe(call);
    let unmarked = service.store.unmark(namespace, id, if_equal.as_ref());
    let removed = observer.end(unmarked.await)?;
    Ok(UnmarkResponse { removed })
}

/// Writes a value if a condition holds.
pub(super) async fn mark_if(
    service: &Service,
    call: &CallContext,
    request: MarkIfRequest,
) -> Result<MarkIfResponse, Error> {
    let MarkIfRequest {
        namespace,
        id,
        ttl,
        value,
        condition,
    } = request;
    let namespace = Namespace::try_from(namespace.as_str())?;
    call.check_access(namespace)?;
    let id = Id::try_from(id.as_str())?;
    let value = Value::parse(value, &service.limits)?;
    let ttl = Ttl::parse(ttl, &service.limits)?;
    let condition = Condition::parse(condition, &service.limits)?;
    call.start_write();
    let observer = service.observe(call);
    let marked = service
        .store
        .mark_if(namespace, id, &value, ttl, &condition);
    let marked = observer.end(marked.await)?;
    let previous = marked.previous.map(|value| Found {
        value,
        expire_time: None,
    });
    Ok(MarkIfResponse {
        applied: marked.expire_time.is_some(),
        expire_time: marked.expire_time.map(model::timestamp),
        previous: Some(model::entry(id, previous)),
    })
}

/// Adds to a number.
pub(super) async fn increment(
    service: &Service,
    call: &CallContext,
    request: IncrementRequest,
) -> Result<IncrementResponse, Error> {
    let increment = Increment::parse(&request, &service.limits);
    let namespace = Namespace::try_from(request.namespace.as_str())?;
    call.check_access(namespace)?;
    let id = Id::try_from(request.id.as_str())?;
    let increment = increment?;
    call.start_write();
    let observer = service.observe(call);
    let counter = service.store.increment(namespace, id, &increment);
    let counter = observer.end(counter.await)?;
    Ok(IncrementResponse {
        applied: counter.applied,
        value: counter.value,
        expire_time: counter.expire_time.map(model::timestamp),
    })
}
