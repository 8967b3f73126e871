//! What clients call.

use std::pin::Pin;

use longship_proto::control::v1::pods_server::Pods;
use longship_proto::control::v1::{
    AccessToken, CreatePodRequest, CreatePodsRequest, CreatePodsResponse, DeletePodRequest, Gang,
    GetPodAccessRequest, GetPodRequest, ListPodsRequest, ListPodsResponse, PatchPodRequest, Pod,
    PodAccess, PodEvent, PodResult, WatchPodsRequest, pod_result,
};
use longship_proto::{Failure, FailureExt, token};
use longship_store::StoreError;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::stream::Ending;
use super::{Control, list};
use crate::auth::Scope;
use crate::pods::key;
use crate::reconcile::{Command, GangOrder};
use crate::records::{self, decode_pod};
use crate::watch::{EncodedEvent, PodSet};
use crate::{validate, watch};
use longship_proto::now_us;

/// How long an access token is good for, in microseconds.
pub(crate) const TOKEN_TTL_US: i64 = 5 * 60 * 1_000_000;

#[tonic::async_trait]
impl Pods for Control {
    type WatchPodsStream = Pin<Box<dyn Stream<Item = Result<PodEvent, Status>> + Send>>;

    async fn create_pod(
        &self,
        request: Request<CreatePodRequest>,
    ) -> Result<Response<Pod>, Status> {
        let scope = self.scope(&request)?;
        let CreatePodRequest {
            pod,
            idempotency_key,
        } = request.into_inner();
        let created = self.create(&scope, pod, idempotency_key);
        Ok(Response::new(created.await?))
    }

    async fn create_pods(
        &self,
        request: Request<CreatePodsRequest>,
    ) -> Result<Response<CreatePodsResponse>, Status> {
        let scope = self.scope(&request)?;
        let CreatePodsRequest {
            pods,
            idempotency_key,
            gang,
        } = request.into_inner();
        validate::pod_count(pods.len()).map_err(Failure::into_status)?;
        let pods = pods.into_iter().map(Ok);
        let created = self.create_many(&scope, pods, gang, idempotency_key);
        Ok(Response::new(created.await?))
    }

    async fn patch_pod(&self, request: Request<PatchPodRequest>) -> Result<Response<Pod>, Status> {
        let scope = self.scope(&request)?;
        let mut request = request.into_inner();
        let names = (
            std::mem::take(&mut request.namespace),
            std::mem::take(&mut request.name),
        );
        (request.namespace, request.name) = pod_name(&scope, names.0, names.1)?;
        let patch = Box::new(validate::patch(request).map_err(Failure::into_status)?);
        let patched = self.ask(|answer| Command::Patch { patch, answer });
        Ok(Response::new(patched.await?))
    }

    async fn get_pod(&self, request: Request<GetPodRequest>) -> Result<Response<Pod>, Status> {
        let scope = self.scope(&request)?;
        let GetPodRequest { namespace, name } = request.into_inner();
        let (namespace, name) = pod_name(&scope, namespace, name)?;
        let found = self.store.get(records::POD, &key(&namespace, &name)).await;
        let object = found.map_err(store_failed)?.ok_or_else(|| {
            Failure::not_found(format!("no pod {namespace}/{name}")).into_status()
        })?;
        Ok(Response::new(decode_pod(&object).map_err(bad_record)?))
    }

    async fn list_pods(
        &self,
        request: Request<ListPodsRequest>,
    ) -> Result<Response<ListPodsResponse>, Status> {
        let scope = self.scope(&request)?;
        let request = request.into_inner();
        let set = pod_set(&scope, &request.namespace, "").map_err(Failure::into_status)?;
        let page = list::page(&*self.store, &set, &request).await;
        Ok(Response::new(page.map_err(Failure::into_status)?))
    }

    async fn watch_pods(
        &self,
        request: Request<WatchPodsRequest>,
    ) -> Result<Response<Self::WatchPodsStream>, Status> {
        let events = self.watch_encoded(request).await?;
        let decoded = events.map(|event| {
            let event = event?.decode_pod();
            event.map_err(|error| Status::internal(error.to_string()))
        });
        Ok(Response::new(Box::pin(decoded)))
    }

    async fn delete_pod(
        &self,
        request: Request<DeletePodRequest>,
    ) -> Result<Response<Pod>, Status> {
        let scope = self.scope(&request)?;
        let DeletePodRequest {
            namespace,
            name,
            grace_seconds,
            if_uid,
        } = request.into_inner();
        let (namespace, name) = pod_name(&scope, namespace, name)?;
        if let Some(seconds) = grace_seconds {
            validate::grace_limit("grace_seconds", seconds).map_err(Failure::into_status)?;
        }
        let deleted = self.ask(|answer| Command::Delete {
            namespace,
            name,
            grace_seconds,
            if_uid,
            answer,
        });
        Ok(Response::new(deleted.await?))
    }

    async fn get_pod_access(
        &self,
        request: Request<GetPodAccessRequest>,
    ) -> Result<Response<PodAccess>, Status> {
        let scope = self.scope(&request)?;
        let GetPodAccessRequest { namespace, name } = request.into_inner();
        let (namespace, name) = pod_name(&scope, namespace, name)?;
        let office = self.role.office().map_err(Failure::into_status)?;
        let access = self.ask_in(&office, |answer| Command::Access {
            namespace,
            name,
            answer,
        });
        let access = access.await?;
        let expires_us = now_us().saturating_add(TOKEN_TTL_US);
        let payload = AccessToken {
            pod_uid: access.uid.clone(),
            expires_us,
        };
        Ok(Response::new(PodAccess {
            endpoint: access.endpoint,
            token: token::sign(&token::host_key(&office.token_key, &access.host), &payload),
            pod_uid: access.uid,
            expires_us,
        }))
    }
}

impl Control {
    /// Creates a pod.
    pub(super) async fn create(
        &self,
        scope: &Scope,
        pod: Option<Pod>,
        idempotency_key: String,
    ) -> Result<Pod, Status> {
        let pod = pod.ok_or_else(|| Failure::invalid("pod", "must be given").into_status())?;
        let pod = Box::new(validate::pod(pod).map_err(Failure::into_status)?);
        let namespace = &pod.metadata.namespace;
        let visible = scope.check_namespace("metadata.namespace", namespace);
        visible.map_err(Failure::into_status)?;
        let once = validate::once(idempotency_key, "pod", [&*pod]).map_err(Failure::into_status)?;
        let uid = Uuid::new_v4();
        self.ask(|answer| Command::Create {
            pod,
            uid,
            once,
            answer,
        })
        .await
    }

    /// Creates pods, which have been counted.
    pub(super) async fn create_many(
        &self,
        scope: &Scope,
        pods: impl ExactSizeIterator<Item = Result<Pod, Failure>>,
        gang: Option<Gang>,
        idempotency_key: String,
    ) -> Result<CreatePodsResponse, Status> {
        let pods = validate::pods(pods).map_err(Failure::into_status)?;
        for (at, pod) in pods.iter().enumerate() {
            let visible = scope.check_namespace("metadata.namespace", &pod.metadata.namespace);
            visible.map_err(|failure| validate::in_batch(at, failure).into_status())?;
        }
        let what = format!("pods, {gang:?}");
        let once = validate::once(idempotency_key, &what, &pods).map_err(Failure::into_status)?;
        let pods = pods.into_iter().map(|pod| (pod, Uuid::new_v4())).collect();
        let gang = gang.map(|gang| GangOrder {
            one_zone: gang.one_zone,
        });
        let created = self.ask(|answer| Command::CreateMany {
            pods,
            gang,
            once,
            answer,
        });
        let results = created.await?.into_iter().map(|created| PodResult {
            result: Some(match created {
                Ok(pod) => pod_result::Result::Pod(Box::new(pod)),
                Err(failure) => pod_result::Result::Failure(failure),
            }),
        });
        Ok(CreatePodsResponse {
            results: results.collect(),
        })
    }

    /// Watches pods; the events' pods are encoded already.
    pub(super) async fn watch_encoded(
        &self,
        request: Request<WatchPodsRequest>,
    ) -> Result<Ending<EncodedEvent>, Status> {
        let scope = self.scope(&request)?;
        let request = request.into_inner();
        let set = pod_set(&scope, &request.namespace, &request.name);
        let set = set.map_err(Failure::into_status)?;
        watch::open(self, scope, request, set).await
    }
}

/// The pods that a request names, of those that the caller may see.
fn pod_set(scope: &Scope, namespace: &str, name: &str) -> Result<PodSet, Failure> {
    if namespace.is_empty() {
        if !name.is_empty() {
            return Err(Failure::invalid("namespace", "must be given with a name"));
        }
        return Ok(match (scope.confined(), scope.namespaces()) {
            (Some(tenant), Some(namespaces)) => PodSet::tenant(tenant, &namespaces),
            _ => PodSet::All,
        });
    }
    validate::dns_label("namespace", namespace)?;
    scope.check_namespace("namespace", namespace)?;
    if name.is_empty() {
        return Ok(PodSet::Namespace(namespace.to_owned()));
    }
    validate::dns_label("name", name)?;
    Ok(PodSet::Pod(key(namespace, name)))
}

/// Namespace and name of one pod, checked; what is another tenant's does not exist.
fn pod_name(scope: &Scope, namespace: String, name: String) -> Result<(String, String), Status> {
    let namespace = validate::namespace_or_default("namespace", namespace);
    let namespace = namespace.map_err(Failure::into_status)?;
    validate::dns_label("name", &name).map_err(Failure::into_status)?;
    if !scope.sees(&namespace) {
        return Err(Failure::not_found(format!("no pod {namespace}/{name}")).into_status());
    }
    Ok((namespace, name))
}

pub(crate) fn store_failed(error: StoreError) -> Status {
    Failure::from(error).into_status()
}

pub(crate) fn bad_record(error: records::RecordError) -> Status {
    Failure::internal(error.to_string()).into_status()
}
