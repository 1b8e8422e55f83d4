//! Going through repositories by the folders that hold them, the same way on every storage that has folders.

use super::StorageResult;
use crate::routes::RepositoryName;

/// Something with folders below `repositories/`.
pub(super) trait Walker {
    /// The names of the folders in one, in no order; none if it is not there. Empty is `repositories/` itself.
    fn folders(&self, path: &str) -> StorageResult<Vec<String>>;
}

/// Called with each folder that can be a repository, and the names of the folders in it; false ends the walk.
pub(super) type Found<'a> = dyn FnMut(&RepositoryName, &[String]) -> StorageResult<bool> + 'a;

/// Calls `found` with each folder that can be a repository, parents first, in component order, beginning after
/// `last`.
pub(super) fn walk(
    walker: &dyn Walker,
    last: Option<&str>,
    found: &mut Found<'_>,
) -> StorageResult<()> {
    let last: Vec<&str> = last.map_or_else(Vec::new, |last| last.split('/').collect());
    let top = walker.folders("")?;
    below(walker, &mut Vec::new(), top, &last, found).map(drop)
}

/// Up to `limit` repositories after `last`.
pub(super) fn repositories(
    walker: &dyn Walker,
    last: Option<&str>,
    limit: usize,
) -> StorageResult<Vec<RepositoryName>> {
    let mut names = Vec::new();
    if limit == 0 {
        return Ok(names);
    }
    walk(walker, last, &mut |name, folders| {
        if is_repository(folders) {
            names.push(name.clone());
        }
        Ok(names.len() < limit)
    })?;
    Ok(names)
}

/// Whether a folder with these folders in it is a repository, and not just on the way to one.
pub(super) fn is_repository(folders: &[String]) -> bool {
    folders
        .iter()
        .any(|folder| folder == "_layers" || folder == "_manifests")
}

fn below(
    walker: &dyn Walker,
    name: &mut Vec<String>,
    mut children: Vec<String>,
    last: &[&str],
    found: &mut Found<'_>,
) -> StorageResult<bool> {
    children.retain(|child| !child.starts_with('_'));
    children.sort_unstable();
    for child in children {
        name.push(child);
        let so_far: Vec<&str> = name.iter().map(String::as_str).collect();
        let skipped = so_far.as_slice() < &last[..last.len().min(so_far.len())];
        let path = so_far.join("/");
        let after = so_far.as_slice() > last;
        if let (Ok(repository), false) = (RepositoryName::parse(&path), skipped) {
            let folders = walker.folders(&path)?;
            let go_on = (!after || found(&repository, &folders)?)
                && below(walker, name, folders, last, found)?;
            if !go_on {
                return Ok(false);
            }
        }
        name.pop();
    }
    Ok(true)
}
