//! Weights in: a run's checkpoints, and folders of other programs in Hugging Face's layout.
//!
//! `source` tells the two apart, `hugging_face` and `rope` read `config.json`, `stored` reads tensors lazily, `index` finds their files, and `unused` refuses
//! those that the model would leave out, `agreement` holds `--init` against the configuration, `resume` restores a trainer.

mod agreement;
mod fields;
mod hugging_face;
pub mod index;
mod model;
mod resume;
mod rope;
mod source;
mod stored;
mod unused;

pub use agreement::initial_weights;
pub use hugging_face::architecture_of;
pub use model::{Model, Trained};
pub use source::{describe, describe_at};
pub use stored::Stored;
