//! Where images are really read from: mirrors before their home, locations, what is blocked, and how each server is
//! spoken to. The settings are files in the forms of other tools.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use registry_client::{
    Client, ClientError, Credential, ErrorKind, Hosts, HostsFiles, Keychain, Options, Silent,
    push_image,
};
use registry_server::RunningServer;
use store::oci::{Descriptor, MediaType, Reference};

use crate::support::{amd64, image, noise, options};
use crate::wire::{Line, Seen, Then, Wire};

/// Options with a `registries.conf`.
fn with_registries_conf(folder: &Path, text: &str) -> Options {
    let path = folder.join("registries.conf");
    std::fs::write(&path, text).unwrap();
    Options {
        hosts: Hosts::new(
            Vec::new(),
            HostsFiles {
                registries_conf: vec![path],
                ..HostsFiles::default()
            },
        ),
        ..options()
    }
}

fn table(prefix: &str, home: &str, mirrors: &[&str]) -> String {
    let mut text = format!("[[registry]]\nprefix = \"{prefix}\"\nlocation = \"{home}\"\n");
    for mirror in mirrors {
        text += &format!("[[registry.mirror]]\nlocation = \"{mirror}\"\n");
    }
    text
}

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

/// A server that has nothing.
fn empty() -> Wire {
    Wire::start(|_: &Seen, line: &mut Line<'_>| line.answer(404, &[], b""))
}

#[tokio::test]
async fn mirrors_are_asked_in_their_order_and_the_home_at_last() {
    let folder = tempfile::tempdir().unwrap();
    let home = RunningServer::start_in_memory().unwrap();
    let pushed = image(&[noise(1, 50_000), noise(2, 60_000)]);
    let at_home = name(&format!("{}/team/app:1", home.host()));
    let client = Client::new(options()).unwrap();
    push_image(&client, &at_home, &pushed, Arc::new(Silent))
        .await
        .unwrap();

    let nothing = empty();
    let broken = Wire::start(|_: &Seen, line: &mut Line<'_>| line.answer(500, &[], b""));
    let text = table(
        "r.example/shop",
        &format!("{}/team", home.host()),
        &[&format!("{}/of/shop", nothing.host), &broken.host],
    );
    let client = Client::new(with_registries_conf(folder.path(), &text)).unwrap();
    let asked = name("r.example/shop/app:1");
    let found = client.image(&asked, &amd64()).await.unwrap();
    assert_eq!(found.manifest.digest(), pushed.manifest.digest());
    assert_eq!(found.reference, asked);
    for layer in found.layers() {
        client.read_small(&asked, layer, 1 << 20).await.unwrap();
    }
    let digest = pushed.manifest.digest();
    assert_eq!(client.resolve(&asked).await.unwrap().digest, digest);

    assert_eq!(
        nothing.lines()[0],
        "GET /v2/of/shop/app/manifests/1",
        "the path takes the place of the prefix"
    );
    // One that fails by itself is asked twice, not five times, and the user is told; one that has nothing is no news.
    assert_eq!(
        broken.lines()[..2],
        ["GET /v2/app/manifests/1", "GET /v2/app/manifests/1"]
    );
    let warnings = client.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0].host, broken.host);
}

#[tokio::test]
async fn what_a_mirror_has_is_not_asked_of_the_home() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = RunningServer::start_in_memory().unwrap();
    let pushed = image(&[noise(3, 70_000)]);
    let client = Client::new(options()).unwrap();
    let there = name(&format!("{}/proxy/library/app:1", mirror.host()));
    push_image(&client, &there, &pushed, Arc::new(Silent))
        .await
        .unwrap();

    let home = empty();
    let text = table(
        "docker.io",
        &home.host,
        &[&format!("{}/proxy", mirror.host())],
    );
    let client = Client::new(with_registries_conf(folder.path(), &text)).unwrap();
    let found = client.image(&name("app:1"), &amd64()).await.unwrap();
    client
        .read_small(&name("app:1"), &found.layers()[0], 1 << 20)
        .await
        .unwrap();
    assert_eq!(home.lines(), [] as [String; 0]);

    // Where nobody has it, the home's word is what counts.
    let error = client.manifest(&name("other:1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains(&home.host), "{error}");
}

#[tokio::test]
async fn a_blob_goes_on_elsewhere_where_the_mirror_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(4, 300_000);
    let descriptor = Descriptor::of(MediaType::OCI_LAYER, &bytes);
    let served = bytes.clone();
    let cut = Wire::start(move |seen: &Seen, line: &mut Line<'_>| {
        if !seen.header("range").is_empty() {
            return Then::Cut;
        }
        line.head(200, &[], served.len());
        line.raw(&served[..200_000]);
        Then::Cut
    });
    let rest = bytes.clone();
    let home = Wire::start(move |seen: &Seen, line: &mut Line<'_>| {
        assert_eq!(seen.header("range"), "bytes=200000-");
        let range = format!("bytes 200000-{}/{}", rest.len() - 1, rest.len());
        line.answer(206, &[("content-range", &range)], &rest[200_000..])
    });
    let text = table("r.example", &home.host, &[&cut.host]);
    let client = Client::new(with_registries_conf(folder.path(), &text)).unwrap();
    let read = client
        .read_small(&name("r.example/x"), &descriptor, 1 << 20)
        .await
        .unwrap();
    assert!(read == bytes);
    assert_eq!(home.lines().len(), 1);
}

#[tokio::test]
async fn a_mirror_that_is_not_there_is_tried_once() {
    let folder = tempfile::tempdir().unwrap();
    // A port that nobody listens on any more.
    let gone = empty().host.clone();
    let tries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tries);
    let home = Wire::start(move |_: &Seen, line: &mut Line<'_>| {
        count.fetch_add(1, Ordering::SeqCst);
        line.answer(404, &[], b"{}")
    });
    let text = table("r.example", &home.host, &[&gone]);
    let client = Client::new(with_registries_conf(folder.path(), &text)).unwrap();
    for _ in 0..3 {
        client.manifest(&name("r.example/x")).await.unwrap_err();
    }
    assert_eq!(tries.load(Ordering::SeqCst), 3);
    let warnings = client.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0]
            .text
            .contains("mirror passed over: cannot reach"),
        "{warnings:?}"
    );
}

#[tokio::test]
async fn what_is_blocked_is_neither_read_nor_written() {
    let folder = tempfile::tempdir().unwrap();
    let home = empty();
    let text = format!(
        "[[registry]]\nlocation = \"{}/bad\"\nblocked = true\n",
        home.host
    );
    let client = Client::new(with_registries_conf(folder.path(), &text)).unwrap();
    let blocked = name(&format!("{}/bad/x:1", home.host));
    let check = |error: ClientError| {
        assert_eq!(error.kind(), ErrorKind::Local);
        assert!(
            error
                .to_string()
                .starts_with(&format!("`{blocked}` is blocked by `")),
            "{error}"
        );
    };
    check(client.manifest(&blocked).await.unwrap_err());
    check(client.tags(&blocked).await.unwrap_err());
    let pushed = image(&[noise(5, 10)]);
    check(
        push_image(&client, &blocked, &pushed, Arc::new(Silent))
            .await
            .unwrap_err(),
    );
    assert_eq!(home.lines(), [] as [String; 0]);
    client
        .manifest(&name(&format!("{}/good:1", home.host)))
        .await
        .unwrap_err();
    assert_eq!(home.lines().len(), 1);
}

#[tokio::test]
async fn pushes_go_to_the_name_and_not_to_mirrors() {
    let folder = tempfile::tempdir().unwrap();
    let home = RunningServer::start_in_memory().unwrap();
    let mirror = empty();
    let text = table(&home.host(), &home.host(), &[&mirror.host]);
    let client = Client::new(with_registries_conf(folder.path(), &text)).unwrap();
    let pushed = image(&[noise(6, 1_000)]);
    let there = name(&format!("{}/x:1", home.host()));
    push_image(&client, &there, &pushed, Arc::new(Silent))
        .await
        .unwrap();
    assert_eq!(client.tags(&there).await.unwrap(), ["1"]);
    assert_eq!(mirror.lines(), [] as [String; 0]);
    // But what is read is asked there first.
    client.manifest(&there).await.unwrap();
    assert_eq!(mirror.lines().len(), 1);
}

#[tokio::test]
async fn credentials_stay_with_the_server_that_they_are_for() {
    let folder = tempfile::tempdir().unwrap();
    let ask = |_: &Seen, line: &mut Line<'_>| {
        line.answer(401, &[("www-authenticate", "Basic realm=\"x\"")], b"{}")
    };
    let (mirror, home) = (Wire::start(ask), Wire::start(ask));
    let text = table("r.example", &home.host, &[&mirror.host]);
    let basic = |username: &str| Credential::Basic {
        username: username.to_owned(),
        password: "p".to_owned(),
    };
    let options = Options {
        keychain: Keychain::anonymous()
            .with("r.example", basic("said"))
            .with(&home.host, basic("home"))
            .with(&mirror.host, basic("mirror")),
        ..with_registries_conf(folder.path(), &text)
    };
    let client = Client::new(options).unwrap();
    client.manifest(&name("r.example/x")).await.unwrap_err();
    let sent = |wire: &Wire| {
        let seen = wire.seen();
        let sent = seen
            .iter()
            .map(|seen| seen.header("authorization").to_owned());
        sent.filter(|text| !text.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(sent(&mirror), ["Basic bWlycm9yOnA="]);
    assert_eq!(sent(&home), ["Basic aG9tZTpw"]);
}

#[tokio::test]
async fn containerds_files_say_how_servers_are_spoken_to() {
    let folder = tempfile::tempdir().unwrap();
    let served = image(&[noise(7, 10)]).manifest;
    let (bytes, kind) = (
        served.bytes().to_vec(),
        served.media_type().as_str().to_owned(),
    );
    let mirror =
        Wire::bare(
            move |seen: &Seen, line: &mut Line<'_>| match seen.target.split('?').next() {
                Some("/proxy/hub/") => line.answer(200, &[], b"{}"),
                Some("/proxy/hub/library/app/manifests/1") => {
                    line.answer(200, &[("content-type", &kind)], &bytes)
                }
                _ => line.answer(404, &[], b"{}"),
            },
        );
    let only_by_digest = empty();
    let host = folder.path().join("docker.io");
    std::fs::create_dir(&host).unwrap();
    let text = format!(
        "server = \"http://127.0.0.1:9\"\n\
         [host.\"http://{}\"]\ncapabilities = [\"pull\"]\n\
         [host.\"http://{}/proxy/hub\"]\ncapabilities = [\"pull\", \"resolve\"]\noverride_path = true\n\
         [host.\"http://{}/proxy/hub\".header]\nx-team = \"secret\"\n",
        only_by_digest.host, mirror.host, mirror.host
    );
    std::fs::write(host.join("hosts.toml"), text).unwrap();
    let options = Options {
        hosts: Hosts::new(
            Vec::new(),
            HostsFiles {
                hosts_toml: vec![PathBuf::from(folder.path())],
                ..HostsFiles::default()
            },
        ),
        ..options()
    };
    let client = Client::new(options).unwrap();
    let found = client.manifest(&name("app:1")).await.unwrap();
    assert_eq!(found.digest(), served.digest());
    let seen = mirror.seen();
    let last = seen.last().unwrap();
    assert_eq!(
        last.target,
        "/proxy/hub/library/app/manifests/1?ns=docker.io"
    );
    assert_eq!(last.header("x-team"), "secret");
    assert_eq!(
        only_by_digest.lines(),
        [] as [String; 0],
        "a tag is not asked there"
    );
}

#[tokio::test]
async fn a_broken_file_is_told_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let options = with_registries_conf(folder.path(), "[[registry]]\nlocation = 3\n");
    let client = Client::new(options).unwrap();
    let error = client.manifest(&name("r.example/x")).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("registries.conf`: ") && text.contains("line 2"),
        "{text}"
    );
}

#[tokio::test]
async fn dockers_mirrors_are_asked_for_hub_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = RunningServer::start_in_memory().unwrap();
    let pushed = image(&[noise(8, 5_000)]);
    let client = Client::new(options()).unwrap();
    let there = name(&format!("{}/library/app:1", mirror.host()));
    push_image(&client, &there, &pushed, Arc::new(Silent))
        .await
        .unwrap();
    let nothing = empty();
    let other = empty();
    let path = folder.path().join("daemon.json");
    let text = format!(
        r#"{{"registry-mirrors": ["http://{}", "http://{}/"], "insecure-registries": []}}"#,
        nothing.host,
        mirror.host()
    );
    std::fs::write(&path, text).unwrap();
    let options = Options {
        hosts: Hosts::new(
            Vec::new(),
            HostsFiles {
                daemon_json: vec![path],
                ..HostsFiles::default()
            },
        ),
        ..options()
    };
    let client = Client::new(options).unwrap();
    let found = client.manifest(&name("app:1")).await.unwrap();
    assert_eq!(found.digest(), pushed.manifest.digest());
    let asked = nothing.lines();
    assert!(
        asked[0].starts_with("GET /v2/library/app/manifests/1"),
        "{asked:?}"
    );
    let elsewhere = name(&format!("{}/app:1", other.host));
    client.manifest(&elsewhere).await.unwrap_err();
    assert_eq!(nothing.lines().len(), asked.len());
    assert_eq!(other.lines().len(), 1);
}
