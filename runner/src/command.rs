//! Becoming the command: finding it in `PATH`, executing it, and saying why that failed.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Access, FileType};

use crate::error::{Errno, StartError};
use crate::spec::ProcessSpec;
use crate::sys;

/// The kernel itself looks at 256 bytes of a script's first line; program headers come soon after.
const HEAD_BYTES: u64 = 4096;

/// Executes the process's command in this process. Returns only if that fails.
pub(crate) fn execute(process: &ProcessSpec) -> StartError {
    let strings = |strings: &[String]| -> Result<Vec<CString>, StartError> {
        strings
            .iter()
            .map(|text| CString::new(text.as_str()))
            .collect::<Result<_, _>>()
            .map_err(|_| StartError::Spec {
                what: "a zero byte in an argument".into(),
            })
    };
    let (argv, env) = match (strings(&process.argv), strings(&process.env)) {
        (Ok(argv), Ok(env)) => (argv, env),
        (Err(error), _) | (_, Err(error)) => return error,
    };
    let Some(command) = process.argv.first() else {
        return StartError::Spec {
            what: "no command".into(),
        };
    };

    if command.contains('/') {
        return try_one(command, &argv, &env).unwrap_or_else(|| not_found(command, None));
    }
    let path = process
        .env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="));
    // Like execvp: a candidate that may not be executed is remembered, and the search goes on.
    let mut refused = None;
    for dir in path.unwrap_or_default().split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let candidate = format!("{}/{command}", dir.trim_end_matches('/'));
        match try_one(&candidate, &argv, &env) {
            None => {}
            Some(error @ StartError::NotExecutable { .. }) => refused = refused.or(Some(error)),
            Some(error) => return error,
        }
    }
    refused.unwrap_or_else(|| not_found(command, Some(path.unwrap_or_default())))
}

fn not_found(command: &str, path: Option<&str>) -> StartError {
    if command.is_empty() {
        return StartError::Spec {
            what: "an empty command".into(),
        };
    }
    StartError::CommandNotFound {
        command: command.to_owned(),
        path: path.map(str::to_owned),
    }
}

/// Executes `path`; `None` if there is no such file.
fn try_one(path: &str, argv: &[CString], env: &[CString]) -> Option<StartError> {
    let c_path = CString::new(path).ok()?;
    let error = sys::execve(&c_path, argv, env);
    let path = path.to_owned();
    Some(match error.raw_os_error().unwrap_or_default() {
        libc::ENOENT | libc::ENOTDIR => {
            // The file itself may be there, and what is missing its interpreter.
            if rustix::fs::access(&path, Access::EXISTS).is_err() {
                return None;
            }
            let interpreter = interpreter(&path).unwrap_or_else(|| "its interpreter".into());
            StartError::InterpreterMissing { path, interpreter }
        }
        libc::ENOEXEC => match machine(&path) {
            Some(machine) => StartError::WrongMachine { path, machine },
            None => StartError::UnknownFormat { path },
        },
        libc::ETXTBSY => StartError::TextBusy { path },
        libc::E2BIG => StartError::ArgumentsTooLarge,
        libc::EACCES => {
            let directory = rustix::fs::stat(&path)
                .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
            let errno = Errno(if directory {
                libc::EISDIR
            } else {
                libc::EACCES
            });
            StartError::NotExecutable { path, errno }
        }
        errno => StartError::NotExecutable {
            path,
            errno: Errno(errno),
        },
    })
}

fn head(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(HEAD_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What a script's first line or a program's header names as interpreter.
fn interpreter(path: &str) -> Option<String> {
    let head = head(path).ok()?;
    let name = if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next()?.trim_ascii_start();
        line.split(|byte| matches!(byte, b' ' | b'\t'))
            .next()?
            .to_vec()
    } else {
        elf_interpreter(&head)?
    };
    // A carriage return before the newline is a classic: keep it visible.
    Some(
        OsStr::from_bytes(&name)
            .to_string_lossy()
            .escape_default()
            .to_string(),
    )
}

/// PT_INTERP of a 64-bit little-endian program whose headers and string lie in `head`.
fn elf_interpreter(head: &[u8]) -> Option<Vec<u8>> {
    const PT_INTERP: u64 = 3;
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let number = |at: u64, len: usize| -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let bytes = head.get(at..at.checked_add(len)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        let header = table.checked_add(index.checked_mul(size)?)?;
        if number(header, 4)? == PT_INTERP {
            let start = usize::try_from(number(header.checked_add(8)?, 8)?).ok()?;
            let len = usize::try_from(number(header.checked_add(32)?, 8)?).ok()?;
            let text = head.get(start..start.checked_add(len)?)?;
            return Some(text.split(|byte| *byte == 0).next()?.to_vec());
        }
    }
    None
}

/// The processor that a program is for, if it is a program.
fn machine(path: &str) -> Option<String> {
    let head = head(path).ok()?;
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    let bytes = [*head.get(18)?, *head.get(19)?];
    let big_endian = head.get(5) == Some(&2);
    let number = if big_endian {
        u16::from_be_bytes(bytes)
    } else {
        u16::from_le_bytes(bytes)
    };
    Some(match number {
        3 => "386".into(),
        20 | 21 => "ppc64".into(),
        22 => "s390x".into(),
        40 => "arm".into(),
        62 => "amd64".into(),
        183 => "arm64".into(),
        243 => "riscv64".into(),
        258 => "loong64".into(),
        other => format!("processor type {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary(content: &[u8]) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, content).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (dir, path)
    }

    #[test]
    fn interpreters_are_named() {
        for (content, expect) in [
            (&b"#!/bin/nope -x\nrest"[..], Some("/bin/nope")),
            (b"#! /bin/nope\r\nrest", Some("/bin/nope\\r")),
            (b"#!/bin/sh\0", Some("/bin/sh\\u{0}")),
            (b"nothing", None),
            (b"", None),
        ] {
            let (_dir, path) = temporary(content);
            assert_eq!(interpreter(&path).as_deref(), expect, "{content:?}");
        }
        let own = std::env::current_exe().unwrap();
        let found = interpreter(own.to_str().unwrap()).unwrap();
        assert!(found.contains("ld-"), "{found}");
    }

    #[test]
    fn hostile_headers_do_no_harm() {
        let mut program = b"\x7fELF\x02\x01".to_vec();
        program.resize(4096, 0xff);
        assert_eq!(elf_interpreter(&program), None);
        for len in 0..80 {
            assert_eq!(elf_interpreter(&program[..len]), None);
        }
    }

    #[test]
    fn machines_are_named() {
        let mut program = b"\x7fELF\x02\x01".to_vec();
        program.resize(20, 0);
        program[18] = 183;
        let (_dir, path) = temporary(&program);
        assert_eq!(machine(&path).as_deref(), Some("arm64"));
        let (_dir, path) = temporary(b"text");
        assert_eq!(machine(&path), None);
    }
}
