//! What holds for a fleet and its backlog after any history, against a model that
//! looks at everything every time.
#![allow(clippy::unwrap_used, missing_docs)] // the helpers are tests too

mod check;
mod histories;
mod model;
mod queue;
mod scenes;
mod world;
