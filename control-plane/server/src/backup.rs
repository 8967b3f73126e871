//! Backups of the embedded store.
//!
//! While the server runs it alone has the store open. Whoever may open the socket in
//! the store's directory, which only its owner can, gets a backup there: the bytes of
//! one, until the stream ends. It carries its own end and checksum.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use longship_store::{Backup, BackupError, RedbOptions, RedbStore, check_backup};
use tokio::net::UnixListener;

use crate::serve::{STORE_FILE, create_private};

/// The socket's name in the store's directory.
const SOCKET: &str = "backup.sock";
/// How long whoever takes a backup may leave it unread.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no backup, or no store made of one.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A file or directory cannot be used.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// There is no store in that directory.
    #[error("--state {}: there is no store", .0.display())]
    NoStore(PathBuf),
    /// There is something already where the store or the backup shall be.
    #[error("{}: there is something already", .0.display())]
    Exists(PathBuf),
    /// The backup or the store failed.
    #[error(transparent)]
    Backup(#[from] BackupError),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CopyError {
    let path = path.to_owned();
    move |error| CopyError::File { path, error }
}

/// Gives backups at the socket in `dir` for as long as the store is open.
///
/// # Errors
/// Where the socket cannot be made.
pub(crate) fn offer(dir: &Path, store: &Arc<RedbStore>) -> io::Result<()> {
    let path = dir.join(SOCKET);
    // A former process's: the store is locked, so it runs no more.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    let store = Arc::downgrade(store);
    tokio::spawn(async move {
        // One at a time: each holds back the reuse of the store's pages.
        while let Ok((stream, _)) = listener.accept().await {
            let given = match stream.into_std() {
                Ok(stream) => give(&store, stream).await,
                Err(error) => Err(error.into()),
            };
            match given {
                Ok(Some(backup)) => tracing::info!(
                    version = backup.version,
                    objects = backup.objects,
                    "a backup was taken"
                ),
                Ok(None) => return,
                Err(error) => tracing::warn!(%error, "a backup was not taken"),
            }
        }
    });
    Ok(())
}

/// `None` where the store is closed.
async fn give(store: &Weak<RedbStore>, stream: UnixStream) -> Result<Option<Backup>, BackupError> {
    let Some(store) = store.upgrade() else {
        return Ok(None);
    };
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let given = tokio::task::spawn_blocking(move || store.backup(stream));
    given.await.map_err(io::Error::from)?.map(Some)
}

/// Writes a backup of the store in `state` into a new file, which only its owner may
/// read: from the server where it runs, else from the store itself.
///
/// # Errors
/// Any [`CopyError`]; the file does not exist then.
pub fn backup(state: &Path, file: &Path) -> Result<Backup, CopyError> {
    if file.try_exists().map_err(at(file))? {
        return Err(CopyError::Exists(file.to_owned()));
    }
    // Under its own name only once it is whole.
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let written = write(state, &part).and_then(|backup| {
        std::fs::rename(&part, file).map_err(at(file))?;
        Ok(backup)
    });
    if written.is_err() {
        // It may not exist.
        let _ = std::fs::remove_file(&part);
    }
    written
}

fn write(state: &Path, part: &Path) -> Result<Backup, CopyError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut to = options.open(part).map_err(at(part))?;
    if let Ok(mut server) = UnixStream::connect(state.join(SOCKET)) {
        io::copy(&mut server, &mut to).map_err(at(part))?;
    } else {
        let path = state.join(STORE_FILE);
        if !path.try_exists().map_err(at(&path))? {
            return Err(CopyError::NoStore(state.to_owned()));
        }
        let store = RedbStore::open(&path, RedbOptions::default());
        store.map_err(BackupError::from)?.backup(&mut to)?;
    }
    to.sync_all().map_err(at(part))?;
    // What is on disk is what counts.
    let written = File::open(part).map_err(at(part))?;
    Ok(check_backup(BufReader::new(written))?)
}

/// Makes a new store of a backup, in a directory that is empty or does not exist.
///
/// # Errors
/// Any [`CopyError`]; there is no store then.
pub fn restore(state: &Path, file: &Path) -> Result<Backup, CopyError> {
    let from = File::open(file).map_err(at(file))?;
    match std::fs::read_dir(state) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(CopyError::Exists(state.to_owned()));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at(state)(error)),
    }
    create_private(state).map_err(at(state))?;
    Ok(longship_store::restore(from, &state.join(STORE_FILE))?)
}
