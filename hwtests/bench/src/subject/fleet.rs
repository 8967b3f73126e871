//! Sandboxes or pods, many of them: what `burst` and `density` are about.

use std::path::Path;

use clap::Args;
use longship_proto::control::v1::Stage;

use crate::arguments::{Files, Machine, Origin, Programs};
use crate::error::BenchError;
use crate::subject::agent::Agent;
use crate::subject::pods::Pods;
use crate::subject::workshop::Workshop;

/// Which, and how they come to their guests.
#[derive(Debug, Clone, Args)]
pub(crate) struct Kind {
    #[command(flatten)]
    programs: Programs,
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Whole pods, with three devices each, instead of sandboxes with none
    #[arg(long)]
    pods: bool,
    /// Image of the pods: `oci:DIR[:TAG]` or a registry's; it needs `sh` and `sleep`.
    /// Where it is not given, the demo's
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// How a sandbox comes to its guest
    #[arg(long, value_enum, default_value_t = Origin::Clone)]
    pub(crate) origin: Origin,
    /// Paused clones that are kept, with `--origin warm`
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pool: u32,
}

/// All of one kind.
#[derive(Debug)]
pub(crate) enum Fleet {
    Sandboxes(Box<Agent>),
    Pods(Box<Pods>),
}

/// One that has begun.
#[derive(Debug, Clone)]
pub(crate) struct Begun {
    /// From the request to the guest's first act, or the container's first output.
    pub(crate) latency_ms: f64,
    /// Of a pod: from the card's first step.
    pub(crate) from_card_ms: Option<f64>,
    pub(crate) asked_us: i64,
    pub(crate) stages: Vec<Stage>,
}

impl Kind {
    /// `pod` or `sandbox`, for identifiers and titles.
    pub(crate) fn name(&self) -> &'static str {
        if self.pods { "pod" } else { "sandbox" }
    }

    /// `pods` or `sandboxes`.
    pub(crate) fn plural(&self) -> &'static str {
        if self.pods { "pods" } else { "sandboxes" }
    }

    /// Checks what is needed and starts the daemons; then starts and stops one of the
    /// fleet, which makes the template, converts the image and fills the pool.
    ///
    /// # Errors
    /// What is missing, or did not come up.
    pub(crate) async fn start(&self, workshop: &Workshop) -> Result<Fleet, BenchError> {
        let files = self.programs.find()?;
        let flags = self.origin.agent_flags(self.pool);
        let fleet = if self.pods {
            let image = image(self.image.as_deref(), &files)?;
            let pods = Pods::start(&files, self.machine, &image, workshop, &flags).await?;
            Fleet::Pods(Box::new(pods))
        } else {
            let agent = Agent::start(&files, self.machine, workshop, "fleet", &flags).await?;
            Fleet::Sandboxes(Box::new(agent))
        };
        fleet.run("warm-up", self).await?;
        fleet.stop("warm-up").await?;
        if let (Fleet::Sandboxes(agent), false) = (&fleet, self.origin == Origin::Cold) {
            let warm = if self.origin == Origin::Warm {
                self.pool
            } else {
                0
            };
            agent.template_ready(warm).await?;
        }
        Ok(fleet)
    }
}

/// The image of the pods.
///
/// # Errors
/// That there is none.
pub(crate) fn image(given: Option<&str>, files: &Files) -> Result<String, BenchError> {
    if let Some(image) = given {
        return Ok(image.to_owned());
    }
    let demo = files.beside("../demo/image");
    if !Path::new(&demo).join("index.json").is_file() {
        return Err(BenchError::Impossible(format!(
            "--image: {} is missing; `hwtests/demo/make-image.sh target/demo/image` makes it",
            demo.display()
        )));
    }
    let demo = demo.canonicalize().unwrap_or(demo);
    Ok(format!("oci:{}:latest", demo.display()))
}

impl Fleet {
    /// Starts one more.
    ///
    /// # Errors
    /// A refusal, or its end.
    pub(crate) async fn run(&self, name: &str, kind: &Kind) -> Result<Begun, BenchError> {
        match self {
            Self::Sandboxes(agent) => {
                let started = agent.run(name).await?;
                Ok(Begun {
                    latency_ms: started.latency_ms(),
                    from_card_ms: None,
                    asked_us: started.asked_us,
                    stages: started.stages,
                })
            }
            Self::Pods(pods) => {
                let running = pods.run(name, kind.machine.profile).await?;
                Ok(Begun {
                    latency_ms: running.latency_ms(),
                    from_card_ms: running.since_card_ms(),
                    asked_us: running.asked_us,
                    stages: running.status.timeline,
                })
            }
        }
    }

    /// Stops one, and waits until it is gone.
    ///
    /// # Errors
    /// A refusal.
    pub(crate) async fn stop(&self, name: &str) -> Result<(), BenchError> {
        match self {
            Self::Sandboxes(agent) => agent.stop(name).await,
            Self::Pods(pods) => pods.stop(name).await,
        }
    }

    /// Whether one answers: a pod runs a command. Sandboxes have nobody to ask.
    ///
    /// # Errors
    /// That it does not.
    pub(crate) async fn answers(&self, name: &str) -> Result<(), BenchError> {
        let Self::Pods(pods) = self else {
            return Ok(());
        };
        let why = match pods.script(name, "echo $((6 * 7))").await {
            Ok(said) if said == "42\n" => return Ok(()),
            Ok(said) => format!("answered {said:?}"),
            Err(error) => error.to_string(),
        };
        let state = pods.describe(name);
        Err(BenchError::Impossible(format!("{name}: {why} ({state})")))
    }

    /// Processes besides the sandboxes' own, with their names.
    pub(crate) fn daemons(&self) -> Vec<(&'static str, u32)> {
        match self {
            Self::Sandboxes(agent) => vec![("agent", agent.pid())],
            Self::Pods(pods) => pods.daemons().to_vec(),
        }
    }
}
