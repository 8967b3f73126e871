//! Finding the program of a process, seen from inside the container.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use longship_framed::error::{Class, Failure};
use nix::unistd::{AccessFlags, access};

use super::environment::value_of;

/// Why there is no program to run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Missing {
    /// Nothing has the name (a shell's exit code 127).
    #[error("no such program: {0}")]
    NotFound(String),
    /// Something has the name, but it is no program (a shell's 126).
    #[error("not executable: {0}")]
    NotExecutable(String),
}

impl Missing {
    /// The failure at the first argument of the process at `field`.
    pub(crate) fn failure(&self, field: &str) -> Failure {
        let class = match self {
            Self::NotFound(_) => Class::NotFound,
            Self::NotExecutable(_) => Class::Denied,
        };
        Failure::new(class, format!("{field}.argv[0]"), self.to_string())
    }
}

/// The path of the first argument's program: itself where it has a slash, else
/// the first executable file of that name in PATH.
///
/// # Errors
/// [`Missing`].
pub(crate) fn find_program(argv: &[CString], env: &[CString]) -> Result<CString, Missing> {
    let name = argv
        .first()
        .map_or(&b""[..], |argument| argument.to_bytes());
    let shown = || String::from_utf8_lossy(name).into_owned();
    if name.contains(&b'/') {
        let path = Path::new(OsStr::from_bytes(name));
        return match look_at(path) {
            Look::Program => path_text(path.to_owned()).ok_or_else(|| Missing::NotFound(shown())),
            Look::Other => Err(Missing::NotExecutable(shown())),
            Look::Nothing => Err(Missing::NotFound(shown())),
        };
    }
    let mut other = None;
    for dir in value_of(env, "PATH")
        .unwrap_or_default()
        .split(|b| *b == b':')
    {
        // An empty entry is the working directory, as in shells.
        let dir = if dir.is_empty() { b"." } else { dir };
        let path = Path::new(OsStr::from_bytes(dir)).join(OsStr::from_bytes(name));
        match look_at(&path) {
            Look::Program => return path_text(path).ok_or_else(|| Missing::NotFound(shown())),
            Look::Other if path.is_file() => other = other.or(Some(path)),
            Look::Other | Look::Nothing => {}
        }
    }
    Err(other.map_or_else(
        || Missing::NotFound(shown()),
        |path| Missing::NotExecutable(path.display().to_string()),
    ))
}

enum Look {
    /// A file that this process may execute.
    Program,
    /// Something else.
    Other,
    Nothing,
}

fn look_at(path: &Path) -> Look {
    match path.metadata() {
        Ok(there) if there.is_file() && access(path, AccessFlags::X_OK).is_ok() => Look::Program,
        Ok(_) => Look::Other,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Look::Other,
        Err(_) => Look::Nothing,
    }
}

fn path_text(path: PathBuf) -> Option<CString> {
    CString::new(path.into_os_string().into_vec()).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    fn strings(texts: &[&str]) -> Vec<CString> {
        texts.iter().map(|t| CString::new(*t).unwrap()).collect()
    }

    #[test]
    fn the_first_executable_file_in_path_wins() {
        let top = tempfile::tempdir().unwrap();
        for dir in ["a", "b", "c", "a/dir"] {
            fs::create_dir(top.path().join(dir)).unwrap();
        }
        for (file, mode) in [("a/data", 0o644), ("b/tool", 0o755), ("c/tool", 0o755)] {
            fs::write(top.path().join(file), "").unwrap();
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(top.path().join(file), mode).unwrap();
        }
        let t = top.path().display();
        let env = strings(&[&format!("PATH={t}/none:{t}/a:{t}/b:{t}/c")]);
        let find = |name: &str| find_program(&strings(&[name]), &env);

        assert_eq!(
            find("tool").unwrap().to_str().unwrap(),
            format!("{t}/b/tool")
        );
        assert_eq!(find("foo"), Err(Missing::NotFound("foo".into())));
        assert_eq!(find("dir"), Err(Missing::NotFound("dir".into())));
        assert_eq!(
            find("data"),
            Err(Missing::NotExecutable(format!("{t}/a/data")))
        );
        let direct = format!("{t}/c/tool");
        assert_eq!(find(&direct).unwrap().to_str().unwrap(), direct);
        assert_eq!(
            find(&format!("{t}/a")),
            Err(Missing::NotExecutable(format!("{t}/a")))
        );
        assert_eq!(
            find(&format!("{t}/x")),
            Err(Missing::NotFound(format!("{t}/x")))
        );
    }

    #[test]
    fn the_failure_is_the_shells_of_its_kind() {
        let failure = Missing::NotFound("foo".into()).failure("process");
        assert_eq!(failure.to_string(), "process.argv[0]: no such program: foo");
        assert_eq!(failure.class(), Class::NotFound);
        let failure = Missing::NotExecutable("/etc".into()).failure("spec");
        assert_eq!(failure.class(), Class::Denied);
    }

    proptest! {
        #[test]
        fn any_name_in_any_path_is_found_or_refused(name in "[^\0]{0,20}", path in "[^\0]{0,40}") {
            let env = [CString::new(format!("PATH={path}")).unwrap()];
            let _ = find_program(&[CString::new(name).unwrap()], &env);
        }
    }
}
