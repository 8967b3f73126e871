//! Everything a pod needs, got ready at the same time: its images, its ENI, its
//! scratch disk, its control channel and its machine.

use std::path::PathBuf;
use std::sync::Arc;

use longship_eni::{EniProvider, EniSpec};
use longship_framed::guest::Process;
use longship_image::Image;
use longship_proto::Failure;
use longship_proto::agent::v1::{
    DeviceHandle, DeviceType, PrepareSandboxRequest, VhostUser, device_handle::Handle,
};
use longship_volume::{VolumeKind, VolumeProvider, VolumeSpec};
use longship_vsock::VsockDevice;
use tokio::sync::watch;

use super::{Desired, PodFailure};
use crate::card::Card;
use crate::guest::{Guest, PORTS};
use crate::journal::Item;
use crate::plan::PodPlan;
use crate::status::StatusCell;

/// The card has one device a guest, so every guest may have the same context id.
const GUEST_CID: u64 = 3;
/// Serial of the scratch disk in the guest.
pub(crate) const SCRATCH_SERIAL: &str = "scratch";

/// A pod that can be started.
pub(crate) struct Prepared {
    /// The guest's control channel, not connected yet.
    pub(crate) guest: Guest,
    /// For each container: its image, that disk's serial, its first process.
    pub(crate) containers: Vec<PreparedContainer>,
    /// What to attach to the machine.
    pub(crate) devices: Vec<DeviceHandle>,
}

/// What a container needs.
pub(crate) struct PreparedContainer {
    /// Its image.
    pub(crate) image: Arc<Image>,
    /// Serial of the image's disk in the guest.
    pub(crate) image_serial: String,
    /// Its first process.
    pub(crate) process: Process,
}

/// What will be held for the pod, for the journal.
fn items(plan: &PodPlan) -> Vec<Item> {
    let mut items = vec![
        ("sandbox", plan.uid.clone()),
        ("eni", plan.uid.clone()),
        ("scratch", plan.scratch_id()),
    ];
    items.extend((0..plan.containers.len()).map(|i| ("image", image_id(plan, i))));
    items
}

fn image_id(plan: &PodPlan, number: usize) -> String {
    format!("{}-image-{number}", plan.uid)
}

/// Prepares the pod, and journals what it takes. The caller releases that when this
/// fails: what was taken by then is in no other list.
pub(crate) async fn prepare(
    card: &Card,
    plan: &PodPlan,
    status: &StatusCell,
    desired: watch::Receiver<Desired>,
) -> Result<Prepared, PodFailure> {
    let directory = card.runtime_dir.join(&plan.uid);
    std::fs::create_dir_all(&directory).map_err(|e| {
        let text = format!("create {}: {e}", directory.display());
        PodFailure::new("RuntimeDirectory", Failure::internal(text))
    })?;
    let socket = |name: &str| directory.join(format!("{name}.sock"));

    // What would outlive this process waits until it is written down; a backend here
    // dies with it. All branches end before any failure is acted on, so that a release
    // never runs beside a preparation.
    let outliving = async {
        let taken = card.journal.take(&plan.uid, plan.generation, items(plan));
        status
            .stage("journal", taken)
            .await
            .map_err(|e| PodFailure::new("Journal", e))?;
        let (machine, scratch) = tokio::join!(
            status.stage("sandbox", prepare_machine(card, plan, status)),
            status.stage("scratch", prepare_scratch(card, plan, socket("scratch"))),
        );
        machine.and(scratch)
    };
    let (outliving, images, eni, channel) = tokio::join!(
        outliving,
        images(card, plan, status, &directory, desired),
        status.stage("eni", prepare_eni(card, plan, socket("eth0"))),
        async { VsockDevice::serve(&socket("vsock"), GUEST_CID, &PORTS) },
    );
    let (containers, image_sockets) = images?;
    eni?;
    outliving?;
    let (device, incoming) =
        channel.map_err(|e| PodFailure::new("ControlChannel", Failure::internal(e.to_string())))?;

    let mut devices = vec![
        handle(DeviceType::Vsock, socket("vsock")),
        handle(DeviceType::Net, socket("eth0")),
        handle(DeviceType::Block, socket("scratch")),
    ];
    devices.extend(
        image_sockets
            .into_iter()
            .map(|s| handle(DeviceType::Block, s)),
    );
    Ok(Prepared {
        guest: Guest::new(device, incoming),
        containers,
        devices,
    })
}

fn handle(device: DeviceType, socket: PathBuf) -> DeviceHandle {
    let socket = socket.to_string_lossy().into_owned();
    DeviceHandle {
        handle: Some(Handle::VhostUser(VhostUser {
            r#type: device.into(),
            socket,
        })),
    }
}

/// Pulls what is missing, and serves each distinct image as one disk.
async fn images(
    card: &Card,
    plan: &PodPlan,
    status: &StatusCell,
    directory: &std::path::Path,
    mut desired: watch::Receiver<Desired>,
) -> Result<(Vec<PreparedContainer>, Vec<PathBuf>), PodFailure> {
    let pulled = status.stage("image", async {
        let mut pulled = Vec::new();
        for (i, container) in plan.containers.iter().enumerate() {
            let policy = container.image_pull_policy();
            let image = card.images.get(&container.image, policy).await;
            let image = image.map_err(|(reason, mut failure)| {
                failure.field = format!("spec.containers[{i}].image");
                PodFailure { reason, failure }
            })?;
            let process = plan
                .process(i, &image.config)
                .map_err(|f| PodFailure::new("NoCommand", f))?;
            pulled.push((image, process));
        }
        Ok(pulled)
    });
    let mut containers: Vec<PreparedContainer> = Vec::new();
    let mut sockets: Vec<PathBuf> = Vec::new();
    // The one step that may take minutes is the one that a deletion interrupts.
    let pulled = tokio::select! {
        pulled = pulled => pulled?,
        _ = desired.wait_for(|d| *d != Desired::Run) => {
            let failure = Failure::unavailable("the pod was deleted");
            return Err(PodFailure::new("Deleted", failure));
        }
    };
    for (image, process) in pulled {
        let known = containers.iter().find(|c| c.image.digest == image.digest);
        let image_serial = match known {
            Some(same) => same.image_serial.clone(),
            None => {
                let number = sockets.len();
                let serial = format!("image-{number}");
                let socket = directory.join(format!("{serial}.sock"));
                let spec = VolumeSpec {
                    id: image_id(plan, number),
                    socket: socket.clone(),
                    kind: VolumeKind::Image {
                        disk: image.disk.clone(),
                    },
                    serial: serial.clone(),
                };
                serve_volume(card, spec).await?;
                sockets.push(socket);
                serial
            }
        };
        containers.push(PreparedContainer {
            image,
            image_serial,
            process,
        });
    }
    Ok((containers, sockets))
}

async fn prepare_eni(card: &Card, plan: &PodPlan, socket: PathBuf) -> Result<(), PodFailure> {
    let mac = plan
        .mac
        .parse()
        .map_err(|_| Failure::invalid("status.eni.mac", format!("`{}` is no MAC", plan.mac)))
        .map_err(|f| PodFailure::new("InvalidAssignment", f))?;
    let spec = EniSpec {
        id: plan.uid.clone(),
        vpc: plan.vpc.clone(),
        mac,
        address: plan.address,
        prefix_length: plan.prefix_length,
        gateway: plan.gateway,
        mtu: plan.mtu,
        socket,
    };
    card.eni(async |enis| enis.prepare(spec).await)
        .await
        .map_err(|e| PodFailure::new(e.reason(), e))
}

async fn prepare_scratch(card: &Card, plan: &PodPlan, socket: PathBuf) -> Result<(), PodFailure> {
    let spec = VolumeSpec {
        id: plan.scratch_id(),
        socket,
        kind: VolumeKind::Scratch {
            bytes: card.scratch_bytes,
        },
        serial: SCRATCH_SERIAL.to_owned(),
    };
    serve_volume(card, spec).await
}

async fn prepare_machine(
    card: &Card,
    plan: &PodPlan,
    status: &StatusCell,
) -> Result<(), PodFailure> {
    let request = PrepareSandboxRequest {
        id: plan.uid.clone(),
        generation: plan.generation,
        vcpus: plan.flavor.vcpus,
        memory_bytes: plan.flavor.memory_bytes,
        cpu_millis: plan.flavor.cpu_millis,
        profile: plan.profile.into(),
    };
    let _turn = card.turns.machines.turn().await;
    let sandbox = card.agent.prepare(request).await;
    let sandbox = sandbox.map_err(|f| PodFailure::new("SandboxRefused", f))?;
    status.add_stages(sandbox.timeline);
    Ok(())
}

async fn serve_volume(card: &Card, spec: VolumeSpec) -> Result<(), PodFailure> {
    let served = card.volume(move |volumes| volumes.prepare(&spec)).await;
    served
        .map(|_| ())
        .map_err(|(reason, failure)| PodFailure { reason, failure })
}
