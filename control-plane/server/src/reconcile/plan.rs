//! What is to be done about a change of state, once it is decided: what to write,
//! whom to tell afterwards, whom to answer.

use longship_proto::Failure;
use longship_store::Transaction;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::command::Answer;

/// What is to be told to a card after the write.
#[derive(Debug)]
pub(crate) enum Tell {
    /// The pod as it is then.
    Assign { host: String, id: Uuid },
    /// Nobody knows the pod: it goes.
    Release { host: String, uid: String },
}

/// One transaction, and what follows it.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) transaction: Transaction,
    /// The pod that it writes.
    pub(crate) pod: Option<Uuid>,
}

/// An answer that waits for the write. It gets the version of the last step before
/// it, `None` where nothing had to be written.
type Reply = Box<dyn FnOnce(Result<Option<u64>, Failure>) + Send>;

/// Everything that a batch of commands leads to, in order.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) tell: Vec<Tell>,
    /// Tenants, each with the index of the step that writes it.
    pub(crate) tenants: Vec<(usize, String)>,
    /// With the count of steps that must be written before.
    pub(crate) replies: Vec<(usize, Reply)>,
}

impl Plan {
    /// Answers after what has been planned so far is written: with what `build` makes
    /// of the version.
    pub(crate) fn reply<T: Send + 'static>(
        &mut self,
        wrote: bool,
        answer: Answer<T>,
        build: impl FnOnce(Option<u64>) -> T + Send + 'static,
    ) {
        let steps = if wrote { self.steps.len() } else { 0 };
        let reply: Reply = Box::new(move |written| {
            // Whoever asked may have gone.
            let _ = answer.send(written.map(build));
        });
        self.replies.push((steps, reply));
    }
}

/// Answers at once with a refusal.
pub(crate) fn refuse<T>(answer: oneshot::Sender<Result<T, Failure>>, failure: Failure) {
    let _ = answer.send(Err(failure));
}
