//! Protobuf messages without copies, for the calls that are made most.
//!
//! The generated messages own their parts: decoding a BatchGet copies every id, and encoding its
//! reply needs every id and value a second time. Here the parts of a request are slices of its
//! bytes, and a reply is written straight from what the store has answered. `docs/performance.md`
//! has what that saves.
//!
//! Requests are read, and replies written, as prost does it: unknown fields are skipped, text must be
//! UTF-8, and of a field that occurs twice the last one counts, or both are merged if it is a message.
//! Property tests compare both for random messages and for changed ones.
//!
//! Source: <https://protobuf.dev/programming-guides/encoding/>

pub(crate) mod fields;
pub(crate) mod replies;
pub(crate) mod requests;

#[cfg(test)]
mod tests;
