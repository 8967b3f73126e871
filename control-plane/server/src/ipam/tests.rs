use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn spec(vpc: &str, subnet: &str) -> PodSpec {
    PodSpec {
        vpc: vpc.into(),
        subnet: subnet.into(),
        ..PodSpec::default()
    }
}

/// With a VPC of each of these tenants, named as they are.
fn ipam(tenants: &[&str]) -> Ipam {
    let mut ipam = Ipam::default();
    for tenant in tenants {
        assert!(ipam.join(tenant, &mut spec("", "")).unwrap().is_some());
    }
    ipam
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

#[test]
fn the_lowest_free_address_comes_first_and_is_used_again() {
    let mut ipam = ipam(&["default", "blue"]);
    let first = ipam.allocate("default", "", "a").unwrap();
    assert_eq!(first.address, "10.88.0.2");
    assert_eq!(first.mac, "02:00:0a:58:00:02");
    assert_eq!((first.gateway.as_str(), first.mtu), ("10.88.0.1", 1500));
    let next = |ipam: &mut Ipam, vpc| ipam.allocate(vpc, "", "a").unwrap().address;
    assert_eq!(next(&mut ipam, "default"), "10.88.0.3");
    assert_eq!(next(&mut ipam, "blue"), "10.89.0.2");
    ipam.release("default", "10.88.0.2");
    assert_eq!(next(&mut ipam, "default"), "10.88.0.2");
    assert_eq!(next(&mut ipam, "default"), "10.88.0.4");
}

#[test]
fn a_subnet_gives_all_its_addresses_once_and_then_none() {
    let mut ipam = ipam(&["default"]);
    let mut seen = BTreeSet::new();
    while let Some(eni) = ipam.allocate("default", "", "a") {
        assert!(seen.insert(eni.address));
    }
    assert_eq!(seen.len(), (1 << 16) - 3);
    for reserved in ["10.88.0.0", "10.88.0.1", "10.88.255.255"] {
        assert!(!seen.contains(reserved));
        ipam.release("default", reserved);
    }
    assert!(ipam.allocate("default", "", "a").is_none());
    assert_eq!(ipam.list(None)[0].subnets[0].addresses_used, (1 << 16) - 3);
    ipam.release("default", "10.88.77.1");
    let again = ipam.allocate("default", "default", "a").unwrap();
    assert_eq!(again.address, "10.88.77.1");
}

#[test]
fn pods_of_all_subnets_have_the_prefix_and_the_gateway_of_the_vpc() {
    let mut ipam = Ipam::default();
    let (made, _) = ipam
        .create("blue", "red", Some(cidr("10.1.0.0/16")))
        .unwrap();
    assert_eq!((made.cidr.as_str(), made.subnets.len()), ("10.1.0.0/16", 0));
    for (name, at, zone) in [
        ("b", "10.1.2.0/28", "zone-b"),
        ("a", "10.1.1.0/24", "zone-a"),
    ] {
        ipam.add_subnet(Some("red"), "blue", (name, cidr(at), zone))
            .unwrap();
    }
    let eni = |ipam: &mut Ipam, subnet, zone| ipam.allocate("blue", subnet, zone);
    let a = eni(&mut ipam, "", "zone-a").unwrap();
    let b = eni(&mut ipam, "", "zone-b").unwrap();
    assert_eq!(
        (a.address.as_str(), b.address.as_str()),
        ("10.1.1.2", "10.1.2.2")
    );
    for eni in [a, b] {
        assert_eq!((eni.prefix_length, eni.gateway.as_str()), (16, "10.1.0.1"));
    }
    assert!(eni(&mut ipam, "a", "zone-b").is_none(), "another zone's");
    assert!(eni(&mut ipam, "", "zone-c").is_none());
    for _ in 0..12 {
        assert!(eni(&mut ipam, "b", "zone-b").is_some());
    }
    assert!(
        eni(&mut ipam, "b", "zone-b").is_none(),
        "13 of 16 are pods'"
    );
    let refused = ipam.delete_subnet(None, "blue", "b").unwrap_err();
    assert!(refused.message.contains("13 addresses"), "{refused}");
    assert!(ipam.delete(Some("red"), "blue").is_err());
    ipam.release("blue", "10.1.1.2");
    ipam.delete_subnet(Some("red"), "blue", "a").unwrap();
}

#[test]
fn subnets_confine_pods_to_their_zones() {
    let mut ipam = Ipam::default();
    ipam.create("blue", "red", Some(cidr("10.1.0.0/16")))
        .unwrap();
    let mut add = |name, at, zone| {
        let subnet = (name, cidr(at), zone);
        ipam.add_subnet(None, "blue", subnet).unwrap();
    };
    add("b", "10.1.2.0/24", "zone-b");
    add("a", "10.1.1.0/24", "zone-a");
    let mut zones = |vpc: &str, subnet: &str, zone: &str, zones: &[&str]| {
        let mut spec = spec(vpc, subnet);
        spec.zone = zone.into();
        spec.placement.get_or_insert_default().zones =
            zones.iter().map(|zone| (*zone).into()).collect();
        let joined = ipam.join("red", &mut spec);
        joined.map(|_| (spec.zone, spec.placement.unwrap().zones.join(",")))
    };
    let is = |zone: &str, zones: &str| Ok((zone.to_owned(), zones.to_owned()));
    assert_eq!(zones("blue", "", "", &[]), is("", "zone-a,zone-b"));
    assert_eq!(zones("blue", "a", "", &[]), is("", "zone-a"));
    assert_eq!(zones("blue", "a", "zone-a", &[]), is("zone-a", ""));
    assert_eq!(
        zones("blue", "", "", &["zone-c", "zone-b"]),
        is("", "zone-b")
    );
    assert_eq!(zones("", "", "", &[]), is("", ""), "the tenant's own");
    let mut field =
        |vpc: &str, subnet: &str, zone: &str| zones(vpc, subnet, zone, &[]).unwrap_err().field;
    assert_eq!(field("blue", "a", "zone-b"), "spec.subnet");
    assert_eq!(field("blue", "", "zone-c"), "spec.vpc");
    assert_eq!(field("blue", "c", ""), "spec.subnet");
    assert_eq!(field("green", "c", ""), "spec.subnet");
    let refused = ipam.join("pink", &mut spec("blue", "")).unwrap_err();
    assert_eq!(refused.field, "spec.vpc", "another tenant's");
}

#[test]
fn what_overlaps_or_lies_outside_is_refused_with_its_field() {
    let mut ipam = Ipam::default();
    ipam.create("blue", "red", Some(cidr("10.1.0.0/16")))
        .unwrap();
    let mut add = |name, at| {
        let subnet = (name, cidr(at), "");
        ipam.add_subnet(Some("red"), "blue", subnet)
            .map_err(|f| f.field)
    };
    assert!(add("a", "10.1.1.0/24").is_ok());
    for (name, at, field) in [
        ("a", "10.1.2.0/24", "subnet.name"),
        ("b", "10.1.1.128/25", "subnet.cidr"),
        ("b", "10.1.0.0/23", "subnet.cidr"),
        ("b", "10.2.0.0/24", "subnet.cidr"),
        ("b", "10.0.0.0/8", "subnet.cidr"),
    ] {
        assert_eq!(add(name, at).unwrap_err(), field, "{at}");
    }
    let taken = ipam.create("blue", "pink", None).unwrap_err();
    assert_eq!(taken.field, "vpc.name");
    let foreign = ipam.add_subnet(Some("pink"), "blue", ("x", cidr("10.1.9.0/24"), ""));
    assert_eq!(foreign.unwrap_err().field, "vpc");
    assert_eq!(ipam.delete(Some("pink"), "blue").unwrap_err().field, "name");
}

#[test]
fn numbers_are_shared_only_when_none_is_left() {
    let mut ipam = ipam(&["default"]);
    let mut seen = BTreeSet::from(["10.88.0.0/16".to_owned()]);
    for n in 0..255 {
        let (made, _) = ipam
            .create(&format!("v-{n}"), &format!("t-{n}"), None)
            .unwrap();
        assert!(seen.insert(made.cidr));
    }
    let (shared, _) = ipam.create("more", "t-more", None).unwrap();
    assert!(seen.contains(&shared.cidr));
    for n in 0..MAX_VPCS - 1 {
        ipam.create(&format!("m-{n}"), "t-more", None).unwrap();
    }
    let refused = ipam.join("t-more", &mut spec("one-more", "")).unwrap_err();
    assert_eq!(refused.field, "spec.vpc");
}

#[test]
fn records_are_read_back_also_those_from_before_there_were_subnets() {
    let mut ipam = Ipam::default();
    let old = VpcRecord {
        subnet: 88,
        ..VpcRecord::default()
    };
    ipam.adopt_vpc("default", &old).unwrap();
    ipam.adopt("default", "10.88.0.2").unwrap();
    for address in [
        "10.88.0.2",
        "10.89.1.1",
        "11.88.1.2",
        "x",
        "10.88.0.1",
        "10.88.255.255",
    ] {
        assert!(ipam.adopt("default", address).is_err(), "{address}");
    }
    assert_eq!(
        ipam.allocate("default", "", "a").unwrap().address,
        "10.88.0.3"
    );
    assert_eq!(
        ipam.list(Some("default"))[0].subnets[0].name,
        DEFAULT_SUBNET
    );

    let (_, record) = ipam.create("blue", "red", None).unwrap();
    let with_subnet = ipam
        .add_subnet(None, "blue", ("a", cidr("10.89.1.0/24"), "z"))
        .unwrap();
    let mut again = Ipam::default();
    again.adopt_vpc("blue", &with_subnet).unwrap();
    assert_eq!(again.list(None), ipam.list(Some("red")));
    assert_eq!(again.delete_subnet(None, "blue", "a").unwrap(), record);
    let bad = VpcRecord {
        cidr: "8.8.8.0/24".into(),
        ..VpcRecord::default()
    };
    assert!(again.adopt_vpc("x", &bad).is_err());
}

proptest! {
    #[test]
    fn no_address_is_held_twice(steps in prop::collection::vec((any::<bool>(), 0_usize..50), 0..300)) {
        let mut ipam = ipam(&["default"]);
        let mut held: Vec<String> = Vec::new();
        for (allocate, at) in steps {
            if allocate {
                let eni = ipam.allocate("default", "", "a").unwrap();
                prop_assert!(!held.contains(&eni.address));
                let lower = held.iter().filter(|a| {
                    a.parse::<Ipv4Addr>().unwrap() < eni.address.parse::<Ipv4Addr>().unwrap()
                });
                // Everything below it is taken: the network, the gateway, and these.
                let [.., high, low] = eni.address.parse::<Ipv4Addr>().unwrap().octets();
                prop_assert_eq!(lower.count() + 2, usize::from(high) * 256 + usize::from(low));
                held.push(eni.address);
            } else if at < held.len() {
                ipam.release("default", &held.swap_remove(at));
            }
        }
    }
}
