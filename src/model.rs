//! The domain: ids, namespaces, values and times to live.
//!
//! The service parses each message into these types once. A value of one of these types is valid,
//! so the code behind the service does not check again. Nothing here knows Redis or gRPC status
//! codes.

mod batch;
mod condition;
mod counter;
mod id;
mod indexed;
mod invalid;
mod marks;
mod namespace;
mod page;
pub(crate) mod settings;
mod ttl;
mod value;

pub use self::{
    batch::Batch,
    condition::{Condition, MarkedIf, equal_to},
    counter::{Counter, Increment, Step, TtlPolicy},
    id::{Id, MAX_ID_BYTES},
    indexed::{IndexedNamespaces, MAX_INDEXED_NAMESPACES},
    invalid::Invalid,
    marks::{MarkItem, Marks, UncheckedMark},
    namespace::{MAX_NAMESPACE_BYTES, Namespace},
    page::{INDEX_SHARDS, MAX_PAGE_SIZE, Page, PageStart, RunId, page_size},
    settings::Limits,
    ttl::Ttl,
    value::{ExpireTime, Found, Value, entry, timestamp},
};
