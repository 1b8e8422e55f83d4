//! Patterns of names and tags: `*` stands for any characters, `?` for one.

/// Whether the whole of `text` fits `pattern`. Takes time in the product of their lengths at most.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where the last star stands, and where the text begins that it has not taken.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, taken)) = star else {
                    return false;
                };
                star = Some((at, taken + 1));
                p = at + 1;
                t = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Whether a name is among those that are wanted: it fits one of `include`, if there are any, and none of `exclude`.
pub fn selected(name: &str, include: &[String], exclude: &[String]) -> bool {
    let fits = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, name));
    (include.is_empty() || fits(include)) && !fits(exclude)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit() {
        let check = |pattern: &str, text: &str, expected: bool| {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        };
        check("*", "", true);
        check("*", "anything", true);
        check("1.*", "1.2", true);
        check("1.*", "1", false);
        check("v?.?", "v1.2", true);
        check("v?.?", "v1.20", false);
        check("*-alpine*", "3.1-alpine3.20", true);
        check("a*b*c", "aXbXbXc", true);
        check("a*b*c", "aXbXbX", false);
        check("pr-*", "spr-12", false);
        check("team/*/app", "team/x/y/app", true);
        check("", "", true);
        check("", "x", false);
        check(&"*a".repeat(50), &"a".repeat(500), true);
        check(&"*a".repeat(50), &"b".repeat(500), false);
    }

    #[test]
    fn names_are_selected() {
        let patterns =
            |all: &[&str]| -> Vec<String> { all.iter().map(|p| (*p).to_owned()).collect() };
        assert!(selected("x", &[], &[]));
        assert!(selected("1.2", &patterns(&["1.*"]), &patterns(&["*-rc"])));
        assert!(!selected(
            "1.2-rc",
            &patterns(&["1.*"]),
            &patterns(&["*-rc"])
        ));
        assert!(!selected("2", &patterns(&["1.*"]), &[]));
    }
}
