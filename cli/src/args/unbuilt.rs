//! Flags that other tools have and longshore has not: named when they are used, with what there is in their place.

/// Flags of crane, skopeo and regctl, by their long names, which are refused with the commands that stand beside theirs, and
/// what to do without them.
const OF_REGISTRY_TOOLS: [(&[&str], &str); 68] = [
    (
        &[
            "username",
            "password",
            "src-username",
            "src-password",
            "dest-username",
            "dest-password",
        ],
        "`--creds USER:PASSWORD`, or `longshore login`",
    ),
    (
        &["no-creds", "src-no-creds", "dest-no-creds"],
        "`--authfile /dev/null` has none",
    ),
    (
        &[
            "registry-token",
            "src-registry-token",
            "dest-registry-token",
        ],
        "a file of credentials may have it as `registrytoken`: `--authfile FILE`",
    ),
    (&["tls-verify"], "the registry is not asked"),
    (
        &["skip-check"],
        "nothing is kept that the registry did not take",
    ),
    (&["all"], "name each registry that is to be forgotten"),
    (
        &["daemon-host", "src-daemon-host", "dest-daemon-host"],
        "`docker save` and `docker load` go by docker-archive:FILE",
    ),
    (
        &["retry-times"],
        "`attempts` in the configuration's `[transfer]` says how often",
    ),
    (
        &["jobs"],
        "`parallel` in the configuration's `[transfer]` says how many",
    ),
    (&["verbose"], "`--log-level debug` tells more"),
    (&["all-tags"], "`remote sync FROM TO` copies all tags"),
    (
        &["multi-arch"],
        "all platforms are copied, or those named with `--platform`",
    ),
    (&["platforms"], "`--platform` may be repeated"),
    (
        &["list", "require-list", "index"],
        "what is an index stays one, unless `--platform` chooses from it",
    ),
    (
        &["manifest", "ref"],
        "images are arguments: `remote index append INDEX IMAGE...`",
    ),
    (&["flatten"], "of an index, the entries are taken always"),
    (
        &["docker-empty-base"],
        "`remote index create` begins with nothing",
    ),
    (
        &["desc-annotation", "desc-platform"],
        "`remote index annotate INDEX DIGEST` describes an entry",
    ),
    (
        &["platform"],
        "`remote index annotate --platform` says what an entry is for, `copy --platform` chooses",
    ),
    (&["by-digest"], "NAME@DIGEST is a name, too"),
    (
        &["digest"],
        "an image by its digest is NAME@DIGEST; of what is written it is computed",
    ),
    (&["tarball"], "docker-archive:FILE names an archive"),
    (
        &["name"],
        "it is a part of the place: docker-archive:FILE:NAME",
    ),
    (&["output"], "`--tag docker-archive:FILE` writes an archive"),
    (
        &["repo", "create"],
        "`--tag NAME` says where the result goes",
    ),
    (
        &["replace"],
        "without `--tag` the result takes the image's own tag",
    ),
    (
        &["annotate-ref"],
        "what is written to a layout keeps its tag",
    ),
    (&["cache_path"], "a layout keeps what it has: oci:DIR"),
    (
        &["image-refs"],
        "`--digestfile` writes the digest to a file",
    ),
    (
        &[
            "src-shared-blob-dir",
            "dest-shared-blob-dir",
            "shared-blob-dir",
        ],
        "each layout has its own blobs",
    ),
    (&["fast"], "what the target has is not sent anyway"),
    (
        &["dest-precompute-digests"],
        "digests are known before anything is sent",
    ),
    (
        &["ignore-missing"],
        "exit code 4 tells that it was not there",
    ),
    (
        &["limit", "last"],
        "`--include` and `--exclude` choose by patterns",
    ),
    (
        &[
            "latest",
            "filter-annotation",
            "sort-annotation",
            "sort-desc",
        ],
        "jq chooses from what `--json` prints",
    ),
    (&["context", "context-full"], "all that differs is shown"),
    (
        &["referrers"],
        "lists of referrers are kept in step without it; `copy --referrers` takes referrers along",
    ),
    (
        &["external", "referrers-external"],
        "referrers are those in the image's own repository",
    ),
    (
        &["digest-tags"],
        "`copy --digest-tags` takes such tags along, `remote tags` lists them",
    ),
    (&["subject"], "what it is attached to is the first argument"),
    (&["artifact-type"], "`remote attach` makes artifacts"),
    (
        &["file", "file-media-type"],
        "files are arguments: FILE[:TYPE]",
    ),
    (&["file-title"], "a file's title is its name"),
    (
        &["strip-dirs"],
        "folders are attached as tars of your making",
    ),
    (
        &["config-file", "config-type"],
        "an artifact's configuration is the empty one of the specification",
    ),
    (
        &["media-type"],
        "what is written has the media type of its kind",
    ),
    (
        &["allow-nondistributable-artifacts", "external-urls-rm"],
        "`copy --foreign` copies layers that are not meant to be distributed",
    ),
    (
        &["format"],
        "manifests stay of their type, or become OCI's with `--compression zstd`",
    ),
    (
        &["to-docker", "to-oci"],
        "manifests stay of their type, or become OCI's with `copy --compression zstd`",
    ),
    (
        &["compress", "dest-compress", "layer-compress"],
        "`copy --compression gzip` compresses layers anew",
    ),
    (
        &["dest-decompress"],
        "`--compression none` decompresses layers",
    ),
    (
        &["dest-oci-accept-uncompressed-layers"],
        "layers stay as they are without `--compression`",
    ),
    (
        &["encrypt-layer", "encryption-key", "decryption-key"],
        "layers are neither encrypted nor decrypted",
    ),
    (
        &[
            "sign-by",
            "sign-by-sigstore-private-key",
            "sign-identity",
            "sign-passphrase-file",
        ],
        "`cosign sign` signs what is in a registry",
    ),
    (
        &["remove-signatures"],
        "signatures come along with `--referrers` and `--digest-tags` alone",
    ),
    (
        &["append", "layer-add"],
        "`remote append` puts layers on top",
    ),
    (
        &["rebase", "rebase-ref"],
        "`remote rebase` takes both bases as arguments",
    ),
    (
        &[
            "annotation-base",
            "annotation-promote",
            "label-to-annotation",
            "set-base-image-annotations",
        ],
        "`remote mutate --annotation KEY=VALUE` sets annotations",
    ),
    (&["config-cmd"], "`--cmd` is the command"),
    (&["config-entrypoint"], "`--entrypoint` is the entry point"),
    (&["config-platform"], "`--set-platform` is the platform"),
    (&["config-time", "time"], "`--created` is the time"),
    (&["expose-add", "expose-rm"], "`--exposed-ports` adds ports"),
    (&["volume-add", "volume-rm"], "`--volume` adds volumes"),
    (&["buildarg-rm"], "the history of steps is not changed"),
    (&["data-max"], "nothing is embedded in manifests"),
    (&["digest-algo"], "what is written has digests by sha256"),
    (
        &[
            "file-tar-time",
            "layer-rm-created-by",
            "layer-rm-index",
            "layer-strip-file",
            "layer-time",
        ],
        "layers are added, exchanged and joined, not rewritten",
    ),
];

/// Flags of docker, by their long names, whichever command they are used with: what to do without them.
const OF_DOCKER: [(&str, &str); 54] = [
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

/// Whose flag it is that longshore has not, and what to do without it; `None` for one that nobody has. `command` is the
/// command's first word.
pub fn instead_of(command: &str, flag: &str) -> Option<(&'static str, &'static str)> {
    let name = flag.strip_prefix("--")?.split('=').next()?;
    if ["remote", "copy", "login", "logout"].contains(&command) {
        let mut groups = OF_REGISTRY_TOOLS.iter();
        if let Some((_, advice)) = groups.find(|(flags, _)| flags.contains(&name)) {
            return Some(("crane's, skopeo's or regctl's", advice));
        }
    }
    let found = OF_DOCKER.iter().find(|(known, _)| *known == name);
    found.map(|(_, advice)| ("docker's", *advice))
}
