//! Weights in: a run's checkpoints, and folders of other programs in Hugging Face's layout.
//!
//! `source` tells the two apart, `stored` reads tensors lazily, `resume` restores a trainer.

mod hugging_face;
mod model;
mod resume;
mod source;
mod stored;

pub use hugging_face::check_folder;
pub use model::{Model, Trained};
pub use source::{describe, describe_at};
pub use stored::Stored;
