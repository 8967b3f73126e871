//! What a guest under test is made of: kernel, initramfs, disks.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// What the guest starts from.
pub(crate) struct Parts {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

/// Builds the guest, or takes what `LONGSHIP_KERNEL` and `LONGSHIP_INITRAMFS`
/// name. Whatever is missing fails the test.
pub(crate) fn parts() -> &'static Parts {
    static PARTS: OnceLock<Parts> = OnceLock::new();
    PARTS.get_or_init(|| {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let built = |script: &str| {
            let output = Command::new(here.join(script))
                .stderr(Stdio::inherit())
                .output()
                .unwrap_or_else(|error| panic!("{script}: {error}"));
            assert!(output.status.success(), "{script}: {}", output.status);
            PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
        };
        let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
        Parts {
            kernel: named("LONGSHIP_KERNEL").unwrap_or_else(|| built("../kernel/build.sh")),
            initramfs: named("LONGSHIP_INITRAMFS")
                .unwrap_or_else(|| built("build.sh").join("initramfs.cpio")),
        }
    })
}

/// An image of BusyBox with a few users and traps.
pub(crate) fn make_image(image: &Path, tree: &Path) {
    for dir in ["bin", "etc", "data", "tmp"] {
        fs::create_dir_all(tree.join(dir)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"];
    let busybox = busybox.iter().find(|path| Path::new(path).exists());
    let busybox = busybox.expect("busybox is needed (Debian package busybox-static)");
    fs::copy(busybox, tree.join("bin/busybox")).unwrap();
    for applet in [
        "cat", "chmod", "cut", "date", "dd", "env", "grep", "hostname", "id", "ip", "kill", "ls",
        "md5sum", "mknod", "mount", "nproc", "ping", "ps", "pwd", "readlink", "sh", "sleep",
        "stty", "tail", "touch", "tty", "wc",
    ] {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34:www:/var/www:/bin/sh\n";
    fs::write(tree.join("etc/passwd"), passwd).unwrap();
    fs::write(
        tree.join("etc/group"),
        "root:x:0:\nwww:x:34:\nadm:x:4:www\n",
    )
    .unwrap();
    // As in images that expect systemd-resolved.
    std::os::unix::fs::symlink("/run/none/resolv.conf", tree.join("etc/resolv.conf")).unwrap();
    fs::write(tree.join("data/plain"), "no program\n").unwrap();
    fs::write(tree.join("data/garbage"), [0_u8; 64]).unwrap();
    fs::write(tree.join("data/lost"), "#!/no/such/interpreter\n").unwrap();
    for program in ["garbage", "lost"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(tree.join("data").join(program), mode).unwrap();
    }
    run("mkfs.erofs", &["--all-root".as_ref(), image, tree]);
}

/// An empty scratch disk.
pub(crate) fn make_scratch(disk: &Path) {
    File::create(disk).unwrap().set_len(256 << 20).unwrap();
    run("mkfs.ext4", &["-q".as_ref(), disk]);
}

fn run(program: &str, arguments: &[&Path]) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new(program)
        .env("PATH", path)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {errors}");
}
