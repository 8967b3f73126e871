//! Programs of the distribution that are used as they are.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::check::Check;

/// Where system programs are even when PATH does not say so.
const SYSTEM: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Scratch disks are formatted by it.
pub(crate) fn check_mkfs_ext4() -> Check {
    const NAME: &str = "mkfs.ext4";
    let path = std::env::var_os("PATH").unwrap_or_default();
    match find(NAME, &path) {
        Some(found) => Check::ok(NAME, found.display().to_string()),
        None => Check::fail(NAME, "not found in PATH", "apt-get install e2fsprogs"),
    }
}

fn find(name: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .chain(SYSTEM.map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| {
            candidate
                .metadata()
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_executable_file_is_a_program() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("mkfs.test");
        assert_eq!(find("mkfs.test", folder.path().as_os_str()), None);
        std::fs::write(&program, "").unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o644)).unwrap();
        assert_eq!(find("mkfs.test", folder.path().as_os_str()), None);
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(find("mkfs.test", folder.path().as_os_str()), Some(program));
    }
}
