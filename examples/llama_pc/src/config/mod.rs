//! The configuration of a run: the sections of its TOML file as plain structs, with every default in one place.
//!
//! `schema` holds the one list of keys with their types and ranges; `load` reads files and `--set` against it.

mod load;
mod optimizers;
#[cfg(test)]
mod reference;
mod schema;
mod sections;

pub use optimizers::OptimizerKind;
pub use sections::*;
