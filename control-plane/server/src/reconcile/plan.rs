//! What is to be done about a change of state, once it is decided: what to write,
//! whom to tell afterwards, whom to answer.

use std::collections::BTreeSet;

use longship_proto::Failure;
use longship_store::Transaction;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::command::Answer;
use crate::pods::Pods;

/// What is to be told to a card after the write.
#[derive(Debug)]
pub(crate) enum Tell {
    /// All that its host should run, and that the rest of what it holds goes.
    Everything {
        host: String,
        held: BTreeSet<String>,
    },
    /// What images its card is to keep.
    Images { host: String },
    /// The pod as it is then.
    Assign { host: String, id: Uuid },
    /// The host has nothing to do with the pod: it goes.
    Release { host: String, uid: String },
}

/// One transaction, and what follows it.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) transaction: Transaction,
    /// The pod that it writes, as it is at the end of the batch.
    pub(crate) pod: Option<Uuid>,
}

/// What answers are made of, after the write.
pub(crate) struct Written<'a> {
    pub(crate) pods: &'a Pods,
    /// Of each step; `None` where nothing had to be written.
    pub(crate) versions: &'a [Option<u64>],
}

impl Written<'_> {
    /// The version of the last write among the first steps.
    fn version_after(&self, steps: usize) -> Option<u64> {
        let versions = self.versions.get(..steps)?;
        versions.iter().rev().find_map(|version| *version)
    }
}

type Reply = Box<dyn FnOnce(Result<&Written<'_>, Failure>) + Send>;

/// Everything that a batch of commands leads to, in order.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) tell: Vec<Tell>,
    /// Tenants, each with the index of the step that writes it.
    pub(crate) tenants: Vec<(usize, String)>,
    pub(crate) replies: Vec<Reply>,
}

impl Plan {
    /// Writes something that is no pod.
    pub(crate) fn write(&mut self, transaction: Transaction) {
        self.steps.push(Step {
            transaction,
            pod: None,
        });
    }

    /// Answers after what has been planned so far is written: with what `build` makes
    /// of the version. It gets the version of the last step before, `None` where
    /// nothing had to be written.
    pub(crate) fn reply<T: Send + 'static>(
        &mut self,
        wrote: bool,
        answer: Answer<T>,
        build: impl FnOnce(Option<u64>) -> T + Send + 'static,
    ) {
        let steps = if wrote { self.steps.len() } else { 0 };
        self.reply_with(answer, move |written| build(written.version_after(steps)));
    }

    /// Answers after the batch is written, with what `build` makes of it.
    pub(crate) fn reply_with<T: Send + 'static>(
        &mut self,
        answer: Answer<T>,
        build: impl FnOnce(&Written<'_>) -> T + Send + 'static,
    ) {
        self.replies.push(Box::new(move |written| {
            // Whoever asked may have gone.
            let _ = answer.send(written.map(build));
        }));
    }
}

/// Answers at once with a refusal.
pub(crate) fn refuse<T>(answer: oneshot::Sender<Result<T, Failure>>, failure: Failure) {
    let _ = answer.send(Err(failure));
}
