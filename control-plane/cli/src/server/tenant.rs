//! Calls about what a tenant has beside pods: networks, reservations, image caches.

use longship_proto::control::v1::{
    CapacityReservation, CreateReservationRequest, CreateSubnetRequest, CreateVpcRequest,
    DeleteImageCacheRequest, DeleteReservationRequest, DeleteSubnetRequest, DeleteVpcRequest,
    ImageCache, ListImageCachesRequest, ListReservationsRequest, ListVpcsRequest,
    PutImageCacheRequest, Subnet, Vpc,
};

use super::{Server, bounded};
use crate::error::CliError;

impl Server {
    pub(crate) async fn vpcs(&mut self, tenant: &str) -> Result<Vec<Vpc>, CliError> {
        let tenant = tenant.to_owned();
        let request = ListVpcsRequest { tenant };
        Ok(bounded(self.networks.list_vpcs(request)).await?.vpcs)
    }

    pub(crate) async fn create_vpc(&mut self, vpc: Vpc) -> Result<Vpc, CliError> {
        let vpc = Some(vpc);
        bounded(self.networks.create_vpc(CreateVpcRequest { vpc })).await
    }

    pub(crate) async fn delete_vpc(&mut self, name: &str) -> Result<(), CliError> {
        let name = name.to_owned();
        bounded(self.networks.delete_vpc(DeleteVpcRequest { name })).await?;
        Ok(())
    }

    pub(crate) async fn create_subnet(
        &mut self,
        vpc: &str,
        subnet: Subnet,
    ) -> Result<Subnet, CliError> {
        let request = CreateSubnetRequest {
            vpc: vpc.to_owned(),
            subnet: Some(subnet),
        };
        bounded(self.networks.create_subnet(request)).await
    }

    pub(crate) async fn delete_subnet(&mut self, vpc: &str, name: &str) -> Result<(), CliError> {
        let request = DeleteSubnetRequest {
            vpc: vpc.to_owned(),
            name: name.to_owned(),
        };
        bounded(self.networks.delete_subnet(request)).await?;
        Ok(())
    }

    pub(crate) async fn reservations(
        &mut self,
        tenant: &str,
    ) -> Result<Vec<CapacityReservation>, CliError> {
        let tenant = tenant.to_owned();
        let request = ListReservationsRequest { tenant };
        let found = bounded(self.capacity.list_reservations(request)).await?;
        Ok(found.reservations)
    }

    pub(crate) async fn reserve(
        &mut self,
        reservation: CapacityReservation,
    ) -> Result<CapacityReservation, CliError> {
        let reservation = Some(reservation);
        let request = CreateReservationRequest { reservation };
        bounded(self.capacity.create_reservation(request)).await
    }

    pub(crate) async fn delete_reservation(
        &mut self,
        tenant: &str,
        name: &str,
    ) -> Result<(), CliError> {
        let request = DeleteReservationRequest {
            tenant: tenant.to_owned(),
            name: name.to_owned(),
        };
        bounded(self.capacity.delete_reservation(request)).await?;
        Ok(())
    }

    pub(crate) async fn image_caches(&mut self, tenant: &str) -> Result<Vec<ImageCache>, CliError> {
        let tenant = tenant.to_owned();
        let request = ListImageCachesRequest { tenant };
        Ok(bounded(self.image_caches.list_image_caches(request))
            .await?
            .caches)
    }

    pub(crate) async fn put_image_cache(
        &mut self,
        cache: ImageCache,
    ) -> Result<ImageCache, CliError> {
        let cache = Some(cache);
        bounded(
            self.image_caches
                .put_image_cache(PutImageCacheRequest { cache }),
        )
        .await
    }

    pub(crate) async fn delete_image_cache(
        &mut self,
        tenant: &str,
        name: &str,
    ) -> Result<(), CliError> {
        let request = DeleteImageCacheRequest {
            tenant: tenant.to_owned(),
            name: name.to_owned(),
        };
        bounded(self.image_caches.delete_image_cache(request)).await?;
        Ok(())
    }
}
