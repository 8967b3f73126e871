//! A process to run in a container.

use std::ffi::CString;

use longship_framed::error::Failure;
use longship_framed::guest;

use super::UserSpec;

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowSize {
    pub(crate) columns: u16,
    pub(crate) rows: u16,
}

impl WindowSize {
    /// Checks the size at `field`; none at all is the classic 80 by 24.
    ///
    /// # Errors
    /// Invalid where it is over what a terminal can have.
    pub(crate) fn checked(field: &str, asked: Option<guest::WindowSize>) -> Result<Self, Failure> {
        let asked = asked.unwrap_or(guest::WindowSize {
            columns: 80,
            rows: 24,
        });
        let fit = |name: &str, n: u32| {
            u16::try_from(n).map_err(|_| {
                Failure::invalid(format!("{field}.{name}"), format!("{n} is over 65535"))
            })
        };
        Ok(Self {
            columns: fit("columns", asked.columns)?,
            rows: fit("rows", asked.rows)?,
        })
    }
}

/// A checked [`guest::Process`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProcessSpec {
    /// Path of this message in the request, for failures found later.
    pub(crate) field: &'static str,
    /// Never empty, nor is its first.
    pub(crate) argv: Vec<CString>,
    /// Each has a name and a `=`.
    pub(crate) env: Vec<CString>,
    /// Absolute; `/` where none was asked for.
    pub(crate) working_dir: CString,
    pub(crate) user: UserSpec,
    /// Its window, where the process gets a terminal.
    pub(crate) terminal: Option<WindowSize>,
    pub(crate) stdin: bool,
}

impl ProcessSpec {
    /// Checks the message at `field`.
    ///
    /// # Errors
    /// Invalid, at the field that is wrong.
    pub(crate) fn checked(
        field: &'static str,
        asked: Option<guest::Process>,
    ) -> Result<Self, Failure> {
        let asked = asked.ok_or_else(|| Failure::invalid(field, "is missing"))?;
        let at = |name: &str| format!("{field}.{name}");
        let mut argv = Vec::with_capacity(asked.argv.len());
        for (i, argument) in asked.argv.into_iter().enumerate() {
            argv.push(text(&at(&format!("argv[{i}]")), argument)?);
        }
        match argv.first() {
            None => return Err(Failure::invalid(at("argv"), "is empty: no command to run")),
            Some(program) if program.is_empty() => {
                return Err(Failure::invalid(at("argv[0]"), "is empty"));
            }
            Some(_) => {}
        }
        let mut env = Vec::with_capacity(asked.env.len());
        for (i, variable) in asked.env.into_iter().enumerate() {
            let field = at(&format!("env[{i}]"));
            if variable.find('=').is_none_or(|at| at == 0) {
                let text = format!("{variable:?} is not NAME=value");
                return Err(Failure::invalid(field, text));
            }
            env.push(text(&field, variable)?);
        }
        let working_dir = match asked.working_dir.as_str() {
            "" => "/".to_owned(),
            dir if dir.starts_with('/') => asked.working_dir,
            dir => {
                let text = format!("{dir:?} is not an absolute path");
                return Err(Failure::invalid(at("working_dir"), text));
            }
        };
        let user = asked.user.parse().map_err(|()| {
            let text = format!("{:?} is not user, uid, user:group or uid:gid", asked.user);
            Failure::invalid(at("user"), text)
        })?;
        let window = WindowSize::checked(&at("window"), asked.window)?;
        Ok(Self {
            field,
            argv,
            env,
            working_dir: text(&at("working_dir"), working_dir)?,
            user,
            terminal: asked.tty.then_some(window),
            stdin: asked.stdin,
        })
    }
}

fn text(field: &str, text: String) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::invalid(field, "holds a NUL"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> guest::Process {
        guest::Process {
            argv: vec!["sh".into(), String::new()],
            env: vec!["A=".into(), "B=c=d".into()],
            ..guest::Process::default()
        }
    }

    #[test]
    fn defaults_are_root_at_the_top_without_a_terminal() {
        let checked = ProcessSpec::checked("process", Some(good())).unwrap();
        assert_eq!(checked.working_dir.as_c_str(), c"/");
        assert_eq!(checked.terminal, None);
        assert_eq!(checked.argv.len(), 2);
        let tty = guest::Process {
            tty: true,
            ..good()
        };
        let tty = ProcessSpec::checked("process", Some(tty)).unwrap();
        assert_eq!(
            tty.terminal,
            Some(WindowSize {
                columns: 80,
                rows: 24
            })
        );
    }

    #[test]
    fn every_wrong_field_is_named() {
        type Spoil = fn(&mut guest::Process);
        let cases: [(&str, Spoil); 9] = [
            ("spec.argv", |p| p.argv.clear()),
            ("spec.argv[0]", |p| p.argv[0].clear()),
            ("spec.argv[1]", |p| p.argv[1] = "a\0b".into()),
            ("spec.env[1]", |p| p.env[1] = "novalue".into()),
            ("spec.env[0]", |p| p.env[0] = "=x".into()),
            ("spec.working_dir", |p| p.working_dir = "tmp".into()),
            ("spec.working_dir", |p| p.working_dir = "/a\0".into()),
            ("spec.user", |p| p.user = "a:b:c".into()),
            ("spec.window.rows", |p| {
                p.window = Some(guest::WindowSize {
                    columns: 1,
                    rows: 65_536,
                });
            }),
        ];
        for (field, spoil) in cases {
            let mut message = good();
            spoil(&mut message);
            let refused = ProcessSpec::checked("spec", Some(message)).unwrap_err();
            assert_eq!(refused.field, field);
        }
    }
}
