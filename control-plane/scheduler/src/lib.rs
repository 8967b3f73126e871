//! The nodeless scheduler: pure decisions, no I/O.
