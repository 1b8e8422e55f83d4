//! `registry htpasswd`: the users file of `registry serve`, written as Apache's `htpasswd` is asked to.
//!
//! The file is replaced whole, by rename, with the lock of its folder held: readers see it before or after, and of two who change it at
//! once both changes stay. Lines of other users, and comments, stay as they are.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use registry_server::auth::password::{BCRYPT_BYTES_MAX, PasswordHash};
use rustix::fs::FlockOperation;

use crate::args::HtpasswdArgs;
use crate::commands::login::{only_from_a_terminal, read_password};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};
use crate::ui;

/// Only the owner reads a new file: hashes can be tried offline.
const NEW_MODE: u32 = 0o600;

/// What the words stand for.
struct Said<'a> {
    /// `None` where the line is printed.
    file: Option<&'a Path>,
    user: &'a str,
    password: Option<&'a str>,
}

/// `longshore registry htpasswd`.
pub fn htpasswd(context: &Context, args: &HtpasswdArgs) -> Result<ExitCode, CliError> {
    let said = said(args)?;
    if args.delete {
        change(args, said.file, said.user, None)?;
        context.ui.note(&format!("Deleted user {}", said.user));
        return Ok(ExitCode::SUCCESS);
    }
    let password = password(context, args, said.password)?;
    if args.verify {
        return verify(context, said.file, said.user, &password);
    }
    let hash = match args.bcrypt {
        false => PasswordHash::new(password.as_bytes()),
        true => PasswordHash::new_bcrypt(password.as_bytes(), args.cost).ok_or_else(|| {
            let message = format!("bcrypt takes passwords of at most {BCRYPT_BYTES_MAX} bytes");
            CliError::new(Kind::Usage, message).hint("leave -B out: Argon2 takes any")
        })?,
    };
    if said.file.is_none() {
        let line = format!("{}:{}", said.user, hash.as_str());
        return context.ui.line(&line).map(|()| ExitCode::SUCCESS);
    }
    let was_there = change(args, said.file, said.user, Some(hash.as_str()))?;
    let done = if was_there { "Changed" } else { "Added" };
    context.ui.note(&format!("{done} user {}", said.user));
    Ok(ExitCode::SUCCESS)
}

fn said(args: &HtpasswdArgs) -> Result<Said<'_>, CliError> {
    let mut words = args.words.iter().map(String::as_str);
    let mut next = |wanted: bool| if wanted { words.next() } else { None };
    let (file, user, password) = (next(!args.print), next(true), next(args.batch));
    let whole = args.words.len() == 1 + usize::from(!args.print) + usize::from(args.batch);
    let Some(user) = user.filter(|_| whole) else {
        let file = if args.print { "" } else { "FILE " };
        let last = if args.batch { " PASSWORD" } else { "" };
        let message = format!("expected {file}USER{last}");
        return Err(CliError::new(Kind::Usage, message));
    };
    let wrong = user.is_empty()
        || user.starts_with('#')
        || user.trim() != user
        || user.contains(|letter: char| letter == ':' || letter.is_control());
    if wrong {
        let message = format!(
            "`{}` is no user name: it may be neither empty nor begin with `#`, and has no colon and no space around it",
            user.escape_default()
        );
        return Err(CliError::new(Kind::Usage, message));
    }
    Ok(Said {
        file: file.map(Path::new),
        user,
        password,
    })
}

fn password(
    context: &Context,
    args: &HtpasswdArgs,
    given: Option<&str>,
) -> Result<String, CliError> {
    let password = match given {
        Some(password) => {
            context
                .ui
                .warning("others on this machine can see the password: --password-stdin is safer");
            password.to_owned()
        }
        None if args.password_stdin => read_password()?,
        None => {
            only_from_a_terminal("password", "--password-stdin")?;
            let password = ui::ask_secret("Password: ").blame(Kind::Environment)?;
            if !args.verify {
                let again = ui::ask_secret("Password again: ").blame(Kind::Environment)?;
                if again != password {
                    return Err(CliError::new(Kind::Usage, "the two passwords differ"));
                }
            }
            password
        }
    };
    match password.is_empty() {
        true => Err(CliError::new(Kind::Usage, "the password may not be empty")),
        false => Ok(password),
    }
}

fn verify(
    context: &Context,
    file: Option<&Path>,
    user: &str,
    password: &str,
) -> Result<ExitCode, CliError> {
    let path = file.expect("--print conflicts with --verify");
    let text = std::fs::read_to_string(path).map_err(failed("read", path))?;
    let mut lines = text.lines().filter_map(|line| line.trim().split_once(':'));
    let Some((_, hash)) = lines.find(|(name, _)| *name == user) else {
        return Err(no_user(user, path));
    };
    let Some(hash) = PasswordHash::parse(hash) else {
        let message = format!("the hash of `{user}` is neither bcrypt's nor Argon2's");
        return Err(CliError::new(Kind::Input, message));
    };
    if !hash.verify(password.as_bytes()) {
        return Err(CliError::new(Kind::Input, "the password is wrong"));
    }
    context.ui.note(&format!("The password of {user} is right"));
    Ok(ExitCode::SUCCESS)
}

/// Gives the user another hash, or with `None` takes them away; whether they were there.
fn change(
    args: &HtpasswdArgs,
    file: Option<&Path>,
    user: &str,
    hash: Option<&str>,
) -> Result<bool, CliError> {
    let path = file.expect("--print conflicts with what changes the file");
    // What a link leads to is replaced, not the link.
    let path = match std::fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => path.to_owned(),
        found => found.map_err(failed("open", path))?,
    };
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let lock = File::open(folder).map_err(failed("open", folder))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)
        .map_err(|error| failed("lock", folder)(error.into()))?;
    let (text, before) = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound && hash.is_some() => {
            (String::new(), None)
        }
        read => {
            let text = read.map_err(failed("read", &path))?;
            let metadata = std::fs::metadata(&path).map_err(failed("read", &path))?;
            (text, Some(metadata))
        }
    };
    if args.create && before.is_some() {
        let message = format!("`{}` is there already", path.display());
        return Err(CliError::new(Kind::Usage, message)
            .hint("leave -c out to add to it, or remove it first"));
    }
    let (text, was_there) = with_user(&text, user, hash);
    if !was_there && hash.is_none() {
        return Err(no_user(user, &path));
    }
    replace(&path, &text, before.as_ref()).map_err(failed("write", &path))?;
    lock.sync_all().map_err(failed("write", folder))?;
    Ok(was_there)
}

/// The text of a users file with another line of this user, or with `None` without them; and whether they were there.
fn with_user(text: &str, user: &str, hash: Option<&str>) -> (String, bool) {
    let mut changed = String::new();
    let mut was_there = false;
    let mut line = hash.map(|hash| format!("{user}:{hash}\n"));
    for old in text.lines() {
        let name = old.trim().split_once(':').map(|(name, _)| name);
        if name == Some(user) {
            was_there = true;
            changed.push_str(&line.take().unwrap_or_default());
        } else {
            changed.push_str(old);
            changed.push('\n');
        }
    }
    changed.push_str(&line.unwrap_or_default());
    (changed, was_there)
}

/// Puts a file in another's place, with the same owner and mode. The folder is locked.
fn replace(path: &Path, text: &str, before: Option<&Metadata>) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside: PathBuf = path.with_file_name(format!(".{name}.new"));
    // One that was killed left it.
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(NEW_MODE)
        .open(&aside)?;
    let written = (|| {
        if let Some(before) = before {
            let now = file.metadata()?;
            if (now.uid(), now.gid()) != (before.uid(), before.gid()) {
                fchown(&file, Some(before.uid()), Some(before.gid()))?;
            }
            file.set_permissions(Permissions::from_mode(before.mode() & 0o7777))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&aside, path)
    })();
    if written.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&aside);
    }
    written
}

fn no_user(user: &str, path: &Path) -> CliError {
    let message = format!("there is no user `{user}` in `{}`", path.display());
    CliError::new(Kind::Input, message)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CliError {
    let path = path.to_owned();
    move |source| {
        let message = format!("cannot {action} `{}`: {source}", path.display());
        CliError::new(Kind::Environment, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_lines_stay() {
        let check = |text: &str, hash: Option<&str>, expect: (&str, bool)| {
            let (changed, was_there) = with_user(text, "ann", hash);
            assert_eq!((changed.as_str(), was_there), expect, "{text:?}");
        };
        check("", Some("h"), ("ann:h\n", false));
        check("bob:x", Some("h"), ("bob:x\nann:h\n", false));
        let text = "# people\n\nann:old\nanna:x\nbob:y\n";
        check(
            text,
            Some("h"),
            ("# people\n\nann:h\nanna:x\nbob:y\n", true),
        );
        check(text, None, ("# people\n\nanna:x\nbob:y\n", true));
        // The second would not count anyway.
        check("ann:1\nann:2\n", Some("h"), ("ann:h\n", true));
        check("bob:y\n", None, ("bob:y\n", false));
    }
}
