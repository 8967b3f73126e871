//! What can be asked of the reconciler.

use longship_proto::Failure;
use longship_proto::control::v1::{Host, Pod, PodReport, ToCard};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::inventory::Session;
use crate::validate::{NewPod, ValidRegister};

/// Where an answer goes.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, Failure>>;

/// One thing to do. All of them have been checked.
#[derive(Debug)]
pub(crate) enum Command {
    Create {
        pod: Box<NewPod>,
        uid: Uuid,
        answer: Answer<Pod>,
    },
    Delete {
        namespace: String,
        name: String,
        grace_seconds: Option<u32>,
        answer: Answer<Pod>,
    },
    Access {
        namespace: String,
        name: String,
        answer: Answer<Access>,
    },
    ListHosts {
        answer: Answer<Vec<Host>>,
    },
    Attach {
        register: Box<ValidRegister>,
        session: Session,
        answer: Answer<Vec<ToCard>>,
    },
    FromCard {
        host: String,
        session: u64,
        news: CardNews,
    },
}

/// What came over a card's stream.
#[derive(Debug)]
pub(crate) enum CardNews {
    Heartbeat,
    Reports(Vec<PodReport>),
    /// The stream has ended.
    Gone,
}

/// Where a pod's streams are to be had.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) endpoint: String,
    pub(crate) uid: String,
}
