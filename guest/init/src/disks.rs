//! The pod's disks: read-only images, and the scratch that is written to.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use longship_framed::error::Failure;
use nix::mount::{MsFlags, mount};

use crate::failed::{Doing, Failed};
use crate::mounts::{directory, mount_virtual};

/// Where images are mounted, each under its serial.
const IMAGES: &str = "/run/longship/images";
/// Where the scratch disk is mounted.
const SCRATCH: &str = "/run/longship/scratch";

/// How often, and at which intervals, a device that is not there is looked for
/// after the bus has been asked again.
const LOOKS: u32 = 100;
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The disks in use.
#[derive(Debug, Default)]
pub(crate) struct Disks {
    images: BTreeSet<String>,
}

impl Disks {
    /// The directory of the image on the disk with this serial; mounted once and
    /// shared by the containers that use it.
    ///
    /// # Errors
    /// Not found where no disk has the serial, else the kernel's.
    pub(crate) fn image(&mut self, serial: &str) -> Result<PathBuf, Failure> {
        let target = Path::new(IMAGES).join(serial);
        if self.images.contains(serial) {
            return Ok(target);
        }
        let device = find(serial).ok_or_else(|| missing("image_serial", serial))?;
        fs::create_dir_all(&target).doing(|| format!("create {}", target.display()))?;
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        mount(Some(&device), &target, Some("erofs"), flags, None::<&str>)
            .doing(|| format!("mount the image {serial} (EROFS)"))?;
        self.images.insert(serial.to_owned());
        Ok(target)
    }
}

/// Mounts the scratch disk, or a tmpfs where there is none, and empties it.
///
/// # Errors
/// Not found where no disk has the serial, else the kernel's.
pub(crate) fn mount_scratch(serial: Option<&str>) -> Result<(), Failure> {
    fs::create_dir_all(SCRATCH).doing(|| format!("create {SCRATCH}"))?;
    match serial {
        None => mount_virtual("tmpfs", SCRATCH, MsFlags::MS_NODEV, "mode=755")?,
        Some(serial) => {
            let device = find(serial).ok_or_else(|| missing("scratch_serial", serial))?;
            let flags = MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
            mount(Some(&device), SCRATCH, Some("ext4"), flags, None::<&str>)
                .doing(|| format!("mount the scratch disk {serial} (ext4)"))?;
        }
    }
    let containers = containers();
    match fs::remove_dir_all(&containers) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => other.doing(|| "empty the scratch disk")?,
    }
    Ok(fs::create_dir(&containers).doing(|| "prepare the scratch disk")?)
}

/// Where containers have what they write.
pub(crate) fn containers() -> PathBuf {
    Path::new(SCRATCH).join("containers")
}

/// Prepares the directories below which disks are mounted.
///
/// # Errors
/// The kernel's.
pub(crate) fn prepare() -> Result<(), Failed> {
    for dir in ["/run/longship", IMAGES, SCRATCH] {
        directory(dir)?;
    }
    Ok(())
}

/// Asks the PCI bus for devices that were added after the start.
pub(crate) fn rescan_bus() {
    // Without a bus there is nothing to find, which the caller sees.
    let _ = fs::write("/sys/bus/pci/rescan", "1");
}

/// Looks until `find` has something; asks the bus for new devices in between.
pub(crate) fn look_for<T>(mut find: impl FnMut() -> Option<T>) -> Option<T> {
    for attempt in 0..LOOKS {
        if let Some(found) = find() {
            return Some(found);
        }
        if attempt == 0 {
            rescan_bus();
        } else {
            std::thread::sleep(LOOK_AGAIN);
        }
    }
    None
}

fn find(serial: &str) -> Option<PathBuf> {
    look_for(|| find_in(Path::new("/sys/block"), serial)).map(|name| Path::new("/dev").join(name))
}

/// Name of the block device under `sys_block` whose serial this is.
fn find_in(sys_block: &Path, serial: &str) -> Option<PathBuf> {
    let devices = fs::read_dir(sys_block).ok()?;
    devices.flatten().find_map(|device| {
        let text = fs::read_to_string(device.path().join("serial")).ok()?;
        let same = text.trim_end_matches(['\n', '\0']) == serial;
        same.then(|| PathBuf::from(device.file_name()))
    })
}

fn missing(field: &str, serial: &str) -> Failure {
    let mut failure = Failure::not_found(format!("no disk has the serial {serial:?}"));
    failure.field = field.to_owned();
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_found_by_its_whole_serial() {
        let sys = tempfile::tempdir().unwrap();
        for (name, serial) in [
            ("vda", Some("image-1")),
            ("vdb", Some("image")),
            ("loop0", None),
        ] {
            fs::create_dir(sys.path().join(name)).unwrap();
            if let Some(serial) = serial {
                fs::write(sys.path().join(name).join("serial"), serial).unwrap();
            }
        }
        assert_eq!(find_in(sys.path(), "image"), Some("vdb".into()));
        assert_eq!(find_in(sys.path(), "image-1"), Some("vda".into()));
        assert_eq!(find_in(sys.path(), ""), None);
        assert_eq!(find_in(&sys.path().join("none"), "image"), None);
    }
}
