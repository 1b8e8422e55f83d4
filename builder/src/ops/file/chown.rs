//! `user[:group]`, names or numbers, to numeric ids, by the `/etc/passwd` and `/etc/group` of the changed root.

use std::os::fd::BorrowedFd;

use crate::cache::content_hash::read_accounts;
use crate::dockerfile::suggest::nearest;
use crate::ops::tree::TreeError;

/// A numeric owner and group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Why an owner could not be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OwnerError {
    /// The text is not `user[:group]`.
    #[error("invalid owner `{text}`: expected `user[:group]`, names or numbers")]
    Invalid {
        /// The text.
        text: String,
    },
    /// No such user.
    #[error("unknown user `{name}`: {}", missing(*.has_file, "/etc/passwd", .near))]
    UnknownUser {
        /// The name.
        name: String,
        /// Whether the root file system has an `/etc/passwd`.
        has_file: bool,
        /// The name in it that is nearest, if one is near.
        near: Option<String>,
    },
    /// No such group.
    #[error("unknown group `{name}`: {}", missing(*.has_file, "/etc/group", .near))]
    UnknownGroup {
        /// The name.
        name: String,
        /// Whether the root file system has an `/etc/group`.
        has_file: bool,
        /// The name in it that is nearest, if one is near.
        near: Option<String>,
    },
    /// The files could not be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

fn missing(has_file: bool, file: &str, near: &Option<String>) -> String {
    match (has_file, near) {
        (false, _) => format!("the image has no `{file}`, expected a number"),
        (true, Some(near)) => format!("not in the image's `{file}`, did you mean `{near}`?"),
        (true, None) => {
            format!("not in the image's `{file}`, expected a name from it or a number")
        }
    }
}

/// The name in an account file that `name` may have been meant for.
fn near(file: Option<&[u8]>, name: &str) -> Option<String> {
    let lines = file?.split(|&byte| byte == b'\n');
    let names = lines.filter_map(|line| {
        let (name, _) = std::str::from_utf8(line).ok()?.split_once(':')?;
        (!name.is_empty()).then_some(name)
    });
    nearest(name, names).map(str::to_owned)
}

/// Whether `text` (`user[:group]`) needs the base's account files to be understood; if so they belong to the key.
pub fn names_accounts(text: &str) -> bool {
    text.split(':')
        .any(|part| !part.is_empty() && part.parse::<u32>().is_err())
}

/// Resolves `text`. A number alone is the group too; a name alone has its own group from `/etc/passwd`.
pub(super) fn resolve(text: &str, base: Option<BorrowedFd<'_>>) -> Result<Owner, OwnerError> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    if user.is_empty() || group.is_some_and(|group| group.contains(':')) {
        return Err(OwnerError::Invalid {
            text: text.to_owned(),
        });
    }
    let read = |path| base.map_or(Ok(None), |base| read_accounts(base, path));
    let mut owner = match user.parse() {
        Ok(uid) => Owner { uid, gid: uid },
        Err(_) => {
            let file = read("etc/passwd")?;
            let found = file.as_deref().and_then(|text| user_in(text, user));
            found.ok_or_else(|| OwnerError::UnknownUser {
                name: user.to_owned(),
                has_file: file.is_some(),
                near: near(file.as_deref(), user),
            })?
        }
    };
    if let Some(group) = group {
        owner.gid = match group.parse() {
            Ok(gid) => gid,
            Err(_) => {
                let file = read("etc/group")?;
                let found = file.as_deref().and_then(|text| group_in(text, group));
                found.ok_or_else(|| OwnerError::UnknownGroup {
                    name: group.to_owned(),
                    has_file: file.is_some(),
                    near: near(file.as_deref(), group),
                })?
            }
        };
    }
    Ok(owner)
}

/// `name:password:uid:gid:…`
fn user_in(text: &[u8], name: &str) -> Option<Owner> {
    let fields = line_of(text, name)?;
    Some(Owner {
        uid: number(fields.get(2)?)?,
        gid: number(fields.get(3)?)?,
    })
}

/// `name:password:gid:…`
fn group_in(text: &[u8], name: &str) -> Option<u32> {
    number(line_of(text, name)?.get(2)?)
}

fn line_of<'a>(text: &'a [u8], name: &str) -> Option<Vec<&'a [u8]>> {
    text.split(|&byte| byte == b'\n')
        .map(|line| line.split(|&byte| byte == b':').collect::<Vec<_>>())
        .find(|fields| fields[0] == name.as_bytes())
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn check(text: &str, expect: &str) {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        std::fs::write(
            etc.join("passwd"),
            "root:x:0:0::/:/bin/sh\nann:x:7:8::/:\nbad:x:seven:8::/:\nshort\n",
        )
        .unwrap();
        std::fs::write(etc.join("group"), "root:x:0:\nstaff:x:50:ann\n").unwrap();
        let dir = std::fs::File::open(root.path()).unwrap();
        let seen = match resolve(text, Some(dir.as_fd())) {
            Ok(owner) => format!("{}:{}", owner.uid, owner.gid),
            Err(error) => error.to_string(),
        };
        assert_eq!(seen, expect, "{text}");
    }

    #[test]
    fn names_and_numbers() {
        check("0", "0:0");
        check("5", "5:5");
        check("5:6", "5:6");
        check("ann", "7:8");
        check("ann:", "7:8");
        check("ann:staff", "7:50");
        check("ann:9", "7:9");
        check("3:staff", "3:50");
        check("4294967294", "4294967294:4294967294");
    }

    #[test]
    fn what_nobody_is() {
        let user = "not in the image's `/etc/passwd`, expected a name from it or a number";
        check("bob", &format!("unknown user `bob`: {user}"));
        check("bad", &format!("unknown user `bad`: {user}"));
        check(
            "rooot",
            "unknown user `rooot`: not in the image's `/etc/passwd`, did you mean `root`?",
        );
        check(
            "5:stuff",
            "unknown group `stuff`: not in the image's `/etc/group`, did you mean `staff`?",
        );
        check("short", &format!("unknown user `short`: {user}"));
        check("4294967296", &format!("unknown user `4294967296`: {user}"));
        check(
            "ann:devs",
            "unknown group `devs`: not in the image's `/etc/group`, expected a name from it or a number",
        );
        for text in ["", ":staff", "a:b:c"] {
            check(
                text,
                &format!("invalid owner `{text}`: expected `user[:group]`, names or numbers"),
            );
        }
    }

    #[test]
    fn scratch_knows_numbers_only() {
        assert_eq!(resolve("1:2", None).unwrap(), Owner { uid: 1, gid: 2 });
        assert_eq!(
            resolve("root", None).unwrap_err().to_string(),
            "unknown user `root`: the image has no `/etc/passwd`, expected a number"
        );
        assert!(names_accounts("root") && names_accounts("1:staff") && !names_accounts("1:2"));
    }
}
