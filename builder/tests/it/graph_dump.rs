//! A plan as text: its vertices, and its configuration.

use builder::graph::exec::{Network, Security, Setting};
use builder::graph::{
    CopyAction, CopySource, Document, ExecOp, FileAction, MkdirAction, Op, Vertex,
};
use builder::lower::Plan;
use serde_json::json;

pub(crate) fn graph(plan: &Plan) -> String {
    let mut text = String::new();
    for (index, vertex) in plan.definition.vertices().iter().enumerate() {
        let inputs: Vec<String> = vertex
            .inputs
            .iter()
            .map(|input| input.0.to_string())
            .collect();
        let arrow = if inputs.is_empty() { "" } else { " <- " };
        let meta = &vertex.meta;
        text += &format!("{index}{arrow}{} {}", inputs.join(" "), meta.name);
        if meta.line > 0 {
            text += &format!(" (line {})", meta.line);
        }
        if meta.no_cache {
            text += " no cache";
        }
        text += "\n";
        operation(&mut text, vertex);
    }
    let root = plan
        .root
        .map_or("none".to_owned(), |root| root.0.to_string());
    text + &format!("root {root}, {} steps\n", plan.steps)
}

fn operation(text: &mut String, vertex: &Vertex) {
    match &vertex.op {
        Op::Image(image) => {
            *text += &format!("    image {}\n", image.reference);
        }
        Op::Context(context) => *text += &format!("    context {}\n", context.name),
        Op::Tree(tree) => *text += &format!("    tree {}\n", tree.name),
        Op::Http(http) => {
            *text += &format!("    http {} as {:?}", http.url, http.name);
            if let Some(checksum) = http.checksum {
                *text += &format!(" with {checksum}");
            }
            *text += "\n";
        }
        Op::Git(git) => {
            *text += &format!("    git {}", git.url);
            if let Some(checksum) = &git.url.checksum {
                *text += &format!(" at {checksum}");
            }
            if git.keep_git_dir {
                *text += " with .git";
            }
            if !git.submodules {
                *text += " without submodules";
            }
            *text += "\n";
        }
        Op::Exec(exec) => {
            let ExecOp {
                argv,
                env,
                proxy_env,
                cwd,
                user,
                ..
            } = exec;
            *text += &format!("    exec {argv:?}\n");
            for variable in env {
                *text += &format!("    env {variable:?}\n");
            }
            for variable in proxy_env {
                *text += &format!("    proxy {variable:?}\n");
            }
            *text += &format!("    cwd {cwd:?} user {user:?}\n");
            surroundings(text, exec);
        }
        Op::Merge => *text += "    merge\n",
        Op::File(file) => {
            *text += &format!("    file, on base: {}\n", file.on_base);
            for action in &file.actions {
                file_action(text, action);
            }
        }
    }
}

/// What is not as usual.
fn surroundings(text: &mut String, exec: &ExecOp) {
    if let Some((name, script)) = &exec.script {
        *text += &format!("    script {name:?} {script:?}\n");
    }
    for mount in &exec.mounts {
        *text += &format!("    mount {:?} {:?}\n", mount.target, mount.kind);
    }
    for device in &exec.devices {
        *text += &format!("    {device:?}\n");
    }
    if exec.network != Network::Default {
        *text += &format!("    network {:?}\n", exec.network);
    }
    if exec.security != Security::Sandbox {
        *text += &format!("    security {:?}\n", exec.security);
    }
    if let Some(platform) = &exec.foreign {
        *text += &format!("    for {platform}\n");
    }
    if exec.setting != Setting::default() {
        *text += &format!("    {:?}\n", exec.setting);
    }
}

fn file_action(text: &mut String, action: &FileAction) {
    match action {
        FileAction::Copy(copy) => {
            let CopyAction {
                sources,
                documents,
                dest,
                chown,
                chmod,
            } = copy;
            for source in sources {
                let CopySource {
                    input,
                    pattern,
                    ignore,
                    exclude,
                    parents,
                    unpack: _,
                } = source;
                *text += &format!("    copy {pattern:?} of input {input}");
                if *parents {
                    *text += " with its parents";
                }
                for patterns in [ignore, exclude] {
                    if !patterns.is_empty() {
                        *text += &format!(" but {patterns:?}");
                    }
                }
                *text += "\n";
            }
            for Document { name, content } in documents {
                *text += &format!("    document {name:?} {content:?}\n");
            }
            *text += &format!("    to {dest:?}");
            if let Some(chown) = chown {
                *text += &format!(" owner {:?}", chown.text);
            }
            if let Some(mode) = chmod {
                *text += &format!(" mode {mode}");
            }
            if sources.iter().any(|source| source.unpack) {
                *text += " unpacking archives";
            }
            *text += "\n";
        }
        FileAction::Mkdir(mkdir) => {
            let MkdirAction { path, mode, owner } = mkdir;
            *text += &format!("    mkdir {path:?} mode {mode:04o} owner {owner:?}\n");
        }
    }
}

pub(crate) fn config(plan: &Plan) -> String {
    let history: Vec<serde_json::Value> = plan
        .history
        .iter()
        .map(|step| {
            let mut entry = serde_json::to_value(&step.entry).unwrap();
            let comment = entry.as_object_mut().unwrap().remove("comment");
            assert_eq!(comment, Some(json!("buildkit.dockerfile.v0")));
            if let Some(vertex) = step.vertex {
                entry["vertex"] = json!(vertex.0);
            }
            entry
        })
        .collect();
    let all = json!({
        "config": plan.config,
        "base_history": plan.base_history,
        "history": history,
    });
    serde_json::to_string_pretty(&all).unwrap() + "\n"
}
