//! Changing an image's configuration by instructions, outside any Dockerfile: `commit -c` and `import -c`.
//!
//! They mean what they mean in a Dockerfile that begins with the image, so that is what is lowered.

use std::collections::BTreeMap;

use store::oci::{ImageConfig, Reference};

use crate::dockerfile::ast::{Instruction, InstructionKind};
use crate::dockerfile::parser::parse;
use crate::dockerfile::{Diagnostic, SourceFile};
use crate::lower::{ImageRequest, LowerRequest, Lowered, ResolvedImage, lower};

/// How the image is called there; nobody sees it.
const BASE: &str = "base";

/// Why instructions cannot change a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// It would change files, or means something in a Dockerfile only.
    #[error(
        "`{text}` cannot change an image: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR can"
    )]
    Instruction {
        /// The line.
        text: String,
    },
    /// It makes no sense.
    #[error("cannot read the change: {message}")]
    Invalid {
        /// Why, in the words in which a build says so.
        message: String,
    },
}

/// Changes a configuration by these instructions, one after the other.
///
/// # Errors
/// One is none, or none of those that change nothing but the configuration.
pub fn change(config: &mut ImageConfig, instructions: &[String]) -> Result<(), ChangeError> {
    if instructions.is_empty() {
        return Ok(());
    }
    let text = format!("FROM {BASE}\n{}\n", instructions.join("\n"));
    let source = SourceFile::new("change", text);
    let (dockerfile, diagnostics) = parse(source.text());
    first_error(diagnostics)?;
    let changes = dockerfile.instructions.iter().skip(1);
    for instruction in changes.clone() {
        if !changes_configuration(instruction) {
            let text = source.slice(instruction.span).trim_end().to_owned();
            return Err(ChangeError::Instruction { text });
        }
    }
    let platform = config.platform();
    let reference: Reference = BASE.parse().expect("a plain name");
    let mut base = config.clone();
    // Those are for who builds upon it, and this is not a build.
    let triggers = base.config.on_build.take();
    let request = ImageRequest {
        reference: reference.clone(),
        platform: platform.clone(),
        layout: None,
    };
    let image = ResolvedImage {
        reference,
        manifest: None,
        diff_ids: config.rootfs.diff_ids.clone(),
        layers: Vec::new(),
        config: base,
    };
    let images = BTreeMap::from([(request, image)]);
    let lowered = lower(&LowerRequest::new(&dockerfile, &source, &platform, &images));
    let plan = match lowered {
        Ok(Lowered::Done(plan)) => plan,
        Ok(Lowered::NeedImages(_)) => {
            let message = "it needs another image".to_owned();
            return Err(ChangeError::Invalid { message });
        }
        Err(diagnostics) => {
            first_error(diagnostics)?;
            let message = "it cannot be carried out".to_owned();
            return Err(ChangeError::Invalid { message });
        }
    };
    let had_env = std::mem::take(&mut config.config.env);
    config.config = plan.config.config;
    let is_path = |variable: &String| variable.starts_with("PATH=");
    if !had_env.iter().any(is_path) && !changes.clone().any(sets_path) {
        // A build would have given it one.
        config.config.env.retain(|variable| !is_path(variable));
    }
    if let Some(mut all) = triggers {
        all.extend(config.config.on_build.take().unwrap_or_default());
        config.config.on_build = Some(all);
    }
    Ok(())
}

fn sets_path(instruction: &Instruction) -> bool {
    match &instruction.kind {
        InstructionKind::Env(variables) => variables.pairs.iter().any(|p| p.key.text == "PATH"),
        _ => false,
    }
}

fn changes_configuration(instruction: &Instruction) -> bool {
    matches!(
        instruction.kind,
        InstructionKind::Cmd(_)
            | InstructionKind::Entrypoint(_)
            | InstructionKind::Env(_)
            | InstructionKind::Expose(_)
            | InstructionKind::Healthcheck(_)
            | InstructionKind::Label(_)
            | InstructionKind::Onbuild(_)
            | InstructionKind::StopSignal(_)
            | InstructionKind::User(_)
            | InstructionKind::Volume(_)
            | InstructionKind::Workdir(_)
    )
}

fn first_error(diagnostics: Vec<Diagnostic>) -> Result<(), ChangeError> {
    match diagnostics.into_iter().find(Diagnostic::is_error) {
        Some(error) => Err(ChangeError::Invalid {
            message: error.message,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::oci::Platform;

    fn base() -> ImageConfig {
        let mut config = ImageConfig::scratch(&Platform::host());
        config.config.env = vec!["A=1".to_owned()];
        config.config.on_build = Some(vec!["RUN true".to_owned()]);
        config.config.working_dir = "/srv".to_owned();
        config
    }

    #[test]
    fn instructions_change_the_configuration() {
        let check = |instructions: &[&str], is_it: &dyn Fn(&store::oci::RunConfig) -> bool| {
            let mut config = base();
            let instructions: Vec<String> = instructions.iter().map(|i| (*i).to_owned()).collect();
            change(&mut config, &instructions).unwrap();
            assert!(is_it(&config.config), "{instructions:?}: {config:#?}");
            assert!(config.history.is_empty() && config.rootfs.diff_ids.is_empty());
        };
        check(&[], &|run| run.env == ["A=1"]);
        check(&["CMD [\"x\", \"y\"]"], &|run| {
            run.cmd.as_deref().unwrap() == ["x", "y"] && run.env == ["A=1"]
        });
        check(&["ENV B=$A"], &|run| run.env == ["A=1", "B=1"]);
        check(&["ENV PATH=/bin"], &|run| run.env == ["A=1", "PATH=/bin"]);
        check(&["WORKDIR www", "USER web"], &|run| {
            run.working_dir == "/srv/www" && run.user == "web"
        });
        check(&["EXPOSE 80", "LABEL a=b"], &|run| {
            run.exposed_ports.as_ref().unwrap().contains_key("80/tcp")
                && run.labels.as_ref().unwrap()["a"] == "b"
        });
        check(&["ONBUILD RUN date"], &|run| {
            run.on_build.as_deref().unwrap() == ["RUN true", "RUN date"]
        });
    }

    #[test]
    fn others_are_refused() {
        let check = |instruction: &str, expected: &str| {
            let error = change(&mut base(), &[instruction.to_owned()]).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(expected), "{instruction}: {error}");
        };
        check("RUN true", "`RUN true` cannot change an image");
        check("FROM other", "cannot change an image");
        check("COPY a b", "cannot change an image");
        check("CMDD x", "cannot read the change");
        check("CMD x\nRUN y", "`RUN y` cannot change an image");
    }
}
