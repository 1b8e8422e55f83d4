//! What the process may do: capabilities, the system call filter, identity.
//!
//! The order matters. The bounding set needs `CAP_SETPCAP`, so it comes before the identity changes. The filter comes last,
//! right before the command, since a profile of the user's need not allow what this program still has to do. It
//! needs `CAP_SYS_ADMIN` (unless no_new_privs is set), which is kept until then; the command's capabilities are what
//! the kernel works out when it is executed, from the bounding set, for root, and none for anybody else.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::StartError;
use crate::spec::{Capabilities, Confinement, Seccomp, ULIMITS, Ulimit, User};
use crate::userns::{self, Isolation};
use crate::{owners, seccomp, sys};

/// Gives up everything that `confinement` does not grant and becomes `user`, but for what [`filter`] needs.
pub(crate) fn confine(
    confinement: &Confinement,
    user: &User,
    note: &mut dyn FnMut(String),
) -> Result<(), StartError> {
    if confinement.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(StartError::step("set no_new_privs"))?;
    }
    if confinement.seccomp != Seccomp::Default
        // The default filter refuses keyctl; without it the host's session keyring must be out of reach.
        && let Err(error) = sys::new_session_keyring()
    {
        note(format!("no session keyring of its own: {error}"));
    }
    bound(confinement.capabilities)?;
    rustix::thread::clear_ambient_capability_set()
        .map_err(StartError::step("clear the ambient capabilities"))?;

    let for_filter = for_filter(confinement)?;
    if for_filter.is_empty()
        && !confinement.no_new_privileges
        && confinement.seccomp == Seccomp::Default
    {
        note("no system call filter but that of the container around".to_owned());
    }
    let keep = granted(confinement, user)? | for_filter;
    rustix::thread::set_keep_capabilities(true)
        .map_err(StartError::step("keep capabilities for a moment"))?;
    become_user(user, note)?;
    set_capabilities(keep)
}

/// Installs the filter: the last thing before the command.
pub(crate) fn filter(confinement: &Confinement) -> Result<(), StartError> {
    let (program, flags) = match &confinement.seccomp {
        Seccomp::Default => (seccomp::program(confinement.capabilities), 0),
        Seccomp::Profile(filter) => (filter.program().into(), filter.flags()),
        Seccomp::Unconfined => return Ok(()),
    };
    match sys::install_seccomp(&program, flags) {
        // Without namespaces only who gives up set-user-id programs may; a container has a filter already.
        Err(error)
            if error.raw_os_error() == Some(libc::EACCES)
                && confinement.seccomp == Seccomp::Default
                && userns::isolation() != Isolation::Namespaces =>
        {
            Ok(())
        }
        result => result.map_err(StartError::step("install the seccomp filter")),
    }
}

/// As [`filter`] for a process that executes nothing: it keeps no capability for it either.
pub(crate) fn filter_for_good(confinement: &Confinement, user: &User) -> Result<(), StartError> {
    let keep = granted(confinement, user)?;
    rustix::thread::set_no_new_privs(true).map_err(StartError::step("set no_new_privs"))?;
    set_capabilities(keep)?;
    filter(confinement)
}

/// The capabilities of the process while it executes nothing.
fn granted(confinement: &Confinement, user: &User) -> Result<CapabilitySet, StartError> {
    Ok(match user.uid {
        0 => CapabilitySet::from_bits_retain(confinement.capabilities.0) & permitted()?,
        _ => CapabilitySet::empty(),
    })
}

/// What [`filter`] needs.
fn for_filter(confinement: &Confinement) -> Result<CapabilitySet, StartError> {
    Ok(
        match (&confinement.seccomp, confinement.no_new_privileges) {
            (Seccomp::Unconfined, _) | (_, true) => CapabilitySet::empty(),
            _ => CapabilitySet::SYS_ADMIN & permitted()?,
        },
    )
}

fn permitted() -> Result<CapabilitySet, StartError> {
    let sets = rustix::thread::capabilities(None);
    Ok(sets
        .map_err(StartError::step("read the capabilities"))?
        .permitted)
}

fn set_capabilities(keep: CapabilitySet) -> Result<(), StartError> {
    let sets = CapabilitySets {
        effective: keep,
        permitted: keep,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(StartError::step("set the capabilities"))
}

/// Lets changes of owners succeed without effect, where there is one owner only. To be called before [`confine`], which gives
/// up the privilege for it.
pub(crate) fn forgive_owners(has_single_id: bool) -> Result<(), StartError> {
    match has_single_id {
        true => sys::install_seccomp(&owners::program(), 0)
            .map_err(StartError::step("install the filter for owners")),
        false => Ok(()),
    }
}

/// Sets the limits of each process.
pub(crate) fn limit(ulimits: &[Ulimit]) -> Result<(), StartError> {
    for ulimit in ulimits {
        let refused = |reason: String| StartError::Limit {
            limit: ulimit.name.clone(),
            reason,
        };
        let resource = resource(&ulimit.name)
            .ok_or_else(|| refused(format!("it is none of {}", ULIMITS.join(", "))))?;
        let limits = Rlimit {
            current: ulimit.soft,
            maximum: ulimit.hard,
        };
        rustix::process::setrlimit(resource, limits).map_err(|errno| match errno {
            Errno::PERM => refused("the host does not allow one so high".to_owned()),
            errno => refused(errno.to_string()),
        })?;
    }
    Ok(())
}

/// Lets process `pid` raise its limits up to those of `ulimits`, which in a user namespace it may not do itself. What is
/// refused here is refused there too, and said.
pub(crate) fn raise_limits(pid: i32, ulimits: &[Ulimit]) {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else {
        return;
    };
    for ulimit in ulimits {
        let Some(resource) = resource(&ulimit.name) else {
            continue;
        };
        let own = rustix::process::getrlimit(resource);
        let maximum = match (own.maximum, ulimit.hard) {
            (Some(own), Some(wanted)) => Some(own.max(wanted)),
            _ => None,
        };
        let limits = Rlimit { maximum, ..own };
        let _refused = rustix::process::prlimit(Some(pid), resource, limits);
    }
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return None,
    })
}

/// Takes everything else out of the bounding set.
fn bound(keep: Capabilities) -> Result<(), StartError> {
    for number in 0..64 {
        if keep.contains(number) {
            continue;
        }
        let capability = CapabilitySet::from_bits_retain(1 << number);
        let errno = match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => continue,
            Err(errno) => errno,
        };
        match rustix::thread::capability_is_in_bounding_set(capability) {
            Ok(false) => {}
            Ok(true) => {
                return Err(StartError::step("reduce the capability bounding set")(
                    errno,
                ));
            }
            // Past the last one that this kernel knows.
            Err(_) => break,
        }
    }
    Ok(())
}

fn become_user(user: &User, note: &mut dyn FnMut(String)) -> Result<(), StartError> {
    use rustix::thread::{Gid, Uid};
    let unmapped = || StartError::UserUnmapped {
        uid: user.uid,
        gid: user.gid,
    };
    // These are "no change" to the kernel.
    if user.uid == u32::MAX || user.gid == u32::MAX || user.groups.contains(&u32::MAX) {
        return Err(unmapped());
    }
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        Ok(()) => {}
        // With a single id the kernel does not let groups be changed: they might have kept one out.
        Err(Errno::PERM) => note("groups cannot be set in this user namespace".into()),
        Err(Errno::INVAL) => return Err(unmapped()),
        Err(errno) => return Err(StartError::step("set the groups")(errno)),
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let changed = rustix::thread::set_thread_res_gid(gid, gid, gid)
        .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid));
    match changed {
        Ok(()) => Ok(()),
        Err(Errno::INVAL) => Err(unmapped()),
        Err(errno) => Err(StartError::step("become the user")(errno)),
    }
}
