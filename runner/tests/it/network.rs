//! Bridged networks, on a "host" that is a network namespace of the test's own, with another one outside it.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use runner::network::line::{self, Outlet};
use runner::network::{self, Attachment, Bridge, Subnet};
use runner::{ExitStatus, NetworkMode, Root, Sandbox, SandboxError, SandboxSpec};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Test;
use crate::world::{Outcome, World, run};

pub(crate) const TESTS: &[Test] = &[
    ("networks_lead_out_and_stay_apart", |world| {
        as_host(world, "apart")
    }),
    ("an_internal_network_leads_nowhere", |world| {
        as_host(world, "internal")
    }),
    ("networks_have_both_kinds_of_addresses", |world| {
        as_host(world, "both_kinds")
    }),
    ("a_subnet_that_nobody_has_is_found", |world| {
        as_host(world, "free")
    }),
    ("names_are_resolved_by_the_caller", |world| {
        as_host(world, "names")
    }),
    ("lines_lead_out_and_nobody_in", |world| {
        as_host(world, "lines")
    }),
    ("lines_lead_out_to_ipv6_where_the_host_does", |world| {
        as_host(world, "lines_v6")
    }),
    ("a_line_asks_servers_on_the_hosts_loopback", |world| {
        as_host(world, "line_names")
    }),
    ("no_line_leads_through_a_firewall_that_drops", |world| {
        as_host(world, "dropped")
    }),
    ("bad_networks_are_refused", bad_networks),
];

/// The address of the "host" and that of the machine outside.
const HOST: &str = "192.0.2.1";
const OUTSIDE: &str = "192.0.2.2";

/// Runs `test` in a process whose network namespace is new.
fn as_host(_world: &World, test: &str) -> Result<(), String> {
    let output = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args(["--host", test])
        .output()
        .expect("unshare is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{test}: {said}");
    Ok(())
}

/// What that process does.
pub(crate) fn host(args: &[String]) {
    let privilege = runner::enter_user_namespace().unwrap();
    let world = World::new(privilege, runner::UserNamespace::Own);
    ip("link set lo up");
    assert!(network::can_bridge());
    match args[0].as_str() {
        "apart" => apart(&world),
        "internal" => internal(&world),
        "both_kinds" => both_kinds(&world),
        "free" => free(),
        "names" => names(&world),
        "lines" => lines(&world),
        "lines_v6" => lines_v6(&world),
        "line_names" => line_names(&world),
        "dropped" => dropped(),
        other => panic!("{other}"),
    }
}

fn apart(world: &World) {
    let outside = Outside::new();
    let (red, blue) = (
        bridge("red", &["10.99.1.1"]),
        bridge("blue", &["10.99.2.1"]),
    );

    // Out: the machine outside sees the host's address, for it knows no other.
    let outcome = on(
        world,
        &red,
        &["10.99.1.2"],
        &format!("busybox nc {OUTSIDE} 8000; ip -o addr; ip route"),
    );
    let mut lines = outcome.stdout.lines();
    assert_eq!(lines.next(), Some(HOST), "{outcome:?}");
    assert!(
        outcome.stdout.contains("eth0    inet 10.99.1.2/24"),
        "{outcome:?}"
    );
    assert!(
        outcome.stdout.contains("default via 10.99.1.1 dev eth0"),
        "{outcome:?}"
    );

    // One that answers, and who reaches it: its own network and the host, no other network, nobody outside.
    let server = greeter(world, at(&red, &["10.99.1.3"]));
    let ask = "until busybox nc 10.99.1.3 9000; do :; done";
    assert_eq!(on(world, &red, &["10.99.1.4"], ask).stdout, "hello\n");
    let refused = "busybox nc -w 1 10.99.1.3 9000 || echo no";
    assert_eq!(on(world, &blue, &["10.99.2.2"], refused).stdout, "no\n");
    outside.run("ip route add 10.99.1.0/24 via 192.0.2.1");
    assert_eq!(
        outside.run("busybox nc -w 1 10.99.1.3 9000 || echo no"),
        "no\n"
    );
    assert_eq!(sh("busybox nc 10.99.1.3 9000"), "hello\n");

    // Nothing is left of a sandbox but its network, and that can be removed.
    drop(server);
    wait_until_no_port_is_left();
    network::remove(&red.name).unwrap();
    network::remove(&red.name).unwrap();
    let links = sh("ip -o link");
    assert!(
        !links.contains(&red.name) && links.contains(&blue.name),
        "{links}"
    );
    assert_eq!(
        on(
            world,
            &red,
            &["10.99.1.2"],
            &format!("busybox nc {OUTSIDE} 8000")
        )
        .stdout,
        format!("{HOST}\n")
    );
}

fn internal(world: &World) {
    let outside = Outside::new();
    let mut red = bridge("red", &["10.99.1.1"]);
    red.internal = true;
    let script = format!("ip route; busybox nc -w 1 {OUTSIDE} 8000 || echo no");
    let outcome = on(world, &red, &["10.99.1.2"], &script);
    assert_eq!(
        outcome.stdout, "10.99.1.0/24 dev eth0 scope link  src 10.99.1.2 \nno\n",
        "{outcome:?}"
    );
    // On a machine that passes packets on for other reasons, this one's way is stopped all the same.
    let _server = greeter(world, at(&red, &["10.99.1.3"]));
    sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
    outside.run("ip route add 10.99.1.0/24 via 192.0.2.1");
    let ask = "until busybox nc 10.99.1.3 9000; do :; done";
    assert_eq!(sh(ask), "hello\n");
    assert_eq!(
        outside.run("busybox nc -w 1 10.99.1.3 9000 || echo no"),
        "no\n"
    );
}

fn both_kinds(world: &World) {
    let red = bridge("red", &["10.99.1.1", "fd4c::1"]);
    let addresses = ["10.99.1.2", "fd4c::2"];
    let outcome = on(
        world,
        &red,
        &addresses,
        "ip -o addr show dev eth0; ip -6 route",
    );
    for expect in [
        "inet 10.99.1.2/24",
        "inet6 fd4c::2/64",
        "default via fd4c::1 dev eth0",
    ] {
        assert!(outcome.stdout.contains(expect), "{expect}: {outcome:?}");
    }
    let _server = greeter(world, at(&red, &["10.99.1.3", "fd4c::3"]));
    let ask = "until busybox nc fd4c::3 9000; do :; done";
    assert_eq!(on(world, &red, &addresses, ask).stdout, "hello\n");
}

fn names(world: &World) {
    let red = bridge("red", &["10.99.1.1", "fd4c::1"]);
    let mut spec = world.script("mkdir -p /etc; echo nameserver 127.0.0.11 > /etc/resolv.conf; busybox nslookup till 127.0.0.11; busybox nslookup nobody 127.0.0.11 || echo nobody; busybox nc -l -p 53 -e true & busybox nslookup till 127.0.0.11 > /dev/null && echo beside another");
    spec.network = at(&red, &["10.99.1.2", "fd4c::2"]);
    let NetworkMode::Bridge(attachment) = &mut spec.network else {
        panic!("it was made so");
    };
    attachment.names = true;
    let stdio = runner::Stdio {
        stdout: runner::Stream::Pipe,
        ..runner::Stdio::default()
    };
    let mut sandbox = Sandbox::spawn(&spec, stdio).unwrap();
    let sockets = sandbox.take_names().unwrap();
    let addresses: Vec<IpAddr> = vec!["10.99.1.7".parse().unwrap(), "fd4c::7".parse().unwrap()];
    let look_up = |name: &str| (name == "till").then(|| addresses.clone());
    let mut said = String::new();
    std::thread::scope(|scope| {
        scope.spawn(|| network::names::serve(&sockets, &[], &look_up, sandbox.pidfd()).unwrap());
        let mut out = sandbox.stdout.as_ref().unwrap();
        std::io::Read::read_to_string(&mut out, &mut said).unwrap();
    });
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(0), "{said}");
    for expect in ["10.99.1.7", "fd4c::7", "nobody\n", "beside another\n"] {
        assert!(said.contains(expect), "{expect}: {said}");
    }
}

fn lines(world: &World) {
    let outside = Outside::new();
    let (outlet, other) = (Outlet::open(&[]).unwrap(), Outlet::open(&[]).unwrap());
    let line = || NetworkMode::Line(outlet.line().clone());
    assert_eq!(other.line(), outlet.line());

    // Out, and to the host, but not to its loopback.
    for (address, word) in [(HOST, "seen"), ("127.0.0.1", "hidden")] {
        let listener = TcpListener::bind((address, 7000)).unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                writeln!(stream, "{word}").unwrap();
            }
        });
    }
    let script = format!(
        "busybox nc {OUTSIDE} 8000; busybox nc {HOST} 7000; busybox nc 127.0.0.1 7000 || echo no"
    );
    assert_eq!(
        on_line(world, line(), &script),
        format!("{HOST}\nseen\nno\n")
    );

    // In: from the host, from nowhere else. The kernel takes down what is left of the line above by and by.
    wait_until_no_line_is_left();
    let server = greeter(world, line());
    let address = sh("ip -o addr | sed -n \"s/.* lsl-.* peer \\([^/]*\\).*/\\1/p\"");
    let address = address.trim();
    let one = address.parse::<Ipv4Addr>().unwrap();
    assert_eq!(one.octets()[..2], [10, 207]);
    assert_eq!(
        sh(&format!("until busybox nc {address} 9000; do :; done")),
        "hello\n"
    );
    let refused = format!("busybox nc -w 1 {address} 9000 || echo no");
    assert_eq!(on_line(world, line(), &refused), "no\n");
    let red = bridge("red", &["10.99.1.1"]);
    assert_eq!(on(world, &red, &["10.99.1.2"], &refused).stdout, "no\n");
    outside.run("ip route add 10.207.0.0/16 via 192.0.2.1");
    assert_eq!(outside.run(&refused), "no\n");
    outside.run("ip route del 10.207.0.0/16");
    drop(server);

    // One outlet is enough; without any, nothing comes back.
    drop(other);
    let ask = format!("busybox nc {OUTSIDE} 8000");
    assert_eq!(on_line(world, line(), &ask), format!("{HOST}\n"));
    let left = line();
    drop(outlet);
    let refused = format!("busybox nc -w 1 {OUTSIDE} 8000 || echo no");
    assert_eq!(on_line(world, left, &refused), "no\n");
    wait_until_no_line_is_left();

    // Addresses that something on this machine has are not given.
    ip("link add dummy0 type bridge");
    ip("addr add 10.207.5.5/24 dev dummy0");
    ip("link set dummy0 up");
    let taken = Subnet {
        gateway: "10.206.9.1".parse().unwrap(),
        prefix: 24,
    };
    let outlet = Outlet::open(&[taken]).unwrap();
    assert_eq!(outlet.line().subnets[0].gateway.to_string(), "10.205.0.1");
}

fn lines_v6(world: &World) {
    let outside = Outside::new();
    ip("addr add fd99::1/64 dev out0 nodad");
    outside.run("ip addr add fd99::2/64 dev out1 nodad");
    // As if a router had told it: such routes would go when this machine becomes one.
    ip("-6 route add default via fd99::2 dev out0 proto ra");
    outside.greet("fd99::2", 8000);
    let outlet = Outlet::open(&[]).unwrap();
    let kept = sh("cat /proc/sys/net/ipv6/conf/out0/accept_ra");
    assert_eq!(kept, "2\n");
    assert!(sh("ip -6 route").contains("default via fd99::2"));
    let line = NetworkMode::Line(outlet.line().clone());
    assert_eq!(on_line(world, line, "busybox nc fd99::2 8000"), "fd99::1\n");
}

/// The helper passes questions on, from the host's namespace.
fn line_names(world: &World) {
    let outlet = Outlet::open(&[]).unwrap();
    let mut line = outlet.line().clone();
    line.servers.push(IpAddr::from([127, 0, 0, 53]));
    let server = UdpSocket::bind(("127.0.0.53", 53)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = server.recv_from(&mut buffer) {
            let message = &buffer[..length];
            let question = network::names::Question::read(message).unwrap();
            let answer = question.answer(message, &[IpAddr::from([192, 0, 2, 99])]);
            server.send_to(&answer, from).unwrap();
        }
    });
    let said = on_line(
        world,
        NetworkMode::Line(line),
        "busybox nslookup till 127.0.0.11",
    );
    assert!(said.contains("192.0.2.99"), "{said}");
}

fn dropped() {
    sh("iptables -P FORWARD DROP");
    let refused = Outlet::open(&[]).unwrap_err().to_string();
    assert_eq!(
        refused,
        "the firewall drops what is passed on (chain `FORWARD`)"
    );
    sh("iptables -P FORWARD ACCEPT");
    Outlet::open(&[]).unwrap();
}

fn wait_until_no_line_is_left() {
    while sh("ip -o link").contains(line::PREFIX) {
        std::thread::yield_now();
    }
}

fn on_line(world: &World, line: NetworkMode, script: &str) -> String {
    let mut spec: SandboxSpec = world.script(script);
    spec.network = line;
    let outcome = run(&spec).unwrap();
    assert_eq!(outcome.status, ExitStatus::Code(0), "{script}: {outcome:?}");
    outcome.stdout
}

fn free() {
    ip("link add dummy0 type bridge");
    ip("addr add 10.99.0.5/16 dev dummy0");
    ip("link set dummy0 up");
    let subnet = |gateway: &str| Subnet {
        gateway: gateway.parse().unwrap(),
        prefix: 24,
    };
    let wishes = ["10.99.1.1", "10.98.1.1", "10.98.2.1"].map(subnet);
    let found = network::first_free(wishes, &[subnet("10.98.1.77")]).unwrap();
    assert_eq!(found, Some(wishes[2]));
    assert_eq!(network::first_free([wishes[0]], &[]).unwrap(), None);
}

fn bad_networks(world: &World) -> Result<(), String> {
    let good = bridge("red", &["10.99.1.1"]);
    let refuse = |change: fn(&mut Attachment), expect: &str| {
        let mut attachment = Attachment {
            bridge: good.clone(),
            addresses: vec!["10.99.1.2".parse().unwrap()],
            names: false,
        };
        change(&mut attachment);
        let mut spec = world.script("true");
        spec.network = NetworkMode::Bridge(attachment);
        match run(&spec) {
            Err(SandboxError::Invalid { what }) => assert!(what.contains(expect), "{what}"),
            other => panic!("{other:?}"),
        }
    };
    refuse(|it| it.bridge.name = "eth0".into(), "its name is `lsb-`");
    refuse(
        |it| it.bridge.name = "lsb-0123456789ab".into(),
        "at most 11",
    );
    refuse(|it| it.bridge.name = "lsb-a/b".into(), "letters and digits");
    refuse(|it| it.addresses.clear(), "one address for each");
    refuse(|it| it.bridge.subnets.clear(), "one address for each");
    refuse(
        |it| it.addresses[0] = "10.99.2.2".parse().unwrap(),
        "does not lie in",
    );
    refuse(
        |it| it.addresses[0] = "fd4c::2".parse().unwrap(),
        "does not lie in",
    );
    refuse(|it| it.bridge.subnets[0].prefix = 33, "does not lie in");
    Ok(())
}

fn bridge(name: &str, gateways: &[&str]) -> Bridge {
    let subnets = gateways.iter().map(|gateway| {
        let gateway: IpAddr = gateway.parse().unwrap();
        let prefix = if gateway.is_ipv4() { 24 } else { 64 };
        Subnet { gateway, prefix }
    });
    Bridge {
        name: format!("{}{name}", network::BRIDGE_PREFIX),
        subnets: subnets.collect(),
        internal: false,
    }
}

fn at(bridge: &Bridge, addresses: &[&str]) -> NetworkMode {
    NetworkMode::Bridge(Attachment {
        bridge: bridge.clone(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        names: false,
    })
}

fn on(world: &World, bridge: &Bridge, addresses: &[&str], script: &str) -> Outcome {
    let mut spec: SandboxSpec = world.script(script);
    spec.network = at(bridge, addresses);
    let outcome = run(&spec).unwrap();
    assert_eq!(outcome.status, ExitStatus::Code(0), "{script}: {outcome:?}");
    outcome
}

/// A sandbox that says hello to whoever connects to port 9000, beside those that `on` runs.
fn greeter(world: &World, network: NetworkMode) -> Sandbox {
    let mut spec = world.script("busybox nc -ll -p 9000 -e echo hello");
    for name in ["upper-of-greeter", "work-of-greeter"] {
        std::fs::create_dir(world.path(name)).unwrap();
    }
    spec.root = Root::Overlay {
        lower: vec![world.path("base"), world.path("stubs")],
        upper: world.path("upper-of-greeter"),
        work: world.path("work-of-greeter"),
        volatile: true,
    };
    spec.network = network;
    Sandbox::spawn(&spec, runner::Stdio::default()).unwrap()
}

/// Another machine: it greets whoever connects to port 8000 with the address it sees.
struct Outside {
    process: Child,
}

impl Outside {
    fn new() -> Self {
        let mut process = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo; cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0];
        std::io::Read::read_exact(process.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let outside = Self { process };
        let pid = outside.process.id();
        ip(&format!(
            "link add out0 type veth peer name out1 netns {pid}"
        ));
        ip(&format!("addr add {HOST}/24 dev out0"));
        ip("link set out0 up");
        outside.run(&format!(
            "ip addr add {OUTSIDE}/24 dev out1; ip link set out1 up"
        ));
        ip(&format!("route add default via {OUTSIDE}"));
        outside.greet(OUTSIDE, 8000);
        outside
    }

    fn greet(&self, address: &'static str, port: u16) {
        let space = File::open(format!("/proc/{}/ns/net", self.process.id())).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let listener = TcpListener::bind((address, port)).unwrap();
            tell.send(()).unwrap();
            while let Ok((mut stream, peer)) = listener.accept() {
                writeln!(stream, "{}", peer.ip()).unwrap();
            }
        });
        told.recv().unwrap();
    }

    /// What a shell script says there.
    fn run(&self, script: &str) -> String {
        let pid = self.process.id();
        sh(&format!("nsenter --target {pid} --net sh -ec '{script}'"))
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _killed = self.process.kill();
        let _status = self.process.wait();
    }
}

/// The kernel removes a namespace's interfaces some time after its last process.
fn wait_until_no_port_is_left() {
    while sh("ip -o link").contains("lsp") {
        std::thread::yield_now();
    }
}

fn ip(arguments: &str) {
    sh(&format!("ip {arguments}"));
}

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
    String::from_utf8(output.stdout).unwrap()
}
