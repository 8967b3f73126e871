//! Registries over HTTP (OCI distribution spec 1.1, "Pulling manifests" and
//! "Pulling blobs"), anonymous or with the token that a registry hands to anybody.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, WWW_AUTHENTICATE};
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;

use super::Stop;
use super::challenge::Challenge;
use super::stream::{Body, read_body};
use crate::blob::{Descriptor, digest_of};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::manifest::{Document, MANIFEST_TYPES, MAX_DOCUMENT};
use crate::reference::{RegistryReference, Selector};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a single byte for so long, a registry counts as gone.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of a registry's own words is passed on, in bytes.
const MAX_WORDS: usize = 300;

/// All registries, with the connections and tokens they share.
#[derive(Debug)]
pub(crate) struct Registries {
    /// `host` or `host:port` that are asked over plain HTTP.
    insecure: Vec<String>,
    plain: OnceLock<Result<Client, String>>,
    secure: OnceLock<Result<Client, String>>,
    /// By registry and repository.
    tokens: Mutex<HashMap<(String, String), String>>,
}

/// One repository of a registry.
#[derive(Debug, Clone)]
pub(crate) struct Repository {
    pub(super) reference: RegistryReference,
    registries: Arc<Registries>,
}

impl Registries {
    pub(crate) fn new(insecure: Vec<String>) -> Self {
        Self {
            insecure,
            plain: OnceLock::new(),
            secure: OnceLock::new(),
            tokens: Mutex::new(HashMap::new()),
        }
    }

    fn is_plain(&self, registry: &str) -> bool {
        let host = match registry.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(rest),
            None => registry.split(':').next().unwrap_or(registry),
        };
        let loopback = host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback());
        loopback || self.insecure.iter().any(|listed| listed == registry)
    }

    /// The client is made at its first use: reading the system's certificates
    /// takes time, and not every machine has any.
    fn client(&self, plain: bool) -> Result<&Client, String> {
        let cell = if plain { &self.plain } else { &self.secure };
        cell.get_or_init(|| make_client(plain))
            .as_ref()
            .map_err(Clone::clone)
    }
}

fn make_client(plain: bool) -> Result<Client, String> {
    let mut roots = rustls::RootCertStore::empty();
    if !plain {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err("this machine has no CA certificates (Debian: ca-certificates)".to_owned());
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls)
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .https_only(!plain)
        .user_agent(concat!("longship/", env!("CARGO_PKG_VERSION")));
    if plain {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| describe(&error))
}

impl Repository {
    pub(crate) fn new(reference: RegistryReference, registries: Arc<Registries>) -> Self {
        Self {
            reference,
            registries,
        }
    }

    pub(super) async fn document(&self, selector: &Selector) -> Result<Document, ImageError> {
        let name = match selector {
            Selector::Tag(tag) => tag.clone(),
            Selector::Digest(digest) => digest.to_string(),
        };
        let accept = MANIFEST_TYPES.join(", ");
        let response = self.get(&format!("manifests/{name}"), &accept).await?;
        let bytes = self.small_body(response).await?;
        let digest = digest_of(&bytes);
        if let Selector::Digest(expected) = selector
            && *expected != digest
        {
            return Err(ImageError::DigestMismatch {
                what: "manifest",
                expected: *expected,
                actual: digest.to_string(),
            });
        }
        Ok(Document { digest, bytes })
    }

    pub(super) async fn blob(&self, blob: Descriptor, stop: Stop) -> Result<Body, ImageError> {
        let path = format!("blobs/{}", blob.digest);
        let response = self.get(&path, "*/*").await?;
        let repository = self.clone();
        let digest: Digest = blob.digest;
        Ok(read_body(response, stop, move |error| {
            repository.unavailable(format!("blob {digest}: {}", describe(error)))
        }))
    }

    /// A successful answer to a GET below this repository.
    async fn get(&self, path: &str, accept: &str) -> Result<Response, ImageError> {
        let registry = self.reference.registry.as_str();
        let plain = self.registries.is_plain(registry);
        let client = self
            .registries
            .client(plain)
            .map_err(|e| self.unavailable(e))?;
        let scheme = if plain { "http" } else { "https" };
        // Docker's registry is not where its images are named after.
        let host = match registry {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let repository = &self.reference.repository;
        let url = format!("{scheme}://{host}/v2/{repository}/{path}");

        let first = self.send(client, &url, accept, self.token()).await?;
        let response = match (first.status(), challenge(&first)) {
            (StatusCode::UNAUTHORIZED, Some(challenge)) => {
                let token = self.fetch_token(client, &challenge, plain).await?;
                self.send(client, &url, accept, Some(token)).await?
            }
            _ => first,
        };
        self.check(response, path).await
    }

    async fn send(
        &self,
        client: &Client,
        url: &str,
        accept: &str,
        token: Option<String>,
    ) -> Result<Response, ImageError> {
        let mut request = client.get(url).header(ACCEPT, accept);
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request
            .send()
            .await
            .map_err(|error| self.unavailable(describe(&error)))
    }

    async fn check(&self, response: Response, path: &str) -> Result<Response, ImageError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let words = self.words(response).await;
        let detail = format!("{path}: {status}{words}");
        Err(match status {
            StatusCode::NOT_FOUND => ImageError::NotFound {
                reference: self.reference.to_string(),
                detail: format!("registry {} answers {detail}", self.reference.registry),
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ImageError::Denied {
                registry: self.reference.registry.clone(),
                reference: self.reference.to_string(),
                detail,
            },
            _ => self.unavailable(detail),
        })
    }

    /// What the registry says of its refusal, cut and on one line.
    async fn words(&self, response: Response) -> String {
        #[derive(Deserialize)]
        struct Envelope {
            errors: Vec<Spoken>,
        }
        #[derive(Deserialize)]
        struct Spoken {
            code: String,
            #[serde(default)]
            message: String,
        }
        let Ok(bytes) = self.small_body(response).await else {
            return String::new();
        };
        let Ok(envelope) = serde_json::from_slice::<Envelope>(&bytes) else {
            return String::new();
        };
        let said: Vec<String> = envelope
            .errors
            .iter()
            .map(|spoken| format!("{} {}", spoken.code, spoken.message))
            .collect();
        let said: String = said
            .join("; ")
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_WORDS)
            .collect();
        format!(" ({said})")
    }

    async fn small_body(&self, mut response: Response) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.unavailable(describe(&error)))?
        {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > MAX_DOCUMENT {
                return Err(ImageError::TooLarge {
                    detail: format!("its manifest has more than {MAX_DOCUMENT} bytes"),
                });
            }
        }
        Ok(bytes)
    }

    async fn fetch_token(
        &self,
        client: &Client,
        challenge: &Challenge,
        plain: bool,
    ) -> Result<String, ImageError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let refused = |detail: String| ImageError::Denied {
            registry: self.reference.registry.clone(),
            reference: self.reference.to_string(),
            detail,
        };
        let mut url = reqwest::Url::parse(&challenge.realm)
            .map_err(|error| refused(format!("it names no place for tokens: {error}")))?;
        // Whoever is asked over TLS must not send us to somebody without.
        if url.scheme() != "https" && !(plain && url.scheme() == "http") {
            return Err(refused(format!("it wants a token from {url}")));
        }
        let scope = match &challenge.scope {
            Some(scope) => scope.clone(),
            None => format!("repository:{}:pull", self.reference.repository),
        };
        url.query_pairs_mut().append_pair("scope", &scope);
        if let Some(service) = &challenge.service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let response = self
            .send(client, url.as_str(), "application/json", None)
            .await?;
        let bytes = self
            .small_body(self.check(response, "token").await?)
            .await?;
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|error| refused(format!("its token service answers nonsense: {error}")))?;
        let token = answer
            .token
            .or(answer.access_token)
            .ok_or_else(|| refused("its token service gives no token".to_owned()))?;
        self.registries
            .tokens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(self.token_key(), token.clone());
        Ok(token)
    }

    fn token(&self) -> Option<String> {
        self.registries
            .tokens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&self.token_key())
            .cloned()
    }

    fn token_key(&self) -> (String, String) {
        let reference = &self.reference;
        (reference.registry.clone(), reference.repository.clone())
    }

    fn unavailable(&self, detail: String) -> ImageError {
        ImageError::RegistryUnavailable {
            registry: self.reference.registry.clone(),
            detail,
        }
    }
}

fn challenge(response: &Response) -> Option<Challenge> {
    response
        .headers()
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .find_map(|header| Challenge::parse(header.to_str().ok()?))
}

/// An HTTP error with its causes: the last one is what a person needs.
fn describe(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_listed_registries_only() {
        let registries = Registries::new(vec!["registry.lan:5000".to_owned()]);
        for plain in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.1.2.3",
            "[::1]:5000",
            "registry.lan:5000",
        ] {
            assert!(registries.is_plain(plain), "{plain}");
        }
        for secure in [
            "docker.io",
            "registry.lan",
            "registry.lan:5001",
            "10.0.0.1:5000",
            "[2001:db8::1]",
            "localhost.example",
        ] {
            assert!(!registries.is_plain(secure), "{secure}");
        }
    }
}
