//! What the process may do: capabilities, the system call filter, identity.
//!
//! The order matters. The filter needs `CAP_SYS_ADMIN` (unless no_new_privs is set), so it comes before
//! capabilities are dropped; the bounding set needs `CAP_SETPCAP`, so it comes before the identity
//! changes; everything after that is allowed by the filter itself.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::StartError;
use crate::spec::{Capabilities, Confinement, ULIMITS, Ulimit, User};
use crate::userns::{self, Isolation};
use crate::{owners, seccomp, sys};

/// Gives up everything that `confinement` does not grant and becomes `user`.
pub(crate) fn confine(
    confinement: &Confinement,
    user: &User,
    note: &mut dyn FnMut(String),
) -> Result<(), StartError> {
    if confinement.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(StartError::step("set no_new_privs"))?;
    }
    if confinement.seccomp {
        let program = seccomp::program(confinement.capabilities);
        match sys::install_seccomp(&program) {
            Ok(()) => {}
            // Without namespaces only who gives up set-user-id programs may; a container has a filter already.
            Err(error)
                if error.raw_os_error() == Some(libc::EACCES)
                    && userns::isolation() != Isolation::Namespaces =>
            {
                note("no system call filter but that of the container around".to_owned());
            }
            Err(error) => return Err(StartError::step("install the seccomp filter")(error)),
        }
    } else {
        // The filter refuses keyctl; without it the host's session keyring must be out of reach.
        if let Err(error) = sys::new_session_keyring() {
            note(format!("no session keyring of its own: {error}"));
        }
    }

    let have = rustix::thread::capabilities(None)
        .map_err(StartError::step("read the capabilities"))?
        .permitted;
    let keep = CapabilitySet::from_bits_retain(confinement.capabilities.0) & have;
    bound(confinement.capabilities)?;
    rustix::thread::clear_ambient_capability_set()
        .map_err(StartError::step("clear the ambient capabilities"))?;

    become_user(user, note)?;
    let keep = if user.uid == 0 {
        keep
    } else {
        CapabilitySet::empty()
    };
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
        true => sys::install_seccomp(&owners::program())
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
        match rustix::thread::capability_is_in_bounding_set(capability) {
            Ok(true) => {}
            Ok(false) => continue,
            // Past the last one that this kernel knows.
            Err(_) => break,
        }
        rustix::thread::remove_capability_from_bounding_set(capability)
            .map_err(StartError::step("reduce the capability bounding set"))?;
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
