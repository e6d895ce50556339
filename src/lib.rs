//! polytape: autodiff on WGSL compute shaders.
