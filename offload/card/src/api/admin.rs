//! `CardAdmin`, for operators, on the card's own socket only.

use std::collections::HashMap;
use std::sync::Arc;

use longship_proto::agent::v1::{HostUsage, SandboxUsage, TemplateState};
use longship_proto::card::v1::card_admin_server::CardAdmin;
use longship_proto::card::v1::{
    GetUsageRequest, GetUsageResponse, Held, ListHeldRequest, ListHeldResponse, PodUsage,
};
use longship_proto::{Failure, FailureExt};
use tonic::{Request, Response, Status};
use tracing::warn;

use crate::card::Card;
use crate::plan::PodPlan;
use crate::reconciler::Reconciler;
use crate::usage;

/// The service.
pub(crate) struct Admin {
    card: Arc<Card>,
    reconciler: Arc<Reconciler>,
    /// This process's memory before its first pod.
    base_bytes: u64,
}

impl Admin {
    /// Serves `card`'s books, and what its pods cost.
    pub(crate) fn new(card: Arc<Card>, reconciler: Arc<Reconciler>, base_bytes: u64) -> Self {
        Self {
            card,
            reconciler,
            base_bytes,
        }
    }

    async fn usage(&self) -> Result<GetUsageResponse, Failure> {
        let host = match self.card.agent.usage().await {
            Ok(host) => Some(host),
            Err(failure) => {
                warn!(%failure, "the agent does not say what its sandboxes cost");
                None
            }
        };
        let pods = self.reconciler.holding();
        let card_bytes =
            usage::own_bytes().map_err(|e| Failure::internal(format!("read /proc/self: {e}")))?;
        let folder = self.card.scratch.clone();
        let files = tokio::task::spawn_blocking(move || usage::files_bytes(&folder)).await;
        let files = files
            .map_err(|e| Failure::internal(format!("look at the scratch disks: {e}")))?
            .map_err(|e| Failure::internal(format!("look at the scratch disks: {e}")))?;

        let sandboxes: HashMap<&str, &SandboxUsage> = host
            .iter()
            .flat_map(|h| &h.sandboxes)
            .map(|s| (s.id.as_str(), s))
            .collect();
        let images: Vec<Images> = pods.iter().map(|(_, a)| Images::of(&a.images())).collect();
        let mut users: HashMap<&str, u32> = HashMap::new();
        for digest in images.iter().flat_map(|i| &i.digests) {
            *users.entry(digest).or_default() += 1;
        }
        let grown = card_bytes.saturating_sub(self.base_bytes);
        let shares = usage::shares(grown, pods.len());
        let pods = pods.iter().zip(&images).zip(shares);
        let pods = pods.map(|(((plan, _), images), card_bytes)| {
            let sandbox = sandboxes.get(plan.uid.as_str()).map(|s| (*s).clone());
            PodUsage {
                pod_uid: plan.uid.clone(),
                namespace: plan.namespace.clone(),
                name: plan.name.clone(),
                flavor: plan.flavor.name.clone(),
                template_clones: match (&host, &sandbox) {
                    (Some(host), Some(sandbox)) if sandbox.shared_bytes > 0 => clones(host, plan),
                    _ => 0,
                },
                sandbox,
                card_bytes,
                scratch_bytes: files.get(&plan.scratch_id()).copied().unwrap_or(0),
                image_bytes: images.bytes,
                image_pods: images
                    .largest()
                    .and_then(|digest| users.get(digest))
                    .copied()
                    .unwrap_or(0),
            }
        });
        let pods = pods.collect();
        Ok(GetUsageResponse {
            pods,
            card_bytes,
            card_base_bytes: self.base_bytes,
            host,
        })
    }
}

/// What a pod's images take on the card's disk.
struct Images {
    /// The largest first.
    digests: Vec<String>,
    bytes: u64,
}

impl Images {
    fn of(images: &[Arc<longship_image::Image>]) -> Self {
        let mut sizes: Vec<(u64, String)> = images
            .iter()
            .map(|image| (usage::file_bytes(&image.disk), image.digest.clone()))
            .collect();
        sizes.sort_by(|a, b| b.cmp(a));
        Self {
            bytes: sizes.iter().map(|(bytes, _)| bytes).sum(),
            digests: sizes.into_iter().map(|(_, digest)| digest).collect(),
        }
    }

    fn largest(&self) -> Option<&str> {
        self.digests.first().map(String::as_str)
    }
}

/// Clones of the template that a pod's machine was made from.
fn clones(host: &HostUsage, plan: &PodPlan) -> u32 {
    let template = host.templates.iter().find(|t| {
        t.state() == TemplateState::Ready
            && t.vcpus == plan.flavor.vcpus
            && t.memory_bytes == plan.flavor.memory_bytes
            && t.profile() == plan.profile
    });
    template.map_or(0, |t| t.clones)
}

#[tonic::async_trait]
impl CardAdmin for Admin {
    async fn list_held(
        &self,
        _: Request<ListHeldRequest>,
    ) -> Result<Response<ListHeldResponse>, Status> {
        let held = self.card.journal.held().into_iter().map(|item| Held {
            pod_uid: item.pod_uid,
            kind: item.kind,
            name: item.name,
        });
        Ok(Response::new(ListHeldResponse {
            held: held.collect(),
        }))
    }

    async fn get_usage(
        &self,
        _: Request<GetUsageRequest>,
    ) -> Result<Response<GetUsageResponse>, Status> {
        let usage = self.usage().await.map_err(Failure::into_status)?;
        Ok(Response::new(usage))
    }
}
