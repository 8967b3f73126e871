//! The card's certificate: who it is to the control plane, and to its pods' clients.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};

use crate::serve::{StartError, flag};

/// How long a client may take for its handshake.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// The largest headers of a call, in bytes.
const MAX_HEADERS: u32 = 16 << 10;
/// Logs and execs at once on one connection.
const MAX_STREAMS: u32 = 1024;

/// Where the keys lie; all of it PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The CA of the control plane.
    pub ca: PathBuf,
    /// The card's certificate.
    pub cert: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
}

/// What the files hold.
pub(crate) struct Tls {
    ca: Certificate,
    identity: Identity,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`StartError::Flag`], for the first that cannot be read.
    pub(crate) fn read(files: &TlsFiles) -> Result<Self, StartError> {
        let read = |name, path: &Path| {
            std::fs::read(path).map_err(|error| flag(name, path.display(), error))
        };
        let ca = read("--tls-ca", &files.ca)?;
        let cert = read("--tls-cert", &files.cert)?;
        let key = read("--tls-key", &files.key)?;
        Ok(Self {
            ca: Certificate::from_pem(ca),
            identity: Identity::from_pem(cert, key),
        })
    }

    /// Connects as this card, to a control plane that the CA knows.
    pub(crate) fn client(&self, endpoint: Endpoint) -> Result<Endpoint, tonic::transport::Error> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(self.ca.clone())
            .identity(self.identity.clone());
        endpoint.tls_config(tls)
    }

    /// Serves as this card. Clients show tokens, not certificates.
    fn server(&self, server: Server) -> Result<Server, tonic::transport::Error> {
        let tls = ServerTlsConfig::new()
            .identity(self.identity.clone())
            .timeout(HANDSHAKE_PATIENCE);
        server.tls_config(tls)
    }
}

/// What serves the pods' clients: bounded, and with TLS where there are keys.
pub(crate) fn server(tls: Option<&Tls>) -> Result<Server, tonic::transport::Error> {
    let server = Server::builder()
        .http2_max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(MAX_STREAMS);
    match tls {
        Some(tls) => tls.server(server),
        None => Ok(server),
    }
}
