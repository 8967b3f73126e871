//! `longship get`

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::card::{list_held, usage};
use crate::error::CliError;
use crate::server::{Server, ServerAddress};
use crate::show::{self, Format, document, objects, table, tenancy, time, usage as show_usage};

/// Show pods, hosts and what else there is, or what a card holds and its host's templates.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// What to show.
    kind: Kind,
    /// Only this one.
    name: Option<String>,
    /// Pods of all namespaces.
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Pods with these labels, e.g. `app=web,tier in (a,b),!canary`.
    #[arg(long, short = 'l', default_value = "", hide_default_value = true)]
    selector: String,
    /// Only this tenant's VPCs, reservations, image caches or tokens.
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Operators' socket of the card, for `held` and `templates`.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "unix:/run/longship/card.sock"
    )]
    card: String,
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
    #[value(alias = "zone")]
    Zones,
    #[value(alias = "vpc", alias = "subnets", alias = "subnet")]
    Vpcs,
    #[value(alias = "reservation")]
    Reservations,
    #[value(name = "imagecaches", alias = "imagecache")]
    ImageCaches,
    /// With what they have of their quotas.
    #[value(alias = "tenant", alias = "quotas", alias = "quota")]
    Tenants,
    #[value(alias = "token")]
    Tokens,
    /// What a card's journal holds for pods.
    Held,
    /// Guests that sandboxes are cloned from, on a card's host.
    #[value(alias = "template")]
    Templates,
}

/// What was found: for scripts, for people, and what to say where there is nothing.
struct Found {
    documents: Vec<Value>,
    text: String,
    nothing: String,
}

impl Get {
    pub(crate) async fn run(
        self,
        address: &ServerAddress,
        namespace: &str,
    ) -> Result<u8, CliError> {
        let found = self.find(address, namespace).await?;
        match self.output {
            None | Some(Format::Wide) if found.documents.is_empty() => {
                eprintln!("{}", found.nothing);
            }
            None | Some(Format::Wide) => show::print(&found.text)?,
            Some(format) => show::print_document(&self.list_or_one(found.documents), format)?,
        }
        Ok(0)
    }

    async fn find(&self, address: &ServerAddress, namespace: &str) -> Result<Found, CliError> {
        match self.kind {
            Kind::Pods => self.pods(Server::connect(address).await?, namespace).await,
            Kind::Hosts => self.hosts(Server::connect(address).await?).await,
            Kind::Flavors => self.flavors(Server::connect(address).await?).await,
            Kind::Zones => self.zones(Server::connect(address).await?).await,
            Kind::Vpcs => self.vpcs(Server::connect(address).await?).await,
            Kind::Reservations => self.reservations(Server::connect(address).await?).await,
            Kind::ImageCaches => self.image_caches(Server::connect(address).await?).await,
            Kind::Tenants => self.tenants(Server::connect(address).await?).await,
            Kind::Tokens => self.tokens(Server::connect(address).await?).await,
            Kind::Held => self.held().await,
            Kind::Templates => self.templates().await,
        }
    }

    async fn pods(&self, mut server: Server, namespace: &str) -> Result<Found, CliError> {
        let pods = match &self.name {
            Some(name) => vec![server.get(namespace, name).await?],
            None if self.all_namespaces => server.list("", &self.selector).await?,
            None => server.list(namespace, &self.selector).await?,
        };
        let wide = self.output == Some(Format::Wide);
        Ok(Found {
            documents: pods.iter().map(document::pod).collect(),
            text: table::pods(&pods, wide, self.all_namespaces, time::now_us()),
            nothing: if self.all_namespaces {
                "there are no pods".to_owned()
            } else {
                format!("there are no pods in namespace {namespace}")
            },
        })
    }

    async fn hosts(&self, mut server: Server) -> Result<Found, CliError> {
        let hosts = self.only(server.hosts().await?, "host", |host| &host.name)?;
        Ok(Found {
            documents: hosts.iter().map(document::host).collect(),
            text: table::hosts(&hosts, self.output == Some(Format::Wide)),
            nothing: "there are no hosts".to_owned(),
        })
    }

    async fn flavors(&self, mut server: Server) -> Result<Found, CliError> {
        let flavors = self.only(server.flavors().await?, "flavor", |flavor| &flavor.name)?;
        Ok(Found {
            documents: flavors.iter().map(document::flavor).collect(),
            text: table::flavors(&flavors),
            nothing: "there are no flavors".to_owned(),
        })
    }

    async fn zones(&self, mut server: Server) -> Result<Found, CliError> {
        let zones = self.only(server.zones().await?, "zone", |zone| &zone.name)?;
        Ok(Found {
            documents: zones.iter().map(objects::zone).collect(),
            text: objects::zones(&zones),
            nothing: "there are no zones: a zone is there once a host of it is".to_owned(),
        })
    }

    async fn vpcs(&self, mut server: Server) -> Result<Found, CliError> {
        let vpcs = server.vpcs(&self.tenant).await?;
        let vpcs = self.only(vpcs, "vpc", |vpc| &vpc.name)?;
        Ok(Found {
            documents: vpcs.iter().map(objects::vpc).collect(),
            text: objects::vpcs(&vpcs),
            nothing: "there are no VPCs yet: a tenant's first pod makes one".to_owned(),
        })
    }

    async fn reservations(&self, mut server: Server) -> Result<Found, CliError> {
        let found = server.reservations(&self.tenant).await?;
        let found = self.only(found, "reservation", |one| &one.name)?;
        Ok(Found {
            documents: found.iter().map(objects::reservation).collect(),
            text: objects::reservations(&found),
            nothing: "there are no capacity reservations".to_owned(),
        })
    }

    async fn image_caches(&self, mut server: Server) -> Result<Found, CliError> {
        let caches = server.image_caches(&self.tenant).await?;
        let caches = self.only(caches, "imagecache", |cache| &cache.name)?;
        Ok(Found {
            documents: caches.iter().map(objects::image_cache).collect(),
            text: objects::image_caches(&caches),
            nothing: "there are no image caches".to_owned(),
        })
    }

    async fn tenants(&self, mut server: Server) -> Result<Found, CliError> {
        let tenants = match &self.name {
            Some(name) => vec![server.tenant(name).await?],
            None => server.tenants().await?,
        };
        Ok(Found {
            documents: tenants.iter().map(tenancy::tenant).collect(),
            text: tenancy::tenants(&tenants),
            nothing: "there are no tenants".to_owned(),
        })
    }

    async fn tokens(&self, mut server: Server) -> Result<Found, CliError> {
        let tokens = server.tokens(&self.tenant).await?;
        let tokens = self.only(tokens, "token", |token| &token.id)?;
        Ok(Found {
            documents: tokens.iter().map(tenancy::token).collect(),
            text: tenancy::tokens(&tokens, time::now_us()),
            nothing: "there are no tokens".to_owned(),
        })
    }

    async fn held(&self) -> Result<Found, CliError> {
        let held = list_held(&self.card).await?;
        Ok(Found {
            documents: held.iter().map(document::held).collect(),
            text: table::held(&held),
            nothing: "the card holds nothing".to_owned(),
        })
    }

    async fn templates(&self) -> Result<Found, CliError> {
        let host = usage(&self.card).await?.host.ok_or_else(|| {
            CliError::Other("the host's agent does not answer the card".to_owned())
        })?;
        let templates = self.only(host.templates, "template", |template| &template.id)?;
        Ok(Found {
            documents: templates.iter().map(show_usage::template).collect(),
            text: show_usage::templates(&templates),
            nothing: "there are no templates yet: a size's first pod makes one".to_owned(),
        })
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
