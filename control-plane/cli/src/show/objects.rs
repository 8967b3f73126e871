//! Zones, networks, reservations and image caches, for people and for scripts.

use longship_proto::control::v1::{CapacityReservation, ImageCache, Subnet, Vpc, Zone};
use serde_json::{Value, json};

use super::table::{dash, lines, text};
use super::time::{length, now_us, rfc3339};

/// One zone.
pub(crate) fn zone(zone: &Zone) -> Value {
    json!({"name": zone.name, "available": zone.available})
}

/// One line a zone.
pub(crate) fn zones(zones: &[Zone]) -> String {
    let mut table = lines(&["NAME", "AVAILABLE"]);
    for zone in zones {
        let available = if zone.available { "yes" } else { "no" };
        table.add_row([zone.name.as_str(), available]);
    }
    text(&table)
}

/// One VPC.
pub(crate) fn vpc(vpc: &Vpc) -> Value {
    let subnets: Vec<Value> = vpc.subnets.iter().map(subnet).collect();
    json!({"name": vpc.name, "tenant": vpc.tenant, "cidr": vpc.cidr, "subnets": subnets})
}

fn subnet(subnet: &Subnet) -> Value {
    json!({
        "name": subnet.name,
        "cidr": subnet.cidr,
        "zone": subnet.zone,
        "addressesUsed": subnet.addresses_used,
    })
}

/// One line a subnet, and one for a VPC without any.
pub(crate) fn vpcs(vpcs: &[Vpc]) -> String {
    let mut table = lines(&[
        "VPC",
        "TENANT",
        "CIDR",
        "SUBNET",
        "SUBNET CIDR",
        "ZONE",
        "USED",
    ]);
    for vpc in vpcs {
        let of = || vec![vpc.name.clone(), vpc.tenant.clone(), vpc.cidr.clone()];
        if vpc.subnets.is_empty() {
            let mut row = of();
            row.extend(["-", "-", "-", "0"].map(str::to_owned));
            table.add_row(row);
        }
        for subnet in &vpc.subnets {
            let mut row = of();
            row.extend([
                subnet.name.clone(),
                subnet.cidr.clone(),
                dash(subnet.zone.clone()),
                subnet.addresses_used.to_string(),
            ]);
            table.add_row(row);
        }
    }
    text(&table)
}

/// One capacity reservation.
pub(crate) fn reservation(reservation: &CapacityReservation) -> Value {
    json!({
        "name": reservation.name,
        "tenant": reservation.tenant,
        "flavor": reservation.flavor,
        "count": reservation.count,
        "zones": reservation.zones,
        "ends": rfc3339(reservation.ends_us),
        "idle": reservation.idle,
        "used": reservation.used,
    })
}

/// One line a capacity reservation.
pub(crate) fn reservations(reservations: &[CapacityReservation]) -> String {
    let mut table = lines(&[
        "NAME", "TENANT", "FLAVOR", "COUNT", "IDLE", "USED", "ZONES", "ENDS IN",
    ]);
    for one in reservations {
        table.add_row([
            one.name.clone(),
            one.tenant.clone(),
            one.flavor.clone(),
            one.count.to_string(),
            one.idle.to_string(),
            one.used.to_string(),
            dash(one.zones.join(",")),
            length(one.ends_us.saturating_sub(now_us()).max(0)),
        ]);
    }
    text(&table)
}

/// One image cache.
pub(crate) fn image_cache(cache: &ImageCache) -> Value {
    let status = cache.status.iter().map(|one| {
        json!({
            "image": one.image,
            "ready": one.ready,
            "wanted": one.wanted,
            "message": one.message,
        })
    });
    json!({
        "name": cache.name,
        "tenant": cache.tenant,
        "images": cache.images,
        "zones": cache.zones,
        "status": status.collect::<Vec<Value>>(),
    })
}

/// One line an image.
pub(crate) fn image_caches(caches: &[ImageCache]) -> String {
    let mut table = lines(&["CACHE", "TENANT", "ZONES", "IMAGE", "READY", "MESSAGE"]);
    for cache in caches {
        for one in &cache.status {
            table.add_row([
                cache.name.clone(),
                cache.tenant.clone(),
                dash(cache.zones.join(",")),
                one.image.clone(),
                format!("{} of {}", one.ready, one.wanted),
                dash(one.message.clone()),
            ]);
        }
    }
    text(&table)
}
