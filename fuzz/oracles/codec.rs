//! The oracle for the codec: prost.

use std::fmt::Debug;

use prost::Message;

use crate::{
    codec::{fields::Malformed, requests},
    model::{UncheckedMark, Value},
    proto::{BatchGetRequest, BatchMarkRequest, GetRequest, MarkRequest, batch_mark_request},
};

/// Any bytes are read as prost reads them, or refused as prost refuses them.
pub(crate) fn compare_with_prost(data: &[u8]) {
    compare(
        requests::Get::parse(data),
        GetRequest::decode(data)
            .as_ref()
            .map(|request| requests::Get {
                namespace: &request.namespace,
                id: &request.id,
                include_expire_time: request.include_expire_time,
            }),
    );
    compare(
        requests::BatchGet::parse(data),
        BatchGetRequest::decode(data)
            .as_ref()
            .map(|request| requests::BatchGet {
                namespace: &request.namespace,
                ids: request.ids.iter().map(String::as_str).collect(),
                include_expire_time: request.include_expire_time,
            }),
    );
    compare(
        requests::Mark::parse(data),
        MarkRequest::decode(data)
            .as_ref()
            .map(|request| requests::Mark {
                namespace: &request.namespace,
                mark: UncheckedMark {
                    id: &request.id,
                    value: request.value.clone().map(Value::from),
                    ttl: request.ttl,
                },
            }),
    );
    compare(
        requests::BatchMark::parse(data),
        BatchMarkRequest::decode(data)
            .as_ref()
            .map(|request| requests::BatchMark {
                namespace: &request.namespace,
                marks: request.marks.iter().map(unchecked).collect(),
            }),
    );
}

fn unchecked(item: &batch_mark_request::Item) -> UncheckedMark<'_> {
    UncheckedMark {
        id: &item.id,
        value: item.value.clone().map(Value::from),
        ttl: item.ttl,
    }
}

fn compare<T: Debug + PartialEq>(
    ours: Result<T, Malformed>,
    prosts: Result<T, &prost::DecodeError>,
) {
    assert_eq!(ours.ok(), prosts.ok());
}
