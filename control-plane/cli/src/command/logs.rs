//! `longship logs`

use std::io::{self, Write};

use clap::Args;
use longship_proto::card::v1::{LogChunk, Source};
use tonic::Streaming;

use crate::card::PodStreams;
use crate::error::CliError;
use crate::server::{Server, ServerAddress};

/// Print what a container wrote, its standard error to standard error.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Name of the pod.
    pod: String,
    /// Go on as it writes, until it ends.
    #[arg(long, short = 'f')]
    follow: bool,
    /// Only the last so many lines.
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
    /// Which container; needed where there are several.
    #[arg(long, short = 'c', default_value = "")]
    container: String,
}

impl Logs {
    pub(crate) async fn run(
        self,
        address: &ServerAddress,
        namespace: &str,
    ) -> Result<u8, CliError> {
        let mut server = Server::connect(address).await?;
        let mut streams = PodStreams::open(&mut server, namespace, &self.pod).await?;
        let chunks = streams
            .logs(&self.container, self.follow, self.tail)
            .await?;
        print_logs(chunks).await?;
        Ok(0)
    }
}

/// Prints a log to its end.
///
/// # Errors
/// The card's failure. A reader that has gone is the end too.
pub(crate) async fn print_logs(mut chunks: Streaming<LogChunk>) -> Result<(), CliError> {
    while let Some(chunk) = chunks.message().await? {
        let written = match chunk.source() {
            Source::Stderr => write(&mut io::stderr().lock(), &chunk.data),
            Source::Stdout | Source::Unspecified => write(&mut io::stdout().lock(), &chunk.data),
        };
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(CliError::Other(format!("write the log: {error}"))),
        }
    }
    Ok(())
}

fn write(out: &mut impl Write, data: &[u8]) -> io::Result<()> {
    out.write_all(data)?;
    out.flush()
}
