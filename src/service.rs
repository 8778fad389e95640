//! The calls that the server answers, one file for each family.

pub(crate) mod health;
pub(crate) mod reflection;
mod values;

pub(crate) use self::values::{Asked, CallContext, DynDataService, NAME};
