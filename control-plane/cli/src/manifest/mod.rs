//! Pod manifests: YAML documents in Kubernetes' own field names.

mod field;
pub(crate) mod placement;
mod pod;
mod quantity;

use std::io::Read;
use std::path::Path;

use longship_proto::Failure;
use longship_proto::control::v1::Pod;
use serde_json::Value;

pub(crate) use pod::{
    FLAVOR_ANNOTATION, GPU_RESOURCE, SUBNET_ANNOTATION, VPC_ANNOTATION, ZONE_LABEL,
    image_pull_policy, memory_profile, restart_policy,
};
pub(crate) use quantity::{cpu_millis, memory_bytes, show_cpu, show_memory};

use crate::error::CliError;

/// The largest file that is read, in bytes.
const FILE_MAX: u64 = 4 << 20;

/// All pods in the file at `path` (`-`: standard input), each checked.
///
/// # Errors
/// [`CliError`] that names the file and, where there is one, the field.
pub(crate) fn read(path: &Path, namespace: &str) -> Result<Vec<Pod>, CliError> {
    let text = read_text(path).map_err(|error| CliError::File {
        path: path.to_owned(),
        error,
    })?;
    parse(&text, namespace).map_err(|failure| CliError::Document {
        file: path.display().to_string(),
        failure,
    })
}

/// All pods in a text; `namespace` is for those that name none.
pub(crate) fn parse(text: &str, namespace: &str) -> Result<Vec<Pod>, Failure> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)
        .map_err(|error| Failure::invalid("", format!("is no YAML: {error}")))?;
    let pods = documents
        .into_iter()
        .filter(|document| !document.is_null())
        .map(|document| pod::parse(document, namespace))
        .collect::<Result<Vec<Pod>, Failure>>()?;
    if pods.is_empty() {
        return Err(Failure::invalid("", "holds no pod"));
    }
    Ok(pods)
}

fn read_text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().take(FILE_MAX).read_to_string(&mut text)?;
    } else {
        std::fs::File::open(path)?
            .take(FILE_MAX)
            .read_to_string(&mut text)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: web
    image: docker.io/library/nginx:1
";

    #[test]
    fn several_documents_are_several_pods() {
        let two = format!("{POD}---\n{}", POD.replace("name: web}", "name: two}"));
        let pods = parse(&two, "default").unwrap();
        let names: Vec<_> = pods
            .iter()
            .map(|pod| pod.metadata.as_ref().unwrap().name.as_str())
            .collect();
        assert_eq!(names, ["web", "two"]);
    }

    #[test]
    fn what_is_no_yaml_or_empty_is_refused() {
        assert!(
            parse("a: [", "default")
                .unwrap_err()
                .message
                .contains("no YAML")
        );
        assert!(parse("", "default").is_err());
        assert!(parse("a: 1\na: 2", "default").is_err());
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read(Path::new("/nowhere/pod.yaml"), "default").unwrap_err();
        assert!(
            error.to_string().starts_with("/nowhere/pod.yaml: "),
            "{error}"
        );
    }
}
