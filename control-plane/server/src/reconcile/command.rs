//! What can be asked of the reconciler.

use longship_proto::Failure;
use longship_proto::control::v1::{CapacityReservation, Host, ImageReport, Pod, PodReport, Zone};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::images::ImageCommand;
use super::networks::NetworkCommand;
use super::tenants::TenantCommand;
use super::tokens::TokenCommand;
use crate::inventory::Session;
use crate::validate::{NewPod, Once, PodPatch, ValidRegister};

/// Where an answer goes.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, Failure>>;

/// One thing to do. All of them have been checked.
#[derive(Debug)]
pub(crate) enum Command {
    Create {
        pod: Box<NewPod>,
        uid: Uuid,
        once: Option<Once>,
        answer: Answer<Pod>,
    },
    /// Several at once; the answers in the same order. Of a gang all have the same.
    CreateMany {
        pods: Vec<(NewPod, Uuid)>,
        gang: Option<GangOrder>,
        once: Option<Once>,
        answer: Answer<Vec<Result<Pod, Failure>>>,
    },
    Delete {
        namespace: String,
        name: String,
        grace_seconds: Option<u32>,
        /// Not empty: only this very pod.
        if_uid: String,
        answer: Answer<Pod>,
    },
    Patch {
        patch: Box<PodPatch>,
        answer: Answer<Pod>,
    },
    Access {
        namespace: String,
        name: String,
        answer: Answer<Access>,
    },
    Tenants(TenantCommand),
    Networks(NetworkCommand),
    Images(ImageCommand),
    Tokens(TokenCommand),
    /// Some hosts, by name.
    ListHosts {
        /// Only of this zone.
        zone: Option<String>,
        /// Only those after this name.
        after: String,
        limit: usize,
        answer: Answer<HostPage>,
    },
    ListZones {
        answer: Answer<Vec<Zone>>,
    },
    Cordon {
        host: String,
        /// False: pods may come again.
        cordoned: bool,
        answer: Answer<Host>,
    },
    Drain {
        host: String,
        grace_seconds: Option<u32>,
        answer: Answer<Host>,
    },
    RemoveHost {
        host: String,
        answer: Answer<()>,
    },
    /// Room for a tenant. Name, tenant, count and end have been checked for what can be
    /// checked without the fleet.
    Reserve {
        reservation: CapacityReservation,
        answer: Answer<CapacityReservation>,
    },
    ListReservations {
        /// `None`: everybody's.
        tenant: Option<String>,
        answer: Answer<Vec<CapacityReservation>>,
    },
    EndReservation {
        tenant: String,
        name: String,
        answer: Answer<()>,
    },
    Attach {
        register: Box<ValidRegister>,
        session: Session,
        answer: Answer<()>,
    },
    FromCard {
        host: String,
        session: u64,
        news: CardNews,
    },
}

/// How the pods of a gang belong together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GangOrder {
    /// All of them in one zone, whichever.
    pub(crate) one_zone: bool,
}

/// A part of all hosts.
#[derive(Debug)]
pub(crate) struct HostPage {
    pub(crate) hosts: Vec<Host>,
    /// There are more after these.
    pub(crate) more: bool,
}

/// What came over a card's stream.
#[derive(Debug)]
pub(crate) enum CardNews {
    Heartbeat,
    Reports(Vec<PodReport>),
    Images(Vec<ImageReport>),
    /// The stream has ended.
    Gone,
}

/// Where a pod's streams are to be had.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) host: String,
    pub(crate) endpoint: String,
    pub(crate) uid: String,
}
