//! Flags that docker has and longshore has not: named when they are used, with what there is in their place.

/// By their long names, whichever command they are used with: what to do without them.
const FLAGS: [(&str, &str); 54] = [
    (
        "annotation",
        "it is for runtimes: labels are for people (`--label`)",
    ),
    (
        "attachable",
        "there are no swarms to attach to: any container may join",
    ),
    ("aux-address", "`--ip` keeps an address for a container"),
    ("availability", "it is for swarms"),
    ("blkio-weight-device", "`--blkio-weight` is for all disks"),
    (
        "checkpoint",
        "containers are not saved and restored: `commit` keeps their files",
    ),
    (
        "checkpoint-dir",
        "containers are not saved and restored: `commit` keeps their files",
    ),
    ("cluster", "it is for swarms"),
    ("config-from", "networks are made by their own flags"),
    ("config-only", "networks are made by their own flags"),
    ("cpu-count", "it is for Windows: `--cpus` limits processors"),
    (
        "cpu-percent",
        "it is for Windows: `--cpus` limits processors",
    ),
    ("cpu-rt-period", "`--cpus` limits processors"),
    ("cpu-rt-runtime", "`--cpus` limits processors"),
    ("details", "no log driver of longshore's adds any"),
    ("device-cgroup-rule", "`--device` gives single devices"),
    ("device-read-bps", "`--blkio-weight` shares disks out"),
    ("device-read-iops", "`--blkio-weight` shares disks out"),
    ("device-write-bps", "`--blkio-weight` shares disks out"),
    ("device-write-iops", "`--blkio-weight` shares disks out"),
    (
        "disable-content-trust",
        "signatures of this kind are not looked at anyway",
    ),
    ("driver-opt", "networks are bridges, which have no options"),
    ("filter", "jq chooses from what `--format json` prints"),
    ("format", "`--json` prints all of it, for jq"),
    ("gpus", "`--device` gives single devices"),
    ("group", "it is for swarms"),
    ("ingress", "it is for swarms"),
    (
        "io-maxbandwidth",
        "it is for Windows: `--blkio-weight` shares disks out",
    ),
    (
        "io-maxiops",
        "it is for Windows: `--blkio-weight` shares disks out",
    ),
    ("ip-range", "`--subnet` says which addresses there are"),
    ("ipam-driver", "there is one way to give addresses"),
    (
        "ipam-opt",
        "there is one way to give addresses, which has no options",
    ),
    ("ipv4", "a network has it unless every `--subnet` is IPv6"),
    ("isolation", "it is for Windows"),
    (
        "kernel-memory",
        "kernels no longer have it: `--memory` counts theirs, too",
    ),
    ("limit-bytes", "it is for swarms"),
    (
        "link",
        "containers on one `--network` find each other by name",
    ),
    ("link-local-ip", "`--ip` gives an address of the network's"),
    (
        "mac-address",
        "interfaces have addresses of their own making",
    ),
    ("memory-swappiness", "`--memory-swap` limits swap"),
    (
        "oom-kill-disable",
        "`--oom-score-adj` says who is killed first",
    ),
    (
        "opt",
        "volumes are folders and networks bridges: neither has options",
    ),
    ("required-bytes", "it is for swarms"),
    ("runtime", "there is one, and it is part of longshore"),
    ("scope", "it is for swarms"),
    ("secret", "it is for swarms"),
    ("sharing", "it is for swarms"),
    (
        "storage-opt",
        "what a container writes is on the store's disk",
    ),
    ("topology-preferred", "it is for swarms"),
    ("topology-required", "it is for swarms"),
    ("type", "it is for swarms"),
    (
        "use-api-socket",
        "there is no daemon whose socket it could be",
    ),
    ("verbose", "it is for swarms"),
    (
        "volume-driver",
        "volumes are folders in the store: `-v` makes them",
    ),
];

/// What to do without a flag; `None` for one that docker has not, either.
pub fn instead_of(flag: &str) -> Option<&'static str> {
    let name = flag.strip_prefix("--")?.split('=').next()?;
    let found = FLAGS.iter().find(|(known, _)| *known == name);
    found.map(|(_, advice)| *advice)
}
