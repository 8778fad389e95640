//! Access control: the access file, and who makes a call.
//!
//! A caller is known by a bearer token, or by a name in its client certificate. The access file has
//! only the SHA-256 of a token, so a reader of the file cannot call. Tokens are long random numbers,
//! for which one fast hash is enough.

mod access;
mod access_file;
pub(crate) mod settings;
mod token;

pub(crate) use self::{
    access::{Access, Caller, Grant, Refusal, Right, San},
    access_file::AccessError,
    token::NewToken,
};
