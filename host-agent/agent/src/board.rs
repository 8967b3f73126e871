//! What became of each sandbox, for everybody to see.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use longship_proto::agent::v1::{Sandbox, SandboxState};
use tokio::sync::broadcast;

use crate::request::SandboxId;

/// Changes that a watcher may be behind before it has to start again.
const BACKLOG: usize = 1024;

/// The newest state of all sandboxes, and its changes in order.
#[derive(Debug)]
pub(crate) struct Board {
    shown: Mutex<BTreeMap<SandboxId, Sandbox>>,
    changes: broadcast::Sender<Sandbox>,
}

impl Board {
    pub(crate) fn new() -> Self {
        Self {
            shown: Mutex::default(),
            changes: broadcast::Sender::new(BACKLOG),
        }
    }

    /// Shows `sandbox` from now on; one that is gone is shown once and then not.
    pub(crate) fn show(&self, id: &SandboxId, sandbox: Sandbox) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if sandbox.state() == SandboxState::Gone {
            shown.remove(id);
        } else {
            shown.insert(id.clone(), sandbox.clone());
        }
        // Under the lock, so that no watcher sees changes in another order. Nobody
        // may be watching.
        let _ = self.changes.send(sandbox);
    }

    pub(crate) fn state(&self, id: &SandboxId) -> Option<SandboxState> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.get(id).map(Sandbox::state)
    }

    pub(crate) fn all(&self) -> Vec<Sandbox> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.values().cloned().collect()
    }

    /// All sandboxes, and every change after that.
    pub(crate) fn watch(&self) -> (Vec<Sandbox>, broadcast::Receiver<Sandbox>) {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = self.changes.subscribe();
        (shown.values().cloned().collect(), changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watcher_misses_nothing_and_sees_nothing_twice() {
        let board = Board::new();
        let id = SandboxId::parse("a").unwrap();
        let at = |state: SandboxState| Sandbox {
            id: "a".into(),
            state: state.into(),
            ..Sandbox::default()
        };
        board.show(&id, at(SandboxState::Prepared));
        let (now, mut changes) = board.watch();
        assert_eq!(now, [at(SandboxState::Prepared)]);
        board.show(&id, at(SandboxState::Running));
        board.show(&id, at(SandboxState::Gone));
        assert_eq!(changes.recv().await.unwrap().state(), SandboxState::Running);
        assert_eq!(changes.recv().await.unwrap().state(), SandboxState::Gone);
        assert!(changes.try_recv().is_err());
        assert!(board.all().is_empty());
    }
}
