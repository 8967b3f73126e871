//! longship-init in a real guest: the guest kernel under QEMU, with Longship's
//! own disk and vsock backends, and this test in the card's place.
#![allow(clippy::unwrap_used)] // all of it is tests

mod card;
mod machine;
mod parts;

use longship_framed::error::Class;
use longship_framed::guest::request::Operation;
use longship_framed::guest::{Process, Resize, Start, StreamKind, WindowSize};
use tokio::io::AsyncWriteExt;

use card::{Card, argv, configuration, exec, shell, start};

#[tokio::test]
async fn a_pod_is_configured_and_its_containers_run_and_end() {
    let mut card = Card::boot().await;
    let hello = card.hello.clone();
    assert_eq!(hello.protocol, 1);
    assert!(hello.init_uptime_us > 0 && hello.uptime_us > hello.init_uptime_us);
    println!(
        "init starts at {} ms of the guest's time, says Hello at {} ms",
        hello.init_uptime_us / 1000,
        hello.uptime_us / 1000
    );

    // Nothing runs before the pod is configured, and nothing is half configured.
    let early = card.ask(start("main", shell("true"))).await.unwrap();
    assert_eq!(early.class(), Class::Conflict);
    let mut wrong = configuration();
    wrong.interfaces[0].mac = "02:00:00:00:00:99".into();
    let refused = card.ask(Operation::Configure(wrong)).await.unwrap();
    assert_eq!(refused.class(), Class::NotFound);
    assert_eq!(refused.field, "interfaces[0].mac");
    for _ in 0..2 {
        let again = card.ask(Operation::Configure(configuration())).await;
        assert_eq!(again, None, "repeating is harmless");
    }
    let mut other = configuration();
    other.hostname = "other".into();
    let refused = card.ask(Operation::Configure(other)).await.unwrap();
    assert_eq!(refused.class(), Class::Conflict);

    // Both outputs, the exit code, and the times.
    let (said, exited) = card
        .run(
            "main",
            shell("touch /was-here; echo out; echo err >&2; exit 7"),
        )
        .await;
    assert_eq!(said, "out\nerr\n");
    assert_eq!((exited.exit_code, exited.signal), (7, 0));
    assert!(!exited.out_of_memory);
    assert!(exited.started_us >= configuration().time_us);
    assert!(exited.finished_us >= exited.started_us);

    // The same name again, and nothing of the first is left.
    let (said, exited) = card.run("main", shell("ls -a / | grep -c was-here")).await;
    assert_eq!((said.as_str(), exited.exit_code), ("0\n", 1));

    // What the pod was configured to be.
    let (said, _) = card
        .run(
            "main",
            shell(
                "hostname; cat /etc/hostname /etc/resolv.conf /etc/machine-id; \
                 grep web-0 /etc/hosts; cat /sys/class/net/eth0/mtu; date -u +%Y; \
                 ip route | grep default; ping -c 1 -W 5 10.0.2.2 | grep -c 'from 10.0.2.2'",
            ),
        )
        .await;
    assert_eq!(
        said,
        "web-0\nweb-0\nnameserver 10.0.2.3\nsearch svc.local\n\
         0123456789abcdef0123456789abcdef\n10.0.2.15\tweb-0\n1400\n2027\n\
         default via 10.0.2.2 dev eth0 \n1\n"
    );

    // User, groups, directory and environment.
    let process = Process {
        env: vec!["A=b c".into(), "HOSTNAME=mine".into()],
        working_dir: "/new/dir".into(),
        user: "www".into(),
        ..shell("id; pwd; echo $A $HOME $HOSTNAME $PATH; echo to-dev-stdout >/dev/stdout")
    };
    let (said, exited) = card.run("main", process).await;
    assert_eq!(
        said,
        "uid=33(www) gid=34(www) groups=4(adm)\n/new/dir\n\
         b c /var/www mine /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         to-dev-stdout\n"
    );
    assert_eq!(exited.exit_code, 0);

    // A lot of output arrives whole.
    let (said, _) = card
        .run(
            "main",
            shell("dd if=/dev/zero bs=64k count=256 2>/dev/null"),
        )
        .await;
    assert_eq!(said.len(), 16 << 20);
    assert!(said.bytes().all(|b| b == 0));

    let console = card.power_off().await;
    let line = console.lines().find(|line| line.contains("power off"));
    println!("{}", line.expect("init says that it powers off"));
}

#[tokio::test]
async fn what_cannot_be_started_is_refused_with_the_field_and_leaves_nothing() {
    let mut card = Card::configured().await;
    let user = |user: &str| Process {
        user: user.into(),
        ..shell("true")
    };
    let dir = |dir: &str| Process {
        working_dir: dir.into(),
        ..shell("true")
    };
    let cases = [
        (
            argv(&["foo"]),
            Class::NotFound,
            "argv[0]: no such program: foo",
        ),
        (
            argv(&["/bin/foo"]),
            Class::NotFound,
            "argv[0]: no such program: /bin/foo",
        ),
        (
            argv(&["/data/plain"]),
            Class::Denied,
            "argv[0]: not executable: /data/plain",
        ),
        (
            argv(&["/data"]),
            Class::Denied,
            "argv[0]: not executable: /data",
        ),
        (
            argv(&["/data/garbage"]),
            Class::Denied,
            "argv[0]: /data/garbage is in no format that this machine runs",
        ),
        (
            argv(&["/data/lost"]),
            Class::NotFound,
            "argv[0]: /data/lost names an interpreter that does not exist",
        ),
        (
            user("nobody"),
            Class::Invalid,
            "user: no user \"nobody\" in the image's /etc/passwd",
        ),
        (
            user("www:wheel"),
            Class::Invalid,
            "user: no group \"wheel\" in the image's /etc/group",
        ),
        (
            dir("/data/plain"),
            Class::Invalid,
            "working_dir: /data/plain is not a directory",
        ),
        (
            dir("/data/plain/x"),
            Class::Invalid,
            "working_dir: /data/plain/x is not a directory",
        ),
        (
            argv(&[]),
            Class::Invalid,
            "argv: is empty: no command to run",
        ),
    ];
    for (process, class, text) in &cases {
        let refused = card.ask(start("main", process.clone())).await.unwrap();
        assert_eq!(refused.to_string(), format!("process.{text}"));
        assert_eq!(refused.class(), *class, "{text}");
    }
    let no_image = Operation::Start(Start {
        container: "main".into(),
        image_serial: "none".into(),
        process: Some(shell("true")),
        ..Start::default()
    });
    let refused = card.ask(no_image).await.unwrap();
    assert_eq!(
        refused.to_string(),
        "image_serial: no disk has the serial \"none\""
    );

    // The name is free, and an exec is refused in the same words.
    assert_eq!(
        card.ask(start("main", argv(&["sleep", "1000"]))).await,
        None
    );
    for (process, class, text) in &cases {
        let refused = card.ask(exec("main", "e", process.clone())).await.unwrap();
        assert_eq!(refused.to_string(), format!("spec.{text}"));
        assert_eq!(refused.class(), *class, "{text}");
    }
    let twice = card.ask(start("main", shell("true"))).await.unwrap();
    assert_eq!(twice.class(), Class::Conflict);
    let nowhere = card.ask(exec("other", "e", shell("true"))).await.unwrap();
    assert_eq!(nowhere.class(), Class::NotFound);
    let count = "set -- /proc/[0-9]*; n=0; while read p; do n=$((n+1)); done; echo $# $n";
    let count = shell(&format!("({count}) </sys/fs/cgroup/cgroup.procs"));
    let (said, _) = card.exec("main", "e", count).await;
    // The container's and the exec's.
    assert_eq!(said, "2 2\n");
    card.power_off().await;
}

#[tokio::test]
async fn processes_are_run_in_a_container_with_and_without_a_terminal() {
    let mut card = Card::configured().await;
    assert_eq!(card.ask(start("main", shell("sleep 1000"))).await, None);

    // Input, to its end.
    let process = Process {
        stdin: true,
        ..argv(&["cat"])
    };
    assert_eq!(card.ask(exec("main", "cat", process)).await, None);
    let mut stdin = card.stream("cat", StreamKind::Stdin).await;
    stdin.write_all(b"there and back").await.unwrap();
    stdin.shutdown().await.unwrap();
    assert_eq!(
        card.all_of("cat", StreamKind::Stdout).await,
        "there and back"
    );
    assert_eq!(card.exited("cat").await.exit_code, 0);

    // A terminal: its size, a new size, control characters, the exit.
    let process = Process {
        tty: true,
        window: Some(WindowSize {
            columns: 100,
            rows: 30,
        }),
        ..argv(&["sh"])
    };
    assert_eq!(card.ask(exec("main", "tty", process)).await, None);
    let mut tty = card.stream("tty", StreamKind::Tty).await;
    tty.write_all(b"stty size; tty; echo $TERM\n")
        .await
        .unwrap();
    let said = card.until(&mut tty, "xterm\r\n").await;
    assert!(
        said.contains("30 100\r\n") && said.contains("/dev/pts/0\r\n"),
        "{said:?}"
    );
    let resize = Resize {
        process: "tty".into(),
        window: Some(WindowSize {
            columns: 120,
            rows: 40,
        }),
    };
    assert_eq!(card.ask(Operation::Resize(resize.clone())).await, None);
    tty.write_all(b"stty size\n").await.unwrap();
    card.until(&mut tty, "40 120\r\n").await;
    tty.write_all(b"sh -c 'echo ready; exec sleep 1000'\n")
        .await
        .unwrap();
    card.until(&mut tty, "ready\r\n").await;
    tty.write_all(&[3]).await.unwrap();
    card.until(&mut tty, "^C").await;
    tty.write_all(b"exit 5\n").await.unwrap();
    assert_eq!(card.exited("tty").await.exit_code, 5);
    let gone = card.ask(Operation::Resize(resize)).await.unwrap();
    assert_eq!(gone.class(), Class::NotFound);

    // A session whose client has gone is hung up.
    let process = Process {
        tty: true,
        ..argv(&["sh"])
    };
    assert_eq!(card.ask(exec("main", "left", process)).await, None);
    drop(card.stream("left", StreamKind::Tty).await);
    assert_eq!(card.exited("left").await.exit_code, 129);

    // Signals.
    assert_eq!(
        card.ask(exec("main", "victim", shell("echo up; exec sleep 1000")))
            .await,
        None
    );
    let mut out = card.stream("victim", StreamKind::Stdout).await;
    card.until(&mut out, "up\n").await;
    card.signal("victim", 15, false).await;
    let exited = card.exited("victim").await;
    assert_eq!((exited.exit_code, exited.signal), (143, 15));

    // A child in the background does not hold the exec up, and lives on though
    // nobody hears it.
    let forever = shell("(while :; do echo more; echo . >>/alive; sleep 1; done) & echo done");
    let (said, exited) = card.exec("main", "spawner", forever).await;
    assert!(said.contains("done\n"), "{said:?}");
    assert_eq!(exited.exit_code, 0);
    let grows = "n=$(wc -l </alive); sleep 4; [ $(wc -l </alive) -gt $n ] && echo alive";
    let (said, _) = card.exec("main", "look", shell(grows)).await;
    assert_eq!(said, "alive\n");

    // The whole container.
    card.signal("main", 9, true).await;
    let exited = card.exited("main").await;
    assert_eq!(
        (exited.exit_code, exited.signal, exited.out_of_memory),
        (137, 9, false)
    );
    let gone = card.ask(exec("main", "late", shell("true"))).await.unwrap();
    assert_eq!(gone.class(), Class::NotFound);

    // The first process on a terminal.
    let process = Process {
        tty: true,
        ..shell("tty; exit 3")
    };
    assert_eq!(card.ask(start("main", process)).await, None);
    assert_eq!(card.all_of("main", StreamKind::Tty).await, "/dev/pts/0\r\n");
    assert_eq!(card.exited("main").await.exit_code, 3);
    card.power_off().await;
}

#[tokio::test]
async fn a_container_is_kept_within_its_limits_and_its_walls() {
    let mut card = Card::configured().await;
    let limited = |process: Process| {
        Operation::Start(Start {
            container: "main".into(),
            image_serial: "image".into(),
            process: Some(process),
            cpu_millis: 500,
            memory_bytes: 16 << 20,
        })
    };
    let grow = shell(
        "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max; exec dd if=/dev/zero of=/dev/null bs=64M count=1",
    );
    assert_eq!(card.ask(limited(grow)).await, None);
    assert_eq!(
        card.all_of("main", StreamKind::Stdout).await,
        "50000 100000\n16777216\n"
    );
    let exited = card.exited("main").await;
    assert_eq!((exited.exit_code, exited.out_of_memory), (137, true));

    // A container that was killed for another reason was not out of memory.
    assert_eq!(card.ask(limited(shell("sleep 1000"))).await, None);
    card.signal("main", 9, false).await;
    assert!(!card.exited("main").await.out_of_memory);

    // An exec that takes too much ends the container that it is in.
    assert_eq!(card.ask(limited(shell("sleep 1000"))).await, None);
    assert_eq!(
        card.ask(exec(
            "main",
            "hog",
            argv(&["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"])
        ))
        .await,
        None
    );
    let exited = card.exited("hog").await;
    assert_eq!((exited.exit_code, exited.out_of_memory), (137, true));
    assert!(card.exited("main").await.out_of_memory);

    let walls = "readlink /proc/self/exe; echo $$; \
        grep CapBnd /proc/self/status | cut -f2; \
        (echo 1 >/proc/sys/kernel/panic) 2>/dev/null || echo sys-is-read-only; \
        (echo x >/sys/kernel/uevent_seqnum) 2>/dev/null || echo sysfs-is-read-only; \
        mount -t tmpfs none /tmp 2>/dev/null || echo no-mount; \
        hostname changed 2>/dev/null || echo no-hostname; \
        mknod /disk b 254 0 && (dd if=/disk count=1 >/dev/null 2>&1 || echo no-raw-disk); \
        mknod /dev/disk b 254 0 && (dd if=/dev/disk count=1 >/dev/null 2>&1 || echo no-raw-disk); \
        cat /proc/keys /proc/timer_list /proc/kcore 2>/dev/null | wc -c; ls -d /run/longship 2>/dev/null; echo x >/dev/shm/x && echo shm; \
        cat /proc/self/cgroup; cat /proc/1/oom_score_adj; echo $(cat </dev/null)end";
    let (said, _) = card.run("main", shell(walls)).await;
    assert_eq!(
        said,
        "/bin/busybox\n1\n00000000a80425fb\nsys-is-read-only\nsysfs-is-read-only\nno-mount\n\
         no-hostname\nno-raw-disk\nno-raw-disk\n0\nshm\n0::/\n0\nend\n"
    );
    // The pod's memory is shared, its processes are not.
    let (said, _) = card.run("second", shell("cat /dev/shm/x")).await;
    assert_eq!(said, "x\n");
    card.power_off().await;
}

#[tokio::test]
async fn a_card_that_comes_back_finds_everything_as_it_is() {
    let mut card = Card::boot().await;
    let mut settings = configuration();
    // Here with a tmpfs to write to, and an address of the other family.
    settings.scratch_serial.clear();
    settings.interfaces[0].address = "fd00::2".into();
    settings.interfaces[0].prefix_length = 64;
    settings.interfaces[0].gateway = "fe80::1".into();
    let configured = card.ask(Operation::Configure(settings.clone())).await;
    assert_eq!(configured, None);
    let look = "ip -6 addr show dev eth0 | grep -c 'fd00::2/64 scope global'; \
        ip -6 route | grep default | cut -d' ' -f1-5; grep web-0 /etc/hosts; touch /x && echo ok";
    let (said, _) = card.run("look", shell(look)).await;
    assert_eq!(
        said,
        "1\ndefault via fe80::1 dev eth0\nfd00::2\tweb-0\nok\n"
    );
    let (_, first) = card.run("done", shell("exit 4")).await;
    assert_eq!(
        card.ask(start("main", shell("while :; do echo tick; sleep 1; done")))
            .await,
        None
    );
    let mut out = card.stream("main", StreamKind::Stdout).await;
    card.until(&mut out, "tick\n").await;

    card.hang_up().await;
    // What had ended is told again, and what runs, runs.
    assert_eq!(card.exited("done").await, first);
    assert_eq!(card.ask(Operation::Configure(settings)).await, None);
    let refused = card.ask(start("main", shell("true"))).await.unwrap();
    assert_eq!(refused.class(), Class::Conflict);
    card.until(&mut out, "tick\n").await;

    // A lost stream of a container is made again.
    drop(out);
    let mut out = card.stream("main", StreamKind::Stdout).await;
    card.until(&mut out, "tick\n").await;
    card.signal("main", 9, true).await;
    assert_eq!(card.exited("main").await.exit_code, 137);
    card.power_off().await;
}
