//! The states of a pod and what leads from one to the next.

use std::sync::Arc;
use std::time::Duration;

use longship_framed::guest::{Configure, Hello};
use longship_image::Image;
use longship_proto::Failure;
use longship_proto::control::v1::{ContainerState, ContainerStatus, Phase, PodStatus, Stage};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::container::Supervised;
use super::prepare::{self, Prepared, PreparedContainer, SCRATCH_SERIAL};
use super::{PodAccess, PodFailure, release_held};
use crate::card::Card;
use crate::guest::Guest;
use crate::plan::PodPlan;
use crate::status::{StatusCell, stage};
use crate::turns::{LimitedTurn, START_LIMIT};
use longship_proto::now_us;

/// How long a kernel may take from its start to init's hello.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a guest may take to power off before it is ended.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(5);

/// A shorter wait is not worth a line, microseconds.
const NOTEWORTHY_US: i64 = 1000;

pub(super) const SIGTERM: i32 = 15;
/// Exit code of a container that had no chance to say one: as if killed.
const LOST_EXIT_CODE: i32 = 128 + 9;

/// What the control plane wants of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Desired {
    /// It shall run, by its restart policy.
    Run,
    /// It shall go; so long may its processes take to end.
    Gone {
        /// Between SIGTERM and SIGKILL.
        grace: Duration,
    },
}

/// How a pod's running came to its end.
enum End {
    /// All containers are over; their worst exit code.
    Finished(i32),
    Failed(PodFailure),
    Deleted,
}

/// Runs one pod until it is deleted and everything is given back. The last report
/// is `RELEASED`.
pub(crate) async fn run(
    card: Arc<Card>,
    plan: Arc<PodPlan>,
    status: StatusCell,
    mut desired: watch::Receiver<Desired>,
    access: Arc<PodAccess>,
) {
    let end = run_to_end(&card, &plan, &status, &mut desired, &access).await;
    access.closed();
    match &end {
        End::Deleted => status.update(|s| s.phase = Phase::Stopping.into()),
        End::Finished(_) | End::Failed(_) => {}
    }
    release_held(&card, &plan.uid).await;
    for container in &plan.containers {
        match card.logs.log(&plan.uid, &container.name) {
            Ok(log) => log.close(),
            Err(error) => warn!(%error, "cannot close a log"),
        }
    }
    match end {
        End::Finished(code) => {
            info!(pod_uid = plan.uid, code, "finished");
            let phase = if code == 0 {
                Phase::Succeeded
            } else {
                Phase::Failed
            };
            status.update(|s| s.phase = phase.into());
        }
        End::Failed(PodFailure { reason, failure }) => {
            warn!(pod_uid = plan.uid, reason, %failure, "failed");
            status.update(|s| {
                s.phase = Phase::Failed.into();
                reason.clone_into(&mut s.reason);
                s.message = failure.to_string();
                end_containers(s);
            });
        }
        End::Deleted => {}
    }
    // What is over stays to be looked at, with its logs, until it is deleted.
    deleted(&mut desired).await;
    if *desired.borrow() == Desired::Run {
        return;
    }
    if let Err(error) = card.logs.remove(&plan.uid) {
        warn!(pod_uid = plan.uid, %error, "cannot delete the pod's logs");
    }
    status.update(|s| s.phase = Phase::Released.into());
}

/// The machine is gone, and with it what still ran or was to run.
fn end_containers(status: &mut PodStatus) {
    for container in &mut status.containers {
        if container.state() != ContainerState::Terminated {
            container.state = ContainerState::Terminated.into();
            container.finished_us = now_us();
            container.exit_code = LOST_EXIT_CODE;
            container.reason.clone_from(&status.reason);
        }
    }
}

/// Waits until the pod shall go, or this card ends (then it stays desired).
async fn deleted(desired: &mut watch::Receiver<Desired>) {
    let _ = desired.wait_for(|d| *d != Desired::Run).await;
}

async fn run_to_end(
    card: &Arc<Card>,
    plan: &Arc<PodPlan>,
    status: &StatusCell,
    desired: &mut watch::Receiver<Desired>,
    access: &Arc<PodAccess>,
) -> End {
    status.update_soon(|s| {
        s.phase = Phase::Preparing.into();
        s.containers = plan
            .containers
            .iter()
            .map(|c| ContainerStatus {
                name: c.name.clone(),
                state: ContainerState::Waiting.into(),
                ..ContainerStatus::default()
            })
            .collect();
    });
    // Boxed, as the boot is: the pod's task lives for long, and needs them only now.
    let prepared = Box::pin(prepare::prepare(card, plan, status, desired.clone())).await;
    if *desired.borrow() != Desired::Run {
        return End::Deleted;
    }
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => return End::Failed(failure),
    };
    let Prepared {
        guest,
        containers,
        devices,
    } = prepared;
    access.has_images(distinct_images(&containers));
    let turn = tokio::select! {
        _ = deleted(desired) => return End::Deleted,
        turn = own_turn(card, status) => turn,
    };
    status.update_soon(|s| s.phase = Phase::Starting.into());
    let booted = tokio::select! {
        _ = deleted(desired) => return End::Deleted,
        booted = Box::pin(boot(card, plan, status, &guest, devices)) => booted,
    };
    if let Err(failure) = booted {
        return End::Failed(failure);
    }
    access.opened(guest.clone());

    let containers = containers
        .into_iter()
        .enumerate()
        .map(|(index, prepared)| Supervised {
            card: card.clone(),
            plan: plan.clone(),
            index,
            prepared,
            guest: guest.clone(),
            status: status.clone(),
            access: access.clone(),
            desired: desired.clone(),
        })
        .collect();
    let mut running = JoinSet::new();
    let end = tokio::select! {
        _ = deleted(desired) => None,
        how = card.agent.exited(&plan.uid) => {
            let failure = Failure::unavailable(how);
            Some(End::Failed(PodFailure::new("SandboxExited", failure)))
        }
        end = run_containers(containers, &mut running, status, turn) => Some(end),
    };
    match end {
        None => {
            status.update(|s| s.phase = Phase::Stopping.into());
            stop(card, plan, &guest, &mut running, desired).await;
            End::Deleted
        }
        Some(end) => {
            if matches!(end, End::Finished(_)) {
                power_off(card, plan, &guest).await;
            }
            end
        }
    }
}

fn distinct_images(containers: &[PreparedContainer]) -> Vec<Arc<Image>> {
    let mut images: Vec<Arc<Image>> = Vec::new();
    for container in containers {
        if !images.iter().any(|i| i.digest == container.image.digest) {
            images.push(container.image.clone());
        }
    }
    images
}

/// The pod's turn to start. A wait shows in its timeline.
async fn own_turn(card: &Card, status: &StatusCell) -> Option<LimitedTurn> {
    let began = now_us();
    let turn = card.turns.starts.limited_turn(START_LIMIT).await;
    let now = now_us();
    if now - began > NOTEWORTHY_US {
        status.add_stages([stage("card", "turn", began, now)]);
    }
    turn
}

/// Starts all containers, one after the other, and waits until the last is over.
async fn run_containers(
    containers: Vec<Supervised>,
    running: &mut JoinSet<Result<i32, Failure>>,
    status: &StatusCell,
    turn: Option<LimitedTurn>,
) -> End {
    for container in containers {
        match container.first_start().await {
            Ok(process) => running.spawn(container.supervise(process)),
            Err(failure) => return End::Failed(failure),
        };
    }
    drop(turn);
    status.update(|s| s.phase = Phase::Running.into());
    all_over(running).await.map_or_else(
        |failure| End::Failed(PodFailure::new("GuestLost", failure)),
        End::Finished,
    )
}

/// From the machine with its devices to an init that is configured.
async fn boot(
    card: &Card,
    plan: &PodPlan,
    status: &StatusCell,
    guest: &Guest,
    devices: Vec<longship_proto::agent::v1::DeviceHandle>,
) -> Result<(), PodFailure> {
    let start = card.agent.start(&plan.uid, plan.generation, devices);
    let sandbox = status.stage("attach", start).await;
    let sandbox = sandbox.map_err(|f| PodFailure::new("SandboxRefused", f))?;
    status.add_stages(sandbox.timeline);

    let began = now_us();
    let hello = tokio::select! {
        hello = tokio::time::timeout(BOOT_TIMEOUT, guest.hello()) => hello,
        how = card.agent.exited(&plan.uid) => {
            return Err(PodFailure::new("SandboxExited", Failure::unavailable(how)));
        }
    };
    let hello = hello
        .map_err(|_| Failure::unavailable("the guest does not come up"))
        .and_then(|hello| hello)
        .map_err(|f| PodFailure::new("BootTimeout", f))?;
    status.add_stages(boot_stages(&hello, began, now_us()));

    let configure = guest.configure(Configure {
        hostname: plan.hostname.clone(),
        interfaces: vec![plan.interface()],
        nameservers: plan.nameservers.clone(),
        search: Vec::new(),
        time_us: now_us(),
        entropy: rand::random::<[u8; 32]>().to_vec(),
        machine_id: format!("{:032x}", rand::random::<u128>()),
        scratch_serial: SCRATCH_SERIAL.to_owned(),
    });
    let configured = status.stage("configure", configure).await;
    configured.map_err(|f| PodFailure::new("ConfigureFailed", f))
}

/// Splits the boot by what the guest says of its own clock, which the moment of its
/// hello ties to the card's: the kernel began when its uptime was 0 (a clone's: when
/// it was started), init when it says, and its hello took the rest.
fn boot_stages(hello: &Hello, began: i64, heard: i64) -> Vec<Stage> {
    let uptime = hello.uptime_us.max(0);
    let init = heard
        .saturating_sub(uptime.saturating_sub(hello.init_uptime_us.max(0)).max(0))
        .clamp(began, heard);
    // A clone's uptime counts from its template's boot: it went on when it was started.
    let power_on = if hello.clone {
        began
    } else {
        heard.saturating_sub(uptime).clamp(began, init)
    };
    vec![
        stage("card", "boot", began, heard),
        stage("guest", "kernel", power_on, init),
        stage("guest", "hello", init, heard),
    ]
}

/// SIGTERM to all containers, then the time they were given, which a later deletion
/// may change.
async fn stop(
    card: &Card,
    plan: &PodPlan,
    guest: &Guest,
    running: &mut JoinSet<Result<i32, Failure>>,
    desired: &mut watch::Receiver<Desired>,
) {
    let ended = async {
        for container in &plan.containers {
            // One that is over already cannot be signalled, which is as well.
            let _ = guest.signal(&container.name, SIGTERM, false).await;
        }
        let _ = all_over(running).await;
    };
    tokio::select! {
        () = ended => {}
        _ = card.agent.exited(&plan.uid) => {}
        () = grace_over(desired) => {}
    }
}

/// Resolves when the time that the pod was given, counted from now, is over.
async fn grace_over(desired: &mut watch::Receiver<Desired>) {
    let began = tokio::time::Instant::now();
    loop {
        let grace = match &*desired.borrow_and_update() {
            Desired::Gone { grace } => *grace,
            // The card itself ends.
            Desired::Run => Duration::ZERO,
        };
        tokio::select! {
            () = tokio::time::sleep_until(began + grace) => return,
            changed = desired.changed() => if changed.is_err() { return },
        }
    }
}

/// The worst exit code of all containers when the last is over.
async fn all_over(running: &mut JoinSet<Result<i32, Failure>>) -> Result<i32, Failure> {
    let mut worst = 0;
    while let Some(over) = running.join_next().await {
        let code = over.map_err(|e| Failure::internal(format!("a container's task: {e}")))??;
        if worst == 0 {
            worst = code;
        }
    }
    Ok(worst)
}

async fn power_off(card: &Card, plan: &PodPlan, guest: &Guest) {
    guest.power_off().await;
    let exited = card.agent.exited(&plan.uid);
    if tokio::time::timeout(POWER_OFF_TIMEOUT, exited)
        .await
        .is_err()
    {
        warn!(
            pod_uid = plan.uid,
            "the guest does not power off, ending it"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_is_split_by_the_guests_own_clock() {
        let hello = Hello {
            init_uptime_us: 700,
            uptime_us: 900,
            ..Hello::default()
        };
        let stages = boot_stages(&hello, 1_000, 2_000);
        let of = |name: &str| {
            let s = stages.iter().find(|s| s.name == name).unwrap();
            (s.start_us, s.end_us)
        };
        assert_eq!(of("boot"), (1_000, 2_000));
        assert_eq!(of("kernel"), (1_100, 1_800));
        assert_eq!(of("hello"), (1_800, 2_000));
    }

    #[test]
    fn a_guest_that_lies_about_its_clock_cannot_leave_the_boots_span() {
        for (init, uptime) in [
            (i64::MAX, i64::MAX),
            (-5, -5),
            (i64::MAX, 0),
            (i64::MIN, i64::MIN),
        ] {
            let hello = Hello {
                init_uptime_us: init,
                uptime_us: uptime,
                ..Hello::default()
            };
            for clone in [false, true] {
                let hello = Hello {
                    clone,
                    ..hello.clone()
                };
                for s in boot_stages(&hello, 1_000, 2_000) {
                    assert!(
                        1_000 <= s.start_us && s.start_us <= s.end_us && s.end_us <= 2_000,
                        "{s:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_clones_template_is_no_part_of_its_boot() {
        let hello = Hello {
            init_uptime_us: 700_000,
            uptime_us: 700_300,
            clone: true,
            ..Hello::default()
        };
        let stages = boot_stages(&hello, 1_000, 2_000);
        let of = |name: &str| {
            let s = stages.iter().find(|s| s.name == name).unwrap();
            (s.start_us, s.end_us)
        };
        assert_eq!(of("kernel"), (1_000, 1_700));
        assert_eq!(of("hello"), (1_700, 2_000));
    }

    #[tokio::test]
    async fn the_pods_exit_code_is_the_first_that_is_not_zero() {
        let mut running = JoinSet::new();
        for code in [0, 3, 0] {
            running.spawn(async move { Ok(code) });
        }
        assert_eq!(all_over(&mut running).await.unwrap(), 3);
    }
}
