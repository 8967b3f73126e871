//! What the virtual host promises to whoever runs a command in it. Each test starts one.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use longship_testbed::{MachineError, Testbed, TestbedError};

fn testbed() -> Testbed {
    Testbed::new().timeout(Duration::from_secs(300))
}

/// A directory that is gone when the test is.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("longship-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory below the temporary one");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn output_and_exit_code_are_the_commands_and_changes_stay_inside() {
    let shared = Scratch::new("shared");
    let private = Scratch::new("private");
    let script = r#"
        printf 'raw\r\n\0\377'
        echo "$WORD" >&2
        echo there >"$SHARED/file" && echo there >"$PRIVATE/file" && cat "$PRIVATE/file"
        head -c 3000000 /dev/zero
        sleep 1000 &
        exit 7
    "#;
    let output = testbed()
        .share(&shared.0)
        .env("WORD", "it's")
        .env("SHARED", &shared.0)
        .env("PRIVATE", &private.0)
        .output(["sh", "-c", script])
        .unwrap();
    assert_eq!(output.code, 7);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "it's\n");
    let (text, zeros) = output.stdout.split_at(13);
    assert_eq!(text, b"raw\r\n\0\xffthere\n");
    assert_eq!(zeros.len(), 3_000_000);
    assert_eq!(std::fs::read(shared.0.join("file")).unwrap(), b"there\n");
    assert!(!private.0.join("file").exists());
}

#[test]
fn kvm_there_runs_a_guest() {
    // Firmware whose only act, from the reset vector on, is to leave with 0x21.
    let script = r"
        { head -c 65520 /dev/zero; printf '\260\041\346\364\364'; head -c 11 /dev/zero; } >/tmp/firmware
        exec timeout 60 qemu-system-x86_64 -accel kvm -machine pc -nodefaults -display none \
            -bios /tmp/firmware -device isa-debug-exit,iobase=0xf4,iosize=4
    ";
    let output = testbed().output(["sh", "-c", script]).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.code, 0x21 << 1 | 1, "{stderr}");
}

#[test]
fn counted_instructions_make_costs_repeat_and_time_does_not_leap() {
    let script = "work() { i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; }
        now() { cut -d' ' -f1 /proc/uptime | tr -d .; }
        a=$(now); ls -R /usr/include /etc >/dev/null; b=$(now)
        work; c=$(now); work; d=$(now); work; e=$(now); sleep 0.3; f=$(now)
        echo $((b - a)) $((d - c)) $((e - d)) $((f - e))";
    let output = testbed().exact(true).output(["sh", "-c", script]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let costs: Vec<i64> = text
        .split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect();
    // In hundredths of a second, so one of them may be lost to rounding.
    let [files, first, second, sleep] = costs[..] else {
        panic!("{text:?}")
    };
    assert!(first > 2 && (first - second).abs() <= 1, "{text}");
    assert!((30..=33).contains(&sleep), "{text}");
    // Where time leaps, this takes an hour of it.
    assert!(files < 6000, "{text}");
}

#[test]
fn a_panic_and_a_timeout_are_told_apart_from_an_exit_code() {
    let panicked = testbed().output(["sh", "-c", "echo c >/proc/sysrq-trigger"]);
    match panicked {
        Err(TestbedError::Machine(MachineError::Lost { console, .. })) => {
            // Of a long console only the end is kept.
            assert!(console.contains("sysrq"), "{console}");
        }
        other => panic!("{other:?}"),
    }
    let late = Testbed::new()
        .timeout(Duration::from_secs(1))
        .output(["true"]);
    assert!(
        matches!(
            late,
            Err(TestbedError::Machine(MachineError::TimedOut { .. }))
        ),
        "{late:?}"
    );
}

#[test]
fn bad_requests_are_refused_before_anything_starts() {
    for (arguments, code, message) in [
        (&["run"][..], 2, "required"),
        (
            &["run", "--share", "/nonexistent", "--", "true"],
            125,
            "/nonexistent",
        ),
        (
            &["run", "--env", "1=2", "--", "true"],
            125,
            "environment variable",
        ),
        (&["run", "--memory", "64", "--", "true"], 125, "memory: 64"),
        (
            &["run", "--icount", "--cpus", "2", "--", "true"],
            125,
            "cpus:",
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_longship-testbed"))
            .args(arguments)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(message), "{stderr}");
    }
}
