//! ENIs of a pod and their vhost-user-net backend.
