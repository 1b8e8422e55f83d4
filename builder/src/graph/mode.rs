//! `--chmod`: a mode in octal, or changes to one in chmod(1)'s own words.
//!
//! ```text
//! mode    = octal | clause {"," clause}         octal: 0 to 07777
//! clause  = {u|g|o|a} action {action}           nobody named: everybody, no umask is asked
//! action  = (+|-|=) ({r|w|x|X|s|t} | u|g|o)     X: x for directories and for what somebody may run already
//! ```

use std::fmt;
use std::str::FromStr;

/// Every bit that a mode can have.
const ALL: u32 = 0o7777;

/// What becomes of a mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeChange {
    /// As it is shown: four octal digits, or the changes as written.
    text: String,
    /// Applied in order, each to what the one before left.
    actions: Vec<Action>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Action {
    /// The bits that it may touch.
    affected: u32,
    operator: Operator,
    /// Bits named.
    bits: u32,
    /// `X`.
    run_if_run: bool,
    /// `u`, `g` or `o` in place of bits: how far right theirs are shifted.
    like: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Add,
    Remove,
    Set,
}

/// Why a text is no mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModeError {
    /// Digits, but not octal ones or too many.
    #[error("the mode `{text}` is not an octal number from 0 to 07777")]
    Number {
        /// The text.
        text: String,
    },
    /// A clause that cannot be read.
    #[error("the mode `{text}` is neither octal nor symbolic: `{clause}` {reason}")]
    Clause {
        /// The whole text.
        text: String,
        /// The clause.
        clause: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl ModeChange {
    /// Exactly `mode`, whatever it was; bits above `0o7777` are dropped.
    pub fn exact(mode: u32) -> ModeChange {
        let bits = mode & ALL;
        ModeChange {
            text: format!("{bits:04o}"),
            actions: vec![Action {
                affected: ALL,
                operator: Operator::Set,
                bits,
                run_if_run: false,
                like: None,
            }],
        }
    }

    /// What `mode` becomes; `X` asks whether it is a directory's.
    pub fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        self.actions
            .iter()
            .fold(mode & ALL, |mode, action| action.apply(mode, is_dir))
    }
}

impl Action {
    fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let mut bits = self.bits;
        if self.run_if_run && (is_dir || mode & 0o111 != 0) {
            bits |= 0o111;
        }
        if let Some(shift) = self.like {
            bits |= (mode >> shift & 7) * 0o111;
        }
        bits &= self.affected;
        match self.operator {
            Operator::Add => mode | bits,
            Operator::Remove => mode & !bits,
            Operator::Set => mode & !self.affected | bits,
        }
    }
}

impl fmt::Display for ModeChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for ModeChange {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<ModeChange, ModeError> {
        if text.starts_with(|char: char| char.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8)
                .ok()
                .filter(|mode| *mode <= ALL);
            return mode
                .map(ModeChange::exact)
                .ok_or_else(|| ModeError::Number {
                    text: text.to_owned(),
                });
        }
        let mut actions = Vec::new();
        for clause in text.split(',') {
            read_clause(clause, &mut actions).map_err(|reason| ModeError::Clause {
                text: text.to_owned(),
                clause: clause.to_owned(),
                reason,
            })?;
        }
        Ok(ModeChange {
            text: text.to_owned(),
            actions,
        })
    }
}

fn read_clause(clause: &str, actions: &mut Vec<Action>) -> Result<(), &'static str> {
    let who = clause.len() - clause.trim_start_matches(['u', 'g', 'o', 'a']).len();
    let (who, mut rest) = clause.split_at(who);
    let affected = match who {
        "" => ALL,
        who => who.chars().fold(0, |mask, who| {
            mask | match who {
                'u' => 0o4700,
                'g' => 0o2070,
                'o' => 0o1007,
                _ => ALL,
            }
        }),
    };
    if rest.is_empty() {
        return Err("has none of `+`, `-` and `=`");
    }
    while let Some(first) = rest.chars().next() {
        let operator = match first {
            '+' => Operator::Add,
            '-' => Operator::Remove,
            '=' => Operator::Set,
            _ => return Err("must be `u`, `g`, `o` or `a`, then `+`, `-` or `=`, then `rwxXst`"),
        };
        let end = rest[1..]
            .find(['+', '-', '='])
            .map_or(rest.len(), |at| at + 1);
        let mut action = Action {
            affected,
            operator,
            bits: 0,
            run_if_run: false,
            like: None,
        };
        match &rest[1..end] {
            "u" => action.like = Some(6),
            "g" => action.like = Some(3),
            "o" => action.like = Some(0),
            letters => {
                for letter in letters.chars() {
                    match letter {
                        'r' => action.bits |= 0o444,
                        'w' => action.bits |= 0o222,
                        'x' => action.bits |= 0o111,
                        'X' => action.run_if_run = true,
                        's' => action.bits |= 0o6000,
                        't' => action.bits |= 0o1000,
                        'u' | 'g' | 'o' => {
                            return Err("copies from more than one of `u`, `g`, `o`");
                        }
                        _ => {
                            return Err("grants something other than `r`, `w`, `x`, `X`, `s`, `t`");
                        }
                    }
                }
            }
        }
        actions.push(action);
        rest = &rest[end..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: &str, mode: u32, is_dir: bool, expect: u32) {
        let found = change.parse::<ModeChange>().unwrap().apply(mode, is_dir);
        assert_eq!(
            format!("{found:o}"),
            format!("{expect:o}"),
            "{change} on {mode:o}"
        );
    }

    #[test]
    fn octal() {
        check("755", 0, false, 0o755);
        check("0", 0o777, false, 0);
        check("07777", 0, true, 0o7777);
        check("1777", 0o4755, true, 0o1777);
        assert_eq!("00644".parse::<ModeChange>().unwrap().to_string(), "0644");
    }

    #[test]
    fn symbolic() {
        check("u=rwX,go=rX", 0o600, false, 0o644);
        check("u=rwX,go=rX", 0o700, false, 0o755);
        check("u=rwX,go=rX", 0o600, true, 0o755);
        check("a+X", 0o640, false, 0o640);
        check("a+X", 0o740, false, 0o751);
        check("go-w", 0o666, false, 0o644);
        check("+t", 0o755, true, 0o1755);
        check("u+s", 0o755, false, 0o4755);
        check("g+s", 0o755, true, 0o2755);
        check("a=", 0o755, false, 0);
        check("=", 0o755, false, 0);
        check("+w", 0o444, false, 0o666);
        check("u=g", 0o651, false, 0o551);
        check("go=u-w", 0o640, false, 0o644);
        check("u+x,g=u,o=", 0o640, false, 0o770);
        check("u-rwx,u=o", 0o753, false, 0o353);
        check("ug+rw-x", 0o711, false, 0o661);
        // A bit is somebody's: `t` the others', `s` the owner's and the group's.
        check("u+t", 0o755, true, 0o755);
        check("o+t", 0o755, true, 0o1755);
        check("o+s", 0o755, false, 0o755);
    }

    #[test]
    fn like_chmod() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let clauses = [
            "u=rwX,go=rX",
            "a+X",
            "+t",
            "u+s",
            "ug+s",
            "g=u",
            "o=g-w",
            "a-x+X",
            "u=o,o=u",
            "go=",
            "=rx",
            "a=r,u+w",
            "ugo+rwx",
            "-s",
            "u-s,g+s",
            "o+t",
            "a=rwxst",
            "g-r,o-r",
            "+x",
            "u+w-x=r",
        ];
        for clause in clauses {
            for mode in [
                0o000, 0o644, 0o755, 0o640, 0o701, 0o4755, 0o2750, 0o1777, 0o7777,
            ] {
                use std::os::unix::fs::PermissionsExt;
                std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
                let ran = std::process::Command::new("sh")
                    .args(["-c", "umask 0; exec chmod -- \"$0\" \"$1\"", clause])
                    .arg(&file)
                    .status();
                assert!(ran.unwrap().success(), "{clause}");
                let meta = std::fs::metadata(&file).unwrap();
                check(clause, mode, false, meta.permissions().mode() & 0o7777);
            }
        }
    }

    #[test]
    fn what_is_no_mode() {
        let check = |text: &str, expect: &str| {
            let error = text.parse::<ModeChange>().unwrap_err();
            assert_eq!(error.to_string(), expect);
        };
        check("99", "the mode `99` is not an octal number from 0 to 07777");
        check(
            "10000",
            "the mode `10000` is not an octal number from 0 to 07777",
        );
        check(
            "0o755",
            "the mode `0o755` is not an octal number from 0 to 07777",
        );
        check(
            "u",
            "the mode `u` is neither octal nor symbolic: `u` has none of `+`, `-` and `=`",
        );
        check(
            "u+r,z+w",
            "the mode `u+r,z+w` is neither octal nor symbolic: `z+w` must be `u`, `g`, `o` or `a`, then `+`, `-` or `=`, then `rwxXst`",
        );
        check(
            "a+q",
            "the mode `a+q` is neither octal nor symbolic: `a+q` grants something other than `r`, `w`, `x`, `X`, `s`, `t`",
        );
        for text in ["", "u+r,", "rwx", "u+ug", "+é", "-1", "a+r w"] {
            assert!(text.parse::<ModeChange>().is_err(), "{text}");
        }
    }
}
