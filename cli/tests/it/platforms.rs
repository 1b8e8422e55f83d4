//! Builds for other machines, and for several.

use serde_json::Value;

use crate::support::{Built, Place, Server, tool};

/// Compiles once, on the machine at hand, and makes an image for each platform.
const DOCKERFILE: &str = "FROM --platform=$BUILDPLATFORM busybox AS compiler
RUN echo compiled > /common
FROM compiler AS linker
ARG TARGETPLATFORM
RUN echo \"for $TARGETPLATFORM\" > /own
FROM scratch
COPY --from=compiler /common /
COPY --from=linker /own /
";

#[test]
fn one_build_makes_images_for_several() {
    let place = Place::with_busybox();
    let registry = Server::registry(&place.path("registry"));
    let name = format!("{}/app:1", registry.host);
    let context = place.context("ctx", &[("Dockerfile", DOCKERFILE)]);
    let platforms = "linux/amd64,linux/arm64,linux/arm/v7";
    let args = [
        "build",
        "--progress=plain",
        "--platform",
        platforms,
        "-t",
        &name,
        "--push",
    ];
    let ran = place.words(args, [&context]);
    ran.ok();
    let host = store::oci::Platform::host();
    let built = Built::of(&ran);
    let ran_steps = built.ran.iter().map(String::as_str);
    let mut runs: Vec<&str> = ran_steps.filter(|step| step.contains("] RUN")).collect();
    runs.sort_unstable();
    let linked =
        |label: String| format!("[{label} linker 1/1] RUN echo \"for $TARGETPLATFORM\" > /own");
    let mut expected = vec![format!("[{host} compiler 2/2] RUN echo compiled > /common")];
    for platform in platforms.split(',') {
        expected.push(match platform == host.to_string() {
            true => linked(platform.to_owned()),
            false => linked(format!("{host}->{platform}")),
        });
    }
    expected.sort_unstable();
    assert_eq!(runs, expected, "{ran}");

    let source = format!("docker://{name}");
    let raw = tool(
        "skopeo",
        &["inspect", "--raw", "--tls-verify=false", &source],
    );
    let index: Value = serde_json::from_str(&raw).unwrap();
    let listed: Vec<String> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|manifest| {
            let platform = &manifest["platform"];
            let words = ["os", "architecture", "variant"].map(|key| platform[key].as_str());
            words.into_iter().flatten().collect::<Vec<_>>().join("/")
        })
        .collect();
    assert_eq!(listed.join(","), platforms);
    for (arch, variant, platform) in [("arm64", "", "linux/arm64"), ("arm", "v7", "linux/arm/v7")] {
        let layout = place.path(&format!("layout-{arch}"));
        let target = format!("oci:{}:app", layout.display());
        let mut words = vec!["--override-arch", arch];
        if !variant.is_empty() {
            words.extend(["--override-variant", variant]);
        }
        words.extend([
            "copy",
            "--insecure-policy",
            "--src-tls-verify=false",
            &source,
            &target,
        ]);
        tool("skopeo", &words);
        let bundle = place.path(&format!("bundle-{arch}"));
        let image = format!("{}:app", layout.display());
        tool(
            "umoci",
            &["unpack", "--image", &image, bundle.to_str().unwrap()],
        );
        let read = |name: &str| std::fs::read_to_string(bundle.join("rootfs").join(name)).unwrap();
        assert_eq!(read("own"), format!("for {platform}\n"));
        assert_eq!(read("common"), "compiled\n");
    }
    // The name is the machine's own image, here.
    let inspected: Value = serde_json::from_str(&place.run(["inspect", &name]).ok()).unwrap();
    assert_eq!(inspected[0]["Architecture"], host.architecture);

    // Again, nothing runs, and the index is the same.
    let again = place.words(args, [&context]);
    again.ok();
    assert_eq!(Built::of(&again).runs(), Vec::<&str>::new(), "{again}");
    let raw_again = tool(
        "skopeo",
        &["inspect", "--raw", "--tls-verify=false", &source],
    );
    assert_eq!(raw, raw_again);

    // A base from the registry is taken for each platform.
    let child = place.context(
        "child",
        &[("Dockerfile", &format!("FROM {name}\nCOPY Dockerfile /\n"))],
    );
    let out = place.path("out");
    let dest = format!("type=local,dest={}", out.display());
    let args = [
        "build",
        "-q",
        "--pull",
        "--platform",
        "linux/arm64",
        "--platform",
        "linux/arm/v7",
        "-o",
        &dest,
    ];
    place.words(args, [&child]).ok();
    for folder in ["linux_arm64", "linux_arm_v7"] {
        let own = std::fs::read_to_string(out.join(folder).join("own")).unwrap();
        assert_eq!(own, format!("for {}\n", folder.replace('_', "/")));
    }
}

#[test]
fn an_index_may_be_a_layout() {
    let place = Place::with_busybox();
    let context = place.context("ctx", &[("Dockerfile", DOCKERFILE)]);
    let archive = place.path("index.tar");
    let dest = format!("type=oci,dest={}", archive.display());
    let args = [
        "build",
        "-q",
        "--platform",
        "linux/amd64,linux/arm64",
        "-t",
        "app:2",
        "-o",
        &dest,
    ];
    place.words(args, [&context]).ok();
    let source = format!("oci-archive:{}:2", archive.display());
    let raw = tool("skopeo", &["inspect", "--raw", &source]);
    let index: Value = serde_json::from_str(&raw).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2, "{raw}");
    let config = tool(
        "skopeo",
        &["--override-arch", "arm64", "inspect", "--config", &source],
    );
    assert!(config.contains("\"arm64\""), "{config}");

    // One platform, and an index all the same.
    let args = [
        "build",
        "-q",
        "--build-arg",
        "BUILDKIT_MULTI_PLATFORM=1",
        "-t",
        "app:2",
        "-o",
        &dest,
    ];
    place.words(args, [&context]).ok();
    let raw = tool("skopeo", &["inspect", "--raw", &source]);
    let index: Value = serde_json::from_str(&raw).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1, "{raw}");

    let dest = format!("type=docker,dest={}", archive.display());
    let args = [
        "build",
        "-q",
        "--platform",
        "linux/amd64,linux/arm64",
        "-o",
        &dest,
    ];
    let ran = place.words(args, [&context]);
    ran.fails(2, "an output of type `docker` is of one image");
}

#[test]
fn a_tar_has_a_folder_for_each() {
    let place = Place::with_busybox();
    let dockerfile = "FROM --platform=$BUILDPLATFORM busybox AS made
ARG TARGETPLATFORM
RUN mkdir -p /made/below && echo for $TARGETPLATFORM > /made/own && ln /made/own /made/below/link
FROM scratch
COPY --from=made /made /
";
    let context = place.context("ctx", &[("Dockerfile", dockerfile)]);
    let archive = place.path("both.tar");
    let dest = format!("type=tar,dest={}", archive.display());
    let platforms = "linux/arm64,linux/arm/v7";
    let args = ["build", "-q", "--platform", platforms, "-o", &dest];
    place.words(args, [&context]).ok();
    let archive = archive.to_str().unwrap();
    let listed = tool("tar", &["-tf", archive]);
    let expected: Vec<String> = ["linux_arm64", "linux_arm_v7"]
        .iter()
        .flat_map(|folder| ["", "below/", "below/link", "own"].map(|at| format!("{folder}/{at}")))
        .collect();
    assert_eq!(Vec::from_iter(listed.lines()), expected);
    let out = place.path("out");
    std::fs::create_dir(&out).unwrap();
    tool("tar", &["-xf", archive, "-C", out.to_str().unwrap()]);
    for folder in ["linux_arm64", "linux_arm_v7"] {
        for name in ["own", "below/link"] {
            let own = std::fs::read_to_string(out.join(folder).join(name)).unwrap();
            assert_eq!(own, format!("for {}\n", folder.replacen('_', "/", 2)));
        }
    }
}

#[test]
fn images_are_built_for_other_platforms() {
    let place = Place::with_busybox();
    let context = place.context(
        "ctx",
        &[(
            "Dockerfile",
            "FROM --platform=$BUILDPLATFORM busybox AS compiler
ARG TARGETPLATFORM TARGETVARIANT BUILDPLATFORM
RUN echo \"$BUILDPLATFORM to $TARGETPLATFORM, $TARGETVARIANT\" > /out
FROM scratch
COPY --from=compiler /out /
",
        )],
    );
    let other = match std::env::consts::ARCH {
        "aarch64" => ("linux/amd64", "amd64", Value::Null, 62u8),
        _ => ("linux/arm/v7", "arm", "v7".into(), 40),
    };
    let (platform, architecture, variant, machine) = other;
    let args = ["build", "--platform", platform, "-t", "other"];
    place.words(args, [&context]).ok();
    let inspected: Value = serde_json::from_str(&place.run(["inspect", "other"]).ok()).unwrap();
    let config = &inspected[0];
    assert_eq!(config["Architecture"], architecture, "{config}");
    assert_eq!(config["Variant"], variant, "{config}");
    let folder = place.path("out");
    let dest = format!("type=local,dest={}", folder.display());
    let args = ["build", "-q", "--platform", platform, "-o", &dest];
    place.words(args, [&context]).ok();
    let out = std::fs::read_to_string(folder.join("out")).unwrap();
    let host = store::oci::Platform::host();
    let said = format!(
        "{host} to {platform}, {}\n",
        variant.as_str().unwrap_or_default()
    );
    assert_eq!(out, said);

    // Its programs need an emulator.
    let mut program = vec![0u8; 64];
    program[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    program[16] = 2;
    program[18] = machine;
    std::fs::write(context.join("program"), &program).unwrap();
    std::fs::write(
        context.join("Dockerfile"),
        "FROM other\nCOPY --chmod=755 program /\nRUN [\"/program\"]\n",
    )
    .unwrap();
    let ran = place.words(["build", "--platform", platform], [&context]);
    ran.fails(1, "which this machine cannot run: it needs an emulator");
    ran.fails(1, "Dockerfile:3");

    for (given, said) in [
        ("linux/arm46", "there is no architecture `arm46`"),
        ("", "`` is not a platform"),
    ] {
        let ran = place.words(["build", "--platform", given], [&context]);
        ran.fails(2, said);
    }
}
