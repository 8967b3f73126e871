//! What the end-to-end tests share: real processes, started and ended here.
//!
//! The tests run as root on a machine whose `/dev/kvm` runs guest kernels at native
//! speed, or inside the testbed; `make test` sees to that. What is missing makes
//! them fail, never pass by.

mod image;
mod longship;
mod process;
mod registry;
mod residue;

pub use image::{Layout, busybox_layout};
pub use longship::{Longship, Outcome, binary, guest_file, run_to_end, up_command};
pub use process::Process;
pub use registry::Registry;
pub use residue::Residue;

/// Waits until `what` holds, at most `seconds`; panics with `text` if it never does.
pub fn eventually(seconds: u64, text: &str, mut what: impl FnMut() -> bool) {
    let give_up = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    while !what() {
        assert!(
            std::time::Instant::now() < give_up,
            "not within {seconds} s: {text}"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
