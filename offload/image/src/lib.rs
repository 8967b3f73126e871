//! OCI images: pulled, verified, flattened, one EROFS disk each.
