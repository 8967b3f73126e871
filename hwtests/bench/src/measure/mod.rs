//! The benchmarks. Each takes plain arguments and gives plain findings.

pub(crate) mod burst;
pub(crate) mod compare;
pub(crate) mod density;
pub(crate) mod overhead;
pub(crate) mod stages;
pub(crate) mod start;
pub(crate) mod throughput;
