//! Published ports, on a "host" that is a network namespace of the test's own: there all ports are free.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use serde_json::Value;

use crate::examples::{base, nginx};
use crate::network::{Host, enter};
use crate::rootless::User;
use crate::support::{Place, Ran, busybox_rootfs};

/// A host whose containers end with the test, also when it fails.
struct Pier<'p>(Host<'p>);

impl<'p> Pier<'p> {
    fn new(place: &'p Place) -> Pier<'p> {
        Pier(Host::new(place))
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.0.run(arguments)
    }

    /// A container with a page that says its host name, published as the flags say.
    fn serve(&self, name: &str, flags: &[&str]) -> Ran {
        let line = "echo I am $HOSTNAME > /index.html; exec httpd -f -p 80 -h /";
        let begin = [
            "run",
            "-d",
            "--name",
            name,
            "-h",
            name,
            "--network",
            "bridge",
        ];
        self.run(&[&begin, flags, &["busybox", "sh", "-c", line]].concat())
    }

    fn known(&self, container: &str, path: &str) -> Value {
        let text = self.run(&["inspect", container]).ok();
        let all: Value = serde_json::from_str(&text).unwrap();
        all[0].pointer(path).cloned().unwrap_or_default()
    }

    /// What a page says, asked for until somebody answers.
    fn page(&self, address: &str) -> String {
        let address: SocketAddr = address.parse().unwrap();
        self.0.enter(|| until_answered(|| get(address)))
    }

    /// Where the first line of `port` says that a port of a container is.
    fn port(&self, container: &str, port: &str) -> String {
        let lines = self.run(&["port", container, port]).ok();
        lines.lines().next().unwrap().to_owned()
    }
}

impl Drop for Pier<'_> {
    fn drop(&mut self) {
        let ids = self.run(&["ps", "-aq"]).stdout;
        for id in ids.lines() {
            let _removed = self.run(&["rm", "-fv", id]);
        }
    }
}

/// Tries again as long as nobody is there yet: a container's process may not listen at once.
fn until_answered<T>(ask: impl Fn() -> io::Result<T>) -> T {
    for _ in 0..6000 {
        match ask() {
            Ok(answer) => return answer,
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    }
    panic!("nobody answers");
}

/// The body of a page.
fn get(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    match head.contains(" 200 ") {
        true => Ok(body.trim_end().to_owned()),
        false => Err(io::Error::other(head.to_owned())),
    }
}

#[test]
fn ports_lead_into_a_container_and_are_shown() {
    let place = Place::with_busybox();
    let pier = Pier::new(&place);
    pier.serve(
        "web",
        &["-p", "8080:80", "-p", "127.0.0.1::80", "--expose", "90"],
    )
    .ok();
    for address in ["127.0.0.1:8080", "[::1]:8080", &pier.port("web", "80")] {
        assert_eq!(pier.page(address), "I am web", "{address}");
    }
    let chosen = pier.known("web", "/NetworkSettings/Ports/80~1tcp/1/HostPort");
    let chosen = chosen.as_str().unwrap();
    let listed = pier.run(&["port", "web"]).ok();
    let expected =
        format!("80/tcp -> 0.0.0.0:8080\n80/tcp -> 127.0.0.1:{chosen}\n80/tcp -> [::]:8080");
    assert_eq!(listed, expected);
    pier.run(&["port", "web", "90"])
        .fails(1, "no public port '90/tcp' published for web");
    let column = pier.run(&["ps", "--format", "{{.Ports}}"]).ok();
    assert_eq!(
        column,
        format!("90/tcp, 0.0.0.0:8080->80/tcp, 127.0.0.1:{chosen}->80/tcp, [::]:8080->80/tcp")
    );
    assert_eq!(
        pier.known("web", "/NetworkSettings/Ports/90~1tcp"),
        Value::Null
    );
    assert_eq!(
        pier.known("web", "/HostConfig/PortBindings/80~1tcp/0/HostPort"),
        "8080"
    );

    // The same ports after a restart; where the kernel chose, it chooses again.
    pier.run(&["restart", "-t", "0", "web"]).ok();
    assert_eq!(pier.page("127.0.0.1:8080"), "I am web");
    pier.run(&["stop", "-t", "0", "web"]).ok();
    assert_eq!(pier.run(&["port", "web"]).ok(), "");
    assert_eq!(pier.run(&["ps", "-a", "--format", "{{.Ports}}"]).ok(), "");
    pier.run(&["start", "web"]).ok();
    assert_eq!(pier.page("[::1]:8080"), "I am web");
}

#[test]
fn a_port_that_is_taken_is_said_to_be() {
    let place = Place::with_busybox();
    let pier = Pier::new(&place);
    pier.serve("first", &["-p", "8080:80"]).ok();
    let second = pier.serve("second", &["-p", "127.0.0.1:8080:80"]);
    second.fails(
        125,
        "Bind for 127.0.0.1:8080 failed: port is already allocated",
    );
    assert!(
        second.stderr.contains("container `first` has it"),
        "{second}"
    );
    assert_eq!(pier.known("second", "/State/Status"), "created");
    let _other = pier
        .0
        .enter(|| TcpListener::bind("127.0.0.1:8081").unwrap());
    let third = pier.serve("third", &["-p", "8081:80"]);
    third.fails(
        125,
        "listen tcp4 0.0.0.0:8081: bind: address already in use",
    );
    // Of a range one that is free.
    pier.serve("fourth", &["-p", "8080-8090:80"]).ok();
    assert_eq!(pier.port("fourth", "80"), "0.0.0.0:8082");

    // Whatever ends who has it, it is free again.
    let id = pier.known("first", "/Id");
    let id = id.as_str().unwrap();
    let supervisor = std::fs::read_dir("/proc").unwrap().find_map(|entry| {
        let entry = entry.ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let is_it = line == format!("longshore-supervisor\0{id}\0").as_bytes();
        is_it.then(|| entry.file_name().into_string().unwrap())
    });
    crate::support::tool("kill", &["-9", &supervisor.unwrap()]);
    until_answered(|| match pier.run(&["start", "second"]) {
        ran if ran.code == Some(0) => Ok(()),
        ran => Err(io::Error::other(ran.stderr)),
    });
    assert_eq!(pier.page("127.0.0.1:8080"), "I am second");
}

#[test]
fn datagrams_and_many_connections_at_once() {
    let place = Place::with_busybox();
    let pier = Pier::new(&place);
    let flags = ["-p", "80-81:80-81", "-p", "[::1]:5300:53/udp"];
    let line = "echo $HOSTNAME > /index.html; exec httpd -f -p 80 -h /";
    let begin = [
        "run",
        "-d",
        "--name",
        "many",
        "-h",
        "many",
        "--network",
        "bridge",
    ];
    pier.run(&[&begin[..], &flags, &["busybox", "sh", "-c", line]].concat())
        .ok();
    assert_eq!(
        pier.run(&["ps", "--format", "{{.Ports}}"]).ok(),
        "0.0.0.0:80-81->80-81/tcp, [::]:80-81->80-81/tcp, [::1]:5300->53/udp"
    );
    assert_eq!(pier.page("127.0.0.1:80"), "many");
    pier.0.enter(|| {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..125 {
                        assert_eq!(get("127.0.0.1:80".parse().unwrap()).unwrap(), "many");
                    }
                });
            }
        });
    });
    let pid = pier.known("many", "/State/Pid").as_u64().unwrap();
    let server = enter(pid, || UdpSocket::bind("0.0.0.0:53").unwrap());
    let clients = pier.0.enter(|| {
        let client = |_| UdpSocket::bind("[::1]:0").unwrap();
        let clients: Vec<UdpSocket> = (0..3).map(client).collect();
        for (number, client) in clients.iter().enumerate() {
            client.connect("[::1]:5300").unwrap();
            client.send(format!("client {number}").as_bytes()).unwrap();
        }
        clients
    });
    // Rather a failure than a wait for ever.
    let wait = Some(std::time::Duration::from_secs(60));
    for socket in clients.iter().chain([&server]) {
        socket.set_read_timeout(wait).unwrap();
    }
    let mut buffer = [0; 20];
    for _ in &clients {
        let (bytes, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(&buffer[..bytes], from).unwrap();
    }
    for (number, client) in clients.iter().enumerate() {
        let bytes = client.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..bytes], *format!("client {number}").as_bytes());
    }
}

#[test]
fn what_an_image_exposes_is_published_by_one_letter() {
    let place = Place::with_busybox();
    let dockerfile =
        "FROM busybox\nEXPOSE 80 53/udp\nCMD echo all > /index.html; exec httpd -f -p 80 -h /\n";
    let context = place.context("exposed", &[("Dockerfile", dockerfile)]);
    place.build("exposed", &context);
    let pier = Pier::new(&place);
    let flags = ["run", "-d", "--name", "all", "--network", "bridge", "-P"];
    pier.run(&[&flags[..], &["exposed"]].concat()).ok();
    let address = pier.port("all", "80").replace("0.0.0.0", "127.0.0.1");
    assert_eq!(pier.page(&address), "all");
    assert!(pier.port("all", "53/udp").starts_with("0.0.0.0:"));

    let ran = pier.run(&[
        "run",
        "--rm",
        "--network",
        "host",
        "-p",
        "80:80",
        "busybox",
        "true",
    ]);
    ran.ok();
    let warned = "Published ports are discarded when using host network mode";
    assert!(ran.stderr.contains(warned), "{ran}");
    let ran = pier.run(&["run", "-p", "80:x", "busybox", "true"]);
    ran.fails(125, "invalid containerPort: `x`");
}

/// What the example's page says.
const PAGE: &str = "Built, shipped and served by longshore.";

/// Asks many times, several at once, and looks at all that is said.
fn ask_a_thousand_times(host: &Host<'_>, address: &str) {
    let address: SocketAddr = address.parse().unwrap();
    host.enter(|| {
        let whole = until_answered(|| get(address));
        assert!(whole.contains(PAGE), "{whole}");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..125 {
                        assert_eq!(get(address).unwrap(), whole);
                    }
                });
            }
        });
    });
}

#[test]
fn nginx_runs_as_with_docker() {
    let place = &base().place;
    // The example is for loopback alone.
    let change = "sed -i 's/127.0.0.1:PORT/80/' /etc/nginx/nginx.conf.template";
    let dockerfile = format!("FROM {}\nRUN {change}\nEXPOSE 80\n", nginx());
    let context = place.context("web", &[("Dockerfile", &dockerfile)]);
    place.build("nginx", &context);
    let pier = Pier::new(place);
    pier.run(&["run", "-dit", "--name", "myweb", "-p", "8080:80", "nginx"])
        .ok();
    ask_a_thousand_times(&pier.0, "127.0.0.1:8080");
    ask_a_thousand_times(&pier.0, "[::1]:8080");

    // Other containers reach it by its name, and by the port of this machine.
    let ask = |flags: &[&str], name: &str| {
        let line = format!(
            "exec 3<>/dev/tcp/{name}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; exec cat <&3"
        );
        let begin = ["run", "--rm"];
        let end = ["nginx", "bash", "-c", &line];
        pier.run(&[&begin, flags, &end].concat()).ok()
    };
    assert!(ask(&[], "myweb/80").contains(PAGE));
    let flags = ["--add-host", "here:host-gateway"];
    assert!(ask(&flags, "here/8080").contains(PAGE));

    pier.run(&["restart", "myweb"]).ok();
    ask_a_thousand_times(&pier.0, "127.0.0.1:8080");
    pier.run(&["rm", "-f", "myweb"]).ok();
    let after = pier.0.enter(|| TcpStream::connect("127.0.0.1:8080"));
    assert!(after.is_err());
}

#[test]
fn an_ordinary_users_containers_have_ports_and_a_way_out() {
    let user = User::new("lsp");
    let place = Place::new();
    let host = Host::new(&place);
    // An address that is not loopback, which is no container's business.
    let address = ["addr", "add", "192.0.2.7/32", "dev", "lo"];
    Ran::of(&mut host.command("ip", &address)).ok();
    user.give("rootfs.tar", busybox_rootfs());
    let line = format!("echo '{PAGE}' > /index.html; exec httpd -f -p 80 -h /");
    let dockerfile = format!("FROM scratch\nADD rootfs.tar /\nCMD {line}\n");
    std::fs::write(user.home.path().join("Dockerfile"), dockerfile).unwrap();
    user.own();
    user.sh("longshore build -q -t web .").ok();

    let sh = |line: &str| user.sh_on(&host, line);
    sh("longshore run -dit --name myweb -p 8080:80 web").ok();
    ask_a_thousand_times(&host, "127.0.0.1:8080");
    ask_a_thousand_times(&host, "[::1]:8080");
    ask_a_thousand_times(&host, "192.0.2.7:8080");
    sh("longshore run -d --name again -p 8080:80 web").fails(
        125,
        "Bind for 0.0.0.0:8080 failed: port is already allocated",
    );
    sh("longshore run -d --name low -p 80:80 web")
        .fails(125, "listen tcp4 0.0.0.0:80: bind: permission denied");
    sh("longshore restart myweb").ok();
    ask_a_thousand_times(&host, "127.0.0.1:8080");

    let listener = host.enter(|| TcpListener::bind("192.0.2.7:9000").unwrap());
    let greeter = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello\n").unwrap();
    });
    let ask = sh("longshore run --rm web nc 192.0.2.7 9000");
    assert_eq!(ask.ok(), "hello");
    greeter.join().unwrap();
    sh("longshore rm -f myweb again low").ok();
    assert!(host.enter(|| TcpStream::connect("127.0.0.1:8080")).is_err());
}
