//! What a client's streams need of a running pod.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use longship_framed::guest::Process;
use longship_image::Image;
use longship_proto::Failure;

use crate::guest::Guest;

/// The guest and the containers of one pod, as far as they are there.
#[derive(Default)]
pub(crate) struct PodAccess {
    state: Mutex<State>,
    execs: AtomicU64,
}

#[derive(Default)]
struct State {
    guest: Option<Guest>,
    images: Vec<Arc<Image>>,
    // In the order of the pod's spec; with the process once it was started.
    containers: Vec<String>,
    processes: HashMap<String, Process>,
}

impl PodAccess {
    /// A pod with these containers, none of which runs.
    pub(crate) fn new(containers: Vec<String>) -> Self {
        Self {
            state: Mutex::new(State {
                containers,
                ..State::default()
            }),
            execs: AtomicU64::new(1),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest answers from now on.
    pub(crate) fn opened(&self, guest: Guest) {
        self.state().guest = Some(guest);
    }

    /// The pod's disks are made of these images.
    pub(crate) fn has_images(&self, images: Vec<Arc<Image>>) {
        self.state().images = images;
    }

    /// The images that the pod's disks are made of, each once.
    pub(crate) fn images(&self) -> Vec<Arc<Image>> {
        self.state().images.clone()
    }

    /// A container's first process was started.
    pub(crate) fn started(&self, container: &str, process: Process) {
        self.state().processes.insert(container.to_owned(), process);
    }

    /// A container's first process ended.
    pub(crate) fn ended(&self, container: &str) {
        self.state().processes.remove(container);
    }

    /// The guest is given up; whoever still speaks to it learns so.
    pub(crate) fn closed(&self) {
        let mut state = self.state();
        if let Some(guest) = state.guest.take() {
            guest.close();
        }
        state.processes.clear();
        state.images.clear();
    }

    /// The container called `name`, or the only one where `name` is empty.
    ///
    /// # Errors
    /// `NotFound` for an unknown name; `Invalid` where one has to be named.
    pub(crate) fn container(&self, name: &str) -> Result<String, Failure> {
        let state = self.state();
        let names = || state.containers.join(", ");
        match (name, state.containers.as_slice()) {
            ("", [only]) => Ok(only.clone()),
            ("", _) => Err(Failure::invalid(
                "container",
                format!("the pod has several containers, name one of: {}", names()),
            )),
            (name, all) if all.iter().any(|c| c == name) => Ok(name.to_owned()),
            (name, _) => Err(Failure::not_found(format!(
                "the pod has no container `{name}`; there are: {}",
                names()
            ))),
        }
    }

    /// The guest, and the first process of a container that runs.
    ///
    /// # Errors
    /// `Unavailable` where it does not run.
    pub(crate) fn running(&self, container: &str) -> Result<(Guest, Process), Failure> {
        let state = self.state();
        state
            .guest
            .clone()
            .zip(state.processes.get(container).cloned())
            .ok_or_else(|| Failure::unavailable(format!("container `{container}` does not run")))
    }

    /// A name for one more process, unique in the guest's life.
    pub(crate) fn next_exec(&self) -> String {
        format!("exec-{}", self.execs.fetch_add(1, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use longship_proto::Class;

    use super::*;

    #[test]
    fn the_only_container_needs_no_name() {
        let pod = PodAccess::new(vec!["web".into()]);
        assert_eq!(pod.container("").unwrap(), "web");
        assert_eq!(pod.container("web").unwrap(), "web");
        assert_eq!(pod.container("db").unwrap_err().class(), Class::NotFound);
    }

    #[test]
    fn of_several_one_must_be_named() {
        let pod = PodAccess::new(vec!["web".into(), "db".into()]);
        let refused = pod.container("").unwrap_err();
        assert_eq!(refused.class(), Class::Invalid);
        assert!(refused.message.contains("web, db"), "{refused}");
    }

    #[test]
    fn a_container_that_does_not_run_has_no_guest() {
        let pod = PodAccess::new(vec!["web".into()]);
        let refused = pod.running("web").map(|_| ()).unwrap_err();
        assert_eq!(refused.class(), Class::Unavailable);
    }
}
