//! Tables of pods, hosts and flavors.

use comfy_table::{ContentArrangement, Table, presets};
use longship_proto::card::v1::Held;
use longship_proto::control::v1::{Flavor, Host, HostCapacity, Pod};

use super::names;
use super::time::age;
use crate::manifest::{show_cpu, show_memory};
use crate::watch::phase_of;

/// A table without lines, its columns apart.
pub(crate) fn lines(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.to_vec());
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table
}

pub(crate) fn text(table: &Table) -> String {
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// One line a pod.
pub(crate) fn pods(pods: &[Pod], wide: bool, all_namespaces: bool, now_us: i64) -> String {
    let mut header = Vec::new();
    if all_namespaces {
        header.push("NAMESPACE");
    }
    header.extend([
        "NAME", "PHASE", "REASON", "RESTARTS", "AGE", "ADDRESS", "ZONE",
    ]);
    if wide {
        header.extend(["HOST", "FLAVOR", "IMAGE"]);
    }
    let mut table = lines(&header);
    for pod in pods {
        let metadata = pod.metadata.clone().unwrap_or_default();
        let status = pod.status.clone().unwrap_or_default();
        let spec = pod.spec.clone().unwrap_or_default();
        let restarts: u32 = status
            .containers
            .iter()
            .map(|container| container.restarts)
            .sum();
        let mut row = Vec::new();
        if all_namespaces {
            row.push(metadata.namespace);
        }
        row.extend([
            metadata.name,
            names::phase(phase_of(pod)).to_owned(),
            dash(status.reason),
            restarts.to_string(),
            age(metadata.created_us, now_us),
            dash(status.eni.map(|eni| eni.address).unwrap_or_default()),
            dash(status.zone),
        ]);
        if wide {
            let images: Vec<&str> = spec
                .containers
                .iter()
                .map(|container| container.image.as_str())
                .collect();
            row.extend([
                dash(status.host),
                dash(status.flavor.map(|flavor| flavor.name).unwrap_or_default()),
                dash(images.join(",")),
            ]);
        }
        table.add_row(row);
    }
    text(&table)
}

/// One line a host.
pub(crate) fn hosts(hosts: &[Host], wide: bool) -> String {
    let mut header = vec!["NAME", "ZONE", "STATE", "PODS", "CPU FREE", "MEMORY FREE"];
    if wide {
        header.push("CARD");
    }
    let mut table = lines(&header);
    let of = |free: HostCapacity, all: HostCapacity| {
        [
            format!(
                "{} of {}",
                show_cpu(free.cpu_millis),
                show_cpu(all.cpu_millis)
            ),
            format!(
                "{} of {} MiB",
                free.memory_bytes >> 20,
                all.memory_bytes >> 20
            ),
        ]
    };
    for host in hosts {
        let mut row = vec![
            host.name.clone(),
            host.zone.clone(),
            state(host),
            host.pods.to_string(),
        ];
        row.extend(of(
            host.free.unwrap_or_default(),
            host.capacity.unwrap_or_default(),
        ));
        if wide {
            row.push(host.card_endpoint.clone());
        }
        table.add_row(row);
    }
    text(&table)
}

/// As `Ready,cordoned`.
fn state(host: &Host) -> String {
    let mut words = vec![names::host_state(host.state())];
    words.extend(host.cordoned.then_some("cordoned"));
    words.extend(host.draining.then_some("draining"));
    words.join(",")
}

/// One line a flavor.
pub(crate) fn flavors(flavors: &[Flavor]) -> String {
    let mut table = lines(&["NAME", "CPU", "MEMORY", "VCPUS"]);
    for flavor in flavors {
        table.add_row([
            flavor.name.clone(),
            show_cpu(flavor.cpu_millis),
            show_memory(flavor.memory_bytes),
            flavor.vcpus.to_string(),
        ]);
    }
    text(&table)
}

/// One line a thing that a card holds.
pub(crate) fn held(held: &[Held]) -> String {
    let mut table = lines(&["POD UID", "KIND", "NAME"]);
    for one in held {
        table.add_row([&one.pod_uid, &one.kind, &one.name]);
    }
    text(&table)
}

/// What `doctor` found.
pub(crate) fn checks(checks: &[longship_probe::Check]) -> String {
    let mut table = lines(&["CHECK", "RESULT", "FOUND"]);
    for check in checks {
        let result = match check.verdict {
            longship_probe::Verdict::Ok => "ok",
            longship_probe::Verdict::Warn => "warning",
            longship_probe::Verdict::Fail => "FAIL",
        };
        table.add_row([check.name, result, check.finding.as_str()]);
    }
    text(&table)
}

/// `-` for nothing, so that columns can be told apart.
pub(crate) fn dash(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use longship_proto::control::v1::{ObjectMeta, Phase, PodStatus};

    use super::*;

    #[test]
    fn columns_line_up_and_nothing_is_empty() {
        let pod = |name: &str, phase: Phase| Pod {
            metadata: Some(ObjectMeta {
                name: name.into(),
                namespace: "default".into(),
                created_us: 1_000_000,
                ..ObjectMeta::default()
            }),
            status: Some(PodStatus {
                phase: phase.into(),
                ..PodStatus::default()
            }),
            ..Pod::default()
        };
        let text = pods(
            &[pod("a", Phase::Running), pod("long-name", Phase::Pending)],
            false,
            true,
            6_000_000,
        );
        let expected = "\
NAMESPACE   NAME        PHASE     REASON   RESTARTS   AGE   ADDRESS   ZONE
default     a           Running   -        0          5s    -         -
default     long-name   Pending   -        0          5s    -         -
";
        assert_eq!(text, expected, "\n{text}");
    }
}
