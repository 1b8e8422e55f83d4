//! What is installed, by the databases of dpkg (also one file for each package, as distroless images have them) and apk; pure.

use std::collections::{BTreeMap, BTreeSet};

/// Largest database that is read, and all of them together, in bytes.
const DATABASE_BYTES_MAX: u64 = 64 * 1024 * 1024;
const DATABASES_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// A package, by who manages it and its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    /// `dpkg` or `apk`.
    pub manager: &'static str,
    /// Its name.
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// All packages in one file, also such as were removed.
    Status,
    /// One package in a file.
    Single,
    Apk,
}

/// Whether a path is of a database of RPM's.
pub(super) fn is_rpms(path: &[u8]) -> bool {
    let folders = [&b"var/lib/rpm/"[..], b"usr/lib/sysimage/rpm/"];
    folders.iter().any(|folder| path.starts_with(folder))
}

fn form(path: &[u8]) -> Option<Form> {
    match path {
        b"var/lib/dpkg/status" => Some(Form::Status),
        b"lib/apk/db/installed" | b"usr/lib/apk/db/installed" => Some(Form::Apk),
        _ => {
            let name = path.strip_prefix(b"var/lib/dpkg/status.d/")?;
            let sums = name.ends_with(b".md5sums");
            (!name.contains(&b'/') && !sums).then_some(Form::Single)
        }
    }
}

/// Databases as they come along.
#[derive(Debug, Default)]
pub(super) struct Databases {
    bytes: u64,
}

impl Databases {
    /// A place for the content of a file, if it is a database that is read.
    pub(super) fn keep(&mut self, path: &[u8], size: u64) -> Option<Vec<u8>> {
        form(path)?;
        let fits = size <= DATABASE_BYTES_MAX && self.bytes + size <= DATABASES_BYTES_MAX;
        fits.then(|| {
            self.bytes += size;
            Vec::new()
        })
    }

    /// Adds what a database says.
    pub(super) fn read(&self, path: &[u8], text: &[u8], packages: &mut BTreeMap<Package, String>) {
        let Some(form) = form(path) else {
            return;
        };
        let text = String::from_utf8_lossy(text);
        let mut found: BTreeMap<Package, BTreeSet<String>> = BTreeMap::new();
        for stanza in text.split("\n\n") {
            if let Some((package, version)) = package(form, stanza) {
                found.entry(package).or_default().insert(version);
            }
        }
        for (package, versions) in found {
            let versions: Vec<String> = versions.into_iter().collect();
            packages.insert(package, versions.join(", "));
        }
    }
}

fn package(form: Form, stanza: &str) -> Option<(Package, String)> {
    let field = |name: &str| {
        let mut lines = stanza.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.map(str::trim).filter(|value| !value.is_empty())
    };
    let (manager, name, version) = match form {
        Form::Apk => ("apk", field("P")?, field("V")?),
        Form::Status | Form::Single => ("dpkg", field("Package")?, field("Version")?),
    };
    let installed = |status: &str| status.split(' ').next_back() == Some("installed");
    if form == Form::Status && !field("Status").is_some_and(installed) {
        return None;
    }
    let package = Package {
        manager,
        name: name.to_owned(),
    };
    Some((package, version.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str, expect: &[&str]) {
        let mut packages = BTreeMap::new();
        let mut databases = Databases::default();
        if databases.keep(path.as_bytes(), text.len() as u64).is_some() {
            databases.read(path.as_bytes(), text.as_bytes(), &mut packages);
        }
        let told = packages
            .iter()
            .map(|(Package { manager, name }, version)| format!("{manager} {name} {version}"));
        assert_eq!(told.collect::<Vec<_>>(), expect, "{path}");
    }

    #[test]
    fn databases_say_what_is_installed() {
        let status = "Package: curl\nStatus: install ok installed\nVersion: 7.88\nDescription: a\n Version: 9\n\n\
                      Package: old\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                      Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36\n\n\
                      Package: libc6\nStatus: install ok installed\nArchitecture: i386\nVersion: 2.36-1\n";
        check(
            "var/lib/dpkg/status",
            status,
            &["dpkg curl 7.88", "dpkg libc6 2.36, 2.36-1"],
        );
        let one = "Package: tzdata\nVersion: 2024a\nArchitecture: all\n";
        check("var/lib/dpkg/status.d/tzdata", one, &["dpkg tzdata 2024a"]);
        check("var/lib/dpkg/status.d/tzdata.md5sums", one, &[]);
        let apk =
            "C:Q1x=\nP:musl\nV:1.2.5-r0\nA:x86_64\n\nC:Q1y=\nP:busybox\nV:1.36\nF:bin\nR:sh\n";
        check(
            "lib/apk/db/installed",
            apk,
            &["apk busybox 1.36", "apk musl 1.2.5-r0"],
        );
        check("etc/passwd", apk, &[]);
        check("lib/apk/db/installed", "P:x\n\nV:1\n\n\n", &[]);
        assert!(is_rpms(b"var/lib/rpm/rpmdb.sqlite") && !is_rpms(b"var/lib/rpms"));
        let mut databases = Databases::default();
        assert_eq!(
            databases.keep(b"var/lib/dpkg/status", DATABASE_BYTES_MAX + 1),
            None
        );
    }
}
