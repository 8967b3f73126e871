//! How objects and the leadership lie in etcd.
//!
//! ```text
//! PREFIXdata/KIND/KEY    an object's value
//! PREFIXleader           who leads, under the lease of its process
//! PREFIXwriters/LEASE    the number of the last write of that leader
//! ```

/// The names of all keys.
#[derive(Debug)]
pub(crate) struct Keys {
    prefix: Vec<u8>,
    data: Vec<u8>,
    leader: Vec<u8>,
    writers: Vec<u8>,
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        let join = |name: &str| [prefix.as_bytes(), name.as_bytes()].concat();
        Self {
            prefix: prefix.into(),
            data: join("data/"),
            leader: join("leader"),
            writers: join("writers/"),
        }
    }

    /// What all keys begin with.
    pub(crate) fn all(&self) -> &[u8] {
        &self.prefix
    }

    pub(crate) fn object(&self, kind: &str, key: &str) -> Vec<u8> {
        [&self.data, kind.as_bytes(), b"/", key.as_bytes()].concat()
    }

    /// Kind and key of an object.
    pub(crate) fn place<'a>(&self, key: &'a [u8]) -> Option<(&'a str, &'a str)> {
        let place = std::str::from_utf8(key.strip_prefix(&self.data[..])?).ok()?;
        place.split_once('/')
    }

    pub(crate) fn leader(&self) -> &[u8] {
        &self.leader
    }

    /// What all writers' numbers begin with.
    pub(crate) fn writers(&self) -> &[u8] {
        &self.writers
    }

    pub(crate) fn writer(&self, lease: i64) -> Vec<u8> {
        [&self.writers, format!("{lease:016x}").as_bytes()].concat()
    }
}

/// The first key behind all that begin with `prefix`.
pub(crate) fn behind(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return end;
        }
    }
    // All keys (etcd: RangeRequest.range_end).
    vec![0]
}

/// The first key behind `key`.
pub(crate) fn next(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_found_again_under_its_key() {
        let keys = Keys::new("/x/");
        let key = keys.object("pod", "default/web");
        assert_eq!(key, b"/x/data/pod/default/web");
        assert_eq!(keys.place(&key), Some(("pod", "default/web")));
        assert_eq!(keys.place(keys.leader()), None);
        assert_eq!(keys.place(&keys.writer(7)), None);
        assert_eq!(keys.place(b"/x/data/pod"), None);
        assert_eq!(keys.place(b"/x/data/pod/\xff"), None);
    }

    #[test]
    fn a_range_ends_behind_the_last_key_of_its_prefix() {
        assert_eq!(behind(b"/x/"), b"/x0");
        assert_eq!(behind(b"a\xff\xff"), b"b");
        assert_eq!(behind(b"\xff"), b"\0");
        assert_eq!(next(b"a"), b"a\0");
    }
}
