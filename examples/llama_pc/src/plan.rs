//! `plan`: what a configuration needs, before it runs.

pub mod flops;
