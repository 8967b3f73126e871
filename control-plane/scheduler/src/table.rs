//! Hash tables. Nothing is ever decided by their order.

/// With a hash that is quick for small keys, and seeded anew in each process, so that
/// whoever chooses keys cannot choose collisions.
pub(crate) type Table<K, V> = std::collections::HashMap<K, V, foldhash::quality::RandomState>;
