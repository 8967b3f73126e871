//! The host's agent: sandboxes from spawn to clean-up.
