//! The device: adapters, kernels, buffers, the command queue. No tensors here.

mod adapter;
mod device;
mod hash;
#[cfg(feature = "host")]
pub(crate) mod host;
mod kernel;
mod matrix;
mod memory;
mod pace;
mod peak;
mod pipeline;
mod pool;
mod profile;
mod queue;
mod recorder;
mod rehearsal;
mod tune;
mod variant;
mod wgsl;
mod workers;
mod workgroup;

pub use adapter::{AdapterChoice, AdapterSummary, KernelTier, adapters};
pub use device::{Gpu, GpuOptions};
pub(crate) use kernel::with_twin;
pub use kernel::{Access, Kernel, Launch, Slice, grid};
pub(crate) use matrix::MatrixUnits;
pub use peak::{Peak, Unit};
pub use pool::{Buffer, GRANULE, MemoryUse};
pub use profile::{KernelTime, ProfileTable};
pub use queue::QueueCounters;
pub use tune::Tuning;
pub use variant::{KernelVariant, Rehearsed};
pub(crate) use workgroup::{RowTeams, strides, vectors, workgroup};

/// Re-exported types of [`AdapterSummary`].
pub use wgpu::{Backend, DeviceType, Features, Limits};
