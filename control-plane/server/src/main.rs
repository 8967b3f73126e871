//! The control plane: API, scheduling, inventory.

fn main() {}
