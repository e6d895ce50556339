//! The one error type of the crate.

use std::path::PathBuf;

/// Everything that can go wrong by a user's input or by the machine. A broken invariant of the crate itself panics with "bug:".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes that an operation cannot combine; the text shows every shape and the equation that fails.
    #[error("{op}: {problem}")]
    Shape {
        /// The operation's name.
        op: &'static str,
        /// The shapes of its inputs.
        shapes: Vec<Vec<usize>>,
        /// All shapes and what does not fit.
        problem: String,
    },
    /// No adapter, or none that fits the request.
    #[error("adapter: {0}")]
    Adapter(String),
    /// A shader that the compiler refused; carries the compiler's text.
    #[error("kernel {kernel}: {problem}")]
    Kernel {
        /// The kernel's name.
        kernel: &'static str,
        /// The compiler's text, or what does not fit the bindings.
        problem: String,
    },
    /// The byte budget or the device's memory is exhausted. Nothing was allocated.
    #[error("out of memory on the device: {requested} bytes asked for while {live} are in use and {}", budget_text(*.budget))]
    OutOfMemory {
        /// Size of the buffer asked for.
        requested: u64,
        /// Bytes in live buffers.
        live: u64,
        /// The budget, where that is exhausted; `None` where the driver or its limit of a buffer refused.
        budget: Option<u64>,
    },
    /// The device was lost or reported an error outside of any call.
    #[error("device: {0}")]
    Device(String),
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that does not hold what was expected.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was found, and what was expected.
        problem: String,
    },
    /// A step whose loss or gradient norm is not finite. It was not applied.
    #[error("step {step}: {}", non_finite_text(*.loss, *.grad_norm, .parameter.as_deref()))]
    NonFinite {
        /// The step, counted from 1.
        step: u64,
        /// Mean loss of its micro-batches.
        loss: f32,
        /// Its gradient norm before clipping.
        grad_norm: f32,
        /// The first parameter whose gradient is not finite; none where all are: only the loss is not, or their sum of squares overflows.
        parameter: Option<String>,
    },
    /// Another rank that has ended, sends nothing, or sends what does not fit.
    #[error("rank {rank} {problem}")]
    Rank {
        /// The rank, counted from 0.
        rank: usize,
        /// What it did.
        problem: String,
    },
    /// A value that an operation, optimizer or model does not accept.
    #[error("{0}")]
    Value(String),
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

fn non_finite_text(loss: f32, grad_norm: f32, parameter: Option<&str>) -> String {
    if !loss.is_finite() {
        let place = parameter.map_or(String::new(), |name| format!(" (and its gradient, first in {name})"));
        return format!("the loss is {loss}{place}, expected a finite number");
    }
    let place = parameter.map_or("no single tensor, their sum overflows".into(), |name| format!("first in {name}"));
    format!("the gradient norm is {grad_norm} ({place}), expected a finite number")
}

fn budget_text(budget: Option<u64>) -> String {
    match budget {
        Some(bytes) => format!("the budget is {bytes}"),
        None => "the driver refused a buffer of that size".into(),
    }
}

impl Error {
    /// Shapes that the operation `op` cannot combine, and in words all of them and the equation that fails.
    pub fn shape(op: &'static str, shapes: &[&[usize]], problem: impl Into<String>) -> Self {
        Self::Shape { op, shapes: shapes.iter().map(|shape| shape.to_vec()).collect(), problem: problem.into() }
    }
}
