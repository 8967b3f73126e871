//! What pods, templates, host and card cost: for people, and for scripts.

use std::fmt::Write;

use longship_proto::agent::v1::{HostUsage, MemoryProfile, SandboxUsage, Template, TemplateState};
use longship_proto::card::v1::{GetUsageResponse, PodUsage};
use serde_json::{Value, json};

use super::table::{self, lines};
use super::time::length;
use crate::manifest::show_memory;

/// What a pod costs the host and the card apart from its guest's own memory, in bytes.
///
/// What the containers use cannot be told from what the guest's kernel and init use,
/// seen from here: both are guest memory, which is counted apart.
pub(crate) fn overhead(pod: &PodUsage) -> u64 {
    let sandbox = pod.sandbox.clone().unwrap_or_default();
    [
        sandbox.window_bytes,
        sandbox.vmm_bytes,
        sandbox.page_table_bytes,
        sandbox.kernel_bytes,
        pod.card_bytes,
    ]
    .into_iter()
    .fold(0, u64::saturating_add)
}

/// Bytes as a person reads them: three digits or more, in KiB, MiB or GiB.
pub(crate) fn amount(bytes: u64) -> String {
    let tenths = |shift: u32| {
        let (whole, rest) = (bytes >> shift, bytes & ((1 << shift) - 1));
        format!("{whole}.{}", (rest * 10) >> shift)
    };
    match bytes {
        0 => "0".to_owned(),
        1..=0xf_ffff => format!("{} KiB", bytes.div_ceil(1 << 10)),
        0x10_0000..=0x3fff_ffff => format!("{} MiB", tenths(20)),
        _ => format!("{} GiB", tenths(30)),
    }
}

fn shared(bytes: u64, by: u32) -> String {
    match (bytes, by) {
        (0, _) => "-".to_owned(),
        (bytes, 0) => amount(bytes),
        (bytes, by) => format!("{} by {by}", amount(bytes)),
    }
}

/// One line a pod, their sum, and then what the host and the card have.
pub(crate) fn table(usage: &GetUsageResponse) -> String {
    let mut text = String::new();
    if usage.pods.is_empty() {
        text.push_str("there are no pods on this host\n");
    } else {
        text.push_str(&pods(usage));
    }
    if let Some(host) = &usage.host {
        let _ = write!(
            text,
            "\nhost       {} available of {}; agent {}\n",
            amount(host.available_bytes),
            amount(host.total_bytes),
            amount(host.agent_bytes),
        );
        for template in &host.templates {
            let _ = writeln!(text, "template   {}", template_line(template));
        }
    }
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "card       {}, of which {} before its first pod",
        amount(usage.card_bytes),
        amount(usage.card_base_bytes),
    );
    text
}

fn pods(usage: &GetUsageResponse) -> String {
    let mut table = lines(&[
        "NAME", "FLAVOR", "GUEST", "WINDOW", "VMM", "TABLES", "KERNEL", "CARD", "OVERHEAD",
        "TOTAL", "SHARED", "IMAGE", "SCRATCH",
    ]);
    let several = |pod: &PodUsage| usage.pods.iter().any(|p| p.namespace != pod.namespace);
    let mut sum = [0_u64; 8];
    for pod in &usage.pods {
        let sandbox = pod.sandbox.clone().unwrap_or_default();
        let overhead = overhead(pod);
        let amounts = [
            sandbox.guest_bytes,
            sandbox.window_bytes,
            sandbox.vmm_bytes,
            sandbox.page_table_bytes,
            sandbox.kernel_bytes,
            pod.card_bytes,
            overhead,
            overhead.saturating_add(sandbox.guest_bytes),
        ];
        for (sum, one) in sum.iter_mut().zip(amounts) {
            *sum = sum.saturating_add(one);
        }
        let name = match several(pod) {
            true => format!("{}/{}", pod.namespace, pod.name),
            false => pod.name.clone(),
        };
        let mut row = vec![name, pod.flavor.clone()];
        // Where the agent says nothing, only the card's own part is known.
        let known = pod.sandbox.is_some();
        row.extend(amounts.iter().enumerate().map(|(at, bytes)| match at {
            5 => amount(*bytes),
            _ if known => amount(*bytes),
            _ => "-".to_owned(),
        }));
        row.push(shared(sandbox.shared_bytes, pod.template_clones));
        row.push(shared(pod.image_bytes, pod.image_pods));
        row.push(amount(pod.scratch_bytes));
        table.add_row(row);
    }
    let mut row = vec![format!("{} in all", usage.pods.len()), String::new()];
    row.extend(sum.iter().map(|bytes| amount(*bytes)));
    let scratch = usage.pods.iter().map(|p| p.scratch_bytes);
    row.extend(["".to_owned(), "".to_owned()]);
    row.push(amount(scratch.fold(0, u64::saturating_add)));
    table.add_row(row);
    table::text(&table)
}

fn template_line(template: &Template) -> String {
    let state = match template.state() {
        TemplateState::Ready => String::new(),
        _ => format!(" ({})", template_state(template)),
    };
    format!(
        "{} vCPU, {} {}{state}: {}, {} clones, {} warm",
        template.vcpus,
        show_memory(template.memory_bytes),
        profile(template.profile()),
        amount(template.resident_bytes),
        template.clones,
        template.warm,
    )
}

fn profile(profile: MemoryProfile) -> &'static str {
    match profile {
        MemoryProfile::Unspecified | MemoryProfile::Dense => "dense",
        MemoryProfile::Direct => "direct",
    }
}

fn template_state(template: &Template) -> &'static str {
    match template.state() {
        TemplateState::Unspecified => "unknown",
        TemplateState::Making => "being made",
        TemplateState::Ready => "ready",
        TemplateState::Failed => "failed",
    }
}

/// One line a template.
pub(crate) fn templates(templates: &[Template]) -> String {
    let mut table = lines(&[
        "ID", "VCPUS", "MEMORY", "PROFILE", "STATE", "RESIDENT", "CLONES", "WARM", "MADE IN",
        "MESSAGE",
    ]);
    for template in templates {
        table.add_row([
            template.id.chars().take(12).collect(),
            template.vcpus.to_string(),
            show_memory(template.memory_bytes),
            profile(template.profile()).to_owned(),
            template_state(template).to_owned(),
            amount(template.resident_bytes),
            template.clones.to_string(),
            template.warm.to_string(),
            match template.made_in_us {
                0 => "-".to_owned(),
                us => length(us),
            },
            match template.message.as_str() {
                "" => "-".to_owned(),
                message => message.to_owned(),
            },
        ]);
    }
    table::text(&table)
}

/// One template.
pub(crate) fn template(template: &Template) -> Value {
    json!({
        "id": template.id,
        "vcpus": template.vcpus,
        "memoryBytes": template.memory_bytes,
        "memoryProfile": profile(template.profile()),
        "state": template_state(template),
        "message": template.message,
        "residentBytes": template.resident_bytes,
        "clones": template.clones,
        "warm": template.warm,
        "madeInUs": template.made_in_us,
    })
}

/// One pod.
pub(crate) fn pod(pod: &PodUsage) -> Value {
    let sandbox = |s: &SandboxUsage| {
        json!({
            "pid": s.pid,
            "memoryProfile": profile(s.profile()),
            "guestBytes": s.guest_bytes,
            "windowBytes": s.window_bytes,
            "vmmBytes": s.vmm_bytes,
            "pageTableBytes": s.page_table_bytes,
            "kernelBytes": s.kernel_bytes,
            "sharedBytes": s.shared_bytes,
            "sharedBy": pod.template_clones,
        })
    };
    json!({
        "uid": pod.pod_uid,
        "namespace": pod.namespace,
        "name": pod.name,
        "flavor": pod.flavor,
        "sandbox": pod.sandbox.as_ref().map(sandbox),
        "cardBytes": pod.card_bytes,
        "overheadBytes": overhead(pod),
        "imageBytes": pod.image_bytes,
        "imagePods": pod.image_pods,
        "scratchBytes": pod.scratch_bytes,
    })
}

/// The host, without its pods.
pub(crate) fn host(host: &HostUsage) -> Value {
    json!({
        "availableBytes": host.available_bytes,
        "totalBytes": host.total_bytes,
        "agentBytes": host.agent_bytes,
        "templates": host.templates.iter().map(template).collect::<Vec<Value>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(name: &str, sandbox: bool) -> PodUsage {
        PodUsage {
            namespace: "default".into(),
            name: name.into(),
            flavor: "std-0.5x1".into(),
            sandbox: sandbox.then(|| SandboxUsage {
                guest_bytes: 3 << 20,
                window_bytes: 512 << 10,
                vmm_bytes: 300 << 10,
                page_table_bytes: 200 << 10,
                kernel_bytes: 100 << 10,
                shared_bytes: 21 << 20,
                ..SandboxUsage::default()
            }),
            card_bytes: 400 << 10,
            template_clones: 12,
            image_bytes: 1 << 20,
            image_pods: 2,
            scratch_bytes: 60 << 10,
            ..PodUsage::default()
        }
    }

    #[test]
    fn the_overhead_is_all_but_the_guests_own_memory() {
        assert_eq!(
            overhead(&used("a", true)),
            (512 + 300 + 200 + 100 + 400) << 10
        );
        assert_eq!(overhead(&used("a", false)), 400 << 10);
        let much = PodUsage {
            card_bytes: u64::MAX,
            ..used("a", true)
        };
        assert_eq!(overhead(&much), u64::MAX);
    }

    #[test]
    fn a_table_says_what_is_known_and_adds_it_up() {
        let usage = GetUsageResponse {
            pods: vec![used("a", true), used("b", false)],
            host: Some(HostUsage {
                available_bytes: 3 << 30,
                total_bytes: 4 << 30,
                agent_bytes: 2 << 20,
                templates: vec![Template {
                    vcpus: 1,
                    memory_bytes: 128 << 20,
                    state: TemplateState::Ready.into(),
                    resident_bytes: 21 << 20,
                    clones: 12,
                    warm: 2,
                    ..Template::default()
                }],
                ..HostUsage::default()
            }),
            card_bytes: 9 << 20,
            card_base_bytes: 8 << 20,
        };
        let expected = "\
NAME       FLAVOR      GUEST     WINDOW    VMM       TABLES    KERNEL    CARD      OVERHEAD   TOTAL     SHARED           IMAGE          SCRATCH
a          std-0.5x1   3.0 MiB   512 KiB   300 KiB   200 KiB   100 KiB   400 KiB   1.4 MiB    4.4 MiB   21.0 MiB by 12   1.0 MiB by 2   60 KiB
b          std-0.5x1   -         -         -         -         -         400 KiB   -          -         -                1.0 MiB by 2   60 KiB
2 in all               3.0 MiB   512 KiB   300 KiB   200 KiB   100 KiB   800 KiB   1.8 MiB    4.8 MiB                                   120 KiB

host       3.0 GiB available of 4.0 GiB; agent 2.0 MiB
template   1 vCPU, 128Mi dense: 21.0 MiB, 12 clones, 2 warm
card       9.0 MiB, of which 8.0 MiB before its first pod
";
        let text = table(&usage);
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn amounts_have_a_unit_that_fits() {
        for (bytes, text) in [
            (0, "0"),
            (1, "1 KiB"),
            (1 << 20, "1.0 MiB"),
            ((1 << 20) - 1, "1024 KiB"),
            (1_572_864, "1.5 MiB"),
            (u64::MAX, "17179869183.9 GiB"),
        ] {
            assert_eq!(amount(bytes), text);
        }
    }
}
