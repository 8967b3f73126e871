//! Where the agent listens.

use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A UNIX socket, for root only.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err("no path after `unix:`".to_owned());
            }
            return Ok(Self::Unix(path.into()));
        }
        let mut found = text
            .to_socket_addrs()
            .map_err(|_| "neither `unix:PATH` nor HOST:PORT".to_owned())?;
        found
            .next()
            .map(Self::Tcp)
            .ok_or_else(|| "no such host".to_owned())
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// A bound socket; a UNIX socket's file goes when this is dropped.
#[derive(Debug)]
pub(crate) enum Bound {
    /// See [`Listen::Unix`].
    Unix(tokio::net::UnixListener, SocketFile),
    /// See [`Listen::Tcp`].
    Tcp(tokio::net::TcpListener),
}

#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Listen {
    /// Binds. A UNIX socket that nobody answers on any more is replaced.
    pub(crate) async fn bind(&self) -> io::Result<Bound> {
        match self {
            Self::Tcp(address) => Ok(Bound::Tcp(tokio::net::TcpListener::bind(address).await?)),
            Self::Unix(path) => {
                if let Some(folder) = path.parent() {
                    fs::create_dir_all(folder)?;
                }
                match UnixStream::connect(path) {
                    Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                        fs::remove_file(path)?;
                    }
                    Err(_) => {}
                }
                let listener = tokio::net::UnixListener::bind(path)?;
                let file = SocketFile(path.clone());
                fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
                Ok(Bound::Unix(listener, file))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in ["unix:/run/a.sock", "127.0.0.1:7701"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for text in ["unix:", "/run/a.sock", "7701", ""] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_socket_in_use_is_refused_and_a_stale_one_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/agent.sock");
        let listen = Listen::Unix(path.clone());
        let bound = listen.bind().await.unwrap();
        let refused = listen.bind().await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(bound);
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        listen.bind().await.unwrap();
    }
}
