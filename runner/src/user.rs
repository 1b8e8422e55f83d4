//! `USER` of an image to numbers, by the image's own `/etc/passwd` and `/etc/group`.
//!
//! Docker's rules. A number is always an id, also when a user has it as name. `user` alone gets the
//! user's primary group and every group that lists the user by name; `user:group` gets that group only.
//! An id that no line knows has group 0 and home `/`. Files are opened as if the root were `/`, and lines
//! that make no sense are passed over.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::spec::User;

/// Far larger than any real table; a hostile image's is cut off with an error.
const TABLE_BYTES_MAX: u64 = 10 << 20;
/// The kernel's largest id that is not "no id", as Docker draws the line.
const ID_MAX: u32 = i32::MAX.unsigned_abs();

/// Why a `USER` has no meaning in an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserError {
    /// A name that `/etc/passwd` does not have.
    #[error("user `{name}` is not in the image's `/etc/passwd`")]
    UnknownUser {
        /// The name.
        name: String,
    },
    /// A name that `/etc/group` does not have.
    #[error("group `{name}` is not in the image's `/etc/group`")]
    UnknownGroup {
        /// The name.
        name: String,
    },
    /// A number past what Docker and the kernel take.
    #[error("id `{id}` is out of range, at most {ID_MAX}")]
    OutOfRange {
        /// The number as written.
        id: String,
    },
    /// A table is larger than [`TABLE_BYTES_MAX`].
    #[error("the image's `{path}` is larger than 10 MiB")]
    TooLarge {
        /// Which.
        path: &'static str,
    },
    /// A table cannot be read.
    #[error("cannot read the image's `{path}`")]
    Read {
        /// Which.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Resolves `text` (`user`, `uid`, `user:group`, …; empty for root) against the tables beneath `rootfs`.
///
/// # Errors
///
/// A name without a line, or a table that cannot be read. A missing table has no lines.
pub fn resolve_user(rootfs: BorrowedFd<'_>, text: &str) -> Result<User, UserError> {
    let passwd = read_table(rootfs, "/etc/passwd")?;
    let group = read_table(rootfs, "/etc/group")?;
    resolve(&passwd, &group, text)
}

/// Adds groups, by name or number, to those of a user.
///
/// # Errors
///
/// A name without a line, or a table that cannot be read.
pub fn add_groups(
    rootfs: BorrowedFd<'_>,
    user: &mut User,
    groups: &[String],
) -> Result<(), UserError> {
    let table = read_table(rootfs, "/etc/group")?;
    for text in groups {
        user.groups.push(group_id(&table, text)?);
    }
    user.groups.sort_unstable();
    user.groups.dedup();
    Ok(())
}

/// The id of a group, by name or number.
fn group_id(table: &str, text: &str) -> Result<u32, UserError> {
    if let Some(gid) = parse_id(text)? {
        return Ok(gid);
    }
    let mut lines = table.lines().filter_map(GroupLine::parse);
    let line = lines.find(|line| line.name == text);
    line.map(|line| line.gid)
        .ok_or_else(|| UserError::UnknownGroup {
            name: text.to_owned(),
        })
}

fn resolve(passwd: &str, group: &str, text: &str) -> Result<User, UserError> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let uid = parse_id(user)?;
    let line = passwd
        .lines()
        .filter_map(Account::parse)
        .find(|account| match uid {
            Some(uid) => account.uid == uid,
            None => account.name == user,
        });
    let (uid, primary, home, name) = match (line, uid) {
        (Some(account), _) => (account.uid, account.gid, account.home, Some(account.name)),
        (None, Some(uid)) => (uid, 0, "/", None),
        (None, None) => {
            return Err(UserError::UnknownUser {
                name: user.to_owned(),
            });
        }
    };

    let mut groups = Vec::new();
    let gid = match wanted_group {
        Some(wanted) => {
            let gid = group_id(group, wanted)?;
            groups.push(gid);
            gid
        }
        None => {
            // The primary group is a member too: leaving it out lets a process drop it, and with it
            // what the group is denied (CVE-2022-36109).
            groups.push(primary);
            if let Some(name) = name {
                let lines = group.lines().filter_map(GroupLine::parse);
                groups.extend(
                    lines
                        .filter(|l| l.members.split(',').any(|m| m == name))
                        .map(|l| l.gid),
                );
            }
            primary
        }
    };
    groups.sort_unstable();
    groups.dedup();
    let home = if home.is_empty() { "/" } else { home };
    Ok(User {
        uid,
        gid,
        groups,
        home: home.to_owned(),
    })
}

/// A number, or `None` for what must be a name.
fn parse_id(text: &str) -> Result<Option<u32>, UserError> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id <= ID_MAX => Ok(Some(id)),
        _ => Err(UserError::OutOfRange {
            id: text.to_owned(),
        }),
    }
}

/// `name:password:uid:gid:comment:home:shell`
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Account<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok().filter(|id| *id <= ID_MAX)?;
        let gid = fields.next()?.parse().ok().filter(|id| *id <= ID_MAX)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Self {
            name,
            uid,
            gid,
            home,
        })
    }
}

/// `name:password:gid:member,member`
struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok().filter(|id| *id <= ID_MAX)?;
        Some(Self {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    }
}

fn read_table(rootfs: BorrowedFd<'_>, path: &'static str) -> Result<String, UserError> {
    let fail = |source: io::Error| UserError::Read { path, source };
    // Not blocking: the image may have put a FIFO there.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = loop {
        match openat2(rootfs, path, flags, Mode::empty(), resolve) {
            Ok(file) => break File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(fail(error.into())),
        }
    };
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(fail(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        )));
    }
    let mut bytes = Vec::new();
    file.take(TABLE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > TABLE_BYTES_MAX {
        return Err(UserError::TooLarge { path });
    }
    // Comments may be in any encoding; names that we look for are not.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        \n\
        broken:x:notanumber:1::/:/bin/sh\n\
        huge:x:4294967295:1::/:/bin/sh\n\
        web:x:1000:1001:The web,,,:/srv/www:/bin/sh\n\
        2000:x:3000:3000::/home/digits:/bin/sh\n\
        short:x:7:8\n";
    const GROUP: &str = "root:x:0:\n\
        web:x:1001:\n\
        adm:x:4:other,web\n\
        tty:x:5:web,root\n\
        broken:x:y:web\n\
        lonely:x:77\n";

    fn check(text: &str, expect: Result<(u32, u32, &[u32], &str), &str>) {
        let found = resolve(PASSWD, GROUP, text);
        match expect {
            Ok((uid, gid, groups, home)) => assert_eq!(
                found.expect(text),
                User {
                    uid,
                    gid,
                    groups: groups.to_vec(),
                    home: home.into()
                },
                "{text}"
            ),
            Err(message) => assert_eq!(found.unwrap_err().to_string(), message, "{text}"),
        }
    }

    #[test]
    fn dockers_rules() {
        check("", Ok((0, 0, &[0, 5], "/root")));
        check("root", Ok((0, 0, &[0, 5], "/root")));
        check("web", Ok((1000, 1001, &[4, 5, 1001], "/srv/www")));
        check("1000", Ok((1000, 1001, &[4, 5, 1001], "/srv/www")));
        check("web:adm", Ok((1000, 4, &[4], "/srv/www")));
        check("web:4242", Ok((1000, 4242, &[4242], "/srv/www")));
        check("web:", Ok((1000, 1001, &[4, 5, 1001], "/srv/www")));
        check(":adm", Ok((0, 4, &[4], "/root")));
        check("short", Ok((7, 8, &[8], "/")));
        check("web:lonely", Ok((1000, 77, &[77], "/srv/www")));
    }

    #[test]
    fn numbers_are_ids() {
        check("4242", Ok((4242, 0, &[0], "/")));
        check("4242:5", Ok((4242, 5, &[5], "/")));
        // `2000` is a user's name, but digits always mean an id.
        check("2000", Ok((2000, 0, &[0], "/")));
        check("3000", Ok((3000, 3000, &[3000], "/home/digits")));
        check("2147483647", Ok((2_147_483_647, 0, &[0], "/")));
    }

    #[test]
    fn what_is_refused() {
        check(
            "nobody",
            Err("user `nobody` is not in the image's `/etc/passwd`"),
        );
        check(
            "broken",
            Err("user `broken` is not in the image's `/etc/passwd`"),
        );
        check(
            "web:nope",
            Err("group `nope` is not in the image's `/etc/group`"),
        );
        check(
            "2147483648",
            Err("id `2147483648` is out of range, at most 2147483647"),
        );
        check("-1", Err("id `-1` is out of range, at most 2147483647"));
        check(
            "0:99999999999",
            Err("id `99999999999` is out of range, at most 2147483647"),
        );
    }

    #[test]
    fn tables_are_read_beneath_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::open(dir.path()).unwrap();
        assert_eq!(resolve_user(open().as_fd(), "5").unwrap().uid, 5);
        assert!(matches!(
            resolve_user(open().as_fd(), "web"),
            Err(UserError::UnknownUser { name }) if name == "web"
        ));

        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("real"), "web:x:12:13::/w:\n").unwrap();
        // An absolute link is the root's own, and `..` does not lead above it.
        std::os::unix::fs::symlink("/../../real", dir.path().join("etc/passwd")).unwrap();
        assert_eq!(resolve_user(open().as_fd(), "web").unwrap().gid, 13);

        let huge = File::create(dir.path().join("etc/group")).unwrap();
        huge.set_len(TABLE_BYTES_MAX + 1).unwrap();
        let error = resolve_user(open().as_fd(), "web").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the image's `/etc/group` is larger than 10 MiB"
        );

        std::fs::remove_file(dir.path().join("etc/group")).unwrap();
        let fifo = dir.path().join("etc/group");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let error = resolve_user(open().as_fd(), "web").unwrap_err();
        assert_eq!(error.to_string(), "cannot read the image's `/etc/group`");
    }
}
