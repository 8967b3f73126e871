//! A real etcd, and several control planes on it, of which one leads.

use std::path::{Path, PathBuf};
use std::time::Duration;

use longship_proto::health;
use longship_sim::control::{ControlError, ControlOptions, ControlProcess};
use longship_sim::network::Network;
use longship_test_etcd::Etcd;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How long a replica may take to say whether it leads.
const PATIENCE: Duration = Duration::from_secs(1);

/// etcd and its replicas; all end with this value.
#[derive(Debug)]
pub(crate) struct Replicas {
    /// The store of all of them.
    pub(crate) etcd: Etcd,
    binary: PathBuf,
    lease: Duration,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    address: String,
    process: Option<ControlProcess>,
}

impl Replicas {
    /// Starts etcd and so many control planes. A leader that is silent for `lease` is
    /// one no more.
    pub(crate) async fn start(
        binary: &Path,
        count: usize,
        lease: Duration,
    ) -> Result<Self, ControlError> {
        let mut replicas = Self {
            etcd: Etcd::start(),
            binary: binary.to_owned(),
            lease,
            members: Vec::new(),
        };
        for number in 0..count {
            replicas.members.push(Member {
                address: longship_test_etcd::free_address(),
                process: None,
            });
            replicas.restart(number).await?;
        }
        Ok(replicas)
    }

    /// Starts a replica again, where it was.
    pub(crate) async fn restart(&mut self, number: usize) -> Result<(), ControlError> {
        let Some(member) = self.members.get_mut(number) else {
            return Ok(());
        };
        let url = format!("http://{}", member.address);
        let arguments = [
            "--listen",
            &member.address,
            "--store",
            "etcd",
            "--etcd",
            &self.etcd.url(),
            "--advertise",
            &url,
            "--leader-lease",
            &self.lease.as_secs().to_string(),
        ];
        let options = ControlOptions {
            binary: self.binary.clone(),
            arguments: arguments.map(str::to_owned).to_vec(),
        };
        member.process = Some(ControlProcess::start(&options).await?);
        Ok(())
    }

    /// Ends a replica as a crash does (SIGKILL).
    pub(crate) async fn kill(&mut self, number: usize) {
        let member = self.members.get_mut(number);
        if let Some(mut process) = member.and_then(|member| member.process.take()) {
            process.kill().await;
        }
    }

    /// The process of a replica that runs.
    pub(crate) fn process(&self, number: usize) -> Option<&ControlProcess> {
        self.members.get(number)?.process.as_ref()
    }

    /// The ways to all of them.
    pub(crate) fn network(&self) -> AnyReplica {
        let channels = self.members.iter().map(|member| {
            let endpoint = Endpoint::from_shared(format!("http://{}", member.address));
            let endpoint = endpoint.unwrap_or_else(|_| Endpoint::from_static("http://127.0.0.1"));
            let endpoint = endpoint.connect_timeout(PATIENCE).tcp_nodelay(true);
            endpoint.connect_lazy()
        });
        AnyReplica(channels.collect())
    }
}

/// Connections to whichever replica leads.
#[derive(Debug, Clone)]
pub(crate) struct AnyReplica(Vec<Channel>);

impl AnyReplica {
    /// Which replica leads, by its own word.
    pub(crate) async fn leader(&self) -> Option<usize> {
        for (number, channel) in self.0.iter().enumerate() {
            if leads(channel).await {
                return Some(number);
            }
        }
        None
    }

    /// Waits for a leader.
    pub(crate) async fn wait_leader(&self) -> usize {
        loop {
            if let Some(number) = self.leader().await {
                return number;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The way to one of them.
    pub(crate) fn channel(&self, number: usize) -> Option<Channel> {
        self.0.get(number).cloned()
    }
}

async fn leads(channel: &Channel) -> bool {
    let asked = tokio::time::timeout(PATIENCE, health::leads(channel)).await;
    matches!(asked, Ok(Ok(true)))
}

#[tonic::async_trait]
impl Network for AnyReplica {
    async fn connect(&self) -> Result<Channel, Status> {
        let leader = self.leader().await.and_then(|number| self.channel(number));
        leader.ok_or_else(|| Status::new(Code::Unavailable, "no replica leads"))
    }
}
