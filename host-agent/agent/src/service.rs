//! The agent's gRPC service: each request is checked, then done in a task of its
//! own, so that a caller that goes away leaves nothing half done.

use std::pin::Pin;
use std::sync::Arc;

use longship_framed::error::Failure;
use longship_proto::FailureExt;
use longship_proto::agent::v1::agent_server::Agent;
use longship_proto::agent::v1::{
    GetHostRequest, GetUsageRequest, HostInfo, HostUsage, ListSandboxesRequest,
    ListSandboxesResponse, ListTemplatesRequest, ListTemplatesResponse, PrepareSandboxRequest,
    Sandbox, StartSandboxRequest, StopSandboxRequest, StopSandboxResponse, WatchSandboxesRequest,
};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::request::{SandboxId, Spec, parse_devices};
use crate::sandboxes::Sandboxes;

/// Changes on their way to one watcher.
const IN_FLIGHT: usize = 16;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct AgentService {
    pub(crate) sandboxes: Arc<Sandboxes>,
}

/// Runs `work` to its end whatever becomes of the caller.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<Response<T>, Status> {
    match tokio::spawn(work).await {
        Ok(Ok(done)) => Ok(Response::new(done)),
        Ok(Err(failure)) => Err(failure.into_status()),
        Err(error) => Err(Failure::internal(error.to_string()).into_status()),
    }
}

#[tonic::async_trait]
impl Agent for AgentService {
    async fn get_host(&self, _: Request<GetHostRequest>) -> Result<Response<HostInfo>, Status> {
        let host = self.sandboxes.host();
        Ok(Response::new(HostInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cpus: host.cpus,
            memory_bytes: host.memory_bytes,
        }))
    }

    async fn prepare_sandbox(
        &self,
        request: Request<PrepareSandboxRequest>,
    ) -> Result<Response<Sandbox>, Status> {
        let spec = Spec::parse(request.get_ref()).map_err(FailureExt::into_status)?;
        let sandboxes = Arc::clone(&self.sandboxes);
        detached(async move { sandboxes.prepare(spec).await }).await
    }

    async fn start_sandbox(
        &self,
        request: Request<StartSandboxRequest>,
    ) -> Result<Response<Sandbox>, Status> {
        let request = request.into_inner();
        let id = SandboxId::parse(&request.id).map_err(FailureExt::into_status)?;
        let devices = parse_devices(&request.devices).map_err(FailureExt::into_status)?;
        let sandboxes = Arc::clone(&self.sandboxes);
        detached(async move { sandboxes.start(&id, request.generation, devices).await }).await
    }

    async fn stop_sandbox(
        &self,
        request: Request<StopSandboxRequest>,
    ) -> Result<Response<StopSandboxResponse>, Status> {
        let request = request.into_inner();
        let id = SandboxId::parse(&request.id).map_err(FailureExt::into_status)?;
        let sandboxes = Arc::clone(&self.sandboxes);
        detached(async move {
            sandboxes.stop(&id, request.generation).await?;
            Ok(StopSandboxResponse {})
        })
        .await
    }

    async fn list_sandboxes(
        &self,
        _: Request<ListSandboxesRequest>,
    ) -> Result<Response<ListSandboxesResponse>, Status> {
        let sandboxes = self.sandboxes.board().all();
        Ok(Response::new(ListSandboxesResponse { sandboxes }))
    }

    async fn get_usage(&self, _: Request<GetUsageRequest>) -> Result<Response<HostUsage>, Status> {
        let usage = self.sandboxes.usage().await;
        usage.map(Response::new).map_err(FailureExt::into_status)
    }

    async fn list_templates(
        &self,
        _: Request<ListTemplatesRequest>,
    ) -> Result<Response<ListTemplatesResponse>, Status> {
        let templates = self.sandboxes.machines().list().await;
        Ok(Response::new(ListTemplatesResponse { templates }))
    }

    type WatchSandboxesStream = Pin<Box<dyn Stream<Item = Result<Sandbox, Status>> + Send>>;

    async fn watch_sandboxes(
        &self,
        _: Request<WatchSandboxesRequest>,
    ) -> Result<Response<Self::WatchSandboxesStream>, Status> {
        let (now, changes) = self.sandboxes.board().watch();
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        tokio::spawn(forward(now, changes, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Sends what is there and then every change, until the watcher goes.
async fn forward(
    now: Vec<Sandbox>,
    mut changes: broadcast::Receiver<Sandbox>,
    watcher: mpsc::Sender<Result<Sandbox, Status>>,
) {
    for sandbox in now {
        if watcher.send(Ok(sandbox)).await.is_err() {
            return;
        }
    }
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            () = watcher.closed() => return,
        };
        let (item, last) = match change {
            Ok(sandbox) => (Ok(sandbox), false),
            Err(broadcast::error::RecvError::Closed) => return,
            // It missed changes; only from the beginning can it know all again.
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                let failure =
                    Failure::unavailable(format!("fell {missed} changes behind: watch again"));
                (Err(failure.into_status()), true)
            }
        };
        if watcher.send(item).await.is_err() || last {
            return;
        }
    }
}
