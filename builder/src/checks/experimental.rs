//! longshore's own rules: what users ask for, silent until `experimental=` names it.
//!
//! | module | rules about |
//! |---|---|
//! | [`scripts`] | what `RUN` calls |
//! | [`files`] | what `COPY` and `ADD` take |
//! | [`bases`] | base images |

mod bases;
mod files;
mod scripts;

use super::Subject;
use crate::dockerfile::Diagnostic;

pub(super) fn check(subject: &Subject<'_>, found: &mut Vec<Diagnostic>) {
    scripts::check(subject, found);
    files::check(subject, found);
    bases::check(subject, found);
}
