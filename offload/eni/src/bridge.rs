//! The ENIs of a card without hardware: TAPs on a bridge a VPC.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use longship_vhost_user::Server;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use crate::namespace::NamespaceThread;
use crate::net::{Counters, NetDevice};
use crate::vpc::Vpc;
use crate::{EniError, EniProvider, EniSpec, EniStats};

/// ENIs that are made at the same time, and that are given back. Both change the
/// kernel's networks, which has one lock for them all: more threads would only wait
/// for each other, and each costs memory.
const MAKING: usize = 2;
const RELEASING: usize = 8;

/// Provides ENIs in emulation mode. Clones are the same provider; when the last
/// is dropped, all ENIs are released.
#[derive(Clone, Debug)]
pub struct BridgeEnis {
    registry: Arc<Mutex<Registry>>,
    making: Arc<Semaphore>,
    releasing: Arc<Semaphore>,
}

impl Default for BridgeEnis {
    fn default() -> Self {
        Self {
            registry: Arc::default(),
            making: Arc::new(Semaphore::new(MAKING)),
            releasing: Arc::new(Semaphore::new(RELEASING)),
        }
    }
}

#[derive(Debug, Default)]
struct Registry {
    enis: HashMap<String, Arc<Eni>>,
    thread: Arc<NamespaceThread>,
    /// A VPC lives as long as an ENI holds it.
    vpcs: HashMap<String, Weak<Vpc>>,
}

/// An ENI that exists or is being made; its id, MAC, address and socket are taken.
#[derive(Debug)]
struct Eni {
    spec: EniSpec,
    vpc: Arc<Vpc>,
    counters: Arc<Counters>,
    /// Held by whoever makes or releases the ENI.
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// Being made for the first time.
    New,
    Served(Server),
    /// Not made, or released: out of the registry.
    Gone,
}

/// Nothing here panics with a lock held, but a poisoned lock would be no reason
/// to lose all other ENIs.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BridgeEnis {
    /// A provider without any ENI.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the ENI has moved; `None` for an unknown id.
    pub fn stats(&self, id: &str) -> Option<EniStats> {
        let eni = lock(&self.registry).enis.get(id).cloned()?;
        Some(eni.counters.read())
    }

    /// Connects from the gateway of `vpc` to a pod in it. The caller sets the
    /// time limit.
    ///
    /// # Errors
    /// [`EniError::UnknownVpc`] without any ENI there, [`EniError::Dial`].
    pub async fn dial(&self, vpc: &str, to: SocketAddrV4) -> Result<TcpStream, EniError> {
        let found = self.vpc(vpc)?;
        let failed = |source| EniError::Dial {
            vpc: vpc.to_owned(),
            to,
            source,
        };
        // A socket stays in the namespace in which it was made.
        let socket = blocking(None, move || found.run(TcpSocket::new_v4)).await?;
        socket
            .map_err(failed)?
            .connect(to.into())
            .await
            .map_err(failed)
    }

    /// A descriptor of the network namespace of `vpc`. It keeps the namespace
    /// for as long as it is open.
    ///
    /// # Errors
    /// [`EniError::UnknownVpc`] without any ENI there.
    pub fn namespace(&self, vpc: &str) -> Result<OwnedFd, EniError> {
        self.vpc(vpc)?.descriptor()
    }

    fn vpc(&self, name: &str) -> Result<Arc<Vpc>, EniError> {
        let registry = lock(&self.registry);
        let found = registry.vpcs.get(name).and_then(Weak::upgrade);
        found.ok_or_else(|| EniError::UnknownVpc(name.to_owned()))
    }

    fn prepare_now(&self, spec: &EniSpec) -> Result<(), EniError> {
        spec.validate()?;
        loop {
            let mut registry = lock(&self.registry);
            let Some(there) = registry.enis.get(&spec.id).cloned() else {
                let eni = registry.claim(spec)?;
                // Nobody else has it yet, so this does not wait.
                let mut state = lock(&eni.state);
                registry.enis.insert(spec.id.clone(), eni.clone());
                drop(registry);
                let made = eni.make();
                *state = match made {
                    Ok(server) => State::Served(server),
                    Err(e) => {
                        *state = State::Gone;
                        lock(&self.registry).forget(&eni);
                        return Err(e);
                    }
                };
                return Ok(());
            };
            drop(registry);
            if there.spec != *spec {
                let message = format!("{} exists with another specification", spec.id);
                return conflict("id", message);
            }
            // Waits for whoever is making or releasing it.
            match *lock(&there.state) {
                State::Served(_) => return Ok(()),
                State::Gone => {}
                // Whoever made it has panicked.
                State::New => lock(&self.registry).forget(&there),
            }
        }
    }

    fn release_now(&self, id: &str) {
        let Some(eni) = lock(&self.registry).enis.get(id).cloned() else {
            return;
        };
        let mut state = lock(&eni.state);
        if let State::Served(server) = std::mem::replace(&mut *state, State::Gone) {
            eni.unmake(server);
            lock(&self.registry).forget(&eni);
        }
    }
}

impl Registry {
    /// A new ENI, if nothing of it is taken.
    fn claim(&mut self, spec: &EniSpec) -> Result<Arc<Eni>, EniError> {
        for other in self.enis.values().map(|eni| &eni.spec) {
            if other.socket == spec.socket {
                let message = format!("{} is that of ENI {}", spec.socket.display(), other.id);
                return conflict("socket", message);
            }
            if other.vpc != spec.vpc {
                continue;
            }
            let (vpc, id) = (&other.vpc, &other.id);
            if other.mac == spec.mac {
                let message = format!("{} is that of ENI {id} in VPC {vpc}", spec.mac);
                return conflict("mac", message);
            }
            if other.address == spec.address {
                let message = format!("{} is that of ENI {id} in VPC {vpc}", spec.address);
                return conflict("address", message);
            }
            if (other.gateway, other.prefix_length) != (spec.gateway, spec.prefix_length) {
                let message = format!(
                    "{}/{} is not {}/{}, that of VPC {vpc} on this card",
                    spec.gateway, spec.prefix_length, other.gateway, other.prefix_length
                );
                return conflict("gateway", message);
            }
        }
        let in_use = self.enis.values().find(|eni| eni.spec.vpc == spec.vpc);
        let vpc = in_use.map_or_else(
            || Arc::new(Vpc::of(spec, self.thread.clone())),
            |eni| eni.vpc.clone(),
        );
        self.vpcs.insert(spec.vpc.clone(), Arc::downgrade(&vpc));
        Ok(Arc::new(Eni {
            spec: spec.clone(),
            vpc,
            counters: Arc::default(),
            state: Mutex::new(State::New),
        }))
    }

    /// Frees what the ENI had taken.
    fn forget(&mut self, eni: &Arc<Eni>) {
        let spec = &eni.spec;
        self.enis.remove(&spec.id);
        if !self.enis.values().any(|other| other.spec.vpc == spec.vpc) {
            self.vpcs.remove(&spec.vpc);
        }
    }
}

impl Eni {
    fn make(&self) -> Result<Server, EniError> {
        let tap = self.vpc.create_tap(&self.spec.tap_name(), self.spec.mtu)?;
        let device = NetDevice::new(&self.spec, tap, self.counters.clone());
        let server = Server::start(&self.spec.socket, device)?;
        tracing::info!(
            eni = self.spec.id, vpc = self.spec.vpc, address = %self.spec.address, "ENI prepared"
        );
        Ok(server)
    }

    fn unmake(&self, mut server: Server) {
        // The TAP goes with its descriptor, unless a thread is stuck with it.
        if !server.stop()
            && let Err(e) = self.vpc.remove_tap(&self.spec.tap_name())
        {
            tracing::error!(eni = self.spec.id, "{e}");
        }
        tracing::info!(eni = self.spec.id, "ENI released");
    }
}

impl EniProvider for BridgeEnis {
    async fn prepare(&self, spec: EniSpec) -> Result<(), EniError> {
        let this = self.clone();
        blocking(Some(&self.making), move || this.prepare_now(&spec)).await
    }

    async fn release(&self, id: &str) -> Result<(), EniError> {
        let (this, id) = (self.clone(), id.to_owned());
        blocking(Some(&self.releasing), move || {
            this.release_now(&id);
            Ok(())
        })
        .await
    }

    async fn list(&self) -> Result<Vec<EniSpec>, EniError> {
        let registry = lock(&self.registry);
        let mut specs: Vec<EniSpec> = registry.enis.values().map(|e| e.spec.clone()).collect();
        specs.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(specs)
    }
}

fn conflict<T>(field: &'static str, message: String) -> Result<T, EniError> {
    Err(EniError::Conflict { field, message })
}

/// Runs what blocks on a thread for it, when its turn has come. Once begun, it ends
/// even if the future is dropped.
async fn blocking<T: Send + 'static>(
    turns: Option<&Arc<Semaphore>>,
    work: impl FnOnce() -> Result<T, EniError> + Send + 'static,
) -> Result<T, EniError> {
    let turn = match turns {
        Some(turns) => {
            let turn = turns.clone().acquire_owned().await;
            Some(turn.map_err(|_| EniError::Stopping)?)
        }
        None => None,
    };
    let ran = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work()
    });
    ran.await.map_err(|_| EniError::Stopping)?
}
