//! Runs a command in a directory as its root, which it cannot write to: `sandbox [-n TIMES] [--userns=host] [--layers] ROOT COMMAND
//! [ARGUMENT…]`.
//!
//! With `--layers` the directory is the lower layer of an overlay in the temporary directory, as for a step of a build. With
//! `-n`, it runs that many times in this process and the median time is printed: the cost of one sandbox, from the call to its
//! last trace being gone.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::exit,
    reason = "a program for people"
)]

use std::path::PathBuf;
use std::time::Instant;

use runner::{ProcessSpec, Root, Sandbox, SandboxSpec, Stdio, Stream, UserNamespace};

fn main() {
    runner::reexec_if_child();
    if let Err(error) = runner::enter_user_namespace() {
        eprintln!("{error}");
        std::process::exit(125);
    }
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mut times = 1;
    if args.first().is_some_and(|arg| arg == "-n") {
        times = args.get(1).and_then(|n| n.parse().ok()).unwrap_or(1);
        args.drain(..2);
    }
    let mut flag = |name: &str| {
        let given = args.first().is_some_and(|arg| arg == name);
        args.drain(..usize::from(given));
        given
    };
    let user_namespace = match flag("--userns=host") {
        true => UserNamespace::Host,
        false => UserNamespace::Own,
    };
    let has_layers = flag("--layers");
    let directory = PathBuf::from(args.remove(0));

    let dir = std::env::temp_dir().join(format!("longshore-example-{}", std::process::id()));
    let stubs = dir.join("stubs");
    if has_layers {
        std::fs::create_dir_all(&stubs).expect("the temporary directory is writable");
        runner::make_stubs(&stubs).expect("the temporary directory is writable");
    }
    let (mut started, mut took) = (Vec::new(), Vec::new());
    let mut code = 0;
    for n in 0..times {
        let root = match has_layers {
            false => Root::Directory(directory.clone()),
            true => {
                let (upper, work) = (dir.join(format!("upper{n}")), dir.join(format!("work{n}")));
                for dir in [&upper, &work] {
                    std::fs::create_dir(dir).expect("the temporary directory is writable");
                }
                Root::Overlay {
                    lower: vec![directory.clone(), stubs.clone()],
                    upper,
                    work,
                    volatile: true,
                }
            }
        };
        let mut spec = SandboxSpec::new(root, ProcessSpec::new(args.clone()));
        spec.user_namespace = user_namespace;
        spec.read_only = !has_layers;
        let stdio = Stdio {
            stdin: Stream::Inherit,
            stdout: Stream::Inherit,
            stderr: Stream::Inherit,
        };
        let start = Instant::now();
        let result = Sandbox::spawn(&spec, stdio).and_then(|mut sandbox| {
            started.push(start.elapsed());
            sandbox.wait()
        });
        took.push(start.elapsed());
        code = match result {
            Ok(status) => status.code(),
            Err(error) => {
                eprintln!("{error}");
                error.exit_code()
            }
        };
    }
    if has_layers {
        std::fs::remove_dir_all(&dir).expect("nothing is mounted any more");
    }
    if times > 1 {
        for (what, times) in [
            ("until the process runs", &mut started),
            ("until it is gone", &mut took),
        ] {
            times.sort();
            if let (Some(median), Some(least)) = (times.get(times.len() / 2), times.first()) {
                println!("{what}: median {median:?}, least {least:?}");
            }
        }
    }
    std::process::exit(code);
}
