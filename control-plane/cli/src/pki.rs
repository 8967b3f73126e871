//! A small certificate authority in a directory: `ca.crt`, `ca.key`, and what it has
//! signed. What a certificate is for lies in its subject's alternative names: the
//! addresses of a control plane, and `longship://card/HOST` or `longship://operator/NAME`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use longship_proto::Failure;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use crate::error::CliError;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// What a CA is good for, in days.
const CA_DAYS: u32 = 3650;
/// How far the clocks of two machines may differ.
const SKEW: Duration = Duration::from_secs(3600);

/// Whom a certificate is for.
#[derive(Debug)]
pub(crate) enum Subject {
    /// A control plane, by the addresses under which it is reached.
    Control { names: Vec<String> },
    /// The card of a host, and where clients reach it.
    Card {
        host: String,
        addresses: Vec<String>,
    },
    /// Somebody who operates the control plane.
    Operator { name: String },
}

/// A certificate and its key.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// The CA of a directory.
#[derive(Debug)]
pub(crate) struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a CA; the file of its certificate.
    ///
    /// # Errors
    /// [`CliError::File`], also where there is one already.
    pub(crate) fn create(dir: &Path) -> Result<PathBuf, CliError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| file(dir, error))?;
        let key = KeyPair::generate().map_err(failed)?;
        let cert = ca_params().self_signed(&key).map_err(failed)?;
        // The key goes first, and not over another one: what is signed with that would
        // be lost.
        let path = dir.join("ca.key");
        let mut new = OpenOptions::new();
        let new = new.write(true).create_new(true).mode(0o600);
        let written = new.open(&path).and_then(|mut new| {
            new.write_all(key.serialize_pem().as_bytes())?;
            new.sync_all()
        });
        written.map_err(|error| file(&path, error))?;
        let path = dir.join("ca.crt");
        replace(&path, &cert.pem(), 0o644)?;
        Ok(path)
    }

    /// The CA that was made there.
    ///
    /// # Errors
    /// [`CliError::File`], or that its key is none.
    pub(crate) fn open(dir: &Path) -> Result<Self, CliError> {
        let path = dir.join("ca.key");
        let key = std::fs::read_to_string(&path).map_err(|error| file(&path, error))?;
        let key = KeyPair::from_pem(&key)
            .map_err(|error| CliError::Other(format!("{}: {error}", path.display())))?;
        Ok(Self {
            dir: dir.to_owned(),
            issuer: Issuer::new(ca_params(), key),
        })
    }

    /// Makes a key and its certificate, in the place of those of before.
    ///
    /// # Errors
    /// What is wrong with the names, or [`CliError::File`].
    pub(crate) fn issue(&self, subject: &Subject, days: u32) -> Result<Issued, CliError> {
        let (name, mut params) = subject.params()?;
        (params.not_before, params.not_after) = valid_for(days);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().map_err(failed)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let issued = Issued {
            cert: self.dir.join(format!("{name}.crt")),
            key: self.dir.join(format!("{name}.key")),
        };
        replace(&issued.key, &key.serialize_pem(), 0o600)?;
        replace(&issued.cert, &cert.pem(), 0o644)?;
        Ok(issued)
    }
}

impl Subject {
    /// The name of its files, and what its certificate says.
    fn params(&self) -> Result<(String, CertificateParams), CliError> {
        let (file, addresses, uri) = match self {
            Self::Control { names } => ("control".to_owned(), names.clone(), None),
            Self::Card { host, addresses } => {
                dns_label("--card", host)?;
                // Where no address is given, the host's name is one.
                let addresses = match addresses.is_empty() {
                    true => vec![host.clone()],
                    false => addresses.clone(),
                };
                let uri = format!("longship://card/{host}");
                (format!("card-{host}"), addresses, Some(uri))
            }
            Self::Operator { name } => {
                dns_label("--operator", name)?;
                let uri = format!("longship://operator/{name}");
                (format!("operator-{name}"), Vec::new(), Some(uri))
            }
        };
        let serves = !addresses.is_empty();
        let mut params = CertificateParams::new(addresses).map_err(failed)?;
        params.distinguished_name = named(&file);
        let mut usages = Vec::new();
        if serves {
            usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if let Some(uri) = uri {
            let uri = uri.try_into().map_err(failed)?;
            params.subject_alt_names.push(SanType::URI(uri));
            usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.extended_key_usages = usages;
        Ok((file, params))
    }
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Longship CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = valid_for(CA_DAYS);
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}

/// From now on, for so many days.
fn valid_for<T>(days: u32) -> (T, T)
where
    T: From<SystemTime>,
{
    let now = SystemTime::now();
    (
        now.checked_sub(SKEW).unwrap_or(UNIX_EPOCH).into(),
        now.checked_add(DAY * days).unwrap_or(now).into(),
    )
}

/// As the control plane checks them.
fn dns_label(flag: &str, name: &str) -> Result<(), CliError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let edges = name.starts_with('-') || name.ends_with('-');
    if name.is_empty() || name.len() > 63 || edges || !name.bytes().all(allowed) {
        let rule = format!("`{}` is no DNS label", name.escape_debug());
        return Err(Failure::invalid(flag, rule).into());
    }
    Ok(())
}

/// Writes a file in the place of what it was, never a part of it.
fn replace(path: &Path, text: &str, mode: u32) -> Result<(), CliError> {
    let new = path.with_extension("new");
    let written = || -> io::Result<()> {
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut out: File = options.write(true).create_new(true).mode(mode).open(&new)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        std::fs::rename(&new, path)
    };
    written().map_err(|error| file(path, error))
}

fn file(path: &Path, error: io::Error) -> CliError {
    CliError::File {
        path: path.to_owned(),
        error,
    }
}

fn failed(error: rcgen::Error) -> CliError {
    CliError::Other(format!("make a certificate: {error}"))
}
