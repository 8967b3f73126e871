//! Images that cards keep ready.

use longship_proto::control::v1::image_caches_server::ImageCaches;
use longship_proto::control::v1::{
    DeleteImageCacheRequest, DeleteImageCacheResponse, ImageCache, ListImageCachesRequest,
    ListImageCachesResponse, PutImageCacheRequest,
};
use longship_proto::{Failure, FailureExt};
use tonic::{Request, Response, Status};

use super::Control;
use crate::reconcile::{Command, ImageCommand};
use crate::validate;

#[tonic::async_trait]
impl ImageCaches for Control {
    async fn put_image_cache(
        &self,
        request: Request<PutImageCacheRequest>,
    ) -> Result<Response<ImageCache>, Status> {
        let scope = self.scope(&request)?;
        let cache = request.into_inner().cache;
        let cache =
            cache.ok_or_else(|| Failure::invalid("cache", "must be given").into_status())?;
        let mut cache = validate::image_cache(cache).map_err(Failure::into_status)?;
        let tenant = scope.tenant("cache.tenant", &cache.tenant);
        cache.tenant = tenant.map_err(Failure::into_status)?;
        let put = self.ask(|answer| Command::Images(ImageCommand::Put { cache, answer }));
        Ok(Response::new(put.await?))
    }

    async fn list_image_caches(
        &self,
        request: Request<ListImageCachesRequest>,
    ) -> Result<Response<ListImageCachesResponse>, Status> {
        let scope = self.scope(&request)?;
        let tenant = scope.tenants("tenant", &request.get_ref().tenant);
        let tenant = tenant.map_err(Failure::into_status)?;
        let caches = self.ask(|answer| Command::Images(ImageCommand::List { tenant, answer }));
        Ok(Response::new(ListImageCachesResponse {
            caches: caches.await?,
        }))
    }

    async fn delete_image_cache(
        &self,
        request: Request<DeleteImageCacheRequest>,
    ) -> Result<Response<DeleteImageCacheResponse>, Status> {
        let scope = self.scope(&request)?;
        let DeleteImageCacheRequest { tenant, name } = request.into_inner();
        let tenant = scope
            .tenant("tenant", &tenant)
            .map_err(Failure::into_status)?;
        validate::dns_label("name", &name).map_err(Failure::into_status)?;
        self.ask(|answer| {
            Command::Images(ImageCommand::Delete {
                tenant,
                name,
                answer,
            })
        })
        .await?;
        Ok(Response::new(DeleteImageCacheResponse {}))
    }
}
