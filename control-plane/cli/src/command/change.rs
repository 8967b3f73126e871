//! `longship label` and `longship annotate`

use std::collections::HashMap;

use clap::Args;
use longship_proto::control::v1::PatchPodRequest;

use crate::error::CliError;
use crate::server::{Server, ServerAddress};
use crate::show;

/// Change the labels of a pod.
#[derive(Debug, Args)]
pub(crate) struct Label {
    #[command(flatten)]
    changes: Changes,
}

/// Change the annotations of a pod.
#[derive(Debug, Args)]
pub(crate) struct Annotate {
    #[command(flatten)]
    changes: Changes,
}

#[derive(Debug, Args)]
struct Changes {
    /// What it is.
    kind: PodKind,
    /// Which one.
    name: String,
    /// KEY=VALUE sets it, KEY- removes it.
    #[arg(required = true, value_name = "CHANGE", value_parser = parse)]
    changes: Vec<Change>,
    /// Only where the pod still has this version.
    #[arg(
        long,
        value_name = "VERSION",
        default_value_t = 0,
        hide_default_value = true
    )]
    resource_version: u64,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum PodKind {
    #[value(alias = "pods", alias = "po")]
    Pod,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Set(String, String),
    Remove(String),
}

fn parse(text: &str) -> Result<Change, String> {
    if let Some((key, value)) = text.split_once('=') {
        return Ok(Change::Set(key.to_owned(), value.to_owned()));
    }
    match text.strip_suffix('-') {
        Some(key) if !key.is_empty() => Ok(Change::Remove(key.to_owned())),
        _ => Err("write KEY=VALUE to set it, KEY- to remove it".to_owned()),
    }
}

impl Changes {
    fn split(&self) -> (HashMap<String, String>, Vec<String>) {
        let (mut set, mut remove) = (HashMap::new(), Vec::new());
        for change in &self.changes {
            match change.clone() {
                Change::Set(key, value) => {
                    set.insert(key, value);
                }
                Change::Remove(key) => remove.push(key),
            }
        }
        (set, remove)
    }

    async fn send(
        &self,
        address: &ServerAddress,
        namespace: &str,
        done: &str,
        request: PatchPodRequest,
    ) -> Result<u8, CliError> {
        let PodKind::Pod = self.kind;
        let request = PatchPodRequest {
            namespace: namespace.to_owned(),
            name: self.name.clone(),
            if_resource_version: self.resource_version,
            ..request
        };
        Server::connect(address).await?.patch(request).await?;
        show::print(&format!("pod/{} {done}\n", self.name))?;
        Ok(0)
    }
}

impl Label {
    pub(crate) async fn run(
        self,
        address: &ServerAddress,
        namespace: &str,
    ) -> Result<u8, CliError> {
        let (set_labels, remove_labels) = self.changes.split();
        let request = PatchPodRequest {
            set_labels,
            remove_labels,
            ..PatchPodRequest::default()
        };
        self.changes
            .send(address, namespace, "labeled", request)
            .await
    }
}

impl Annotate {
    pub(crate) async fn run(
        self,
        address: &ServerAddress,
        namespace: &str,
    ) -> Result<u8, CliError> {
        let (set_annotations, remove_annotations) = self.changes.split();
        let request = PatchPodRequest {
            set_annotations,
            remove_annotations,
            ..PatchPodRequest::default()
        };
        self.changes
            .send(address, namespace, "annotated", request)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_sets_or_removes() {
        let set = |key: &str, value: &str| Ok(Change::Set(key.into(), value.into()));
        assert_eq!(parse("a=b"), set("a", "b"));
        assert_eq!(parse("a="), set("a", ""));
        assert_eq!(parse("x.io/a=b=c-"), set("x.io/a", "b=c-"));
        assert_eq!(parse("a-"), Ok(Change::Remove("a".into())));
        assert!(parse("a").is_err() && parse("-").is_err() && parse("").is_err());
    }
}
