//! The network of steps, on a "host" that is a network namespace of the test's own, with another machine outside it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Stdio};

use runner::network::names::Question;

use crate::network::{Host, enter};
use crate::rootless::User;
use crate::run_mounts::output;
use crate::support::{LONGSHORE, Place, Ran, busybox_rootfs, signal};

/// The addresses of the host and of the machine outside.
const HOST: [&str; 2] = ["192.0.2.1", "fd99::1"];
const OUTSIDE: [&str; 2] = ["192.0.2.2", "fd99::2"];

/// A host with a way out.
struct Yard<'p> {
    place: &'p Place,
    host: Host<'p>,
    outside: Host<'p>,
}

impl<'p> Yard<'p> {
    fn new(place: &'p Place) -> Yard<'p> {
        let (host, outside) = (Host::new(place), Host::new(place));
        let yard = Yard {
            place,
            host,
            outside,
        };
        let pid = yard.outside.pid().to_string();
        yard.ip(&format!(
            "link add out0 type veth peer name out1 netns {pid}"
        ));
        for (on, name, own) in [(&yard.host, "out0", HOST), (&yard.outside, "out1", OUTSIDE)] {
            let [v4, v6] = own;
            let line = format!(
                "ip addr add {v4}/24 dev {name}; ip addr add {v6}/64 dev {name} nodad; ip link set {name} up"
            );
            Ran::of(&mut on.command("sh", &["-ec", &line])).ok();
        }
        yard.ip(&format!("route add default via {}", OUTSIDE[0]));
        yard.ip(&format!("-6 route add default via {}", OUTSIDE[1]));
        yard
    }

    fn ip(&self, arguments: &str) -> String {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        Ran::of(&mut self.host.command("ip", &words)).ok()
    }

    /// The outside machine tells whoever connects to port 8000 who they are.
    fn greet(&self, address: &'static str) {
        let listener = self.listen_outside(address, 8000);
        std::thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                // One that went away was not there to listen.
                let _told = writeln!(stream, "{}", peer.ip());
            }
        });
    }

    /// Somebody on the host answers here, and says nothing.
    fn hang_up_at(&self, address: &str) {
        let listener = self.host.enter(|| TcpListener::bind(address).unwrap());
        std::thread::spawn(move || while listener.accept().is_ok() {});
    }

    fn listen_outside(&self, address: &str, port: u16) -> TcpListener {
        enter(self.outside.pid().into(), || {
            TcpListener::bind((address, port)).unwrap()
        })
    }

    /// A build on the host, whose own `/etc/resolv.conf` does not matter.
    fn build(&self, dockerfile: &str, flags: &[&str]) -> Ran {
        let context = self.place.context("ctx", &[("Dockerfile", dockerfile)]);
        let mut words = vec!["build", "--progress", "plain"];
        words.extend(flags);
        words.push(context.to_str().unwrap());
        self.host.run(&words)
    }

    fn wait_until_no_line_is_left(&self) {
        while self.ip("-o link").contains("lsl-") {
            std::thread::yield_now();
        }
    }
}

#[test]
fn steps_reach_what_the_host_reaches_but_not_its_loopback() {
    let place = Place::with_busybox();
    let yard = Yard::new(&place);
    yard.greet(OUTSIDE[0]);
    yard.greet(OUTSIDE[1]);
    yard.hang_up_at("127.0.0.1:7000");
    yard.hang_up_at("0.0.0.0:7001");
    let steps = "RUN nc 192.0.2.2 8000; nc fd99::2 8000
RUN nc 127.0.0.1 7000 < /dev/null || echo its own loopback
RUN nc me 7001 < /dev/null && grep -w 'me\\|db' /etc/hosts
";
    let dockerfile = format!(
        "FROM busybox\n{steps}RUN --network=host nc 127.0.0.1 7000 < /dev/null && echo the host\n"
    );
    let names = ["--add-host=me:host-gateway", "--add-host=db:192.0.2.77"];
    yard.build(&dockerfile, &names)
        .fails(1, "--allow network.host");
    let ran = yard.build(
        &dockerfile,
        &[names[0], names[1], "--allow=network.host", "-t", "x"],
    );
    ran.ok();
    let said = output(&ran);
    let said: Vec<&&str> = said.iter().filter(|l| !l.starts_with("nc: ")).collect();
    assert_eq!(
        said,
        [
            &HOST[0],
            &HOST[1],
            &"its own loopback",
            &"10.207.0.1\tme",
            &"192.0.2.77\tdb",
            &"the host"
        ],
        "{ran}"
    );
    assert!(!ran.stderr.contains("host's network"), "{ran}");

    // By the command line, for those that do not say.
    let dockerfile = "FROM busybox\nRUN nc 127.0.0.1 7000 < /dev/null && ls /sys/class/net\n";
    let ran = yard.build(dockerfile, &["--network=host"]);
    ran.ok();
    assert!(output(&ran).contains(&"out0"), "{ran}");
    yard.build(dockerfile, &[])
        .fails(1, "did not complete successfully");
    yard.wait_until_no_line_is_left();
}

#[test]
fn who_needs_no_network_pays_for_none() {
    let place = Place::with_busybox();
    let yard = Yard::new(&place);
    let forward = ["-w", "net.ipv4.ip_forward=0"];
    let is_on = || Ran::of(&mut yard.host.command("sysctl", &["-n", "net.ipv4.ip_forward"])).ok();
    let dockerfile = "FROM busybox\nRUN ls /sys/class/net\n";
    Ran::of(&mut yard.host.command("sysctl", &forward)).ok();
    let ran = yard.build(dockerfile, &["--network=none"]);
    ran.ok();
    assert_eq!(
        (output(&ran), is_on()),
        (vec!["lo"], "0".to_owned()),
        "{ran}"
    );
    let ran = yard.build(dockerfile, &[]);
    ran.ok();
    assert_eq!(
        (output(&ran), is_on()),
        (vec!["eth0", "lo"], "1".to_owned()),
        "{ran}"
    );
    Ran::of(&mut yard.host.command("sysctl", &forward)).ok();
    let ran = yard.build(dockerfile, &[]);
    ran.ok();
    assert_eq!((output(&ran), is_on()), (vec![], "0".to_owned()), "{ran}");
}

#[test]
fn builds_of_several_stores_run_at_once() {
    let places = [Place::with_busybox(), Place::with_busybox()];
    let yard = Yard::new(&places[0]);
    let meeting = yard.listen_outside(OUTSIDE[0], 8001);
    let dockerfile =
        "FROM busybox AS a\nRUN ip -4 -o addr show dev eth0 && nc 192.0.2.2 8001 && echo a
FROM busybox AS b\nRUN ip -4 -o addr show dev eth0 && nc 192.0.2.2 8001 && echo b
FROM scratch\nCOPY --from=a /etc /a\nCOPY --from=b /etc /b\n";
    let start = |place: &Place| {
        let context = place.context("ctx", &[("Dockerfile", dockerfile)]);
        let context = context.to_str().unwrap();
        let words = ["build", "--progress", "plain", "--jobs", "2", context];
        yard.host
            .command(LONGSHORE, &words)
            .env("LONGSHORE_ROOT", place.store())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let builds = places.each_ref().map(start);
    // None goes on before all of them are here.
    let all: Vec<TcpStream> = (0..4).map(|_| meeting.accept().unwrap().0).collect();
    drop(all);
    let mut addresses: Vec<String> = Vec::new();
    for build in builds {
        let ran = Ran::from_output("build".to_owned(), &build.wait_with_output().unwrap());
        ran.ok();
        let said = output(&ran);
        let inet = said.iter().filter(|line| line.contains(" inet "));
        addresses.extend(inet.map(|line| line.split_whitespace().nth(3).unwrap().to_owned()));
    }
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 4, "{addresses:?}");
    yard.wait_until_no_line_is_left();
}

#[test]
fn nothing_is_left_of_a_build_that_was_killed() {
    let place = Place::with_busybox();
    let yard = Yard::new(&place);
    let meeting = yard.listen_outside(OUTSIDE[0], 8001);
    let dockerfile = "FROM busybox\nRUN nc 192.0.2.2 8001\n";
    let context = place.context("ctx", &[("Dockerfile", dockerfile)]);
    let context = context.to_str().unwrap();
    for name in ["KILL", "INT"] {
        let mut build: Child = yard
            .host
            .command(LONGSHORE, &["build", "-q", context])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut step = meeting.accept().unwrap().0;
        signal(&build, name);
        build.wait().unwrap();
        // Reset, or a plain end.
        let _ended = step.read(&mut [0]);
        yard.wait_until_no_line_is_left();
    }
    yard.greet(OUTSIDE[0]);
    let ran = yard.build("FROM busybox\nRUN nc 192.0.2.2 8000\n", &[]);
    ran.ok();
    assert_eq!(output(&ran), [HOST[0]], "{ran}");
}

/// Servers on the host's loopback are asked on the step's behalf.
#[test]
fn names_are_resolved_as_on_the_host() {
    let place = Place::with_busybox();
    let yard = Yard::new(&place);
    let server = yard
        .host
        .enter(|| UdpSocket::bind("127.0.0.53:53").unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = server.recv_from(&mut buffer) {
            let message = &buffer[..length];
            let question = Question::read(message).unwrap();
            let answer = question.answer(message, &[[192, 0, 2, 99].into()]);
            server.send_to(&answer, from).unwrap();
        }
    });
    let resolv = |text: &str| -> Ran {
        let dockerfile =
            "FROM busybox\nRUN cat /etc/resolv.conf; nslookup till 2>&1 | grep Address || true\n";
        let context = place.context("ctx", &[("Dockerfile", dockerfile), ("resolv", text)]);
        let line = "mount -t tmpfs none /run; mount --bind resolv /etc/resolv.conf; \
                    exec \"$0\" build --no-cache --progress plain .";
        let words = ["--mount", "sh", "-ec", line, LONGSHORE];
        let mut command = yard.host.command("unshare", &words);
        Ran::of(command.current_dir(&context))
    };
    let ran = resolv("nameserver 127.0.0.53\noptions ndots:0 trust-ad\nsearch example\n");
    ran.ok();
    let said = output(&ran);
    let expect = [
        "nameserver 127.0.0.11",
        "options ndots:0 trust-ad",
        "search example",
    ];
    assert_eq!(said[..3], expect, "{ran}");
    assert!(said.iter().any(|line| line.contains("192.0.2.99")), "{ran}");
    let ran = resolv("nameserver 127.0.0.53\nnameserver 192.0.2.2\noptions timeout:1\n");
    ran.ok();
    let expect = ["nameserver 192.0.2.2", "options timeout:1"];
    assert_eq!(output(&ran)[..2], expect, "{ran}");
}

#[test]
fn a_proxy_on_loopback_is_told_of_once() {
    let place = Place::with_busybox();
    let yard = Yard::new(&place);
    let dockerfile = "FROM busybox\nRUN echo $http_proxy\nRUN true\n";
    let proxy = "--build-arg=http_proxy=http://127.0.0.1:3128";
    let count = |flags: &[&str]| {
        let ran = yard.build(dockerfile, flags);
        ran.ok();
        let told = " is a proxy on this machine's loopback";
        ran.stderr.matches(told).count()
    };
    assert_eq!(count(&[proxy]), 1);
    assert_eq!(count(&["--no-cache", proxy, "--network=host"]), 0);
    let elsewhere = "--build-arg=http_proxy=http://192.0.2.2:3128";
    assert_eq!(count(&["--no-cache", elsewhere]), 0);
}

/// Where the firewall would drop what steps send, each has a program that leads out.
#[test]
fn a_firewall_that_drops_is_gone_around() {
    let place = Place::with_busybox();
    let yard = Yard::new(&place);
    yard.greet(OUTSIDE[0]);
    let drop = ["-P", "FORWARD", "DROP"];
    Ran::of(&mut yard.host.command("iptables", &drop)).ok();
    let ran = yard.build(
        "FROM busybox\nRUN nc 192.0.2.2 8000; ls /sys/class/net\n",
        &[],
    );
    ran.ok();
    assert_eq!(output(&ran), [HOST[0], "lo", "tap0"], "{ran}");
    let info = |variables: &[&str]| {
        let words = [variables, &[LONGSHORE, "info", "--json"]].concat();
        let text = Ran::of(&mut yard.host.command("env", &words)).ok();
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        found
    };
    assert_eq!(info(&[])["network"], "slirp4netns");
    let found = info(&["PATH=/nowhere"]);
    assert_eq!(found["network"], "host");
    let lacks = found["lacks"].to_string();
    assert!(
        lacks.contains("the firewall drops what is passed on"),
        "{lacks}"
    );
    let accept = ["-P", "FORWARD", "ACCEPT"];
    Ran::of(&mut yard.host.command("iptables", &accept)).ok();
    assert_eq!(info(&[])["network"], "interfaces");
}

#[test]
fn steps_of_ordinary_users_have_a_network_of_their_own_where_a_program_leads_out() {
    let user = User::new("lsn");
    let place = Place::new();
    let yard = Yard::new(&place);
    yard.greet(OUTSIDE[0]);
    yard.hang_up_at("127.0.0.1:7000");
    user.give("rootfs.tar", busybox_rootfs());
    let dockerfile = "FROM scratch\nADD rootfs.tar /
RUN nc 192.0.2.2 8000; grep me /etc/hosts; grep nameserver /etc/resolv.conf
RUN nc 127.0.0.1 7000 < /dev/null 2> /dev/null && echo the host || echo its own loopback
";
    std::fs::write(user.home.path().join("Dockerfile"), dockerfile).unwrap();
    user.own();
    let build = "longshore build --no-cache --progress plain --add-host me:host-gateway .";
    let ran = user.sh_on(&yard.host, build);
    ran.ok();
    let expect = [
        HOST[0],
        "10.0.2.2\tme",
        "nameserver 10.0.2.3",
        "its own loopback",
    ];
    assert_eq!(output(&ran), expect, "{ran}");

    // Without that program: the host's, which is said once.
    let line = format!(
        "mkdir tools; ln -s $(command -v newuidmap) $(command -v newgidmap) tools; export PATH=$PWD:$PWD/tools; {build}"
    );
    let ran = user.sh_on(&yard.host, &line);
    ran.ok();
    assert!(output(&ran).contains(&"the host"), "{ran}");
    let told = "steps are on the host's network: this process may not make network interfaces, and `slirp4netns` is not installed";
    assert_eq!(ran.stderr.matches(told).count(), 1, "{ran}");
    let info = "export PATH=$PWD:$PWD/tools; longshore info";
    let said = user.sh_on(&yard.host, info).ok();
    assert!(said.contains("Network:    host\n"), "{said}");
    assert!(said.contains("`slirp4netns` is not installed"), "{said}");
}

/// A shell in a step has the step's network.
#[test]
fn a_debugging_shell_reaches_what_its_step_reaches() {
    let place = Place::with_busybox();
    let yard = Yard::new(&place);
    yard.greet(OUTSIDE[0]);
    yard.build("FROM busybox\nRUN nc 192.0.2.2 8000 && false\n", &[])
        .fails(1, "did not complete successfully");
    let ask = ["nc 192.0.2.2 8000; ls /sys/class/net"];
    let words = [&["debug", "latest", "2", "--", "sh", "-c"], &ask[..]].concat();
    let said = yard.host.run(&words).ok();
    assert_eq!(said, format!("{}\neth0\nlo", HOST[0]));
}
