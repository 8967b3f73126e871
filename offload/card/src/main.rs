//! The card's daemon: the control path of one host.

fn main() {}
