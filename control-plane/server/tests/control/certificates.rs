//! Certificates, good and bad, as `longship pki` makes them.

use std::path::{Path, PathBuf};

use longship_control::TlsFiles;
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    date_time_ymd,
};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// A CA of the test's own.
pub(crate) struct Ca {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, PEM.
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Pair {
    pub(crate) fn identity(&self) -> Identity {
        Identity::from_pem(&self.cert, &self.key)
    }
}

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { pem, issuer }
    }

    pub(crate) fn sign(&self, params: &CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Pair {
            cert: cert.pem(),
            key: key.serialize_pem(),
        }
    }

    pub(crate) fn server(&self) -> Pair {
        let names = vec!["127.0.0.1".to_owned()];
        self.sign(&CertificateParams::new(names).unwrap())
    }

    /// For a client that is called so, e.g. `longship://card/host-1`.
    pub(crate) fn client(&self, uris: &[&str]) -> Pair {
        self.sign(&named(uris))
    }

    pub(crate) fn expired(&self, uri: &str) -> Pair {
        let mut params = named(&[uri]);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 2, 1);
        self.sign(&params)
    }

    /// Trusts this CA, and shows nothing.
    pub(crate) fn trusted(&self) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.pem))
    }

    /// What a server needs whose clients' CA this is.
    pub(crate) fn files(&self, dir: &Path) -> TlsFiles {
        let write = |name: &str, text: &str| -> PathBuf {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let server = self.server();
        TlsFiles {
            cert: write("server.crt", &server.cert),
            key: write("server.key", &server.key),
            client_ca: write("ca.crt", &self.pem),
        }
    }
}

fn named(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    for uri in uris {
        let uri = (*uri).to_owned().try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
    }
    params
}
