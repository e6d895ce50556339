//! Weights in: a run's checkpoints, and folders of other programs in Hugging Face's layout.
//!
//! `source` tells which of the two a path is, `stored` reads tensors when they are asked for, `resume` goes on where a run stopped.

mod hugging_face;
mod model;
mod resume;
mod source;
mod stored;

pub use hugging_face::check_folder;
pub use model::{Model, Trained};
pub use source::{describe, describe_at};
pub use stored::Stored;
