//! The binary as its users meet it. One test binary, so that it is linked once.
//!
//! | module | asserts |
//! |---|---|
//! | [`build`] | what instructions, flags and outputs give |
//! | [`chunked`] | layers of which only what changed is pulled |
//! | [`client_settings`] | credentials, certificates and proxies of other tools and the environment |
//! | [`checks`] | `--check` and `--call`, and warnings of a build |
//! | [`cache`] | what runs, and what does not have to |
//! | [`cache_mounts`] | `longshore cache`: what steps keep between builds |
//! | [`cancel`] | builds that are ended from outside |
//! | [`sharing`] | steps that several want at once, and which of many begins first |
//! | [`cases`] | every construct of the language, built and compared with other builders |
//! | [`containers`] | containers that outlive the command that made them |
//! | [`container_limits`] | limits of containers and steps in the kernel's own files |
//! | [`container_sharing`] | what containers share with each other and with the host |
//! | [`beside_docker`] | what a command sees in our containers and in docker's |
//! | [`docker`] | a docker daemon of a test's own |
//! | [`docker_flags`] | every flag of docker's: ours, or refused by name |
//! | [`contexts`] | folders, standard input, images and layouts as contexts |
//! | [`remote`] | URLs and git repositories, as contexts and in ADD |
//! | [`copy`] | linked layers, here-documents, missing paths |
//! | [`debug`] | looking around in steps: when they fail, and later |
//! | [`disk`] | the store checked, measured and pruned |
//! | [`explain`] | why steps ran, and what is remembered of builds |
//! | [`reference`] | the examples in the reference of the language |
//! | [`transfer`] | registries, archives, credentials, listings |
//! | [`registry_access`] | users, policies and logs of the registry, with everybody's tools |
//! | [`registry_identity`] | jobs with tokens of their CI, other token servers, certificates |
//! | [`registry_reload`] | another configuration while transfers run |
//! | [`registry_tools_flags`] | every flag of crane, skopeo and regctl: ours, or refused by name |
//! | [`registry_traces`] | spans of the registry, as a collector gets them |
//! | [`remote_commands`] | every command on registries: output and exit codes |
//! | [`remote_diff`] | what tells two images apart |
//! | [`remote_sync`] | many images at once: registries, layouts, lists |
//! | [`short_names`] | names without a registry |
//! | [`validate`] | images that are what they say, and such as are not |
//! | [`run`] | what goes into a container, and what comes out |
//! | [`platforms`] | images for other machines, and for several |
//! | [`progress`] | what a build says while it runs |
//! | [`run_mounts`] | what surrounds a `RUN`: mounts, secrets, agents, limits |
//! | [`search`] | repositories found in registries |
//! | [`shared_cache`] | results that go from machine to machine |
//! | [`bad_input`] | clear errors, and nothing left behind |
//! | [`errors`] | what is said of common mistakes, beside what BuildKit says |
//! | [`faulty`] | registries that do everything wrong |
//! | [`killed`] | `kill -9` at any moment |
//! | [`identity`] | what is part of a key, and what is not |
//! | [`interop`] | skopeo, umoci, podman, buildah |
//! | [`rootless`] | an ordinary user |
//! | [`everywhere`] | plain containers, where namespaces or overlayfs are refused |
//! | [`examples`] | real software on Debian |
//! | [`full_disk`] | a full disk in every phase |
//! | [`escapes`] | known ways out of other tools, by what containers are made and asked with |
//! | [`help`] | the text of every `--help` |
//! | [`tidy`] | the house rules: layering, unsafe code, printing, names of this machine |
//!
//! Most need root, as `../../test` runs them, and the other tools which that installs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "a test binary exports nothing")]

mod bad_input;
mod beside_docker;
mod build;
mod cache;
mod cache_mounts;
mod cancel;
mod cases;
mod checks;
mod chunked;
mod client_settings;
mod container_bad_input;
mod container_flags;
mod container_limits;
mod container_sharing;
mod container_state;
mod containers;
mod contexts;
mod copy;
mod debug;
mod disk;
mod docker;
mod docker_flags;
mod errors;
mod escapes;
mod everywhere;
mod examples;
mod explain;
mod faulty;
mod full_disk;
mod help;
mod hostile;
mod identity;
mod info;
mod interop;
mod interrupted;
mod killed;
mod network;
mod platforms;
mod ports;
mod progress;
mod pull_through;
#[path = "../../../registry-server/tests/it/receiver.rs"]
#[expect(
    dead_code,
    reason = "it belongs to the tests of the registry, which use all of it"
)]
mod receiver;
mod reference;
mod registry;
mod registry_access;
mod registry_bucket;
mod registry_identity;
mod registry_reload;
mod registry_sync;
mod registry_tools_flags;
mod registry_traces;
mod remote;
mod remote_commands;
mod remote_diff;
mod remote_sync;
mod rootless;
mod run;
mod run_mounts;
mod search;
mod security;
mod shared_cache;
mod sharing;
mod ship;
mod short_names;
mod step_network;
mod support;
mod terminal;
mod tidy;
mod transfer;
mod validate;
mod webhooks;
