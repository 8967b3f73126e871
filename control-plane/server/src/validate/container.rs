//! One container of a pod.

use longship_proto::Failure;
use longship_proto::control::v1::{Container, EnvVar, ImagePullPolicy};

use super::image;
use super::names::{dns_label, shown};

/// Arguments of a command, and variables, at most.
const MAX_ITEMS: usize = 1024;

pub(super) fn container(field: &str, container: &Container) -> Result<(), Failure> {
    dns_label(&format!("{field}.name"), &container.name)?;
    image::reference(&format!("{field}.image"), &container.image)?;
    if ImagePullPolicy::try_from(container.image_pull_policy).is_err() {
        return Err(Failure::invalid(
            format!("{field}.image_pull_policy"),
            format!("{} is no pull policy", container.image_pull_policy),
        ));
    }
    for (name, words) in [("command", &container.command), ("args", &container.args)] {
        if words.len() > MAX_ITEMS {
            return Err(Failure::invalid(
                format!("{field}.{name}"),
                format!("has {} words; at most {MAX_ITEMS}", words.len()),
            ));
        }
        for (at, word) in words.iter().enumerate() {
            no_nul(&format!("{field}.{name}[{at}]"), word)?;
        }
    }
    if container.command.first().is_some_and(String::is_empty) {
        return Err(Failure::invalid(
            format!("{field}.command[0]"),
            "names the program; must not be empty",
        ));
    }
    environment(field, &container.env)?;
    let working_dir = &container.working_dir;
    let at = format!("{field}.working_dir");
    no_nul(&at, working_dir)?;
    if !working_dir.is_empty() && !working_dir.starts_with('/') {
        return Err(Failure::invalid(
            at,
            format!("`{}` is not absolute", shown(working_dir)),
        ));
    }
    Ok(())
}

fn environment(field: &str, env: &[EnvVar]) -> Result<(), Failure> {
    if env.len() > MAX_ITEMS {
        return Err(Failure::invalid(
            format!("{field}.env"),
            format!("has {} variables; at most {MAX_ITEMS}", env.len()),
        ));
    }
    for (at, variable) in env.iter().enumerate() {
        let name = &variable.name;
        let first = |byte: u8| byte.is_ascii_alphabetic() || b"-._".contains(&byte);
        let holds = name.bytes().next().is_some_and(first)
            && name
                .bytes()
                .all(|byte| first(byte) || byte.is_ascii_digit());
        if !holds {
            return Err(Failure::invalid(
                format!("{field}.env[{at}].name"),
                format!(
                    "`{}` is no name of a variable: letters, digits, `_`, `-` and `.`, not \
                     beginning with a digit",
                    shown(name)
                ),
            ));
        }
        no_nul(&format!("{field}.env[{at}].value"), &variable.value)?;
    }
    Ok(())
}

fn no_nul(field: &str, text: &str) -> Result<(), Failure> {
    if text.contains('\0') {
        return Err(Failure::invalid(field, "must not contain a NUL character"));
    }
    Ok(())
}
