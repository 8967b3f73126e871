//! The environment of a process: what was asked for, and what every program
//! expects.

use std::ffi::{CStr, CString};

use crate::spec::ProcessSpec;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The variables of the process. Of several with one name the last one counts;
/// HOME, HOSTNAME, PATH and, on a terminal, TERM are added where they are absent.
pub(crate) fn environment(spec: &ProcessSpec, home: &str, hostname: &str) -> Vec<CString> {
    let mut env: Vec<CString> = Vec::with_capacity(spec.env.len() + 4);
    for variable in &spec.env {
        let name = name(variable);
        match env.iter_mut().find(|other| self::name(other) == name) {
            Some(earlier) => earlier.clone_from(variable),
            None => env.push(variable.clone()),
        }
    }
    let terminal = spec.terminal.map(|_| ("TERM", "xterm"));
    let defaults = [("PATH", PATH), ("HOME", home), ("HOSTNAME", hostname)];
    for (name, value) in defaults.into_iter().chain(terminal) {
        if value_of(&env, name).is_none() {
            // A home with a NUL cannot come out of a passwd file's line that was
            // cut at it, but then it is better absent than wrong.
            env.extend(CString::new(format!("{name}={value}")));
        }
    }
    env
}

/// The value of a variable.
pub(super) fn value_of<'a>(env: &'a [CString], wanted: &str) -> Option<&'a [u8]> {
    env.iter()
        .find(|variable| name(variable) == wanted.as_bytes())
        .and_then(|variable| variable.to_bytes().get(wanted.len() + 1..))
}

fn name(variable: &CStr) -> &[u8] {
    let bytes = variable.to_bytes();
    bytes.split(|b| *b == b'=').next().unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use longship_framed::guest;
    use proptest::prelude::*;

    use super::*;

    fn spec(env: &[&str], tty: bool) -> ProcessSpec {
        let process = guest::Process {
            argv: vec!["x".into()],
            env: env.iter().map(ToString::to_string).collect(),
            tty,
            ..guest::Process::default()
        };
        ProcessSpec::checked("process", Some(process)).unwrap()
    }

    fn texts(env: &[CString]) -> Vec<&str> {
        env.iter().map(|v| v.to_str().unwrap()).collect()
    }

    #[test]
    fn defaults_fill_what_is_absent() {
        let env = environment(&spec(&["A=1"], true), "/root", "web");
        let path = format!("PATH={PATH}");
        assert_eq!(
            texts(&env),
            ["A=1", &path, "HOME=/root", "HOSTNAME=web", "TERM=xterm"]
        );
    }

    #[test]
    fn what_was_asked_for_stays_and_the_last_one_counts() {
        let asked = ["PATH=/bin", "HOME=/a", "HOSTNAME=", "A=1", "A=2=3"];
        let env = environment(&spec(&asked, false), "/root", "web");
        assert_eq!(texts(&env), ["PATH=/bin", "HOME=/a", "HOSTNAME=", "A=2=3"]);
        assert_eq!(value_of(&env, "A"), Some(&b"2=3"[..]));
        assert_eq!(value_of(&env, "HOSTNAME"), Some(&b""[..]));
        assert_eq!(value_of(&env, "HOM"), None);
    }

    proptest! {
        #[test]
        fn no_name_comes_twice(names in prop::collection::vec("[A-C]{1,2}", 0..20)) {
            let asked: Vec<String> = names.iter().map(|n| format!("{n}=x")).collect();
            let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
            let env = environment(&spec(&asked, false), "/", "h");
            let mut seen: Vec<&[u8]> = env.iter().map(|v| name(v)).collect();
            let all = seen.len();
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), all);
        }
    }
}
