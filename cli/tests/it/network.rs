//! Networks of containers, on a "host" that is a network namespace of the test's own.

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{LONGSHORE, Place, Ran};

/// A process in a new network namespace, in which commands are run.
pub struct Host<'p> {
    place: &'p Place,
    process: Child,
}

impl<'p> Host<'p> {
    pub fn new(place: &'p Place) -> Host<'p> {
        let mut process = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up; echo; cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut ready = BufReader::new(process.stdout.as_mut().unwrap());
        ready.read_line(&mut line).unwrap();
        Host { place, process }
    }

    /// The process whose namespace it is.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.process.id().to_string(), "--net", program])
            .args(arguments)
            .env("LONGSHORE_ROOT", self.place.store());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(&mut self.command(LONGSHORE, arguments))
    }

    /// Does something in its namespace: sockets that are opened there stay there.
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        enter(self.process.id().into(), act)
    }

    /// What a command in a container says.
    fn on(&self, network: &str, line: &str) -> String {
        self.run(&[
            "run",
            "--rm",
            "--network",
            network,
            "busybox",
            "sh",
            "-c",
            line,
        ])
        .ok()
    }

    /// A container that greets whoever connects to port 9000; when this returns it has its address.
    fn greeter(&self, flags: &[&str]) -> Greeter {
        let line = "hostname -i; exec nc -ll -p 9000 -e echo hello";
        let end = ["busybox", "sh", "-c", line];
        let mut child = self
            .command(LONGSHORE, &[&["run", "--rm"], flags, &end].concat())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap());
        lines.read_line(&mut address).unwrap();
        let address = address.trim().to_owned();
        Greeter { child, address }
    }

    fn inspect(&self, network: &str) -> Value {
        let text = self.run(&["network", "inspect", network]).ok();
        let mut values: Vec<Value> = serde_json::from_str(&text).unwrap();
        values.remove(0)
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        let _killed = self.process.kill();
        let _status = self.process.wait();
    }
}

/// Does something in the network namespace of a process.
pub fn enter<T: Send>(pid: u64, act: impl FnOnce() -> T + Send) -> T {
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
    let inside = || {
        let kind = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind)).unwrap();
        act()
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
}

struct Greeter {
    child: Child,
    address: String,
}

impl Drop for Greeter {
    fn drop(&mut self) {
        // Returns when its container has ended, and its address is free again.
        crate::support::signal(&self.child, "TERM");
        self.child.wait().unwrap();
    }
}

#[test]
fn containers_of_a_network_reach_one_another_and_no_others() {
    let place = Place::with_busybox();
    let host = Host::new(&place);
    let id = host
        .run(&[
            "network",
            "create",
            "--subnet",
            "10.5.0.0/24",
            "--label",
            "team=till",
            "shop",
        ])
        .ok();
    assert_eq!(id.len(), 64);
    host.run(&["network", "create", "other"]).ok();

    let greeter = host.greeter(&[
        "--network",
        "shop",
        "--ip",
        "10.5.0.77",
        "--name",
        "till",
        "--network-alias",
        "cash",
    ]);
    assert_eq!(greeter.address, "10.5.0.77");
    let ask = "until nc 10.5.0.77 9000; do :; done";
    assert_eq!(host.on("shop", ask), "hello");
    assert_eq!(host.on("shop", "until nc Till 9000; do :; done"), "hello");
    assert_eq!(
        host.on("other", "nslookup till > /dev/null || echo no"),
        "no"
    );
    let try_it = "nc -w 1 10.5.0.77 9000 || echo no";
    for network in ["other", "bridge", "none"] {
        assert_eq!(host.on(network, try_it), "no", "{network}");
    }
    assert_eq!(host.on("host", ask), "hello");

    let seen = host.inspect("shop");
    assert_eq!(seen["Id"], id.as_str());
    assert_eq!(seen["IPAM"]["Config"][0]["Subnet"], "10.5.0.0/24");
    assert_eq!(seen["IPAM"]["Config"][0]["Gateway"], "10.5.0.1");
    assert_eq!(seen["Labels"]["team"], "till");
    let members = seen["Containers"].as_object().unwrap();
    let member = members.values().next().unwrap();
    assert_eq!(
        (&member["Name"], &member["IPv4Address"]),
        (&"till".into(), &"10.5.0.77/24".into())
    );

    host.run(&[
        "run",
        "--network",
        "shop",
        "--ip",
        "10.5.0.77",
        "busybox",
        "true",
    ])
    .fails(125, "is in use by `till`");
    host.run(&["network", "rm", "shop"])
        .fails(1, "network `shop` is in use by `till`");
    // However its container ends, an address is free again.
    drop(greeter);
    let again = host.run(&[
        "run",
        "--network",
        "shop",
        "--ip",
        "10.5.0.77",
        "busybox",
        "true",
    ]);
    again.ok();
    assert_eq!(host.run(&["network", "rm", &id[..12]]).ok(), &id[..12]);
    let links = Ran::of(&mut host.command("ip", &["-o", "link"])).ok();
    assert!(!links.contains(&id[..11]), "{links}");
}

#[test]
fn networks_are_listed_and_pruned() {
    let place = Place::with_busybox();
    let host = Host::new(&place);
    let red = host.run(&["network", "create", "red"]).ok();
    host.run(&["network", "create", "--internal", "--ipv6", "blue"])
        .ok();
    let listed = host.run(&["network", "ls"]).ok();
    let rows: Vec<Vec<&str>> = listed
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["NETWORK", "ID", "NAME", "DRIVER", "SCOPE"]);
    assert_eq!(rows[2], ["host", "host", "local"]);
    assert_eq!(rows[3], ["none", "null", "local"]);
    assert_eq!(rows[4], [&red[..12], "red", "bridge", "local"]);
    let ids = host.run(&["network", "ls", "-q", "--no-trunc"]).ok();
    assert!(ids.lines().any(|id| id == red), "{ids}");

    let (red, blue) = (host.inspect("red"), host.inspect("blue"));
    assert_ne!(
        red["IPAM"]["Config"][0]["Subnet"],
        blue["IPAM"]["Config"][0]["Subnet"]
    );
    assert_eq!(
        (&blue["Internal"], &blue["EnableIPv6"]),
        (&true.into(), &true.into())
    );
    // Its own addresses, and no way out.
    let routes = host.on(
        "blue",
        "ip -o -6 addr show dev eth0 scope global | wc -l; ip route | grep -c default || true",
    );
    assert_eq!(routes, "1\n0");

    let greeter = host.greeter(&["--network", "red"]);
    assert_eq!(
        host.run(&["network", "prune"]).ok(),
        "Deleted Networks:\nblue"
    );
    drop(greeter);
    assert_eq!(
        host.run(&["network", "prune", "-f"]).ok(),
        "Deleted Networks:\nred"
    );
    assert_eq!(host.run(&["network", "prune"]).ok(), "");
}

#[test]
fn what_is_wrong_with_a_network_is_said() {
    let place = Place::with_busybox();
    let host = Host::new(&place);
    let create = |arguments: &[&str], code: i32, expect: &str| {
        host.run(&[&["network", "create"], arguments].concat())
            .fails(code, expect);
    };
    host.run(&["network", "create", "--subnet", "10.5.0.0/24", "red"])
        .ok();
    create(&["red"], 1, "there is a network `red` already");
    create(&["a/b"], 1, "`a/b` is no name of a network");
    create(&["host"], 1, "it has a meaning");
    create(
        &["--subnet", "10.5.0.128/25", "x"],
        1,
        "overlaps `10.5.0.0/24` of network `red`",
    );
    create(
        &["--subnet", "10.6.0.1/24", "x"],
        2,
        "`10.6.0.0/24` is the subnet it lies in",
    );
    create(&["--subnet", "10.6.0.0", "x"], 2, "expected ADDRESS/PREFIX");
    create(&["--subnet", "10.6.0.0/31", "x"], 1, "no two addresses");
    create(&["--gateway", "10.6.0.1", "x"], 2, "lies in no --subnet");
    create(
        &["--subnet", "10.6.0.0/24", "--subnet", "10.7.0.0/24", "x"],
        2,
        "one subnet of each family",
    );
    create(&["--driver", "overlay", "x"], 2, "invalid value 'overlay'");
    host.run(&["network", "rm", "x"])
        .fails(1, "no network `x` here");
    let run = |arguments: &[&str], expect: &str| {
        let all = [&["run"], arguments, &["busybox", "true"]].concat();
        host.run(&all).fails(125, expect);
    };
    run(&["--network", "x"], "no network `x` here");
    run(
        &["--network", "red", "--ip", "10.6.0.1"],
        "no address of network `red`",
    );
    run(
        &["--network", "red", "--ip", "10.5.0.1"],
        "in use by its gateway",
    );
    run(
        &["--ip", "10.5.0.9", "--network", "host"],
        "mean nothing with --network host",
    );
}
