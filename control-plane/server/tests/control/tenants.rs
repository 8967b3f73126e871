//! Tenants, and whose namespaces are whose.

use longship_proto::control::v1::image_caches_client::ImageCachesClient;
use longship_proto::control::v1::tenants_client::TenantsClient;
use longship_proto::control::v1::{
    DeleteTenantRequest, GetTenantRequest, ImageCache, ListImageCachesRequest, ListTenantsRequest,
    Pod, PutImageCacheRequest, PutTenantRequest, Quota, Tenant,
};
use longship_proto::{Class, Failure};

use crate::card::Card;
use crate::setup::{Control, answer, meta, pod};

impl Control {
    pub(crate) async fn put_tenant(&self, tenant: Tenant) -> Result<Tenant, Failure> {
        self.put_tenant_at(tenant, 0).await
    }

    async fn put_tenant_at(&self, tenant: Tenant, version: u64) -> Result<Tenant, Failure> {
        let mut tenants = TenantsClient::new(self.channel().await);
        let request = PutTenantRequest {
            tenant: Some(tenant),
            if_resource_version: version,
        };
        answer(tenants.put_tenant(request).await)
    }

    async fn tenant(&self, name: &str) -> Result<Tenant, Failure> {
        let mut tenants = TenantsClient::new(self.channel().await);
        answer(
            tenants
                .get_tenant(GetTenantRequest { name: name.into() })
                .await,
        )
    }

    async fn tenants(&self) -> Vec<String> {
        let mut tenants = TenantsClient::new(self.channel().await);
        let all = answer(tenants.list_tenants(ListTenantsRequest {}).await).unwrap();
        all.tenants.into_iter().map(|tenant| tenant.name).collect()
    }

    async fn delete_tenant(&self, name: &str) -> Result<(), Failure> {
        let mut tenants = TenantsClient::new(self.channel().await);
        let request = DeleteTenantRequest { name: name.into() };
        answer(tenants.delete_tenant(request).await).map(|_| ())
    }
}

pub(crate) fn tenant(name: &str, namespaces: &[&str]) -> Tenant {
    Tenant {
        name: name.into(),
        namespaces: namespaces.iter().map(|n| (*n).to_owned()).collect(),
        ..Tenant::default()
    }
}

pub(crate) fn pod_in(namespace: &str, name: &str) -> Pod {
    let mut pod = pod(name, 500, 512);
    pod.metadata.get_or_insert_default().namespace = namespace.into();
    pod
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_remembered_as_it_was_put() {
    let mut control = Control::start().await;
    assert_eq!(control.tenants().await, ["default"]);
    let quota = Quota {
        pods: Some(7),
        creates_per_second: Some(5),
        ..Quota::default()
    };
    let wanted = Tenant {
        quota: Some(quota),
        weight: 3,
        ..tenant("red", &["shop", "red"])
    };
    let put = control.put_tenant(wanted).await.unwrap();
    assert_eq!(put.namespaces, ["red", "shop"]);
    assert!(put.resource_version > 0);
    let got = control.tenant("red").await.unwrap();
    assert_eq!(got, put);
    control.restart().await;
    assert_eq!(control.tenant("red").await.unwrap(), put);
    assert_eq!(control.tenants().await, ["default", "red"]);

    // Of two who change what they have seen, one has to look again.
    let mut more = put.clone();
    more.weight = 4;
    let version = put.resource_version;
    let changed = control.put_tenant_at(more.clone(), version).await.unwrap();
    assert!(changed.resource_version > version);
    let late = control.put_tenant_at(more, version).await.unwrap_err();
    assert_eq!(late.class(), Class::Conflict);
    assert_eq!(late.field, "if_resource_version");
    assert_eq!(control.tenant("red").await.unwrap(), changed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_has_one_tenant_and_its_pods_keep_it() {
    let control = Control::start().await;
    let _card = Card::attach(&control, "host-1", "zone-a").await;
    control.put_tenant(tenant("red", &["shop"])).await.unwrap();
    let taken = control.put_tenant(tenant("blue", &["shop"])).await;
    let taken = taken.unwrap_err();
    assert_eq!(taken.class(), Class::Conflict);
    assert_eq!(taken.field, "tenant.namespaces");

    let created = control.create(pod_in("shop", "web")).await.unwrap();
    assert_eq!(meta(&created).tenant, "red");
    let created = control.create(pod_in("bench", "web")).await.unwrap();
    assert_eq!(meta(&created).tenant, "default");
    let usage = control.tenant("red").await.unwrap().usage.unwrap();
    assert_eq!((usage.pods, usage.enis), (1, 1));
    assert!(usage.cpu_millis >= 500 && usage.memory_bytes >= 512 << 20);

    for (wrong, of) in [
        (tenant("red", &[]), "red"),
        (tenant("blue", &["bench"]), "default"),
    ] {
        let refused = control.put_tenant(wrong).await.unwrap_err();
        assert_eq!(refused.class(), Class::Conflict);
        assert!(refused.message.contains(of), "{refused}");
    }
    // What is the default tenant's anyhow it may also claim.
    control
        .put_tenant(tenant("default", &["bench"]))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_tenant_without_pods_goes() {
    let control = Control::start().await;
    control.put_tenant(tenant("red", &["shop"])).await.unwrap();
    control.create(pod_in("shop", "web")).await.unwrap();
    let refused = control.delete_tenant("red").await.unwrap_err();
    assert_eq!(refused.class(), Class::Conflict);
    let request = longship_proto::control::v1::DeletePodRequest {
        namespace: "shop".into(),
        name: "web".into(),
        ..Default::default()
    };
    answer(control.pods().await.delete_pod(request).await).unwrap();
    control.delete_tenant("red").await.unwrap();
    let gone = control.delete_tenant("red").await.unwrap_err();
    assert_eq!(gone.class(), Class::NotFound);
    let kept = control.delete_tenant("default").await.unwrap_err();
    assert_eq!(kept.class(), Class::Conflict);
    assert_eq!(control.tenants().await, ["default"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn image_caches_go_with_their_tenant() {
    let control = Control::start().await;
    let mut caches = ImageCachesClient::new(control.channel().await);
    for name in ["red", "blue"] {
        control.put_tenant(tenant(name, &[])).await.unwrap();
        let cache = ImageCache {
            name: "base".into(),
            tenant: name.into(),
            images: vec!["127.0.0.1:5000/hello:latest".into()],
            ..ImageCache::default()
        };
        let request = PutImageCacheRequest { cache: Some(cache) };
        answer(caches.put_image_cache(request).await).unwrap();
    }
    control.delete_tenant("red").await.unwrap();
    let request = ListImageCachesRequest::default();
    let left = answer(caches.list_image_caches(request).await).unwrap();
    let tenants: Vec<String> = left.caches.into_iter().map(|cache| cache.tenant).collect();
    assert_eq!(tenants, ["blue"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_tenant_is_refused_at_its_field() {
    let control = Control::start().await;
    let refused = control.put_tenant(tenant("red", &["a", "B"])).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.class(), Class::Invalid);
    assert_eq!(refused.field, "tenant.namespaces[1]");
    let refused = control.tenant("Red").await.unwrap_err();
    assert_eq!(refused.field, "name");
    assert_eq!(control.tenants().await, ["default"]);
}
