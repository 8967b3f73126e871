//! Network namespaces that live as long as the descriptors to them, and the one
//! thread that goes into them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace without a name: it is gone when its last descriptor and
/// socket are closed, however this process ends.
#[derive(Clone, Debug)]
pub(crate) struct Namespace(Arc<OwnedFd>);

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What the thread is asked to do. The reply is in the closure.
type Job = Box<dyn FnOnce() + Send>;

/// A thread of its own for what has to be done inside a namespace: what it opens
/// there (sockets, TAPs, `/proc/sys/net`) belongs to that namespace. It is started
/// when it is first needed, and does one thing at a time: the kernel has one lock
/// for all its networks (rtnl), and who waits for it keeps everybody waiting.
#[derive(Debug, Default)]
pub(crate) struct NamespaceThread {
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    jobs: mpsc::Sender<Job>,
    thread: JoinHandle<()>,
}

impl NamespaceThread {
    /// A new, empty namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn create(&self) -> io::Result<Namespace> {
        self.ask(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(Namespace(Arc::new(own_namespace()?)))
        })
    }

    /// Runs `work` inside `namespace`. The error is that of getting there.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        namespace: &Namespace,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let namespace = namespace.clone();
        self.ask(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
    }

    fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (reply, answer) = mpsc::sync_channel(1);
        let job: Job = Box::new(move || {
            let _ = reply.send(work());
        });
        {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            let gone = |_| io::Error::other("the thread for namespaces has ended");
            match &*running {
                Some(thread) => thread.jobs.send(job).map_err(gone)?,
                None => {
                    let thread = running.insert(Running::start()?);
                    thread.jobs.send(job).map_err(gone)?;
                }
            }
        }
        let panicked = |_| Err(io::Error::other("what was done in the namespace panicked"));
        answer.recv().unwrap_or_else(panicked)
    }
}

impl Drop for NamespaceThread {
    fn drop(&mut self) {
        let running = self.running.get_mut();
        let running = running.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Running { jobs, thread }) = running {
            drop(jobs);
            // Each job's panic was told to whoever asked.
            let _ = thread.join();
        }
    }
}

impl Running {
    fn start() -> io::Result<Self> {
        let (jobs, asked) = mpsc::channel::<Job>();
        let home = own_namespace()?;
        let thread = std::thread::Builder::new()
            .name("eni-netns".into())
            .stack_size(STACK)
            .spawn(move || {
                for job in asked {
                    let _ = catch_unwind(AssertUnwindSafe(job));
                    // Elsewhere it would keep a namespace that nobody has any more.
                    if let Err(e) = setns(&home, CloneFlags::CLONE_NEWNET) {
                        tracing::error!("leaving a network namespace: {e}");
                        break;
                    }
                }
            })?;
        Ok(Self { jobs, thread })
    }
}

/// Stack of the thread in bytes; only what is touched costs memory.
const STACK: usize = 256 << 10;

/// Not of /proc/self, which is the process's main thread.
fn own_namespace() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}
