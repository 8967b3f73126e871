//! What a VMM is asked for: a machine of its own or a template's clone, devices, to go.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use longship_framed::vmm as wire;
use longship_framed::vmm::request::Operation;

use super::Vmm;
use super::backends::Connected;
use super::error::{VmmError, call_error, prepare};
use crate::command_line::command_line;
use crate::host::Host;
use crate::shape::Shape;
use crate::timeline::{Timeline, now_us};

/// For one request to a VMM; the slowest touches all of a large guest's memory. It
/// counts from when the request is sent, not while it waits for its turn.
const CALL_PATIENCE: Duration = Duration::from_secs(30);

impl Vmm {
    /// Has it build a machine that boots by itself. With `memory` that becomes a
    /// template, and its RAM is that file.
    ///
    /// # Errors
    /// [`VmmError`]; the VMM is of no use then.
    pub(crate) async fn create(
        &mut self,
        host: &Host,
        shape: Shape,
        memory: Option<BorrowedFd<'_>>,
        timeline: &mut Timeline,
    ) -> Result<(), VmmError> {
        let _permit = host.stages.machine.enter().await;
        let kvm = host.kvm().map_err(prepare("open KVM"))?;
        let kernel = host.kernel().map_err(prepare("open the kernel"))?;
        let initramfs = host.initramfs().map_err(prepare("open the initramfs"))?;
        let console = self.console_end()?;
        let create = Operation::Create(wire::Create {
            vcpus: shape.vcpus,
            memory_bytes: shape.memory_bytes,
            command_line: command_line(),
            has_initramfs: true,
            has_console: true,
            profile: shape.profile.to_vmm().into(),
            dma_window_bytes: shape.dma_window_bytes(),
            has_memory: memory.is_some(),
        });
        let mut fds = vec![
            kvm.as_fd(),
            kernel.as_fd(),
            initramfs.as_fd(),
            console.as_fd(),
        ];
        fds.extend(memory);
        let call = self.channel.call(create, &fds, CALL_PATIENCE);
        let steps = timeline.measure("create", call).await;
        timeline.add_vmm(steps.map_err(call_error("create the machine", ""))?);
        Ok(())
    }

    /// Has it build the machine that a template is of, as it was when its guest parked.
    ///
    /// # Errors
    /// [`VmmError`]; the VMM is of no use then.
    pub(crate) async fn restore(
        &mut self,
        host: &Host,
        state: &File,
        memory: &File,
        timeline: &mut Timeline,
    ) -> Result<(), VmmError> {
        let _permit = host.stages.machine.enter().await;
        let kvm = host.kvm().map_err(prepare("open KVM"))?;
        let console = self.console_end()?;
        let restore = Operation::Restore(wire::Restore { has_console: true });
        let fds = [kvm.as_fd(), state.as_fd(), memory.as_fd(), console.as_fd()];
        let call = self.channel.call(restore, &fds, CALL_PATIENCE);
        let steps = timeline.measure("restore", call).await;
        timeline.add_vmm(steps.map_err(call_error("restore the machine", ""))?);
        Ok(())
    }

    /// Attaches the devices in their order.
    ///
    /// # Errors
    /// [`VmmError`]; the machine is of no use then.
    pub(crate) async fn attach(
        &mut self,
        devices: Vec<Connected>,
        timeline: &mut Timeline,
    ) -> Result<(), VmmError> {
        if devices.is_empty() {
            return Ok(());
        }
        let started = now_us();
        // All are asked for before the first answer is waited for.
        let mut asked = Vec::with_capacity(devices.len());
        for Connected { device, socket } in devices {
            let attach = Operation::Attach(wire::AttachDevice {
                r#type: device.kind.into(),
            });
            let attach = self
                .channel
                .ask(attach, &[socket.as_fd()])
                .map_err(call_error("attach a device", &device.field))?;
            asked.push((attach, device.field));
        }
        for (attach, field) in asked {
            let steps = self.channel.answer(attach, CALL_PATIENCE).await;
            timeline.add_vmm(steps.map_err(call_error("attach a device", &field))?);
        }
        timeline.add_agent("attach", started);
        Ok(())
    }

    /// Lets the vCPUs go.
    ///
    /// # Errors
    /// [`VmmError`].
    pub(crate) async fn boot(&mut self, timeline: &mut Timeline) -> Result<(), VmmError> {
        let boot = Operation::Boot(wire::Boot {});
        let call = self.channel.call(boot, &[], CALL_PATIENCE);
        let steps = timeline.measure("boot", call).await;
        timeline.add_vmm(steps.map_err(call_error("boot the guest", ""))?);
        Ok(())
    }

    /// Waits until the guest has parked, so that it can become a template.
    ///
    /// # Errors
    /// [`VmmError`], also where the guest ends instead.
    pub(crate) async fn parked(&mut self, patience: Duration) -> Result<(), VmmError> {
        let parked = self.channel.parked(patience).await;
        parked.map_err(call_error("wait for the guest to park", ""))
    }

    /// Writes the state of a machine that has parked into an empty file.
    ///
    /// # Errors
    /// [`VmmError`].
    pub(crate) async fn snapshot(&mut self, state: &File) -> Result<(), VmmError> {
        let snapshot = Operation::Snapshot(wire::Snapshot {});
        let written = self
            .channel
            .call(snapshot, &[state.as_fd()], CALL_PATIENCE)
            .await;
        written.map_err(call_error("save the machine's state", ""))?;
        Ok(())
    }

    fn console_end(&mut self) -> Result<OwnedFd, VmmError> {
        let end = self.console_end.take();
        end.ok_or_else(|| prepare("console")(std::io::ErrorKind::NotFound.into()))
    }
}
