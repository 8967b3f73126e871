//! A clone of a parked longship-init under Longship's own VMM, with its disks, its
//! control channel and its ENI served as by a card.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use longship_eni::{BridgeEnis, EniProvider, EniSpec};
use longship_framed::now_us;
use longship_framed::vmm::{Create, DeviceType, MemoryProfile, exited::Cause};
use longship_volume::{BlockDevice, Disk};
use longship_vsock::{Incoming, VsockDevice};
use tokio::sync::mpsc;

use super::card::MAC;
use super::parts::{make_image, make_scratch, parts};
use super::played_agent::{Template, Vmm, memfd};

const MEMORY: u64 = 128 << 20;
const WINDOW: u64 = 4 << 20;

/// As the agent's.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=3 reboot=k panic=-1 pci=conf1 \
    8250.nr_uarts=1 random.trust_cpu=on noreplace-smp tsc=reliable swiotlb=noforce \
    rcupdate.rcu_expedited=1";

/// A running clone.
pub(crate) struct Machine {
    vmm: Vmm,
    console: File,
    /// When it was asked for, microseconds since the Unix epoch.
    pub(crate) asked_us: i64,
    pub(crate) alive_us: i64,
    _directory: tempfile::TempDir,
    _disks: Vec<BlockDevice>,
    _vsock: VsockDevice,
    _enis: BridgeEnis,
}

/// The VMM that `LONGSHIP_VMM` names, or the release build's.
fn vmm() -> Vmm {
    let path = std::env::var_os("LONGSHIP_VMM").map_or_else(
        || {
            let here = Path::new(env!("CARGO_MANIFEST_DIR"));
            here.join("../../target/release/longship-vmm")
        },
        PathBuf::from,
    );
    Vmm::spawn(&path)
}

/// One for all tests.
fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let parts = parts();
        let create = Create {
            vcpus: 1,
            memory_bytes: MEMORY,
            command_line: COMMAND_LINE.to_owned(),
            profile: MemoryProfile::Dense.into(),
            dma_window_bytes: WINDOW,
            ..Create::default()
        };
        let kernel = File::open(&parts.kernel).unwrap();
        let initramfs = File::open(&parts.initramfs).unwrap();
        let memory = memfd(MEMORY);
        let mut vmm = vmm();
        let created = vmm.create_as(create, &kernel, Some(&initramfs), None, Some(&memory));
        assert_eq!(created.failure, None);
        vmm.boot();
        vmm.into_template(memory)
    })
}

impl Machine {
    /// Clones the template; the clone has an image disk `image`, a scratch disk
    /// `scratch` and a network device [`MAC`].
    pub(crate) async fn boot() -> (Self, mpsc::Receiver<Incoming>) {
        let template = template();
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        make_image(&path("image.erofs"), &path("tree"));
        make_scratch(&path("scratch.ext4"));
        let disk = |name: &str, file: &str, read_only: bool| {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(!read_only).open(path(file));
            let disk = Disk {
                file: file.unwrap(),
                read_only,
                serial: name.to_owned(),
            };
            BlockDevice::serve(&path(name), disk).unwrap()
        };
        let disks = vec![
            disk("image", "image.erofs", true),
            disk("scratch", "scratch.ext4", false),
        ];
        let (vsock, incoming) = VsockDevice::serve(&path("vsock"), 3, &[1024, 1025]).unwrap();
        let enis = BridgeEnis::new();
        let eni = EniSpec {
            id: "eni".to_owned(),
            vpc: "vpc".to_owned(),
            mac: MAC.parse().unwrap(),
            address: Ipv4Addr::new(10, 0, 2, 15),
            prefix_length: 24,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            mtu: 1400,
            socket: path("eni"),
        };
        enis.prepare(eni).await.unwrap();

        let console = tempfile::tempfile().unwrap();
        let asked_us = now_us();
        let mut vmm = vmm();
        let restored = vmm.restore(template, Some(&console));
        assert_eq!(restored.failure, None);
        for (kind, socket) in [
            (DeviceType::Vsock, "vsock"),
            (DeviceType::Net, "eni"),
            (DeviceType::Block, "image"),
            (DeviceType::Block, "scratch"),
        ] {
            assert_eq!(vmm.attach(kind, &path(socket)).failure, None);
        }
        vmm.boot();
        let alive_us = vmm.alive();
        let machine = Self {
            vmm,
            console,
            asked_us,
            alive_us,
            _directory: directory,
            _disks: disks,
            _vsock: vsock,
            _enis: enis,
        };
        (machine, incoming)
    }

    /// Bytes that the guest has given back since it was cloned.
    pub(crate) fn reclaimed(&mut self) -> u64 {
        self.vmm.stats().reclaimed_bytes
    }

    /// What the guest has printed.
    pub(crate) fn console(&self) -> String {
        let mut bytes = Vec::new();
        let mut console = &self.console;
        console.seek(SeekFrom::Start(0)).unwrap();
        console.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for the end of the machine, which must be a proper one.
    pub(crate) fn wait_for_end(&mut self, _limit: Duration) {
        assert_eq!(self.vmm.exited().cause(), Cause::GuestReset);
        assert_eq!(self.vmm.wait().code(), Some(0));
    }
}
