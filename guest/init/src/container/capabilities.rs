//! What root in a container may do: Docker's default set.

use std::io;

use crate::failed::Failed;

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP,
/// NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE and SETFCAP
/// (linux/capability.h).
const KEPT: [libc::c_ulong; 14] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];

/// More than the kernel will ever have.
const CEILING: libc::c_ulong = 64;

/// Takes all other capabilities out of the bounding set. A program that is then
/// executed as root has those that are left; as anybody else it has none.
///
/// # Errors
/// The kernel's.
pub(super) fn drop_others() -> Result<(), Failed> {
    for capability in (0..CEILING).filter(|c| !KEPT.contains(c)) {
        // SAFETY: PR_CAPBSET_DROP takes one number.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == 0 {
            continue;
        }
        let error = io::Error::last_os_error();
        // The kernel has no such capability, nor any above it.
        if error.raw_os_error() == Some(libc::EINVAL) {
            break;
        }
        return Err(Failed::new(format!("drop capability {capability}"), error));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_is_dockers() {
        let mask = KEPT.iter().fold(0_u64, |mask, bit| mask | 1 << bit);
        assert_eq!(mask, 0xa804_25fb);
    }
}
