//! A process with a terminal of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use runner::terminal::{Signals, attend};
use runner::{ExitStatus, Sandbox, SandboxSpec, Stdio};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::Test;
use crate::world::World;

pub(crate) const TESTS: &[Test] = &[
    ("echo", echo),
    ("facts", facts),
    ("interrupt", interrupt),
    ("attended", attended),
    ("attended_without_terminal", attended_without_terminal),
];

fn with_terminal(world: &World, script: &str) -> SandboxSpec {
    let mut spec = world.script(script);
    spec.process.terminal = true;
    spec.process.terminal_size = Some((101, 33));
    spec
}

fn spawn(spec: &SandboxSpec) -> (Sandbox, File) {
    let mut sandbox = Sandbox::spawn(spec, Stdio::default()).unwrap();
    let master = File::from(sandbox.take_terminal().unwrap());
    assert!(sandbox.take_terminal().is_none());
    (sandbox, master)
}

/// All output: a terminal ends with an error when its other side is closed.
fn read_all(master: &mut File) -> String {
    let mut output = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = master.read(&mut buffer) {
        output.extend_from_slice(&buffer[..n]);
    }
    String::from_utf8(output).unwrap()
}

fn read_until(master: &mut File, text: &str) -> String {
    let mut output = String::new();
    let mut buffer = [0; 4096];
    while !output.contains(text) {
        let n = master.read(&mut buffer).unwrap();
        output.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
    }
    output
}

fn echo(world: &World) -> Result<(), String> {
    let (mut sandbox, mut master) = spawn(&with_terminal(world, "cat"));
    master.write_all(b"hello\n\x04").unwrap();
    assert_eq!(read_all(&mut master), "hello\r\nhello\r\n");
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(0));
    Ok(())
}

fn facts(world: &World) -> Result<(), String> {
    for init in [false, true] {
        let script = "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo yes; \
             ls /dev/pts; echo to the console > /dev/console; echo to the tty > /dev/tty";
        let mut spec = with_terminal(world, script);
        spec.init = init;
        let (mut sandbox, mut master) = spawn(&spec);
        assert_eq!(
            read_all(&mut master),
            "/dev/pts/0\r\n33 101\r\nyes\r\n0  ptmx\r\nto the console\r\nto the tty\r\n"
                .replace("0  ptmx", "0     ptmx")
        );
        assert!(sandbox.wait().unwrap().success());
    }
    Ok(())
}

fn interrupt(world: &World) -> Result<(), String> {
    for init in [false, true] {
        let script = "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.1; done";
        let mut spec = with_terminal(world, script);
        spec.init = init;
        let (mut sandbox, mut master) = spawn(&spec);
        read_until(&mut master, "ready");
        master.write_all(b"\x03").unwrap();
        assert!(read_all(&mut master).contains("interrupted"));
        assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(5));
    }
    Ok(())
}

/// A terminal to stand in for the user's: master and the side that a program sees.
fn users_terminal() -> (File, OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    unlockpt(&master).unwrap();
    let side = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    let size = Winsize {
        ws_col: 77,
        ws_row: 22,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&master, size).unwrap();
    (File::from(master), side)
}

fn attended(world: &World) -> Result<(), String> {
    let (mut user, side) = users_terminal();
    let before = tcgetattr(&side).unwrap();
    let script = "echo ready; read line; stty size; echo \"<$line>\"; exit 6";
    let mut sandbox = Sandbox::spawn(&with_terminal(world, script), Stdio::default()).unwrap();
    std::thread::scope(|scope| {
        let attending = scope.spawn(|| {
            let signals = Signals::collect().unwrap();
            attend(&mut sandbox, &signals, side.as_fd(), side.as_fd()).unwrap()
        });
        read_until(&mut user, "ready");
        let raw = tcgetattr(&side).unwrap();
        assert!(
            !raw.local_modes
                .intersects(LocalModes::ECHO | LocalModes::ISIG)
        );
        user.write_all(b"typed\r").unwrap();
        let output = read_until(&mut user, ">");
        // Echoed once, by the inner terminal, which has the user's size.
        assert!(output.contains("typed\r\n22 77\r\n<typed"), "{output}");
        assert_eq!(attending.join().unwrap(), ExitStatus::Code(6));
    });
    let after = tcgetattr(&side).unwrap();
    assert_eq!(after.local_modes, before.local_modes, "as it was");
    Ok(())
}

fn attended_without_terminal(world: &World) -> Result<(), String> {
    let signals = Signals::collect().unwrap();
    let script = "trap 'exit 8' TERM; while :; do sleep 0.1; done & trap 'exit 8' TERM; \
                  echo up > /tmp/up; wait";
    let mut sandbox = Sandbox::spawn(&world.script(script), Stdio::default()).unwrap();
    while !world.path("upper/tmp/up").exists() {
        std::thread::yield_now();
    }
    // To this very thread, which has it blocked: as a user's `kill` of a program with one thread.
    let own = rustix::thread::gettid().as_raw_nonzero().get();
    let killed = std::process::Command::new("/bin/busybox")
        .args(["kill", "-TERM", &own.to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let null = File::open("/dev/null").unwrap();
    let status = attend(&mut sandbox, &signals, null.as_fd(), null.as_fd()).unwrap();
    assert_eq!(status, ExitStatus::Code(8));
    Ok(())
}
