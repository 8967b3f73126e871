//! Every call of every service, by everybody who may come.

use std::collections::BTreeMap;

use longship_proto::control::v1::pods_client::PodsClient;
use longship_proto::control::v1::tenants_client::TenantsClient;
use longship_proto::control::v1::{
    CreateTokenRequest, CreateTokenResponse, DeletePodRequest, DeleteTenantRequest,
    GetPodAccessRequest, GetPodRequest, GetTenantRequest, ListPodsRequest, ListTenantsRequest,
    ListTokensRequest, PutTenantRequest, RevokeTokenRequest, Role, WatchPodsRequest, pod_event,
};
use longship_proto::{Class, FILE_DESCRIPTOR_SET, Failure, failure_of};
use prost::Message;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::setup::{Control, PATIENCE, answer, meta, pod};
use crate::tenants::{pod_in, tenant};

/// Sends a token with each call.
#[derive(Clone, Default)]
pub(crate) struct With(pub(crate) Option<MetadataValue<Ascii>>);

impl Interceptor for With {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", token.clone());
        }
        Ok(request)
    }
}

pub(crate) type Client = InterceptedService<Channel, With>;

impl Control {
    pub(crate) async fn token(&self, tenant: &str, role: Role) -> CreateTokenResponse {
        self.token_for(tenant, role, 0).await.unwrap()
    }

    async fn token_for(
        &self,
        tenant: &str,
        role: Role,
        ttl_seconds: u32,
    ) -> Result<CreateTokenResponse, Failure> {
        let mut tenants = TenantsClient::new(self.channel().await);
        let request = CreateTokenRequest {
            tenant: tenant.into(),
            role: role.into(),
            ttl_seconds,
            note: "test".into(),
        };
        answer(tenants.create_token(request).await)
    }

    /// A connection on which each call says `authorization: VALUE`.
    pub(crate) async fn saying(&self, value: &str) -> Client {
        let with = With(Some(value.parse().unwrap()));
        InterceptedService::new(self.channel().await, with)
    }

    pub(crate) async fn with(&self, token: &str) -> Client {
        self.saying(&format!("Bearer {token}")).await
    }
}

/// Calls a method by its path with an empty message, and says with which code it is
/// answered.
pub(crate) async fn call(client: &Client, path: &str) -> Code {
    let mut grpc = tonic::client::Grpc::new(client.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = path.parse().unwrap();
    // As a client's stream: whether that or a single message is wanted, the server gets
    // one message, and the end.
    let once = Request::new(tokio_stream::once(()));
    let answered = grpc.streaming(once, path, codec);
    match tokio::time::timeout(PATIENCE, answered).await.unwrap() {
        // A refusal comes before any message would.
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}

/// Every method of every service that the server offers, by its path.
fn methods() -> Vec<String> {
    let sets = [
        FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ];
    let mut methods = Vec::new();
    for set in sets {
        let set = prost_types::FileDescriptorSet::decode(set).unwrap();
        for file in set.file {
            let package = file.package().to_owned();
            // The card's own, and the agent's, are served elsewhere.
            if package == "longship.card.v1" || package == "longship.agent.v1" {
                continue;
            }
            for service in &file.service {
                let method = service
                    .method
                    .iter()
                    .map(|method| format!("/{package}.{}/{}", service.name(), method.name()));
                methods.extend(method);
            }
        }
    }
    methods.sort();
    methods.dedup();
    methods
}

/// Who may call what; what is here twice or not at all fails the test.
pub(crate) const FOR_EVERYBODY: &[&str] = &[
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
];
pub(crate) const FOR_VIEWERS: &[&str] = &[
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/longship.control.v1.Capacity/ListReservations",
    "/longship.control.v1.ImageCaches/ListImageCaches",
    "/longship.control.v1.Inventory/ListFlavors",
    "/longship.control.v1.Inventory/ListZones",
    "/longship.control.v1.Networks/ListVpcs",
    "/longship.control.v1.Pods/GetPod",
    "/longship.control.v1.Pods/ListPods",
    "/longship.control.v1.Pods/WatchPods",
    "/longship.control.v1.Tenants/GetTenant",
    "/longship.control.v1.Tenants/ListTenants",
];
pub(crate) const FOR_EDITORS: &[&str] = &[
    "/longship.control.v1.Capacity/CreateReservation",
    "/longship.control.v1.Capacity/DeleteReservation",
    "/longship.control.v1.ImageCaches/DeleteImageCache",
    "/longship.control.v1.ImageCaches/PutImageCache",
    "/longship.control.v1.Networks/CreateSubnet",
    "/longship.control.v1.Networks/CreateVpc",
    "/longship.control.v1.Networks/DeleteSubnet",
    "/longship.control.v1.Networks/DeleteVpc",
    "/longship.control.v1.Pods/CreatePod",
    "/longship.control.v1.Pods/CreatePods",
    "/longship.control.v1.Pods/DeletePod",
    "/longship.control.v1.Pods/GetPodAccess",
    "/longship.control.v1.Pods/PatchPod",
];
pub(crate) const FOR_OPERATORS: &[&str] = &[
    "/longship.control.v1.Inventory/CordonHost",
    "/longship.control.v1.Inventory/DrainHost",
    "/longship.control.v1.Inventory/ListHosts",
    "/longship.control.v1.Inventory/RemoveHost",
    "/longship.control.v1.Inventory/UncordonHost",
    "/longship.control.v1.Tenants/CreateToken",
    "/longship.control.v1.Tenants/DeleteTenant",
    "/longship.control.v1.Tenants/ListTokens",
    "/longship.control.v1.Tenants/PutTenant",
    "/longship.control.v1.Tenants/RevokeToken",
];
pub(crate) const FOR_CARDS: &[&str] = &["/longship.control.v1.Cards/Attach"];

#[test]
fn every_call_is_for_somebody() {
    let mut listed: Vec<&str> = [
        FOR_EVERYBODY,
        FOR_VIEWERS,
        FOR_EDITORS,
        FOR_OPERATORS,
        FOR_CARDS,
    ]
    .concat();
    listed.sort_unstable();
    assert_eq!(
        methods(),
        listed,
        "a call without a rule, or a rule without a call"
    );
}

/// Calls everything, and finds each call refused to those it is not for (with `code`),
/// and to nobody else.
pub(crate) async fn may_only(client: &Client, who: &str, allowed: &[&[&str]], code: Code) {
    let allowed = allowed.concat();
    let mut wrong = BTreeMap::new();
    for path in methods() {
        let answered = call(client, &path).await;
        let refused = matches!(answered, Code::PermissionDenied | Code::Unauthenticated);
        let right = match allowed.contains(&path.as_str()) {
            true => !refused,
            false => answered == code,
        };
        if !right {
            wrong.insert(path, answered);
        }
    }
    assert!(wrong.is_empty(), "{who}: {wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_call_what_is_for_it_and_nothing_else() {
    let control = Control::start().await;
    control.put_tenant(tenant("red", &["shop"])).await.unwrap();
    let denied = Code::PermissionDenied;
    for (who, of, role, allowed) in [
        (
            "a viewer",
            "red",
            Role::Viewer,
            &[FOR_EVERYBODY, FOR_VIEWERS][..],
        ),
        (
            "an editor",
            "red",
            Role::Editor,
            &[FOR_EVERYBODY, FOR_VIEWERS, FOR_EDITORS],
        ),
        (
            "an operator",
            "",
            Role::Operator,
            &[FOR_EVERYBODY, FOR_VIEWERS, FOR_EDITORS, FOR_OPERATORS],
        ),
    ] {
        let token = control.token(of, role).await;
        let client = control.with(&token.token).await;
        may_only(&client, who, allowed, denied).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_token_opens_nothing() {
    let control = Control::start().await;
    let other = Control::start().await;
    control.put_tenant(tenant("red", &["shop"])).await.unwrap();
    let expired = control.token_for("red", Role::Editor, 1).await.unwrap();
    let revoked = control.token("red", Role::Editor).await;
    let good = control.token("red", Role::Editor).await.token;
    let foreign = other.token("", Role::Operator).await.token;
    let id = revoked.info.unwrap().id;
    let mut tenants = TenantsClient::new(control.channel().await);
    let request = RevokeTokenRequest { id };
    answer(tenants.revoke_token(request).await).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;

    let (id, secret) = good.split_once('.').unwrap();
    let bad = [
        ("expired", format!("Bearer {}", expired.token)),
        ("revoked", format!("Bearer {}", revoked.token)),
        ("another server's", format!("Bearer {foreign}")),
        ("without a secret", format!("Bearer {id}")),
        ("with an empty secret", format!("Bearer {id}.")),
        (
            "with another's secret",
            format!("Bearer {id}.{}", "A".repeat(secret.len())),
        ),
        ("another scheme", format!("Basic {good}")),
        ("without a scheme", good.clone()),
        ("empty", String::new()),
        ("long", format!("Bearer {}", "A".repeat(4000))),
    ];
    for (who, value) in bad {
        let client = control.saying(&value).await;
        may_only(&client, who, &[FOR_EVERYBODY], Code::Unauthenticated).await;
    }
    let client = control.with(&good).await;
    assert_ne!(
        call(&client, "/longship.control.v1.Pods/CreatePod").await,
        Code::Unauthenticated
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lives_through_a_restart_and_goes_with_its_tenant() {
    let mut control = Control::start().await;
    control.put_tenant(tenant("red", &["shop"])).await.unwrap();
    let made = control.token("red", Role::Viewer).await;
    control.restart().await;
    let mut tenants = TenantsClient::new(control.with(&made.token).await);
    let own = answer(tenants.list_tenants(ListTenantsRequest {}).await).unwrap();
    let names: Vec<String> = own.tenants.into_iter().map(|tenant| tenant.name).collect();
    assert_eq!(names, ["red"]);

    let mut operator = TenantsClient::new(control.channel().await);
    let all = ListTokensRequest::default();
    let listed = answer(operator.list_tokens(all).await).unwrap();
    assert_eq!(listed.tokens, [made.info.unwrap()]);
    assert_eq!(listed.tokens[0].note, "test");
    let name = "red".to_owned();
    answer(operator.delete_tenant(DeleteTenantRequest { name }).await).unwrap();
    let gone = tenants.list_tenants(ListTenantsRequest {}).await;
    assert_eq!(gone.unwrap_err().code(), Code::Unauthenticated);
    let listed = answer(operator.list_tokens(ListTokensRequest::default()).await);
    assert!(listed.unwrap().tokens.is_empty());
    let refused = control.token_for("red", Role::Viewer, 0).await.unwrap_err();
    assert_eq!(
        (refused.class(), refused.field.as_str()),
        (Class::NotFound, "tenant")
    );
}

/// A server with the tenants `red` (namespaces `shop`, `test`) and `blue` (`web`), a pod
/// `one` in each namespace, and an editor of red.
async fn two_tenants() -> (Control, PodsClient<Client>, String) {
    let control = Control::start().await;
    let red = tenant("red", &["shop", "test"]);
    control.put_tenant(red).await.unwrap();
    control.put_tenant(tenant("blue", &["web"])).await.unwrap();
    for namespace in ["shop", "test", "web", "default"] {
        control.create(pod_in(namespace, "one")).await.unwrap();
    }
    let token = control.token("red", Role::Editor).await.token;
    let client = PodsClient::new(control.with(&token).await);
    (control, client, token)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_another_tenants_does_not_exist() {
    let (control, mut red, token) = two_tenants().await;
    for namespace in ["web", "default", "", "nobodys"] {
        let (namespace, name) = (namespace.to_owned(), "one".to_owned());
        let got = red
            .get_pod(GetPodRequest {
                namespace: namespace.clone(),
                name: name.clone(),
            })
            .await;
        let access = red
            .get_pod_access(GetPodAccessRequest {
                namespace: namespace.clone(),
                name: name.clone(),
            })
            .await;
        let deleted = red
            .delete_pod(DeletePodRequest {
                namespace: namespace.clone(),
                name: name.clone(),
                ..DeletePodRequest::default()
            })
            .await;
        for refused in [
            answer(got).err(),
            answer(access).err(),
            answer(deleted).err(),
        ] {
            let refused = refused.unwrap();
            // As a pod that never was.
            let shown = if namespace.is_empty() {
                "default"
            } else {
                &namespace
            };
            assert_eq!(refused.message, format!("no pod {shown}/one"));
            assert_eq!(refused.class(), Class::NotFound);
        }
        let created = red
            .create_pod(longship_proto::control::v1::CreatePodRequest {
                pod: Some(pod_in(&namespace, "two")),
                ..Default::default()
            })
            .await;
        let refused = answer(created).unwrap_err();
        assert_eq!(refused.class(), Class::NotFound);
        assert_eq!(refused.field, "metadata.namespace");
        if !namespace.is_empty() {
            let listed = red
                .list_pods(ListPodsRequest {
                    namespace: namespace.clone(),
                    ..ListPodsRequest::default()
                })
                .await;
            assert_eq!(answer(listed).unwrap_err().class(), Class::NotFound);
            let watched = red
                .watch_pods(WatchPodsRequest {
                    namespace,
                    ..WatchPodsRequest::default()
                })
                .await;
            let refused = failure_of(&watched.unwrap_err());
            assert_eq!(refused.class(), Class::NotFound);
        }
    }
    // Nothing has happened to them.
    control.get("one").await.unwrap();

    let mut tenants = TenantsClient::new(control.with(&token).await);
    for name in ["blue", "default", "nobody"] {
        let got = tenants.get_tenant(GetTenantRequest { name: name.into() });
        let refused = answer(got.await).unwrap_err();
        assert_eq!(refused.class(), Class::NotFound);
        assert_eq!(refused.message, format!("no tenant `{name}`"));
    }
    let own = GetTenantRequest { name: "red".into() };
    answer(tenants.get_tenant(own).await).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_watches_show_a_tenant_its_own() {
    let (control, mut red, _) = two_tenants().await;
    let listed = answer(red.list_pods(ListPodsRequest::default()).await).unwrap();
    let of = |pod: &longship_proto::control::v1::Pod| meta(pod).namespace.clone();
    let namespaces: Vec<String> = listed.pods.iter().map(of).collect();
    assert_eq!(namespaces, ["shop", "test"]);

    let watched = red.watch_pods(WatchPodsRequest::default()).await;
    let mut events = answer(watched).unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let event = events.message().await.unwrap().unwrap();
        seen.push(of(&event.pod.unwrap()));
    }
    assert_eq!(seen, ["shop", "test"]);
    control.create(pod_in("web", "two")).await.unwrap();
    control.create(pod("two", 500, 512)).await.unwrap();
    control.create(pod_in("test", "two")).await.unwrap();
    let event = events.message().await.unwrap().unwrap();
    assert_eq!(event.r#type(), pod_event::Type::Added);
    assert_eq!(of(&event.pod.unwrap()), "test");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_when_what_may_be_seen_changes() {
    let (control, mut red, _) = two_tenants().await;
    let token = control.token("red", Role::Viewer).await;
    let watched = red.watch_pods(WatchPodsRequest {
        namespace: "shop".into(),
        ..WatchPodsRequest::default()
    });
    let mut events = answer(watched.await).unwrap();
    events.message().await.unwrap().unwrap();
    // Another tenant's change does not concern it; nor does a quota.
    control
        .put_tenant(tenant("blue", &["web", "more"]))
        .await
        .unwrap();
    let mut same = tenant("red", &["shop", "test"]);
    same.weight = 5;
    control.put_tenant(same).await.unwrap();
    control.create(pod_in("shop", "two")).await.unwrap();
    let event = events.message().await.unwrap().unwrap();
    assert_eq!(meta(&event.pod.unwrap()).name, "two");
    let red_more = tenant("red", &["shop", "test", "new"]);
    control.put_tenant(red_more).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, events.message()).await;
    let ended = failure_of(&ended.unwrap().unwrap_err());
    assert_eq!(ended.class(), Class::Unavailable);
    assert!(ended.message.contains("namespaces have changed"), "{ended}");

    // With its token ends what it opened.
    let mut viewer = PodsClient::new(control.with(&token.token).await);
    let watched = viewer.watch_pods(WatchPodsRequest::default()).await;
    let mut events = answer(watched).unwrap();
    events.message().await.unwrap().unwrap();
    let mut tenants = TenantsClient::new(control.channel().await);
    let id = token.info.unwrap().id;
    answer(tenants.revoke_token(RevokeTokenRequest { id }).await).unwrap();
    let until = tokio::time::Instant::now() + PATIENCE;
    let ended = loop {
        let next = tokio::time::timeout_at(until, events.message()).await;
        match next.unwrap() {
            Ok(event) => assert!(event.is_some(), "it ended without a reason"),
            Err(status) => break failure_of(&status),
        }
    };
    assert_eq!(ended.class(), Class::Denied);
    assert!(ended.message.contains("revoked"), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_request_is_refused_at_its_field() {
    let control = Control::start().await;
    let refused = control.token_for("red", Role::Operator, 0).await;
    assert_eq!(refused.unwrap_err().field, "tenant");
    let refused = control.token_for("", Role::Operator, u32::MAX).await;
    assert_eq!(refused.unwrap_err().field, "ttl_seconds");
    let mut tenants = TenantsClient::new(control.channel().await);
    let unknown = RevokeTokenRequest {
        id: "x".repeat(5000),
    };
    let refused = answer(tenants.revoke_token(unknown).await).unwrap_err();
    assert_eq!(refused.class(), Class::NotFound);
    let empty = PutTenantRequest::default();
    let refused = answer(tenants.put_tenant(empty).await).unwrap_err();
    assert_eq!(refused.field, "tenant");
}
