//! The states of a pod and what leads from one to the next.

use std::sync::Arc;
use std::time::Duration;

use longship_framed::guest::{Configure, Hello};
use longship_proto::Failure;
use longship_proto::control::v1::{ContainerState, ContainerStatus, Phase, Stage};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::container::Supervised;
use super::prepare::{self, Prepared, SCRATCH_SERIAL};
use super::{PodAccess, PodFailure, release_held};
use crate::card::Card;
use crate::clock::now_us;
use crate::guest::Guest;
use crate::plan::PodPlan;
use crate::status::{StatusCell, stage};

/// How long a kernel may take from its start to init's hello.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a guest may take to power off before it is ended.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(5);

const SIGTERM: i32 = 15;

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
    plan: PodPlan,
    status: StatusCell,
    mut desired: watch::Receiver<Desired>,
    access: Arc<PodAccess>,
) {
    let plan = Arc::new(plan);
    let end = run_to_end(&card, &plan, &status, &mut desired, &access).await;
    access.closed();
    match &end {
        End::Deleted => status.update(|s| s.phase = Phase::Stopping.into()),
        End::Finished(_) | End::Failed(_) => {}
    }
    release_held(&card, &plan.uid, plan.generation).await;
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

/// Waits until the pod shall go; for how long its processes may take.
async fn deleted(desired: &mut watch::Receiver<Desired>) -> Duration {
    match desired.wait_for(|d| *d != Desired::Run).await.as_deref() {
        Ok(Desired::Gone { grace }) => *grace,
        // The reconciler is gone: this card ends, and the pod stays desired.
        _ => Duration::ZERO,
    }
}

async fn run_to_end(
    card: &Arc<Card>,
    plan: &Arc<PodPlan>,
    status: &StatusCell,
    desired: &mut watch::Receiver<Desired>,
    access: &Arc<PodAccess>,
) -> End {
    status.update(|s| {
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
    if let Err(error) = card.journal.take(&plan.uid, &prepare::items(plan)) {
        return End::Failed(PodFailure::new("Journal", error));
    }
    let prepared = prepare::prepare(card, plan, status, desired.clone()).await;
    if *desired.borrow() != Desired::Run {
        return End::Deleted;
    }
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => return End::Failed(failure),
    };
    status.update(|s| s.phase = Phase::Starting.into());
    let Prepared {
        guest,
        containers,
        devices,
    } = prepared;
    let booted = tokio::select! {
        _ = deleted(desired) => return End::Deleted,
        booted = boot(card, plan, status, &guest, devices) => booted,
    };
    if let Err(failure) = booted {
        return End::Failed(failure);
    }
    access.opened(guest.clone());

    let mut running = JoinSet::new();
    for (index, prepared) in containers.into_iter().enumerate() {
        let container = Supervised {
            card: card.clone(),
            plan: plan.clone(),
            index,
            prepared,
            guest: guest.clone(),
            status: status.clone(),
            access: access.clone(),
            desired: desired.clone(),
        };
        match container.first_start().await {
            Ok(process) => running.spawn(container.supervise(process)),
            Err(failure) => return End::Failed(failure),
        };
    }
    status.update(|s| s.phase = Phase::Running.into());

    tokio::select! {
        grace = deleted(desired) => {
            status.update(|s| s.phase = Phase::Stopping.into());
            stop(plan, &guest, &mut running, grace).await;
            End::Deleted
        }
        how = card.agent.exited(&plan.uid) => {
            End::Failed(PodFailure::new("SandboxExited", Failure::unavailable(how)))
        }
        over = all_over(&mut running) => {
            power_off(card, plan, &guest).await;
            over.map_or_else(|f| End::Failed(PodFailure::new("GuestLost", f)), End::Finished)
        }
    }
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

/// Splits the boot by what the guest says of its own clock: it began when its
/// uptime was 0, which the moment of its hello tells in the card's time.
fn boot_stages(hello: &Hello, began: i64, heard: i64) -> Vec<Stage> {
    let power_on = heard.saturating_sub(hello.uptime_us.max(0)).max(began);
    let init = power_on
        .saturating_add(hello.init_uptime_us.max(0))
        .min(heard);
    vec![
        stage("card", "boot", began, heard),
        stage("guest", "kernel", power_on, init),
        stage("guest", "init", init, heard),
    ]
}

/// SIGTERM to all containers, then the time they were given.
async fn stop(
    plan: &PodPlan,
    guest: &Guest,
    running: &mut JoinSet<Result<i32, Failure>>,
    grace: Duration,
) {
    for container in &plan.containers {
        // One that is over already cannot be signalled, which is as well.
        let _ = guest.signal(&container.name, SIGTERM, false).await;
    }
    let _ = tokio::time::timeout(grace, all_over(running)).await;
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
        assert_eq!(of("init"), (1_800, 2_000));
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
            for s in boot_stages(&hello, 1_000, 2_000) {
                assert!(
                    1_000 <= s.start_us && s.start_us <= s.end_us && s.end_us <= 2_000,
                    "{s:?}"
                );
            }
        }
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
