//! What the virtual host is told to do: a shell script, and a list of directories.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What cannot be said to the virtual host.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// There is no command.
    #[error("no command to run")]
    NoCommand,
    /// The environment has a variable with an impossible name.
    #[error("{0:?} is no name for an environment variable")]
    VariableName(OsString),
    /// The working directory is gone.
    #[error("finding the working directory: {0}")]
    WorkingDirectory(std::io::Error),
    /// A directory to be shared is not there.
    #[error("sharing {path}: {error}", path = .path.display())]
    Share {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        error: std::io::Error,
    },
}

/// Variables that a command in the virtual host has from its caller.
const INHERITED: [&str; 7] = [
    "PATH",
    "HOME",
    "LANG",
    "USER",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "CI",
];

/// The script that runs the command in the caller's working directory and with the
/// caller's environment, as far as it is passed on.
pub(crate) fn command<S: AsRef<OsStr>>(
    command: impl IntoIterator<Item = S>,
    env: &[(OsString, OsString)],
) -> Result<Vec<u8>, ScriptError> {
    let directory = std::env::current_dir().map_err(ScriptError::WorkingDirectory)?;
    let inherited = std::env::vars_os().filter(|(name, _)| {
        INHERITED.iter().any(|known| *name == **known) || name.as_bytes().starts_with(b"LONGSHIP_")
    });
    let own = [
        ("LONGSHIP_TESTBED".into(), "1".into()),
        // The overlay gives directories and files inode numbers that may be equal,
        // which confuses who looks for hard links; a plain tmpfs does not.
        ("TMPDIR".into(), "/dev/shm".into()),
    ];
    let env = inherited.chain(own).chain(env.iter().cloned());
    write(command, &directory, env)
}

fn write<S: AsRef<OsStr>>(
    command: impl IntoIterator<Item = S>,
    directory: &Path,
    env: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<u8>, ScriptError> {
    let mut script = Vec::new();
    for (name, value) in env {
        if !is_variable_name(name.as_bytes()) {
            return Err(ScriptError::VariableName(name));
        }
        script.extend(b"export ");
        script.extend(name.as_bytes());
        script.push(b'=');
        quote(&mut script, value.as_bytes());
        script.push(b'\n');
    }
    script.extend(b"cd -- ");
    quote(&mut script, directory.as_os_str().as_bytes());
    script.extend(b" || exit 125\nexec");
    let bare = script.len();
    for word in command {
        script.push(b' ');
        quote(&mut script, word.as_ref().as_bytes());
    }
    if script.len() == bare {
        return Err(ScriptError::NoCommand);
    }
    script.push(b'\n');
    Ok(script)
}

fn is_variable_name(name: &[u8]) -> bool {
    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    name.first().is_some_and(|b| word(b) && !b.is_ascii_digit()) && name.iter().all(word)
}

/// A word as the shell reads it back unchanged (POSIX shell, 2.2.2 single quotes).
fn quote(script: &mut Vec<u8>, word: &[u8]) {
    script.push(b'\'');
    for byte in word {
        match byte {
            b'\'' => script.extend(b"'\\''"),
            other => script.push(*other),
        }
    }
    script.push(b'\'');
}

/// Directories with their mount tags.
pub(crate) struct Shares(Vec<(String, PathBuf)>);

/// Gives each directory, by its absolute path, a mount tag.
pub(crate) fn shares(directories: &[PathBuf]) -> Result<Shares, ScriptError> {
    let tagged = directories.iter().enumerate().map(|(index, directory)| {
        let failed = |error| ScriptError::Share {
            path: directory.clone(),
            error,
        };
        let absolute = directory.canonicalize().map_err(failed)?;
        if !absolute.is_dir() {
            return Err(failed(std::io::ErrorKind::NotADirectory.into()));
        }
        Ok((format!("share{index}"), absolute))
    });
    Ok(Shares(tagged.collect::<Result<_, _>>()?))
}

impl Shares {
    /// The tags and their directories.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.0
            .iter()
            .map(|(tag, path)| (tag.as_str(), path.as_path()))
    }

    /// One line a directory: the tag, a space, the path.
    pub(crate) fn list(&self) -> Vec<u8> {
        let mut list = Vec::new();
        for (tag, path) in self.iter() {
            list.extend(tag.as_bytes());
            list.push(b' ');
            list.extend(path.as_os_str().as_bytes());
            list.push(b'\n');
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_every_word_back_unchanged() {
        let words = [
            "printf",
            "%s|",
            "it's",
            "a b",
            "$HOME `id`",
            "",
            "\\",
            "ü\n",
        ];
        let env = [("NAME".into(), "va'l ue".into())];
        let script = write(words, Path::new("/"), env.into_iter()).unwrap();
        let shell = std::process::Command::new("sh")
            .arg("-c")
            .arg(OsStr::from_bytes(&script))
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(shell.stdout).unwrap(),
            "it's|a b|$HOME `id`||\\|ü\n|"
        );

        let script = write(["printenv", "NAME"], Path::new("/"), {
            [("NAME".into(), "va'l ue".into())].into_iter()
        });
        let shell = std::process::Command::new("sh")
            .arg("-c")
            .arg(OsStr::from_bytes(&script.unwrap()))
            .output()
            .unwrap();
        assert_eq!(shell.stdout, b"va'l ue\n");
    }

    #[test]
    fn a_command_is_needed() {
        let none: [&str; 0] = [];
        let refused = write(none, Path::new("/"), std::iter::empty());
        assert!(matches!(refused, Err(ScriptError::NoCommand)));
    }

    #[test]
    fn a_variable_has_a_name_the_shell_takes() {
        for bad in ["", "1A", "A-B", "A;reboot", "A=B"] {
            let env = [(bad.into(), "x".into())];
            let refused = write(["true"], Path::new("/"), env.into_iter());
            assert!(
                matches!(refused, Err(ScriptError::VariableName(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_share_is_a_directory_that_exists() {
        for bad in ["/nonexistent", "/etc/passwd"] {
            assert!(shares(&[bad.into()]).is_err(), "{bad}");
        }
        let list = shares(&["/usr/..".into(), "/etc".into()]).unwrap().list();
        assert_eq!(list, b"share0 /\nshare1 /etc\n");
    }
}
