//! How things are shown: tables and texts for people, documents for scripts.

pub(crate) mod document;
pub(crate) mod names;
pub(crate) mod objects;
mod placement;
pub(crate) mod table;
pub(crate) mod tenancy;
pub(crate) mod time;
pub(crate) mod usage;
pub(crate) mod waterfall;

use clap::ValueEnum;
use serde_json::Value;

use crate::error::CliError;

/// A form of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table with more columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Prints `value` for scripts.
///
/// # Errors
/// Where it cannot be written as YAML.
pub(crate) fn print_document(value: &Value, format: Format) -> Result<(), CliError> {
    match format {
        Format::Yaml => {
            let text = serde_saphyr::to_string(value)
                .map_err(|error| CliError::Other(format!("write YAML: {error}")))?;
            print(&text)
        }
        Format::Json | Format::Wide => print(&format!("{value:#}\n")),
    }
}

/// Prints to standard output; a reader that has gone (`| head`) is no error.
///
/// # Errors
/// Any other failure to write.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(CliError::Other(
            format!("write to standard output: {error}"),
        )),
        _ => Ok(()),
    }
}
