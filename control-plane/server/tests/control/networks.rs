//! Tenants' networks, through restarts.

use longship_proto::Class;
use longship_proto::control::v1::networks_client::NetworksClient;
use longship_proto::control::v1::{
    CreateSubnetRequest, CreateVpcRequest, DeleteSubnetRequest, DeleteVpcRequest, ListVpcsRequest,
    Pod, Subnet, Vpc,
};
use tonic::transport::Channel;

use crate::card::Card;
use crate::setup::{Control, answer, pod, status};

async fn networks(control: &Control) -> NetworksClient<Channel> {
    NetworksClient::new(control.channel().await)
}

fn vpc(name: &str, cidr: &str) -> CreateVpcRequest {
    CreateVpcRequest {
        vpc: Some(Vpc {
            name: name.into(),
            cidr: cidr.into(),
            ..Vpc::default()
        }),
    }
}

fn subnet(vpc: &str, name: &str, cidr: &str, zone: &str) -> CreateSubnetRequest {
    CreateSubnetRequest {
        vpc: vpc.into(),
        subnet: Some(Subnet {
            name: name.into(),
            cidr: cidr.into(),
            zone: zone.into(),
            addresses_used: 0,
        }),
    }
}

fn pod_in(name: &str, vpc: &str, subnet: &str) -> Pod {
    let mut pod = pod(name, 250, 128);
    let spec = pod.spec.as_mut().unwrap();
    (spec.vpc, spec.subnet) = (vpc.into(), subnet.into());
    pod
}

fn address(pod: &Pod) -> String {
    status(pod).eni.as_ref().unwrap().address.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_are_there_again_after_a_restart_with_what_is_taken() {
    let mut control = Control::start().await;
    let _card = Card::attach(&control, "host-1", "zone-a").await;
    let mut client = networks(&control).await;
    let made = answer(client.create_vpc(vpc("blue", "10.1.0.0/16")).await).unwrap();
    assert_eq!(
        (made.tenant.as_str(), made.cidr.as_str()),
        ("default", "10.1.0.0/16")
    );
    for (name, cidr, zone) in [("web", "10.1.1.0/28", "zone-a"), ("db", "10.1.2.0/24", "")] {
        answer(client.create_subnet(subnet("blue", name, cidr, zone)).await).unwrap();
    }
    let web = control.create(pod_in("web", "blue", "web")).await.unwrap();
    let eni = status(&web).eni.clone().unwrap();
    assert_eq!(
        (eni.address.as_str(), eni.gateway.as_str()),
        ("10.1.1.2", "10.1.0.1")
    );
    assert_eq!(eni.prefix_length, 16, "all of the VPC is one network");
    let db = control.create(pod_in("db", "blue", "db")).await.unwrap();
    assert_eq!(address(&db), "10.1.2.2");
    let own = control.create(pod_in("own", "", "")).await.unwrap();
    assert_eq!(address(&own), "10.88.0.2");
    assert_eq!(own.spec.as_ref().unwrap().vpc, "default");

    let before = answer(client.list_vpcs(ListVpcsRequest::default()).await).unwrap();
    control.restart().await;
    let mut client = networks(&control).await;
    let after = answer(client.list_vpcs(ListVpcsRequest::default()).await).unwrap();
    assert_eq!(after, before);
    let blue = after.vpcs.iter().find(|vpc| vpc.name == "blue").unwrap();
    let used: Vec<_> = blue
        .subnets
        .iter()
        .map(|s| (s.name.as_str(), s.addresses_used))
        .collect();
    assert_eq!(used, [("web", 1), ("db", 1)]);
    let _card = Card::attach(&control, "host-1", "zone-a").await;
    let next = control.create(pod_in("next", "blue", "web")).await.unwrap();
    assert_eq!(address(&next), "10.1.1.3");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_pods_are_in_stays_and_what_they_left_can_go() {
    let control = Control::start().await;
    let mut client = networks(&control).await;
    answer(client.create_vpc(vpc("blue", "10.1.0.0/16")).await).unwrap();
    answer(
        client
            .create_subnet(subnet("blue", "a", "10.1.1.0/24", ""))
            .await,
    )
    .unwrap();
    // It waits: there is no host.
    control.create(pod_in("waits", "blue", "a")).await.unwrap();
    let delete_subnet = DeleteSubnetRequest {
        vpc: "blue".into(),
        name: "a".into(),
    };
    let delete_vpc = DeleteVpcRequest {
        name: "blue".into(),
    };
    let refused = answer(client.delete_subnet(delete_subnet.clone()).await).unwrap_err();
    assert_eq!(refused.class(), Class::Conflict, "{refused}");
    let refused = answer(client.delete_vpc(delete_vpc.clone()).await).unwrap_err();
    assert_eq!(refused.class(), Class::Conflict, "{refused}");
    let _card = Card::attach(&control, "host-1", "zone-a").await;
    control.wait("waits", |pod| status(pod).eni.is_some()).await;
    let refused = answer(client.delete_subnet(delete_subnet.clone()).await).unwrap_err();
    assert_eq!(refused.class(), Class::Conflict, "{refused}");
    let waits = control.delete("waits").await.unwrap();
    _card
        .report(&waits, longship_proto::control::v1::Phase::Released)
        .await;
    control.wait_gone("waits").await;
    answer(client.delete_subnet(delete_subnet).await).unwrap();
    let refused = control
        .create(pod_in("late", "blue", ""))
        .await
        .unwrap_err();
    assert_eq!(refused.field, "spec.vpc", "it has no subnet: {refused}");
    answer(client.delete_vpc(delete_vpc.clone()).await).unwrap();
    let gone = answer(client.delete_vpc(delete_vpc).await).unwrap_err();
    assert_eq!(gone.class(), Class::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_networks_are_refused_with_the_field() {
    let control = Control::start().await;
    let mut client = networks(&control).await;
    answer(client.create_vpc(vpc("blue", "10.1.0.0/16")).await).unwrap();
    answer(
        client
            .create_subnet(subnet("blue", "a", "10.1.1.0/24", ""))
            .await,
    )
    .unwrap();
    for (field, wrong) in [
        ("vpc", CreateVpcRequest { vpc: None }),
        ("vpc.name", vpc("Blue", "")),
        ("vpc.name", vpc("blue", "")),
        ("vpc.cidr", vpc("red", "8.8.0.0/16")),
        ("vpc.cidr", vpc("red", "10.0.0.1/16")),
        ("vpc.cidr", vpc("red", "10.0.0.0/4")),
    ] {
        let refused = answer(client.create_vpc(wrong).await).unwrap_err();
        assert_eq!(refused.field, field, "{refused}");
    }
    for (field, wrong) in [
        ("vpc", subnet("red", "b", "10.1.2.0/24", "")),
        ("subnet.name", subnet("blue", "a", "10.1.2.0/24", "")),
        ("subnet.name", subnet("blue", "-", "10.1.2.0/24", "")),
        ("subnet.cidr", subnet("blue", "b", "", "")),
        ("subnet.cidr", subnet("blue", "b", "10.1.1.16/28", "")),
        ("subnet.cidr", subnet("blue", "b", "10.2.0.0/24", "")),
        ("subnet.zone", subnet("blue", "b", "10.1.2.0/24", "Z")),
    ] {
        let refused = answer(client.create_subnet(wrong).await).unwrap_err();
        assert_eq!(refused.field, field, "{refused}");
    }
    for (field, wrong) in [
        ("spec.subnet", pod_in("x", "blue", "b")),
        ("spec.subnet", pod_in("x", "blue", "B")),
        ("spec.subnet", pod_in("x", "new", "b")),
    ] {
        let refused = control.create(wrong).await.unwrap_err();
        assert_eq!(refused.field, field, "{refused}");
    }
}
