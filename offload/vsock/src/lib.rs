//! The control channel of a pod: a vhost-user-vsock backend.
