//! Disks of a pod and their vhost-user-blk backend.
