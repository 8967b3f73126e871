//! The empty file system of a scratch disk.

use std::path::Path;
use std::process::Command;

use crate::error::VolumeError;
use crate::scratch::failed;
use crate::sparse::{create_private, dig_holes};

/// Raised when templates of an older layout are not to be used any more.
pub(crate) const LAYOUT: u32 = 2;

/// What a disk that does not outlive its pod can do without. A journal: there is
/// nothing to recover, and each write would cost one. Room to grow. Copies of the
/// superblock. So an empty disk is a dozen blocks.
const FEATURES: &str = "^has_journal,^resize_inode,sparse_super2";

/// The file reads as zeros, so the inode tables need no zeroing, neither now nor by
/// the guest's kernel later. All bitmaps lie side by side, as one group of groups
/// ([`FLEX_GROUPS`]): a directory is then made near the last one, while ext4 would go
/// to another group of groups for each, and touch the blocks that describe it.
const EXTENDED: &str = "nodiscard,lazy_itable_init=1,assume_storage_prezeroed=1,\
                        root_owner=0:0,num_backup_sb=0,packed_meta_blocks=1";

/// Groups of 128 MiB that share the place of their bitmaps and inode tables.
const FLEX_GROUPS: &str = "4096";

/// Makes the file at `path` with an empty ext4 of `bytes`.
pub(crate) fn format_ext4(path: &Path, bytes: u64) -> Result<(), VolumeError> {
    let file = create_private(path).map_err(failed("creating", path))?;
    file.set_len(bytes).map_err(failed("creating", path))?;
    let output = Command::new("mkfs.ext4")
        // Debian keeps it where an ordinary PATH does not look.
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(["-q", "-F", "-b", "4096", "-m", "0", "-G", FLEX_GROUPS])
        .args(["-O", FEATURES, "-E", EXTENDED])
        .arg(path)
        .output()
        .map_err(failed("running mkfs.ext4 for", path))?;
    if !output.status.success() {
        return Err(VolumeError::Format {
            path: path.to_owned(),
            message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    // mkfs.ext4 wipes what could be another file system's, and leaves zeros.
    dig_holes(&file).map_err(failed("punching holes into", path))
}
