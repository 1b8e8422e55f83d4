//! What every entry of a layer has, wherever it is read from or written to.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use rustix::fs::Stat;
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

/// Extended attributes by name, as a layer states them: without overlayfs's bookkeeping.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Longest path in a layer, in bytes: what the kernel takes in one call, less the closing NUL.
pub const PATH_BYTES_MAX: usize = 4095;

/// overlayfs's own attributes under the option `userxattr`. Never part of a layer's content.
const OVERLAY_PREFIX: &[u8] = b"user.overlay.";

/// How overlayfs stores an attribute that someone inside the mount set and that is named like its own.
const OVERLAY_ESCAPED: &[u8] = b"user.overlay.overlay.";

/// Says `y` on a directory that hides what lies below it.
pub(crate) const OPAQUE: &str = "user.overlay.opaque";

/// On an empty file that stands for a whiteout where a device 0/0 cannot be made.
pub(crate) const WHITEOUT: &str = "user.overlay.whiteout";

/// Says `y` on the root of a layer that states the root's own metadata; the kernel ignores it and hides it from processes.
pub(crate) const ROOT_STATED: &str = "user.overlay.longshore.root";

/// When an entry was last modified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtime {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, below 1,000,000,000.
    pub nanos: u32,
}

/// Owner, permissions, time and attributes of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky; no type.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of modification.
    pub mtime: Mtime,
    /// Extended attributes; on regular files and directories only.
    pub xattrs: Xattrs,
}

impl Mtime {
    pub(crate) fn of(stat: &Stat) -> Mtime {
        Mtime {
            seconds: stat.st_mtime,
            nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        }
    }

    /// The same for access and modification.
    pub(crate) fn timestamps(self) -> rustix::fs::Timestamps {
        let time = rustix::fs::Timespec {
            tv_sec: self.seconds,
            tv_nsec: self.nanos.into(),
        };
        rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        }
    }
}

impl Metadata {
    /// What `stat` says, with no extended attributes.
    pub(crate) fn of(stat: &Stat) -> Metadata {
        let (uid, gid) = stated_owner(stat.st_uid, stat.st_gid);
        Metadata {
            mode: stat.st_mode & 0o7777,
            uid,
            gid,
            mtime: Mtime::of(stat),
            xattrs: Xattrs::new(),
        }
    }
}

/// The owner of a file on disk, as a layer states it. An ordinary user without a user namespace owns all that it writes, and
/// means root.
pub fn stated_owner(uid: u32, gid: u32) -> (u32, u32) {
    static ORDINARY: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    let own = ORDINARY.get_or_init(|| {
        let user = rustix::process::geteuid();
        let group = rustix::process::getegid();
        (!user.is_root() && !may_chown()).then(|| (user.as_raw(), group.as_raw()))
    });
    match own {
        Some((user, group)) => (
            if uid == *user { 0 } else { uid },
            if gid == *group { 0 } else { gid },
        ),
        None => (uid, gid),
    }
}

/// Whether this process may give files to others.
pub(crate) fn may_chown() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::CHOWN))
}

/// The name of an attribute on disk, as a layer states it; `None` if it is no part of the layer.
///
/// Left out are overlayfs's bookkeeping, and what belongs to the host and not to the image: `trusted.*` and the labels
/// and signatures of its security modules. File capabilities and access lists are part.
fn stated(name: &[u8]) -> Option<Vec<u8>> {
    if let Some(rest) = name.strip_prefix(OVERLAY_ESCAPED) {
        return Some([OVERLAY_PREFIX, rest].concat());
    }
    if name.starts_with(OVERLAY_PREFIX) || belongs_to_host(name) {
        return None;
    }
    Some(name.to_vec())
}

/// The name under which an attribute that a layer states is stored; `None` if it is not stored.
///
/// The reverse of [`stated`]: a hostile layer that names overlayfs's own attributes gets them escaped, without effect.
pub(crate) fn stored(name: &[u8]) -> Option<Vec<u8>> {
    if let Some(rest) = name.strip_prefix(OVERLAY_PREFIX) {
        return Some([OVERLAY_ESCAPED, rest].concat());
    }
    if belongs_to_host(name) {
        return None;
    }
    Some(name.to_vec())
}

fn belongs_to_host(name: &[u8]) -> bool {
    name.starts_with(b"trusted.")
        || [
            &b"security.selinux"[..],
            b"security.ima",
            b"security.evm",
            b"security.SMACK64",
        ]
        .contains(&name)
}

/// Reads the attributes that are part of a layer from an open file or directory.
pub(crate) fn read_xattrs(file: impl AsFd) -> Result<Xattrs, Errno> {
    let mut xattrs = Xattrs::new();
    for name in list_xattrs(&file)? {
        let Some(stated) = stated(&name) else {
            continue;
        };
        if let Some(value) = read_xattr(&file, &name)? {
            xattrs.insert(stated, value);
        }
    }
    Ok(xattrs)
}

/// Reads one attribute by the name it has on disk; `None` if there is none.
pub(crate) fn read_xattr(file: impl AsFd, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let mut value = vec![0; 256];
    loop {
        match rustix::fs::fgetxattr(&file, name, &mut value) {
            Ok(length) => {
                value.truncate(length);
                return Ok(Some(value));
            }
            Err(Errno::RANGE) if value.len() < 65_536 => value.resize(65_536, 0),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    }
}

/// The names of all attributes of an open file or directory, as they are on disk.
pub(crate) fn list_xattrs(file: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut small = [0; 512];
    let large;
    let names = match rustix::fs::flistxattr(&file, &mut small) {
        Ok(length) => &small[..length],
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(Errno::RANGE) => {
            let mut buffer = vec![0; 65_536];
            let length = rustix::fs::flistxattr(&file, &mut buffer)?;
            buffer.truncate(length);
            large = buffer;
            &large
        }
        Err(errno) => return Err(errno),
    };
    Ok(names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect())
}

/// Whether a directory hides what lies below it.
pub(crate) fn is_opaque(directory: impl AsFd) -> Result<bool, Errno> {
    Ok(read_xattr(directory, OPAQUE.as_bytes())?.as_deref() == Some(b"y"))
}

/// Bytes of a path or name, as an error message shows them.
pub(crate) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    if text.chars().count() <= 300 {
        return text.escape_debug().to_string();
    }
    let clipped: String = text.chars().take(300).chain(['…']).collect();
    clipped.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_attributes_are_escaped_both_ways() {
        let check = |layer: &str, disk: Option<&str>| {
            assert_eq!(stored(layer.as_bytes()).as_deref(), disk.map(str::as_bytes));
            if let Some(disk) = disk {
                assert_eq!(stated(disk.as_bytes()).as_deref(), Some(layer.as_bytes()));
            }
        };
        check("user.note", Some("user.note"));
        check("security.capability", Some("security.capability"));
        check("user.overlay.opaque", Some("user.overlay.overlay.opaque"));
        check(
            "user.overlay.overlay.x",
            Some("user.overlay.overlay.overlay.x"),
        );
        check("trusted.overlay.opaque", None);
        check("security.selinux", None);
        assert_eq!(stated(b"user.overlay.origin"), None);
    }
}
