//! What a container finds in /etc about its pod.

use std::fmt::Write;

use crate::spec::Configuration;

/// Name (below /etc) and content of each file.
pub(crate) fn etc_files(pod: &Configuration) -> Vec<(&'static str, String)> {
    vec![
        ("hostname", format!("{}\n", pod.hostname)),
        ("hosts", hosts(pod)),
        ("machine-id", format!("{}\n", pod.machine_id)),
        ("resolv.conf", resolv_conf(pod)),
    ]
}

fn hosts(pod: &Configuration) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for interface in &pod.interfaces {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{}\t{}", interface.address, pod.hostname);
    }
    text
}

fn resolv_conf(pod: &Configuration) -> String {
    let mut text = String::new();
    for server in &pod.nameservers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !pod.search.is_empty() {
        let _ = writeln!(text, "search {}", pod.search.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests_configuration;

    #[test]
    fn the_files_say_what_the_pod_is() {
        let files = etc_files(&tests_configuration());
        let text = |name| files.iter().find(|(n, _)| *n == name).unwrap().1.as_str();
        assert_eq!(text("hostname"), "web-0\n");
        assert_eq!(
            text("resolv.conf"),
            "nameserver 10.0.0.1\nsearch svc.local\n"
        );
        assert!(text("hosts").ends_with("10.0.0.2\tweb-0\n"));
        assert_eq!(text("machine-id").len(), 33);
    }
}
