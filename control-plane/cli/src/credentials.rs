//! Who the command says it is, and whom it trusts.

use std::path::{Path, PathBuf};

use clap::Args;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, Uri};
use tonic::{Request, Status};

use crate::error::CliError;

/// The flags.
#[derive(Debug, Clone, Args)]
pub(crate) struct CredentialFlags {
    /// CA of the control plane and of the cards (PEM), for an https:// address.
    #[arg(long, global = true, env = "LONGSHIP_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Token of a tenant or an operator; better in the environment than in a command
    /// line, which others see.
    #[arg(
        long,
        global = true,
        env = "LONGSHIP_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    token: Option<String>,
    /// An operator's certificate (PEM), instead of a token.
    #[arg(
        long,
        global = true,
        env = "LONGSHIP_CERT",
        value_name = "FILE",
        requires = "key"
    )]
    cert: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(
        long,
        global = true,
        env = "LONGSHIP_KEY",
        value_name = "FILE",
        requires = "cert"
    )]
    key: Option<PathBuf>,
}

/// What the flags name, read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Credentials {
    ca: Option<Certificate>,
    identity: Option<Identity>,
    authorization: Authorization,
}

impl CredentialFlags {
    /// Reads the files.
    ///
    /// # Errors
    /// [`CliError::File`], or that the token cannot be one.
    pub(crate) fn read(self) -> Result<Credentials, CliError> {
        let ca = self.ca.as_deref().map(read).transpose()?;
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some(Identity::from_pem(read(cert)?, read(key)?)),
            _ => None,
        };
        // An empty variable is as none.
        let token = self.token.filter(|token| !token.trim().is_empty());
        let authorization = token.map(|token| {
            let value = format!("Bearer {}", token.trim());
            let mut value: MetadataValue<Ascii> = value
                .parse()
                .map_err(|_| CliError::Other("--token: is no token".to_owned()))?;
            value.set_sensitive(true);
            Ok::<_, CliError>(value)
        });
        Ok(Credentials {
            ca: ca.map(Certificate::from_pem),
            identity,
            authorization: Authorization(authorization.transpose()?),
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    std::fs::read(path).map_err(|error| CliError::File {
        path: path.to_owned(),
        error,
    })
}

impl Credentials {
    /// How to speak TLS with the control plane.
    pub(crate) fn tls(&self) -> ClientTlsConfig {
        let tls = self.tls_of_cards();
        match &self.identity {
            Some(identity) => tls.identity(identity.clone()),
            None => tls,
        }
    }

    /// How to speak TLS with cards, which go by the pods' own tokens.
    pub(crate) fn tls_of_cards(&self) -> ClientTlsConfig {
        let tls = ClientTlsConfig::new();
        match &self.ca {
            Some(ca) => tls.ca_certificate(ca.clone()),
            None => tls,
        }
    }

    /// What to send with each call to `address`.
    ///
    /// # Errors
    /// Where others could read the token.
    pub(crate) fn authorization(&self, address: &Uri) -> Result<Authorization, CliError> {
        let host = address.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let local = host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.is_loopback());
        if self.authorization.0.is_some() && address.scheme_str() == Some("http") && !local {
            return Err(CliError::Other(format!(
                "a token is sent over https:// only, not to {address}"
            )));
        }
        Ok(self.authorization.clone())
    }
}

/// Sends the token, where there is one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Authorization(Option<MetadataValue<Ascii>>);

impl Interceptor for Authorization {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", token.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_only_where_nobody_else_reads_it() {
        let flags = CredentialFlags {
            ca: None,
            token: Some("id.secret\n".to_owned()),
            cert: None,
            key: None,
        };
        let with = flags.read().unwrap();
        let sent = |address: &str| with.authorization(&address.parse().unwrap());
        for address in [
            "https://control.example:7700",
            "http://127.0.0.1:7700",
            "http://[::1]:7700",
            "http://localhost:7700",
        ] {
            let value = sent(address).unwrap().0.unwrap();
            assert_eq!(value.to_str().unwrap(), "Bearer id.secret");
            assert!(!format!("{value:?}").contains("secret"));
        }
        for address in ["http://10.0.0.1:7700", "http://control.example"] {
            let refused = sent(address).unwrap_err().to_string();
            assert!(refused.contains("https:// only"), "{refused}");
        }
        let without = Credentials::default();
        let address = "http://10.0.0.1:7700".parse().unwrap();
        assert!(without.authorization(&address).unwrap().0.is_none());
    }
}
