//! Rules about the images and platforms that `FROM` names.

use std::collections::BTreeMap;

use super::{Rule, Subject};
use crate::dockerfile::Diagnostic;
use crate::lower::GlobalArgs;

pub(super) fn check(subject: &Subject<'_>, found: &mut Vec<Diagnostic>) {
    let defaults = GlobalArgs::new(subject.dockerfile, &BTreeMap::new());
    for (_, instruction, from) in subject.froms() {
        let image = &from.image;
        if let Some(why) = defaults.refuses(&image.text) {
            let message = format!("with the defaults of its variables, `{}` {why}", image.text);
            let finding = Rule::InvalidDefaultArgInFrom.at(image.span, message);
            found.push(finding.help("give the `ARG` a default, or write one: `${NAME:-default}`"));
        }
        let Some(flag) = instruction.flag("platform") else {
            continue;
        };
        let value = flag.value.as_deref().unwrap_or_default();
        let name = from.name.as_ref().map(|name| name.text.to_lowercase());
        if matches!(value, "$TARGETPLATFORM" | "${TARGETPLATFORM}") {
            let message = format!("`--platform={value}` is what holds without it");
            found.push(Rule::RedundantTargetPlatform.at(flag.span, message));
        } else if !value.contains('$') && !mentions(name.as_deref(), value) {
            let message = format!(
                "`--platform={value}` is a constant: the stage is the same for every platform"
            );
            let finding = Rule::FromPlatformFlagConstDisallowed.at(flag.span, message);
            found.push(finding.help(
                "`--platform=$BUILDPLATFORM`, or name the stage by its platform, as in `build-amd64`",
            ));
        }
    }
}

/// Whether a stage's name tells its platform, which then is meant.
fn mentions(name: Option<&str>, platform: &str) -> bool {
    let Ok(platform) = crate::lower::parse_platform(platform) else {
        // It is an error elsewhere.
        return true;
    };
    name.is_some_and(|name| name.contains(&platform.os) || name.contains(&platform.architecture))
}
