//! The commands, one a file.

pub(crate) mod apply;
pub(crate) mod change;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod describe;
pub(crate) mod doctor;
pub(crate) mod exec;
pub(crate) mod get;
pub(crate) mod host;
pub(crate) mod logs;
pub(crate) mod pki;
pub(crate) mod run;
pub(crate) mod top;
pub(crate) mod up;
pub(crate) mod wait;
