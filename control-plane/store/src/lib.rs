//! Objects with resource versions and a watch, kept through a restart.
