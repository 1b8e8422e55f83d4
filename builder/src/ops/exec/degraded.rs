//! What steps lack where namespaces are refused: said once a build, or an error where a step asks for it.

use std::os::fd::BorrowedFd;

use runner::mode::{CHROOT_LACKS, SINGLE_ID_LACKS};
use runner::{Isolation, MountKind, MountPoint, Privilege, SandboxError, StartError};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::super::Operations;
use crate::error::StepError;
use crate::graph::exec::ExecOp;
use crate::solve::ProgressEvent;

/// Says what this build's steps lack, the first time.
pub(super) fn tell(operations: &Operations<'_>) {
    let lacks = match (runner::isolation(), runner::userns::privilege()) {
        (Isolation::Namespaces, Privilege::RootlessSingleId) => SINGLE_ID_LACKS,
        (Isolation::Namespaces | Isolation::None, _) => return,
        (Isolation::Chroot, _) => CHROOT_LACKS,
    };
    operations.notice.call_once(|| {
        operations.progress.event(ProgressEvent::Note {
            vertex: None,
            text: format!("lacking here: {lacks} (see `longshore info`)"),
        });
    });
}

/// What tells apt to work as root where there is no other user: it would become one to download.
pub(super) fn apt_settings(image: BorrowedFd<'_>) -> Option<MountPoint> {
    let is_single = runner::isolation() == Isolation::Namespaces
        && runner::userns::privilege() == Privilege::RootlessSingleId;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let has_apt = || rustix::fs::openat2(image, APT_FOLDER, flags, Mode::empty(), resolve).is_ok();
    (is_single && has_apt()).then(|| MountPoint {
        target: format!("{APT_FOLDER}/99longshore-single-id"),
        kind: MountKind::File {
            content: b"APT::Sandbox::User \"root\";\n".to_vec(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            read_only: true,
        },
    })
}

/// Where apt looks for its settings.
const APT_FOLDER: &str = "/etc/apt/apt.conf.d";

/// Refuses what a step asks for and can only be had with namespaces.
pub(super) fn refuse(exec: &ExecOp) -> Result<(), StepError> {
    if runner::isolation() == Isolation::Namespaces {
        return Ok(());
    }
    let setting = &exec.setting;
    let asked = [
        (!setting.hostname.is_empty()).then(|| format!("the host name `{}`", setting.hostname)),
        setting
            .shm_size
            .map(|size| format!("a /dev/shm of {size} bytes")),
    ];
    match asked.into_iter().flatten().next() {
        Some(what) => {
            let refused = StartError::NeedsNamespaces { what };
            Err(SandboxError::from(refused).into())
        }
        None => Ok(()),
    }
}
