//! One call: from the headers of its request to the end of its response.

pub(crate) mod admission;
pub(crate) mod deadline;
pub(crate) mod dispatch;
pub(crate) mod feed;
pub(crate) mod guard;
pub(crate) mod http2_stream;
pub(crate) mod message;
pub(crate) mod reply_stream;
pub(crate) mod state;
pub(crate) mod unary;
