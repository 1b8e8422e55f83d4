//! Docker's longer spellings: `container ls` is `ps`, `image rm` is `rmi`.

use std::ffi::OsString;

/// Options before the command whose value is a word of its own.
const WITH_VALUE: [&str; 3] = ["--root", "--config", "--log-level"];

/// What the commands of a group are called without it; those of the same name stand once.
const CONTAINER: [&[&str]; 26] = [
    &["attach"],
    &["commit"],
    &["cp"],
    &["create"],
    &["diff"],
    &["exec"],
    &["export"],
    &["inspect", "inspect", "--type", "container"],
    &["kill"],
    &["list", "ps"],
    &["logs"],
    &["ls", "ps"],
    &["pause"],
    &["port"],
    &["ps"],
    &["rename"],
    &["restart"],
    &["rm"],
    &["run"],
    &["start"],
    &["stats"],
    &["stop"],
    &["top"],
    &["unpause"],
    &["wait"],
    &["remove", "rm"],
];
const IMAGE: [&[&str]; 13] = [
    &["build"],
    &["history"],
    &["import"],
    &["inspect", "inspect", "--type", "image"],
    &["list", "images"],
    &["load"],
    &["ls", "images"],
    &["pull"],
    &["push"],
    &["remove", "rmi"],
    &["rm", "rmi"],
    &["save"],
    &["tag"],
];
const SYSTEM: [&[&str]; 2] = [&["df", "du"], &["info"]];

/// Where the command is among the arguments of this program, itself the first.
pub fn command_at(arguments: &[OsString]) -> Option<usize> {
    let mut at = 1;
    loop {
        let word = arguments.get(at)?.to_str()?;
        match word {
            word if WITH_VALUE.contains(&word) => at += 2,
            word if word.starts_with('-') => at += 1,
            _ => return Some(at),
        }
    }
}

/// The arguments in this program's own words.
pub fn in_own_words(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let Some(at) = command_at(&arguments) else {
        return arguments;
    };
    let group: &[&[&str]] = match arguments[at].to_str() {
        Some("container") => &CONTAINER,
        Some("image") => &IMAGE,
        Some("system") => &SYSTEM,
        _ => return arguments,
    };
    let word = arguments.get(at + 1).and_then(|word| word.to_str());
    let found = group.iter().find(|words| Some(words[0]) == word);
    if let Some(words) = found {
        let own = match words {
            [_, own @ ..] if !own.is_empty() => own,
            same => same,
        };
        arguments.splice(at..at + 2, own.iter().map(OsString::from));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_spellings() {
        let check = |line: &str, expected: &str| {
            let words = line.split(' ').map(OsString::from).collect();
            let words = in_own_words(words);
            let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
            assert_eq!(words.join(" "), expected);
        };
        check("x container ls -a", "x ps -a");
        check(
            "x --root r container run i container ls",
            "x --root r run i container ls",
        );
        check("x --root=r image rm i", "x --root=r rmi i");
        check("x image inspect i", "x inspect --type image i");
        check("x container prune -f", "x container prune -f");
        check("x container build", "x container build");
        check("x run container ls", "x run container ls");
        check("x system df", "x du");
        check("x", "x");
    }
}
