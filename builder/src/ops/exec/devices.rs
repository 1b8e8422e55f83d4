//! `--device`: devices by the Container Device Interface, from specifications that vendors install on the host.
//!
//! A specification is a JSON or YAML file that names devices of one kind (`vendor/class`) and says what each takes: nodes, mounts,
//! variables and groups. What it may ask for beyond those, hooks above all, is refused.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use runner::{MountKind as Point, MountPoint};
use serde::Deserialize;

use crate::graph::exec::DeviceRequest;
use crate::request::{Entitlement, RunSettings};

/// Largest specification, in bytes: those of a machine with many devices have some hundred kilobytes.
const SPEC_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Annotations that BuildKit defined: a name for several devices of a kind, and that no entitlement is needed.
const CLASS: &str = "org.mobyproject.buildkit.device.class";
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";

/// Why a device cannot be given to a step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The name has another form.
    #[error("`{name}` is no device: expected `vendor/class=name`, as in `example.com/gpu=0`")]
    Name {
        /// As it was asked for.
        name: String,
    },
    /// No specification has it.
    #[error("there is no device `{name}`: {}", found(.known))]
    Missing {
        /// As it was asked for.
        name: String,
        /// The devices that there are.
        known: Vec<String>,
    },
    /// It has to be allowed.
    #[error("the device `{name}` has to be allowed: build with `--allow device={name}`")]
    NotAllowed {
        /// The whole name.
        name: String,
    },
    /// A specification cannot be read.
    #[error("cannot read the device specification `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A device asks for something that steps are not given.
    #[error(
        "the device `{name}` cannot be used: its specification asks for {what}, which is not supported"
    )]
    Unsupported {
        /// The whole name.
        name: String,
        /// What.
        what: String,
    },
}

fn found(known: &[String]) -> String {
    match known {
        [] => "no specification names any".to_owned(),
        known => format!("those of this machine are `{}`", known.join("`, `")),
    }
}

/// What the devices of a step take.
#[derive(Debug, Default)]
pub(super) struct Devices {
    pub(super) points: Vec<MountPoint>,
    pub(super) env: Vec<String>,
    pub(super) groups: Vec<u32>,
}

#[derive(Debug, Deserialize)]
struct Spec {
    kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default, rename = "containerEdits")]
    edits: Edits,
}

#[derive(Debug, Deserialize)]
struct Device {
    name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default, rename = "containerEdits")]
    edits: Edits,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Edits {
    env: Vec<String>,
    #[serde(rename = "deviceNodes")]
    nodes: Vec<Node>,
    mounts: Vec<Bind>,
    #[serde(rename = "additionalGids")]
    groups: Vec<u32>,
    /// What is not known here: hooks and the like.
    #[serde(flatten)]
    other: BTreeMap<String, serde_json::Value>,
}

#[derive(Clone, Debug, Deserialize)]
struct Node {
    path: String,
    #[serde(rename = "hostPath")]
    host_path: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
struct Bind {
    #[serde(rename = "hostPath")]
    host_path: PathBuf,
    #[serde(rename = "containerPath")]
    target: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(default, rename = "type")]
    kind: String,
}

/// Finds what a step asks for, among the specifications of this machine.
pub(super) fn prepare(
    settings: &RunSettings,
    requests: &[DeviceRequest],
) -> Result<Devices, DeviceError> {
    let mut devices = Devices::default();
    if requests.is_empty() {
        return Ok(devices);
    }
    let specs = Specs::read(&settings.cdi_dirs)?;
    // The edits of a specification apply once, however many of its devices are taken.
    let mut taken: Vec<&str> = Vec::new();
    for request in requests {
        let found = specs.find(&request.name)?;
        if found.is_empty() && request.required {
            return Err(DeviceError::Missing {
                name: request.name.clone(),
                known: specs.names(),
            });
        }
        for (spec, device) in found {
            let name = format!("{}={}", spec.kind, device.name);
            check_allowed(settings, request, spec, device, &name)?;
            if !taken.contains(&spec.kind.as_str()) {
                taken.push(&spec.kind);
                devices.add(&name, &spec.edits)?;
            }
            devices.add(&name, &device.edits)?;
        }
    }
    Ok(devices)
}

fn check_allowed(
    settings: &RunSettings,
    request: &DeviceRequest,
    spec: &Spec,
    device: &Device,
    name: &str,
) -> Result<(), DeviceError> {
    let annotation = device.annotations.get(AUTO_ALLOW);
    let annotation = annotation.or_else(|| spec.annotations.get(AUTO_ALLOW));
    let is_free = annotation.is_some_and(|value| value == "true");
    let is_allowed = settings.allow.iter().any(|entitlement| match entitlement {
        Entitlement::Device(None) => true,
        Entitlement::Device(Some(allowed)) => {
            [name, spec.kind.as_str(), request.name.as_str()].contains(&allowed.as_str())
        }
        Entitlement::NetworkHost | Entitlement::SecurityInsecure => false,
    });
    if is_free || is_allowed {
        return Ok(());
    }
    Err(DeviceError::NotAllowed {
        name: name.to_owned(),
    })
}

impl Devices {
    fn add(&mut self, name: &str, edits: &Edits) -> Result<(), DeviceError> {
        let unsupported = |what: String| DeviceError::Unsupported {
            name: name.to_owned(),
            what,
        };
        if let Some(key) = edits.other.keys().next() {
            return Err(unsupported(format!("`{key}`")));
        }
        self.env.extend(edits.env.iter().cloned());
        self.groups.extend(&edits.groups);
        for node in &edits.nodes {
            let source = node
                .host_path
                .clone()
                .unwrap_or_else(|| (&node.path).into());
            self.points.push(MountPoint {
                target: node.path.clone(),
                kind: Point::Device { source },
            });
        }
        for bind in &edits.mounts {
            if !matches!(bind.kind.as_str(), "" | "bind") {
                return Err(unsupported(format!("a mount of type `{}`", bind.kind)));
            }
            self.points.push(MountPoint {
                target: bind.target.clone(),
                kind: Point::Bind {
                    source: bind.host_path.clone(),
                    beneath: String::new(),
                    read_only: bind.options.iter().any(|option| option == "ro"),
                },
            });
        }
        Ok(())
    }
}

/// The specifications of this machine.
struct Specs {
    specs: Vec<Spec>,
}

impl Specs {
    fn read(dirs: &[PathBuf]) -> Result<Specs, DeviceError> {
        let mut specs = Specs { specs: Vec::new() };
        // Of a device that several name, the last folder's counts.
        for dir in dirs.iter().rev() {
            let entries = match std::fs::read_dir(dir) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    return Err(DeviceError::Read {
                        path: dir.clone(),
                        source,
                    });
                }
            };
            let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths {
                let extension = path.extension().and_then(std::ffi::OsStr::to_str);
                if matches!(extension, Some("json" | "yaml")) {
                    specs.specs.push(read(&path)?);
                }
            }
        }
        Ok(specs)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .all()
            .map(|(spec, device)| format!("{}={}", spec.kind, device.name))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    fn all(&self) -> impl Iterator<Item = (&Spec, &Device)> {
        let of = |spec: &'_ Spec| spec.devices.len();
        self.specs
            .iter()
            .flat_map(move |spec| (0..of(spec)).map(move |i| (spec, &spec.devices[i])))
    }

    /// `vendor/class=name`, `=*` for all, no name for the first; and what is annotated with the name as its class.
    fn find(&self, request: &str) -> Result<Vec<(&Spec, &Device)>, DeviceError> {
        let (kind, name) = request.split_once('=').unwrap_or((request, ""));
        let is_kind = kind
            .split_once('/')
            .is_some_and(|(vendor, class)| !vendor.is_empty() && !class.is_empty());
        if !is_kind {
            return Err(DeviceError::Name {
                name: request.to_owned(),
            });
        }
        let of_kind: Vec<(&Spec, &Device)> =
            self.all().filter(|(spec, _)| spec.kind == kind).collect();
        let mut found: Vec<(&Spec, &Device)> = match name {
            "" => of_kind.iter().take(1).copied().collect(),
            "*" => of_kind.clone(),
            name => {
                let named = of_kind.iter().filter(|(_, device)| device.name == name);
                named.take(1).copied().collect()
            }
        };
        if found.is_empty() {
            let has_class = |(_, device): &&(&Spec, &Device)| {
                device.annotations.get(CLASS).is_some_and(|c| c == name)
            };
            found = of_kind.iter().filter(has_class).copied().collect();
        }
        let mut seen = Vec::new();
        found.retain(|(_, device)| {
            let is_new = !seen.contains(&device.name);
            seen.push(device.name.clone());
            is_new
        });
        Ok(found)
    }
}

fn read(path: &Path) -> Result<Spec, DeviceError> {
    let fail = |source| DeviceError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(SPEC_BYTES_MAX).read_to_string(&mut text))
        .map_err(fail)?;
    if path
        .extension()
        .is_some_and(|extension| extension == "json")
    {
        return serde_json::from_str(&text).map_err(|error| fail(error.into()));
    }
    // The parser bounds depth and aliases by itself.
    serde_saphyr::from_str(&text).map_err(|error| {
        fail(io::Error::new(
            io::ErrorKind::InvalidData,
            error.to_string(),
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"{
        "cdiVersion": "0.6.0",
        "kind": "example.com/gpu",
        "containerEdits": {"env": ["COMMON=1"]},
        "devices": [
            {"name": "zero", "containerEdits": {
                "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null"}],
                "mounts": [{"hostPath": "/usr/lib", "containerPath": "/gpu", "options": ["ro"]}],
                "additionalGids": [44]}},
            {"name": "one", "annotations": {"org.mobyproject.buildkit.device.class": "fast",
                "org.mobyproject.buildkit.device.autoallow": "true"},
                "containerEdits": {"env": ["ONE=1"]}},
            {"name": "hooked", "containerEdits": {"hooks": [{"hookName": "createContainer"}]}}
        ]
    }"#;

    const YAML: &str = r#"---
cdiVersion: 0.6.0
kind: example.com/nic
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/nic0
      hostPath: /dev/zero
    env:
    - NIC=0
- name: hooked
  containerEdits:
    hooks:
    - hookName: createContainer
      path: /usr/bin/nic
"#;

    fn settings(allow: &[Entitlement]) -> (tempfile::TempDir, RunSettings) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("gpu.json"), SPEC).unwrap();
        std::fs::write(dir.path().join("nic.yaml"), YAML).unwrap();
        let settings = RunSettings {
            allow: allow.iter().cloned().collect(),
            cdi_dirs: vec![dir.path().to_owned(), dir.path().join("none")],
            ..RunSettings::default()
        };
        (dir, settings)
    }

    fn asked(settings: &RunSettings, name: &str) -> Result<Devices, DeviceError> {
        let request = DeviceRequest {
            name: name.to_owned(),
            required: true,
        };
        prepare(settings, &[request])
    }

    #[test]
    fn devices_by_name_class_and_kind() {
        let (_dir, settings) = settings(&[Entitlement::Device(None)]);
        let check = |name: &str, env: &[&str], points: usize| {
            let devices = asked(&settings, name).unwrap();
            assert_eq!(devices.env, env, "{name}");
            assert_eq!(devices.points.len(), points, "{name}");
        };
        check("example.com/gpu=zero", &["COMMON=1"], 2);
        check("example.com/gpu=one", &["COMMON=1", "ONE=1"], 0);
        check("example.com/gpu=fast", &["COMMON=1", "ONE=1"], 0);
        check("example.com/gpu", &["COMMON=1"], 2);
        check("example.com/nic=0", &["NIC=0"], 1);
        assert_eq!(asked(&settings, "example.com/gpu").unwrap().groups, [44]);
    }

    #[test]
    fn what_cannot_be_given() {
        let (_dir, settings) = settings(&[Entitlement::Device(None)]);
        let check = |name: &str, expect: &str| {
            let error = asked(&settings, name).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check("gpu", "expected `vendor/class=name`");
        check("example.com/gpu=two", "`example.com/gpu=one`");
        check("example.com/tpu=0", "`example.com/nic=0`");
        check("example.com/nic=hooked", "asks for `hooks`");
        check("example.com/gpu=hooked", "asks for `hooks`");
        check("example.com/gpu=*", "asks for `hooks`");
        let optional = DeviceRequest {
            name: "example.com/tpu=0".to_owned(),
            required: false,
        };
        assert!(prepare(&settings, &[optional]).unwrap().points.is_empty());
    }

    #[test]
    fn entitlements() {
        let (_dir, none) = settings(&[]);
        let error = asked(&none, "example.com/gpu=zero")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("--allow device=example.com/gpu=zero"),
            "{error}"
        );
        assert!(asked(&none, "example.com/gpu=one").is_ok());
        for allowed in ["example.com/gpu", "example.com/gpu=zero"] {
            let (_dir, some) = settings(&[Entitlement::Device(Some(allowed.to_owned()))]);
            assert!(asked(&some, "example.com/gpu=zero").is_ok(), "{allowed}");
        }
    }
}
