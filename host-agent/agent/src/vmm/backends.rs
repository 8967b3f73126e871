//! Connections to the backends that serve a sandbox's devices.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::error::VmmError;
use crate::request::Device;

/// For a vhost-user backend to accept a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// A backend that has accepted the connection for one device.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(super) device: Device,
    pub(super) socket: OwnedFd,
}

/// Connects to the backend of each device.
///
/// # Errors
/// [`VmmError::Connect`] at the first that does not accept.
pub(crate) async fn connect(devices: Vec<Device>) -> Result<Vec<Connected>, VmmError> {
    let mut connected = Vec::with_capacity(devices.len());
    for device in devices {
        let attempt = async {
            let connect = tokio::net::UnixStream::connect(&device.socket);
            let socket = tokio::time::timeout(CONNECT_PATIENCE, connect)
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??
                .into_std()?;
            // The VMM waits for answers.
            socket.set_nonblocking(false)?;
            Ok(socket.into())
        };
        match attempt.await {
            Ok(socket) => connected.push(Connected { device, socket }),
            Err(error) => {
                return Err(VmmError::Connect {
                    socket: device.socket.display().to_string(),
                    field: device.field,
                    error,
                });
            }
        }
    }
    Ok(connected)
}

#[cfg(test)]
mod tests {
    use longship_framed::error::{Class, Failure};
    use longship_framed::vmm as wire;

    use super::*;

    #[tokio::test]
    async fn a_backend_that_is_not_there_is_named_by_its_field() {
        let device = Device {
            kind: wire::DeviceType::Net,
            socket: "/nowhere/net.sock".into(),
            field: "devices[0].vhost_user.socket".into(),
        };
        let failure = Failure::from(connect(vec![device]).await.unwrap_err());
        assert_eq!(failure.class(), Class::Unavailable);
        assert_eq!(failure.field, "devices[0].vhost_user.socket");
        assert!(failure.message.contains("/nowhere/net.sock"), "{failure}");
    }
}
