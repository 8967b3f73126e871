//! Getting a vCPU's thread out of `KVM_RUN`: a signal, whose handler sets
//! `immediate_exit`, so that one which comes just before the ioctl counts too.

use std::cell::Cell;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// The page that this thread shares with KVM. No lazy initialisation, no
    /// destructor: a signal handler may read it.
    static RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// Prepares the process for [`kick`].
pub(crate) fn install_handler() -> Result<(), kvm_ioctls::Error> {
    register_signal_handler(SIGRTMIN(), on_kick)
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let run = RUN.get();
    if !run.is_null() {
        // SAFETY: the pointer is this thread's own live mapping: `Kickable` clears
        // it before the vCPU can go. One byte, written volatile, that KVM only reads.
        unsafe { ptr::addr_of_mut!((*run).immediate_exit).write_volatile(1) };
    }
}

/// While it lives, a kick of this thread ends `KVM_RUN`.
pub(super) struct Kickable;

impl Kickable {
    /// For the thread that calls; `vcpu` must outlive the result.
    pub(super) fn new(vcpu: &mut VcpuFd) -> Self {
        RUN.set(vcpu.get_kvm_run());
        Self
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        RUN.set(ptr::null_mut());
    }
}

/// Kicks the thread; one that has ended is no error.
pub(crate) fn kick<T>(thread: &JoinHandle<T>) {
    // SAFETY: a thread that is not joined yet has a valid id, and the handle shows
    // that nobody has joined it.
    let _ = unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
}
