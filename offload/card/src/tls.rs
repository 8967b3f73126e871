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

#[cfg(test)]
mod tests {
    use longship_proto::card::v1::pod_streams_client::PodStreamsClient;
    use longship_proto::card::v1::pod_streams_server::{PodStreams, PodStreamsServer};
    use longship_proto::card::v1::{ExecInput, ExecOutput, LogChunk, LogsRequest};
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
    use tonic::transport::Channel;
    use tonic::{Request, Response, Status, Streaming};

    use super::*;

    /// Says that a call has reached it.
    struct Reached;

    #[tonic::async_trait]
    impl PodStreams for Reached {
        type LogsStream = ReceiverStream<Result<LogChunk, Status>>;
        type ExecStream = ReceiverStream<Result<ExecOutput, Status>>;

        async fn logs(
            &self,
            _: Request<LogsRequest>,
        ) -> Result<Response<Self::LogsStream>, Status> {
            Err(Status::not_found("reached"))
        }

        async fn exec(
            &self,
            _: Request<Streaming<ExecInput>>,
        ) -> Result<Response<Self::ExecStream>, Status> {
            Err(Status::not_found("reached"))
        }
    }

    /// A CA, and the files of a card that it has signed.
    fn files(folder: &Path) -> TlsFiles {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca_key = KeyPair::generate().unwrap();
        let ca_cert = ca.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().unwrap();
        let card = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let cert = card.signed_by(&key, &issuer).unwrap();
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        TlsFiles {
            ca: write("ca.crt", ca_cert.pem()),
            cert: write("card.crt", cert.pem()),
            key: write("card.key", key.serialize_pem()),
        }
    }

    #[tokio::test]
    async fn clients_reach_the_streams_by_tls_and_only_so() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let tls = Tls::read(&files).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = server(Some(&tls))
            .unwrap()
            .add_service(PodStreamsServer::new(Reached))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);

        let logs = async |channel: Channel| {
            let mut client = PodStreamsClient::new(channel);
            let answered = client.logs(LogsRequest::default()).await;
            answered.unwrap_err().message().to_owned()
        };
        let endpoint = Channel::from_shared(format!("https://{address}")).unwrap();
        // As a client does, which knows the CA and has no certificate.
        let ca = Certificate::from_pem(std::fs::read(&files.ca).unwrap());
        let trusting = ClientTlsConfig::new().ca_certificate(ca);
        let channel = endpoint.clone().tls_config(trusting).unwrap();
        assert_eq!(logs(channel.connect().await.unwrap()).await, "reached");
        // As the card itself connects to its control plane.
        let channel = tls.client(endpoint.clone()).unwrap();
        assert_eq!(logs(channel.connect().await.unwrap()).await, "reached");
        // Who does not know the CA does not go on.
        let distrusting = endpoint.tls_config(ClientTlsConfig::new()).unwrap();
        assert!(distrusting.connect().await.is_err());
        // Nor is there anything without TLS.
        let plain = Channel::from_shared(format!("http://{address}")).unwrap();
        if let Ok(channel) = plain.connect().await {
            assert_ne!(logs(channel).await, "reached");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named_by_its_flag() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = files(folder.path());
        files.key = folder.path().join("none");
        let refused = Tls::read(&files).err().unwrap().to_string();
        assert!(refused.starts_with("--tls-key"), "{refused}");
    }
}
