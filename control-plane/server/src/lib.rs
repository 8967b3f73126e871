//! The control plane: API, scheduling, inventory.
