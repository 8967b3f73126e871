//! What a benchmark has found: samples become medians with their spread, figures and
//! charts become one document, which is printed, written as JSON and drawn as HTML, and
//! is put beside what was promised.

pub mod document;
pub mod environment;
pub mod error;
pub mod show;
pub mod summary;
pub mod targets;
