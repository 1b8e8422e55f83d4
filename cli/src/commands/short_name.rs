//! Names without a registry: what they stand for where containers' `registries.conf` says so, and docker's rule elsewhere.

use registry_client::hosts::{Choice, ShortName};
use store::Store;
use store::images::ImageRow;
use store::oci::Reference;

use crate::context::Context;
use crate::error::{Blame, CliError, Kind};
use crate::ui;

/// The image of the store that a text names: as docker reads it, else under a name that it stands for.
pub fn find(context: &Context, store: &Store, text: &str) -> Result<Option<ImageRow>, CliError> {
    let found = store.images().resolve(text)?;
    if found.is_some() {
        return Ok(found);
    }
    // What is wrong with other tools' files is told where something is pulled.
    let Ok(Some(short)) = context.hosts()?.short_name(text) else {
        return Ok(None);
    };
    for name in short.stands_for {
        let found = store.images().resolve(&name.to_string())?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// What to pull where a text is given.
#[derive(Debug)]
pub struct Candidates {
    /// The text.
    pub text: String,
    /// The first to be tried first; at least one.
    pub names: Vec<Reference>,
    /// Whether a person chose it among others, which is to be remembered once it turned out to be there.
    pub was_chosen: bool,
}

impl Candidates {
    /// Remembers a choice.
    pub fn remember(&self, context: &Context, pulled: &Reference) -> Result<(), CliError> {
        if !self.was_chosen {
            return Ok(());
        }
        let noted = context.hosts()?.remember(&self.text, pulled);
        noted.map_err(|error| CliError::new(Kind::Environment, error))
    }
}

/// What to pull where a text is given. Who sits at a terminal is asked, where the settings leave it to a person which of several
/// names is meant.
pub fn candidates(context: &Context, text: &str) -> Result<Candidates, CliError> {
    let known = |names| Candidates {
        text: text.to_owned(),
        names,
        was_chosen: false,
    };
    let short = context.hosts()?.short_name(text);
    let short = short.map_err(|error| CliError::new(Kind::Environment, error))?;
    let Some(ShortName { stands_for, choice }) = short else {
        return Ok(known(vec![text.parse()?]));
    };
    if choice != Choice::Nobody
        && context.ui.can_ask()
        && let Some(chosen) = choose(text, &stands_for)?
    {
        return Ok(Candidates {
            was_chosen: true,
            ..known(vec![chosen])
        });
    }
    let Choice::OnlyPerson(file) = choice else {
        return Ok(known(stands_for));
    };
    let names: Vec<String> = stands_for.iter().map(|name| format!("`{name}`")).collect();
    let message = format!(
        "`{text}` may be {}, and `{}` has `short-name-mode = \"enforcing\"`",
        names.join(" or "),
        file.display()
    );
    Err(CliError::new(Kind::Input, message).hint("give one of these names, or add an alias for it"))
}

/// Asks which of several names is meant; `None` for whoever will not say.
fn choose(text: &str, names: &[Reference]) -> Result<Option<Reference>, CliError> {
    let mut question = format!("`{text}` may be\n");
    for (number, name) in (1..).zip(names) {
        question += &format!("  {number}  {name}\n");
    }
    question += &format!("Which one? [1-{}] ", names.len());
    loop {
        let Some(answer) = ui::ask_or_end(&question).blame(Kind::Environment)? else {
            return Ok(None);
        };
        let answer = answer.trim();
        let number = answer.parse::<usize>().ok();
        let by_number = number.and_then(|number| names.get(number.checked_sub(1)?));
        let by_name = || names.iter().find(|name| name.to_string() == answer);
        match by_number.or_else(by_name) {
            Some(name) => return Ok(Some(name.clone())),
            None => question = format!("a number from 1 to {}, please: ", names.len()),
        }
    }
}

/// Which of its names an image was called by: the one that docker reads, else the one that a short name stands for.
pub fn called(context: &Context, image: &ImageRow, text: &str) -> Result<Reference, CliError> {
    let plain: Reference = text.parse()?;
    let meant = meant(context, text, plain.clone())?;
    let mut held = meant.into_iter().filter(|name| image.names.contains(name));
    Ok(held.next().unwrap_or(plain))
}

/// All that a text may mean: what docker reads, and what a short name stands for.
pub fn meant(context: &Context, text: &str, plain: Reference) -> Result<Vec<Reference>, CliError> {
    // As in `find`.
    let short = context.hosts()?.short_name(text).ok().flatten();
    let further = short.into_iter().flat_map(|short| short.stands_for);
    Ok(std::iter::once(plain).chain(further).collect())
}
