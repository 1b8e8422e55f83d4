//! The entries that eStargz adds to a tar: a landmark, and at the end the table. They are for those who read the blob, and a
//! container is not to see them.
//!
//! They are known by the tar alone, since a layer's directory goes by what its tar hashes to: the last entry has to be the table,
//! and a landmark has to be there with the content that landmarks have. Any other tar may have files of these names.

use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Unpacked;
use crate::layer::compress::estargz::{LANDMARK, LANDMARK_CONTENT, PREFETCH_LANDMARK, TABLE_NAME};
use crate::layer::tar::read::{Entry, Kind};
use crate::layer::walk::stat_at;

/// Whether an entry is a table, if it is the last one.
pub(super) fn is_table(entry: &Entry) -> bool {
    entry.kind == Kind::File && super::clean(&entry.path).is_ok_and(|path| path == TABLE_NAME)
}

/// Removes landmarks and the table from a directory that was unpacked from a tar which ends with one; what was removed.
pub(super) fn remove(root: BorrowedFd<'_>) -> Result<Unpacked, Errno> {
    let mut removed = Unpacked::default();
    for name in [LANDMARK, PREFETCH_LANDMARK] {
        if is_landmark(root, name)? {
            rustix::fs::unlinkat(root, name, AtFlags::empty())?;
            removed.entries += 1;
            removed.bytes += LANDMARK_CONTENT.len() as u64;
        }
    }
    if removed.entries > 0 {
        let table = stat_at(root, TABLE_NAME)?;
        rustix::fs::unlinkat(root, TABLE_NAME, AtFlags::empty())?;
        removed.entries += 1;
        removed.bytes += u64::try_from(table.st_size).unwrap_or(0);
    }
    Ok(removed)
}

fn is_landmark(root: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    let size = LANDMARK_CONTENT.len();
    match stat_at(root, name) {
        Ok(stat)
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && usize::try_from(stat.st_size) == Ok(size) => {}
        Ok(_) | Err(Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(root, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        // Others give it no permissions at all, and not everybody may read such a file.
        Err(Errno::ACCESS) => return Ok(true),
        Err(errno) => return Err(errno),
    };
    let mut content = Vec::new();
    file.take(size as u64 + 1)
        .read_to_end(&mut content)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(content == LANDMARK_CONTENT)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use crate::layer::apply::{Form, UnpackOptions, Unpacked, unpack_into};

    /// What is there of a tar of these files, and what was counted.
    fn unpacked(files: &[(&str, &[u8])], form: Form) -> (Vec<String>, Unpacked) {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, *content).unwrap();
        }
        let tar = tar.into_inner().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        let mut options = UnpackOptions::new(form);
        options.keep_own_if_unmapped = true;
        let counted = unpack_into(root.as_fd(), &tar[..], &options).unwrap();
        let entries = std::fs::read_dir(dir.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        (names, counted)
    }

    #[test]
    fn what_estargz_adds_is_not_there() {
        let table = ("stargz.index.json", &b"{}"[..]);
        let file = ("file", &b"content"[..]);
        for landmark in [".no.prefetch.landmark", ".prefetch.landmark"] {
            let (names, counted) = unpacked(&[(landmark, b"\x0f"), file, table], Form::Layer);
            assert_eq!(names, ["file"]);
            let expected = Unpacked {
                entries: 1,
                bytes: 7,
            };
            assert_eq!(counted, expected);
        }
        // As a plain tree it is what it is.
        let (names, _) = unpacked(&[(".prefetch.landmark", b"\x0f"), table], Form::Tree);
        assert_eq!(names.len(), 2);
    }

    #[test]
    fn files_of_these_names_stay() {
        let table = ("stargz.index.json", &b"{}"[..]);
        for files in [
            &[table][..],
            &[(".no.prefetch.landmark", b"\x0e"), table],
            &[(".no.prefetch.landmark", b"\x0f\x0f"), table],
            &[("a/.no.prefetch.landmark", b"\x0f"), table],
            &[table, (".no.prefetch.landmark", b"\x0f")],
            &[
                (".no.prefetch.landmark", b"\x0f"),
                ("a/stargz.index.json", b"{}"),
            ],
        ] {
            let (names, counted) = unpacked(files, Form::Layer);
            assert_eq!(names.len(), files.len(), "{names:?}");
            assert_eq!(counted.entries, files.len() as u64);
        }
    }
}
