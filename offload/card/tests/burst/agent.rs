//! An agent whose machines never boot. It counts how many are asked for at once.

use std::collections::HashSet;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use longship_proto::agent::v1::agent_server::{Agent, AgentServer};
use longship_proto::agent::v1::{
    GetHostRequest, GetUsageRequest, HostInfo, HostUsage, ListSandboxesRequest,
    ListSandboxesResponse, ListTemplatesRequest, ListTemplatesResponse, MemoryProfile,
    PrepareSandboxRequest, Sandbox, SandboxState, SandboxUsage, StartSandboxRequest,
    StopSandboxRequest, StopSandboxResponse, Template, TemplateState, WatchSandboxesRequest,
};
use tokio::net::UnixListener;
use tokio_stream::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

#[derive(Default)]
struct State {
    now: usize,
    most: usize,
    started: HashSet<String>,
    stopped: HashSet<String>,
    refuses_usage: bool,
}

#[derive(Clone, Default)]
pub(crate) struct PlayedAgent(Arc<Mutex<State>>);

impl PlayedAgent {
    pub(crate) async fn start(socket: &Path) -> Self {
        let agent = Self::default();
        let listener = UnixListener::bind(socket).unwrap();
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(AgentServer::new(agent.clone()))
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        agent
    }

    pub(crate) fn started(&self) -> HashSet<String> {
        self.0.lock().unwrap().started.clone()
    }

    pub(crate) fn stopped(&self) -> HashSet<String> {
        self.0.lock().unwrap().stopped.clone()
    }

    pub(crate) fn most_at_once(&self) -> usize {
        self.0.lock().unwrap().most
    }

    pub(crate) fn refuse_usage(&self) {
        self.0.lock().unwrap().refuses_usage = true;
    }
}

fn sandbox(id: String, generation: u64, state: SandboxState) -> Response<Sandbox> {
    Response::new(Sandbox {
        id,
        generation,
        state: state.into(),
        ..Sandbox::default()
    })
}

#[tonic::async_trait]
impl Agent for PlayedAgent {
    type WatchSandboxesStream = Pin<Box<dyn Stream<Item = Result<Sandbox, Status>> + Send>>;

    async fn get_host(&self, _: Request<GetHostRequest>) -> Result<Response<HostInfo>, Status> {
        Ok(Response::new(HostInfo {
            version: "played".into(),
            cpus: 64,
            memory_bytes: 1 << 40,
        }))
    }

    async fn prepare_sandbox(
        &self,
        request: Request<PrepareSandboxRequest>,
    ) -> Result<Response<Sandbox>, Status> {
        let request = request.into_inner();
        assert_eq!(request.profile(), MemoryProfile::Dense);
        {
            let mut state = self.0.lock().unwrap();
            state.now += 1;
            state.most = state.most.max(state.now);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.0.lock().unwrap().now -= 1;
        Ok(sandbox(
            request.id,
            request.generation,
            SandboxState::Prepared,
        ))
    }

    async fn start_sandbox(
        &self,
        request: Request<StartSandboxRequest>,
    ) -> Result<Response<Sandbox>, Status> {
        let request = request.into_inner();
        assert_eq!(request.devices.len(), 4);
        self.0.lock().unwrap().started.insert(request.id.clone());
        Ok(sandbox(
            request.id,
            request.generation,
            SandboxState::Running,
        ))
    }

    async fn stop_sandbox(
        &self,
        request: Request<StopSandboxRequest>,
    ) -> Result<Response<StopSandboxResponse>, Status> {
        let id = request.into_inner().id;
        self.0.lock().unwrap().stopped.insert(id);
        Ok(Response::new(StopSandboxResponse {}))
    }

    async fn list_sandboxes(
        &self,
        _: Request<ListSandboxesRequest>,
    ) -> Result<Response<ListSandboxesResponse>, Status> {
        Ok(Response::new(ListSandboxesResponse::default()))
    }

    async fn watch_sandboxes(
        &self,
        _: Request<WatchSandboxesRequest>,
    ) -> Result<Response<Self::WatchSandboxesStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::pending())))
    }

    async fn get_usage(&self, _: Request<GetUsageRequest>) -> Result<Response<HostUsage>, Status> {
        let state = self.0.lock().unwrap();
        if state.refuses_usage {
            return Err(Status::unavailable("not now"));
        }
        let sandboxes = state.started.difference(&state.stopped);
        let sandboxes: Vec<SandboxUsage> = sandboxes
            .map(|id| SandboxUsage {
                id: id.clone(),
                guest_bytes: 1 << 20,
                shared_bytes: 20 << 20,
                ..SandboxUsage::default()
            })
            .collect();
        Ok(Response::new(HostUsage {
            templates: vec![Template {
                vcpus: 1,
                memory_bytes: 128 << 20,
                profile: MemoryProfile::Dense.into(),
                state: TemplateState::Ready.into(),
                clones: u32::try_from(sandboxes.len()).unwrap(),
                ..Template::default()
            }],
            sandboxes,
            ..HostUsage::default()
        }))
    }

    async fn list_templates(
        &self,
        _: Request<ListTemplatesRequest>,
    ) -> Result<Response<ListTemplatesResponse>, Status> {
        Ok(Response::new(ListTemplatesResponse::default()))
    }
}
