//! Lowering answers every Dockerfile, whatever the images, arguments and target.
#![no_main]

use std::collections::BTreeMap;

use builder::dockerfile::{Diagnostic, SourceFile, parse};
use builder::lower::{ImageRequest, LowerRequest, Lowered, Plan, ResolvedImage, lower};
use store::oci::{DiffId, Digest, ImageConfig, Platform};

// The text, the target, build arguments (`NAME=value`, one on a line), triggers of every image (one on a line); NUL
// between them.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut parts = data
        .split(|&byte| byte == 0)
        .map(|part| String::from_utf8_lossy(part).into_owned());
    let text = parts.next().unwrap_or_default();
    let target = parts.next().filter(|target| !target.is_empty());
    let arguments = parts.next().unwrap_or_default();
    let triggers: Vec<String> = parts
        .next()
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect();
    let source = SourceFile::new("Dockerfile", &*text);
    let (dockerfile, problems) = parse(&text);
    if problems.iter().any(Diagnostic::is_error) {
        return;
    }
    let mut images = BTreeMap::new();
    let plan = loop {
        let request = LowerRequest {
            build_args: arguments
                .lines()
                .filter_map(|line| line.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            target: target.clone(),
            ..LowerRequest::new(&dockerfile, &source, &Platform::host(), &images)
        };
        let needed = match lower(&request) {
            Ok(Lowered::NeedImages(needed)) => needed,
            Ok(Lowered::Done(plan)) => break plan,
            Err(problems) => return check_diagnostics(&text, &problems),
        };
        assert!(!needed.is_empty());
        for needed in needed {
            assert!(text.get(needed.span.range()).is_some());
            let made = image(&needed.request, &triggers);
            assert!(images.insert(needed.request, made).is_none(), "asked twice");
        }
    };
    check_diagnostics(&text, &plan.warnings);
    check_plan(&plan);
});

fn check_diagnostics(text: &str, diagnostics: &[Diagnostic]) {
    for diagnostic in diagnostics {
        assert!(
            text.get(diagnostic.span.range()).is_some(),
            "{diagnostic:?}"
        );
        for label in &diagnostic.labels {
            assert!(text.get(label.span.range()).is_some(), "{diagnostic:?}");
        }
    }
}

/// Every vertex of the history and the root is in the definition, and stands on vertices before it.
fn check_plan(plan: &Plan) {
    let vertices = plan.definition.vertices();
    for (index, vertex) in vertices.iter().enumerate() {
        assert!(vertex.inputs.iter().all(|input| input.0 < index));
    }
    let known = plan.history.iter().filter_map(|step| step.vertex);
    assert!(
        known
            .chain(plan.root)
            .all(|vertex| vertex.0 < vertices.len())
    );
    let entries = &plan.history;
    assert!(entries.iter().all(|step| step.entry.created_by.is_some()));
}

/// An image made up from its name.
fn image(request: &ImageRequest, triggers: &[String]) -> ResolvedImage {
    let mut config = ImageConfig::scratch(&request.platform);
    config.config.on_build = (!triggers.is_empty()).then(|| triggers.to_vec());
    ResolvedImage {
        reference: request.reference.clone(),
        manifest: None,
        diff_ids: vec![DiffId(Digest::of(request.reference.to_string().as_bytes()))],
        layers: Vec::new(),
        config,
    }
}
