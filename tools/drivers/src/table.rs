//! The tables of docs/drivers.md.

use crate::report::Report;

/// The text, and what is wrong with the kernels.
pub fn markdown(_reports: &[Report]) -> (String, Vec<String>) {
    (String::new(), Vec::new())
}
