//! `longship get`

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::error::CliError;
use crate::server::{Server, ServerAddress};
use crate::show::{self, Format, document, table, time};

/// Show pods, hosts or flavors.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// What to show.
    kind: Kind,
    /// Only this one.
    name: Option<String>,
    /// Pods of all namespaces.
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Form of the output.
    #[arg(long, short = 'o')]
    output: Option<Format>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    #[value(alias = "pod", alias = "po")]
    Pods,
    #[value(alias = "host")]
    Hosts,
    #[value(alias = "flavor")]
    Flavors,
}

impl Get {
    pub(crate) async fn run(
        self,
        address: &ServerAddress,
        namespace: &str,
    ) -> Result<u8, CliError> {
        let mut server = Server::connect(address).await?;
        let wide = self.output == Some(Format::Wide);
        let (documents, text): (Vec<Value>, String) = match self.kind {
            Kind::Pods => {
                let pods = match &self.name {
                    Some(name) => vec![server.get(namespace, name).await?],
                    None if self.all_namespaces => server.list("").await?,
                    None => server.list(namespace).await?,
                };
                (
                    pods.iter().map(document::pod).collect(),
                    table::pods(&pods, wide, self.all_namespaces, time::now_us()),
                )
            }
            Kind::Hosts => {
                let hosts = self.only(server.hosts().await?, "host", |host| &host.name)?;
                (
                    hosts.iter().map(document::host).collect(),
                    table::hosts(&hosts, wide),
                )
            }
            Kind::Flavors => {
                let flavors =
                    self.only(server.flavors().await?, "flavor", |flavor| &flavor.name)?;
                (
                    flavors.iter().map(document::flavor).collect(),
                    table::flavors(&flavors),
                )
            }
        };
        match self.output {
            None | Some(Format::Wide) => show::print(&text)?,
            Some(format) => show::print_document(&self.list_or_one(documents), format)?,
        }
        Ok(0)
    }

    fn only<T>(
        &self,
        all: Vec<T>,
        kind: &str,
        name_of: impl Fn(&T) -> &String,
    ) -> Result<Vec<T>, CliError> {
        let Some(name) = &self.name else {
            return Ok(all);
        };
        let found: Vec<T> = all.into_iter().filter(|one| name_of(one) == name).collect();
        if found.is_empty() {
            let message = format!("there is no {kind} {name}");
            return Err(longship_proto::Failure::not_found(message).into());
        }
        Ok(found)
    }

    fn list_or_one(&self, mut documents: Vec<Value>) -> Value {
        if self.name.is_some() && documents.len() == 1 {
            documents.remove(0)
        } else {
            json!({"apiVersion": "v1", "kind": "List", "items": documents})
        }
    }
}
