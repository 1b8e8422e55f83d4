//! `diff`: what tells two images apart.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::ExitCode;

use registry_client::compare::packages::Package;
use registry_client::compare::{Facts, FileFacts, Root};
use serde_json::{Value, json};
use store::layer::tar::read::Kind;
use store::oci::{Descriptor, ImageConfig};

use super::{Session, place, tell};
use crate::args::{DiffType, RemoteDiffArgs};
use crate::context::Context;
use crate::error::CliError;
use crate::ui::text::one_line;

/// The images differ, and `--exit-code` asks.
const DIFFERENT: u8 = 1;

/// Something that one image has otherwise than the other; `None` where one has it not.
type Changed<K, V> = (K, Option<V>, Option<V>);

/// What tells them apart, as far as it was asked for.
#[derive(Default)]
struct Differences {
    /// Lines of the configuration that only the one has, or only the other.
    config: Option<(Vec<String>, Vec<String>)>,
    layers: Option<(Vec<Descriptor>, Vec<Descriptor>)>,
    packages: Option<Vec<Changed<Package, String>>>,
    files: Option<Vec<Changed<Vec<u8>, FileFacts>>>,
    sizes: Option<(u64, u64)>,
}

/// `longshore remote diff`.
pub fn diff(context: &Context, args: &RemoteDiffArgs) -> Result<ExitCode, CliError> {
    let (from, to) = (place(&args.from)?, place(&args.to)?);
    let session = Session::new(context, &args.common.reach, &[&from, &to])?;
    let wants = |kind| args.types.is_empty() || args.types.contains(&kind);
    let deep = wants(DiffType::File) || wants(DiffType::Package);
    let spool = context.temp_dir();
    let read = |place| {
        let source = session.look(place)?;
        let (source, spool, platform) = (&source, &spool, args.platform.as_ref());
        session.run(|_| async move { Facts::read(source, platform, deep, spool).await })
    };
    let (old, new) = (read(&from)?, read(&to)?);
    let rpm = |facts: &Facts| facts.root.as_ref().is_some_and(|root| root.has_rpm);
    if wants(DiffType::Package) && (rpm(&old) || rpm(&new)) {
        context
            .ui
            .warning("packages of RPM are not compared: only dpkg's and apk's databases are read");
    }
    let differences = Differences::of(&old, &new, wants);
    let name = |place: String, facts: &Facts| json!({"name": place, "digest": facts.digest});
    let mut value = differences.as_json();
    value["from"] = name(from.to_string(), &old);
    value["to"] = name(to.to_string(), &new);
    value["same"] = json!(differences.is_none());
    tell(context, &args.common.tell, &value, || {
        if differences.is_none() {
            return String::new();
        }
        let heads = format!("--- {from} ({})\n+++ {to} ({})\n", old.digest, new.digest);
        heads + &differences.as_text()
    })?;
    Ok(match args.exit_code && !differences.is_none() {
        true => ExitCode::from(DIFFERENT),
        false => ExitCode::SUCCESS,
    })
}

impl Differences {
    fn of(old: &Facts, new: &Facts, wants: impl Fn(DiffType) -> bool) -> Differences {
        let nothing = Root::default();
        let (before, after) = (
            old.root.as_ref().unwrap_or(&nothing),
            new.root.as_ref().unwrap_or(&nothing),
        );
        Differences {
            config: wants(DiffType::Config).then(|| {
                let (old, new) = (lines(&old.config), lines(&new.config));
                let only = |a: &BTreeSet<String>, b| a.difference(b).cloned().collect();
                (only(&old, &new), only(&new, &old))
            }),
            layers: wants(DiffType::Layer).then(|| {
                let same = old.layers.iter().zip(&new.layers);
                let same = same.take_while(|(a, b)| a.digest == b.digest).count();
                (old.layers[same..].to_vec(), new.layers[same..].to_vec())
            }),
            packages: wants(DiffType::Package).then(|| changed(&before.packages, &after.packages)),
            files: wants(DiffType::File).then(|| changed(&before.files, &after.files)),
            sizes: wants(DiffType::Size).then(|| (old.size(), new.size())),
        }
    }

    fn is_none(&self) -> bool {
        let none = |(a, b): &(Vec<String>, Vec<String>)| a.is_empty() && b.is_empty();
        self.config.as_ref().is_none_or(none)
            && self
                .layers
                .as_ref()
                .is_none_or(|(a, b)| a.is_empty() && b.is_empty())
            && self.packages.as_ref().is_none_or(Vec::is_empty)
            && self.files.as_ref().is_none_or(Vec::is_empty)
            && self.sizes.is_none_or(|(a, b)| a == b)
    }

    fn as_text(&self) -> String {
        let mut text = String::new();
        let mut section = |name: &str, lines: Vec<String>| {
            if !lines.is_empty() {
                let _ = writeln!(text, "{name}:");
            }
            for line in lines {
                let _ = writeln!(text, "  {}", one_line(&line));
            }
        };
        if let Some((old, new)) = &self.config {
            let old = old.iter().map(|line| format!("- {line}"));
            section(
                "config",
                old.chain(new.iter().map(|line| format!("+ {line}")))
                    .collect(),
            );
        }
        if let Some((old, new)) = &self.layers {
            let line =
                |sign, layer: &Descriptor| format!("{sign} {} {} bytes", layer.digest, layer.size);
            let old = old.iter().map(|layer| line('-', layer));
            section(
                "layers",
                old.chain(new.iter().map(|layer| line('+', layer)))
                    .collect(),
            );
        }
        let packages = self.packages.iter().flatten();
        let packages = packages.map(|(Package { manager, name }, old, new)| {
            let versions = match (old, new) {
                (Some(old), Some(new)) => format!("{old} → {new}"),
                (old, new) => old.iter().chain(new).cloned().collect(),
            };
            format!("{} {manager} {name} {versions}", sign(old, new))
        });
        section("packages", packages.collect());
        let files = self.files.iter().flatten().map(|(path, old, new)| {
            let path = String::from_utf8_lossy(path);
            let what = match (old, new) {
                (Some(old), Some(new)) => aspects(old, new).join(", "),
                (Some(one), None) | (None, Some(one)) => kind_and_size(one),
                (None, None) => String::new(),
            };
            format!("{} /{path} {what}", sign(old, new))
        });
        section("files", files.collect());
        if let Some((old, new)) = self.sizes.filter(|(old, new)| old != new) {
            let (sign, by) = match new >= old {
                true => ('+', new - old),
                false => ('-', old - new),
            };
            section("size", vec![format!("{old} → {new} bytes ({sign}{by})")]);
        }
        text
    }

    fn as_json(&self) -> Value {
        let mut value = json!({});
        if let Some((removed, added)) = &self.config {
            value["config"] = json!({"removed": removed, "added": added});
        }
        if let Some((removed, added)) = &self.layers {
            value["layers"] = json!({"removed": removed, "added": added});
        }
        if let Some(packages) = &self.packages {
            let one = |(Package { manager, name }, from, to): &Changed<Package, String>| json!({"manager": manager, "name": name, "from": from, "to": to});
            value["packages"] = packages.iter().map(one).collect();
        }
        if let Some(files) = &self.files {
            let facts = |facts: &Option<FileFacts>| facts.as_ref().map(file_json);
            let one = |(path, from, to): &Changed<Vec<u8>, FileFacts>| {
                let path = format!("/{}", String::from_utf8_lossy(path));
                json!({"path": path, "from": facts(from), "to": facts(to)})
            };
            value["files"] = files.iter().map(one).collect();
        }
        if let Some((from, to)) = self.sizes {
            value["size"] = json!({"from": from, "to": to});
        }
        value
    }
}

/// What a file is, for people.
fn kind_and_size(facts: &FileFacts) -> String {
    match facts.kind {
        Kind::File => format!("{} bytes", facts.size),
        Kind::Symlink => format!("→ {}", String::from_utf8_lossy(&facts.link)),
        _ => facts.kind_name().to_owned(),
    }
}

/// And for programs.
fn file_json(facts: &FileFacts) -> Value {
    let link = String::from_utf8_lossy(&facts.link);
    json!({
        "type": facts.kind_name(),
        "mode": format!("{:04o}", facts.mode),
        "uid": facts.owner.0,
        "gid": facts.owner.1,
        "size": facts.size,
        "link": (!link.is_empty()).then_some(link),
        "digest": facts.content,
    })
}

/// Which of its sides tell a file of the one image from that of the other.
fn aspects(old: &FileFacts, new: &FileFacts) -> Vec<String> {
    let mut aspects = Vec::new();
    let mut say = |what: &str, old: String, new: String| {
        if old != new {
            aspects.push(format!("{what} {old} → {new}"));
        }
    };
    let link = |facts: &FileFacts| String::from_utf8_lossy(&facts.link).into_owned();
    say(
        "type",
        old.kind_name().to_owned(),
        new.kind_name().to_owned(),
    );
    say(
        "mode",
        format!("{:04o}", old.mode),
        format!("{:04o}", new.mode),
    );
    let owner = |facts: &FileFacts| format!("{}:{}", facts.owner.0, facts.owner.1);
    say("owner", owner(old), owner(new));
    say("size", old.size.to_string(), new.size.to_string());
    say("link", link(old), link(new));
    let device = |facts: &FileFacts| format!("{}:{}", facts.device.0, facts.device.1);
    say("device", device(old), device(new));
    if old.content != new.content {
        aspects.push("content".to_owned());
    }
    aspects
}

fn sign<T>(old: &Option<T>, new: &Option<T>) -> char {
    match (old, new) {
        (Some(_), Some(_)) => '~',
        (Some(_), None) => '-',
        _ => '+',
    }
}

/// What the one has otherwise than the other, in order.
fn changed<K: Clone + Ord, V: Clone + Eq>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> Vec<Changed<K, V>> {
    let keys: BTreeSet<&K> = old.keys().chain(new.keys()).collect();
    let sides = keys
        .into_iter()
        .map(|key| (key, old.get(key), new.get(key)));
    let different = sides.filter(|(_, old, new)| old != new);
    let owned = different.map(|(key, old, new)| (key.clone(), old.cloned(), new.cloned()));
    owned.collect()
}

/// A configuration as lines, `KEY VALUE` each: of environments and tables one for each entry.
fn lines(config: &ImageConfig) -> BTreeSet<String> {
    let mut value = serde_json::to_value(config).expect("it came from JSON");
    if let Some(object) = value.as_object_mut() {
        object.remove("rootfs");
        object.remove("history");
        // Its keys are known by themselves.
        if let Some(Value::Object(run)) = object.remove("config") {
            object.extend(run);
        }
    }
    let mut lines = BTreeSet::new();
    flatten("", &value, &mut lines);
    lines
}

fn flatten(path: &str, value: &Value, lines: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (key, value) in object {
                let point = if path.is_empty() { "" } else { "." };
                flatten(&format!("{path}{point}{key}"), value, lines);
            }
        }
        Value::Array(entries) if path == "Env" => {
            for entry in entries {
                lines.insert(format!("Env {}", entry.as_str().unwrap_or_default()));
            }
        }
        Value::String(text) => {
            lines.insert(format!("{path} {text}"));
        }
        Value::Null => {}
        other => {
            lines.insert(format!("{path} {other}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_compared_entry_by_entry() {
        let text = r#"{"architecture": "amd64", "os": "linux", "config": {"Env": ["A=1", "B=2"], "Cmd": ["sh", "-c"],
            "Labels": {"x.y": "z"}, "ExposedPorts": {"80/tcp": {}}}, "rootfs": {"type": "layers", "diff_ids": []}}"#;
        let lines: Vec<String> = lines(&serde_json::from_str(text).unwrap())
            .into_iter()
            .collect();
        let expected = [
            "Cmd [\"sh\",\"-c\"]",
            "Env A=1",
            "Env B=2",
            "ExposedPorts.80/tcp {}",
            "Labels.x.y z",
            "architecture amd64",
            "os linux",
        ];
        assert_eq!(lines, expected);
    }
}
