//! A process: what it is given, and what is left when it ends.

mod environment;
mod pipes;
mod program;
mod pty;
mod reaper;
mod report;

pub(crate) use environment::environment;
pub(crate) use pipes::{ChildEnds, InitEnds, pipes};
pub(crate) use program::find_program;
pub(crate) use pty::{Terminal, resize};
pub(crate) use reaper::{Ending, Reaper};
pub(crate) use report::{Report, Reporter, receive};
