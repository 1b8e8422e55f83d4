//! Rules about what `RUN` calls.

use super::super::shell::{self, Pipeline, program};
use super::super::{Rule, Subject};
use crate::dockerfile::ast::Command;
use crate::dockerfile::{Diagnostic, Instruction, InstructionKind};

/// A package manager: what it is called with to fetch things, and where it keeps what it fetched.
struct Manager {
    program: &'static str,
    verbs: &'static [&'static str],
    cache: &'static str,
    /// It fetches what the project says it needs, not what it is told.
    project: bool,
}

const fn manager(
    program: &'static str,
    verbs: &'static [&'static str],
    cache: &'static str,
    project: bool,
) -> Manager {
    Manager {
        program,
        verbs,
        cache,
        project,
    }
}

const MANAGERS: [Manager; 17] = [
    manager(
        "apt-get",
        &["install", "upgrade", "dist-upgrade"],
        "/var/cache/apt",
        false,
    ),
    manager(
        "apt",
        &["install", "upgrade", "full-upgrade"],
        "/var/cache/apt",
        false,
    ),
    manager("dnf", &["install"], "/var/cache/dnf", false),
    manager("yum", &["install"], "/var/cache/yum", false),
    manager("pip", &["install"], "/root/.cache/pip", true),
    manager("pip3", &["install"], "/root/.cache/pip", true),
    manager("poetry", &["install"], "/root/.cache/pypoetry", true),
    manager("uv", &["sync"], "/root/.cache/uv", true),
    manager("npm", &["ci", "install", "i"], "/root/.npm", true),
    manager("yarn", &["install"], "/usr/local/share/.cache/yarn", true),
    manager(
        "pnpm",
        &["install", "i"],
        "/root/.local/share/pnpm/store",
        true,
    ),
    manager("go", &["build", "install", "mod"], "/go/pkg/mod", true),
    manager(
        "cargo",
        &["build", "install", "fetch"],
        "/usr/local/cargo/registry",
        true,
    ),
    manager("bundle", &["install"], "/usr/local/bundle/cache", true),
    manager("composer", &["install"], "/root/.composer/cache", true),
    manager(
        "mvn",
        &["package", "install", "verify", "dependency:go-offline"],
        "/root/.m2",
        true,
    ),
    manager("gradle", &["build", "assemble"], "/root/.gradle", true),
];

/// Programs that run what they read.
const INTERPRETERS: [&str; 8] = [
    "sh", "bash", "ash", "dash", "zsh", "python", "python3", "perl",
];

pub(super) fn check(subject: &Subject<'_>, found: &mut Vec<Diagnostic>) {
    for (stage, _, _) in subject.froms() {
        let mut pipefail = false;
        let mut everything_copied: Option<&Instruction> = None;
        for instruction in subject.body(stage) {
            match &instruction.kind {
                InstructionKind::Shell(words) => {
                    pipefail = words.iter().any(|word| word.text.contains("pipefail"));
                }
                InstructionKind::Copy(copy) => {
                    let sources = &mut copy.sources.iter();
                    if instruction.flag("from").is_none()
                        && sources.any(|source| is_everything(&source.text))
                    {
                        everything_copied.get_or_insert(instruction);
                    }
                }
                InstructionKind::Run(command) => {
                    let pipelines = pipelines(subject, instruction, command);
                    step(instruction, &pipelines, pipefail, found);
                    if let Some(copy) = everything_copied {
                        let late = late_install(instruction, copy, &pipelines);
                        // One is enough: moving it moves the others.
                        everything_copied = if late.is_some() { None } else { Some(copy) };
                        found.extend(late);
                    }
                }
                _ => {}
            }
        }
    }
}

fn is_everything(source: &str) -> bool {
    matches!(source, "." | "./" | "/" | "*" | "./*")
}

/// What a `RUN` calls; in its exec form one command.
fn pipelines(subject: &Subject<'_>, instruction: &Instruction, command: &Command) -> Vec<Pipeline> {
    match command {
        Command::Exec(words) => {
            let words: Vec<String> = words.iter().map(|word| word.text.clone()).collect();
            match words.as_slice() {
                [shell, option, script]
                    if INTERPRETERS[..5].contains(&shell.rsplit('/').next().unwrap_or(shell))
                        && option.starts_with('-')
                        && option.ends_with('c') =>
                {
                    shell::pipelines(script)
                }
                _ => vec![Pipeline {
                    commands: vec![words],
                }],
            }
        }
        Command::Shell(word) => {
            let documents = instruction.heredocs.iter();
            let bodies = documents.map(|heredoc| subject.source.slice(heredoc.body));
            let mut script = word.text.clone();
            for body in bodies {
                // One with an interpreter of its own is no shell script.
                if !body.starts_with("#!")
                    || body.lines().next().is_some_and(|line| line.ends_with("sh"))
                {
                    script.push('\n');
                    script.push_str(body);
                }
            }
            shell::pipelines(&script)
        }
    }
}

/// What is wrong with one `RUN`.
fn step(
    instruction: &Instruction,
    pipelines: &[Pipeline],
    pipefail: bool,
    found: &mut Vec<Diagnostic>,
) {
    let span = instruction.head;
    let commands = || pipelines.iter().flat_map(|pipeline| &pipeline.commands);
    if let Some(manager) = commands().find_map(|command| fetches(command))
        && !has_cache(instruction)
    {
        let Manager { program, cache, .. } = manager;
        let message = format!("`{program}` fetches everything again whenever this step runs");
        let help = format!("`RUN --mount=type=cache,target={cache} …`");
        found.push(Rule::MissingCacheMount.at(span, message).help(help));
    }
    if commands().any(|command| is_apt(command, &["update"]))
        && !forgets_lists(instruction, pipelines)
    {
        let message = "the lists that `apt-get update` fetched stay in the layer";
        let help = "end the step with `rm -rf /var/lib/apt/lists/*`, or `--mount=type=cache,target=/var/lib/apt`";
        found.push(Rule::AptListsKept.at(span, message).help(help));
    }
    let sets_pipefail = pipefail
        || commands().any(|command| {
            command.first().is_some_and(|first| first == "set")
                && command.iter().any(|word| word == "pipefail")
        });
    if !sets_pipefail && pipelines.iter().any(runs_a_download) {
        let message = "a download that fails is run as far as it came, and the step goes on";
        let help = "download to a file and check it, or `SHELL [\"/bin/bash\", \"-o\", \"pipefail\", \"-c\"]`";
        found.push(Rule::CurlPipeShell.at(span, message).help(help));
    }
    if commands().any(|command| command.first().is_some_and(|first| first == "sudo")) {
        let message = "`sudo` is not needed: a step is run by the user that `USER` names";
        let help = "`USER root` before the step, and the other user after it";
        found.push(Rule::SudoInRun.at(span, message).help(help));
    }
    if let Some([command]) = pipelines
        .last()
        .map(|pipeline| pipeline.commands.as_slice())
        && let [cd, folder] = command.as_slice()
        && cd == "cd"
        && pipelines.len() == 1
    {
        let message = "`cd` ends with its step: the next one begins in `WORKDIR` again";
        found.push(
            Rule::CdWithoutEffect
                .at(span, message)
                .help(format!("`WORKDIR {folder}`")),
        );
    }
}

/// The package manager that a command lets fetch things.
fn fetches(command: &[String]) -> Option<&'static Manager> {
    let (name, arguments) = program(command)?;
    let (name, arguments) = match arguments {
        // `python -m pip install`
        [module, manager, rest @ ..] if name.starts_with("python") && module == "-m" => {
            (manager.as_str(), rest)
        }
        _ => (name, arguments),
    };
    let verb = arguments.iter().find(|argument| !argument.starts_with('-'));
    let manager = MANAGERS.iter().find(|manager| manager.program == name)?;
    match verb {
        Some(verb) => manager.verbs.contains(&verb.as_str()),
        // `yarn` alone installs.
        None => name == "yarn",
    }
    .then_some(manager)
}

fn has_cache(instruction: &Instruction) -> bool {
    let mut mounts = instruction.flags.iter().filter(|flag| flag.name == "mount");
    mounts.any(|mount| {
        let value = mount.value.as_deref().unwrap_or_default();
        value.split(',').any(|option| option == "type=cache")
    })
}

fn is_apt(command: &[String], verbs: &[&str]) -> bool {
    program(command).is_some_and(|(name, arguments)| {
        let verb = arguments.iter().find(|argument| !argument.starts_with('-'));
        matches!(name, "apt-get" | "apt") && verb.is_some_and(|verb| verbs.contains(&verb.as_str()))
    })
}

/// Whether the lists are removed in the end, or were never in the layer.
fn forgets_lists(instruction: &Instruction, pipelines: &[Pipeline]) -> bool {
    let mounted = instruction.flags.iter().any(|flag| {
        let value = flag.value.as_deref().unwrap_or_default();
        flag.name == "mount" && value.contains("/var/lib/apt")
    });
    let removed = pipelines
        .iter()
        .flat_map(|pipeline| &pipeline.commands)
        .any(|command| {
            let is_path = |word: &String| word.starts_with("/var/lib/apt") || word == "/var/lib";
            let names = || command.iter().any(is_path);
            program(command).is_some_and(|(name, _)| matches!(name, "rm" | "find")) && names()
        });
    mounted || removed
}

/// `curl … | sh`
fn runs_a_download(pipeline: &Pipeline) -> bool {
    let name = |command: &Vec<String>| program(command).map(|(name, _)| name.to_owned());
    let position = |wanted: &dyn Fn(&str) -> bool| {
        let commands = pipeline.commands.iter();
        commands
            .map(name)
            .position(|name| name.is_some_and(|name| wanted(&name)))
    };
    let download = position(&|name| matches!(name, "curl" | "wget"));
    let run = position(&|name| INTERPRETERS.contains(&name));
    matches!((download, run), (Some(download), Some(run)) if download < run)
}

/// Dependencies installed after everything was copied.
fn late_install(
    instruction: &Instruction,
    copy: &Instruction,
    pipelines: &[Pipeline],
) -> Option<Diagnostic> {
    let manager = pipelines
        .iter()
        .flat_map(|pipeline| &pipeline.commands)
        .find_map(|command| fetches(command))
        .filter(|manager| {
            manager.project && !matches!(manager.program, "go" | "cargo" | "mvn" | "gradle")
        })?;
    let message = format!(
        "any change of any file makes `{}` install everything again",
        manager.program
    );
    let finding = Rule::CopyAllBeforeInstall.at(copy.head, message);
    Some(
        finding
            .label(instruction.keyword.span, "installed here")
            .help(
                "copy the files that list the dependencies first, install, and then copy the rest",
            ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_managers() {
        let check = |script: &str, expect: Option<&str>| {
            let pipelines = shell::pipelines(script);
            let found = pipelines
                .iter()
                .flat_map(|pipeline| &pipeline.commands)
                .find_map(|command| fetches(command));
            assert_eq!(found.map(|manager| manager.program), expect, "{script}");
        };
        check("apt-get -y install curl", Some("apt-get"));
        check("apt-get update", None);
        check("python3 -m pip install -r r.txt", Some("pip"));
        check("npm run build", None);
        check("npm --quiet ci", Some("npm"));
        check("yarn", Some("yarn"));
        check("yarn build", None);
        check("cargo build --release", Some("cargo"));
        check("echo npm ci", None);
    }

    #[test]
    fn downloads_that_are_run() {
        let check = |script: &str, expect: bool| {
            let found = shell::pipelines(script).iter().any(runs_a_download);
            assert_eq!(found, expect, "{script}");
        };
        check("curl -fsSL u | sh", true);
        check("wget -qO- u | sudo bash -s -- -y", true);
        check("curl u | tar xz", false);
        check("curl u -o f && sh f", false);
        check("sh a | curl -d @- u", false);
    }
}
