//! What a command sees of its surroundings in a container of ours, beside what it sees in docker's: all that differs is in the table
//! of `docs/reference/containers.md`, with the reason, and nothing else is there.

use std::collections::{BTreeMap, BTreeSet};

use crate::docker::Docker;
use crate::support::{Place, workspace};

/// Prints facts, `KIND SUBJECT: VALUE` each.
const SCRIPT: &str = r#"
awk '{
  split($0, halves, " - "); split(halves[2], kind, " ")
  flags = ""
  n = split($6, options, ",")
  for (i = 1; i <= n; i++) if (options[i] ~ /^(ro|nosuid|nodev|noexec)$/) flags = flags " " options[i]
  print "mount " $5 ": mounted" flags
}' /proc/self/mountinfo
awk '/^(Cap|NoNewPrivs|Seccomp:)/ { sub(":", "", $1); print "status " $1 ": " $2 }' /proc/self/status
awk 'NR > 1 { name = substr($0, 1, 25); sub(/ +$/, "", name); print "limit " name ": " substr($0, 27, 42) }' /proc/self/limits
for node in $(find /dev | sort); do echo "node $node: $(stat -c '%A %t,%T' $node)"; done
for path in /proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list \
    /proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware; do
  seen=absent
  if [ -d $path ]; then seen="$(ls -A $path | wc -l) entries"; elif [ -e $path ]; then seen="$(head -c 1 $path | wc -c) bytes"; fi
  echo "masked $path: $seen"
done
for path in /proc/bus /proc/fs /proc/irq /proc/sys/kernel/hostname /proc/sysrq-trigger /sys/kernel/probe /sys/probe; do
  written=refused
  (: >> $path) 2>/dev/null && written=opened
  echo "write $path: $written"
done
for name in net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range kernel/domainname; do
  echo "sysctl $name: $(xargs < /proc/sys/$name)"
done
echo "start umask: $(umask)"
echo "start folder: $(pwd)"
echo "start ids: $(id)"
echo "start oom_score_adj: $(cat /proc/self/oom_score_adj)"
env | cut -d= -f1 | sort | sed 's/.*/variable &: set/'
"#;

type Facts = BTreeMap<String, String>;

fn facts(text: &str) -> Facts {
    let facts = text.lines().map(|line| {
        let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("{text}"));
        (name.to_owned(), value.trim().to_owned())
    });
    // Which control groups there are is the host's affair.
    facts
        .filter(|(name, _)| !name.starts_with("mount /sys/fs/cgroup"))
        .collect()
}

/// `| mount /dev | here | docker | why |`
fn documented() -> BTreeSet<[String; 3]> {
    let page = workspace().join("docs/reference/containers.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, section) = page.split_once("## What a command sees").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut rows = BTreeSet::new();
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [names, here, there, why] = cells[..] else {
            panic!("{line}");
        };
        assert!(!why.is_empty(), "{line}");
        let bare = |cell: &str| cell.trim_matches('`').to_owned();
        for name in names.split(", ") {
            rows.insert([bare(name), bare(here), bare(there)]);
        }
    }
    rows
}

#[test]
fn a_command_sees_what_it_sees_in_docker() {
    let Some(docker) = Docker::start() else {
        return;
    };
    let place = Place::with_busybox();
    let archive = place.path("busybox.tar");
    place.ok(["save", "busybox", "-o"], [&archive]);
    docker.load(&archive);
    let words = [
        "run",
        "--rm",
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        SCRIPT,
    ];
    let (here, there) = (
        facts(&place.run(words).ok()),
        facts(&docker.run(&words).ok()),
    );
    let names: BTreeSet<&String> = here.keys().chain(there.keys()).collect();
    let of = |facts: &Facts, name: &str| facts.get(name).cloned().unwrap_or("no".to_owned());
    let differences = names.into_iter().filter_map(|name| {
        let (here, there) = (of(&here, name), of(&there, name));
        (here != there).then(|| [name.clone(), here, there])
    });
    let differences: BTreeSet<[String; 3]> = differences.collect();
    assert!(here.len() > 60, "{here:?}");
    let documented = documented();
    let rows = |set: &BTreeSet<[String; 3]>, other| {
        let rows = set
            .difference(other)
            .map(|[name, here, there]| format!("| `{name}` | {here} | {there} | |\n"));
        rows.collect::<String>()
    };
    let (new, gone) = (
        rows(&differences, &documented),
        rows(&documented, &differences),
    );
    assert!(
        new.is_empty() && gone.is_empty(),
        "not told:\n{new}told, but not so:\n{gone}"
    );
}
