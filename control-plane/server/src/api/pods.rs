//! What clients call.

use longship_proto::control::v1::pods_server::Pods;
use longship_proto::control::v1::{
    AccessToken, CreatePodRequest, CreatePodsRequest, CreatePodsResponse, DeletePodRequest,
    GetPodAccessRequest, GetPodRequest, ListPodsRequest, ListPodsResponse, PatchPodRequest, Pod,
    PodAccess, PodEvent, WatchPodsRequest,
};
use longship_proto::{Failure, FailureExt, token};
use longship_store::StoreError;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::Control;
use super::stream::Ending;
use crate::auth::Scope;
use crate::pods::{key, namespace_of};
use crate::reconcile::Command;
use crate::records::{self, decode_pod};
use crate::{validate, watch};
use longship_proto::now_us;

/// How long an access token is good for, in microseconds.
pub(crate) const TOKEN_TTL_US: i64 = 5 * 60 * 1_000_000;

#[tonic::async_trait]
impl Pods for Control {
    type WatchPodsStream = Ending<PodEvent>;

    async fn create_pod(
        &self,
        request: Request<CreatePodRequest>,
    ) -> Result<Response<Pod>, Status> {
        let scope = self.scope(&request)?;
        let pod = request.into_inner().pod;
        let pod = pod.ok_or_else(|| Failure::invalid("pod", "must be given").into_status())?;
        let pod = Box::new(validate::pod(pod).map_err(Failure::into_status)?);
        let namespace = &pod.metadata.namespace;
        let visible = scope.check_namespace("metadata.namespace", namespace);
        visible.map_err(Failure::into_status)?;
        let uid = Uuid::new_v4();
        let created = self.ask(|answer| Command::Create { pod, uid, answer });
        Ok(Response::new(created.await?))
    }

    async fn create_pods(
        &self,
        _: Request<CreatePodsRequest>,
    ) -> Result<Response<CreatePodsResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn patch_pod(&self, _: Request<PatchPodRequest>) -> Result<Response<Pod>, Status> {
        Err(Status::unimplemented("not yet"))
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
        let prefix = watch::prefix(&scope, &request.into_inner().namespace)?;
        let listing = self.store.list(records::POD, &prefix).await;
        let listing = listing.map_err(store_failed)?;
        let pods: Result<Vec<Pod>, _> = listing
            .objects
            .iter()
            .filter(|object| scope.sees(namespace_of(&object.key)))
            .map(decode_pod)
            .collect();
        Ok(Response::new(ListPodsResponse {
            pods: pods.map_err(bad_record)?,
            resource_version: listing.version,
            next_page_token: String::new(),
        }))
    }

    async fn watch_pods(
        &self,
        request: Request<WatchPodsRequest>,
    ) -> Result<Response<Self::WatchPodsStream>, Status> {
        let scope = self.scope(&request)?;
        let stream = watch::open(self, scope, request.into_inner()).await?;
        Ok(Response::new(stream))
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
            ..
        } = request.into_inner();
        let (namespace, name) = pod_name(&scope, namespace, name)?;
        if let Some(seconds) = grace_seconds {
            validate::grace_limit("grace_seconds", seconds).map_err(Failure::into_status)?;
        }
        let deleted = self.ask(|answer| Command::Delete {
            namespace,
            name,
            grace_seconds,
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
        let access = self.ask(|answer| Command::Access {
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
            token: token::sign(&self.token_key, &payload),
            pod_uid: access.uid,
            expires_us,
        }))
    }
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
