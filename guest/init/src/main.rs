//! PID 1 of a pod's guest.

fn main() {}
