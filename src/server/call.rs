//! One call: from the headers of its request to the end of its response.

pub(crate) mod admission;
mod body;
pub(crate) mod deadline;
pub(crate) mod dispatch;
mod feed;
mod guard;
pub(crate) mod http2_stream;
mod message_reader;
mod reply_stream;
pub(crate) mod shared;
mod state;
