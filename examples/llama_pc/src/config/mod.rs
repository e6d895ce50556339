//! The configuration of a run: the sections of its TOML file as plain structs, with every default in one place.
//!
//! `schema` holds the one list of keys with their types and ranges; `load` reads files and `--set` against it.

mod keys;
mod load;
mod optimizers;
#[cfg(test)]
mod reference;
mod rope;
mod schema;
mod sections;

pub use keys::{Difference, Keys, differences, shown};
pub use optimizers::OptimizerKind;
pub use schema::MAX_SEQ_LEN;
pub use sections::*;
