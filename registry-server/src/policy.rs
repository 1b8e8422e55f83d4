//! Who may do what where: rules, pure.
//!
//! ```text
//! Person + Action + RepositoryName ─ Policy ─► yes or no
//! ```
//!
//! Rules only give; what none of them gives is refused. So their order means nothing, and a rule can be added without
//! reading the others.

use std::collections::BTreeSet;
use std::fmt;

use store::oci::pattern::matches;

use crate::routes::RepositoryName;

/// Stands for the user's name in a pattern of repositories.
const USER: &str = "{user}";

/// What can be done to a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Reading: blobs, manifests, tags, referrers.
    Pull,
    /// Uploading, and putting manifests and tags.
    Push,
    /// Deleting blobs, manifests and tags.
    Delete,
}

impl Action {
    /// All of them.
    pub const ALL: [Action; 3] = [Action::Pull, Action::Push, Action::Delete];

    /// Its name, as scopes of tokens and the configuration have it.
    pub fn name(self) -> &'static str {
        match self {
            Action::Pull => "pull",
            Action::Push => "push",
            Action::Delete => "delete",
        }
    }

    /// The action of this name.
    pub fn from_name(name: &str) -> Option<Action> {
        Action::ALL.into_iter().find(|action| action.name() == name)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who asks, once it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Person {
    /// The name; `None` of somebody who did not say.
    pub user: Option<String>,
    /// The groups that they are in.
    pub groups: BTreeSet<String>,
}

impl Person {
    /// A user in no group.
    pub fn named(user: impl Into<String>) -> Person {
        Person {
            user: Some(user.into()),
            groups: BTreeSet::new(),
        }
    }
}

/// Whom a rule is about: whoever fits any of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// Everybody, known or not.
    pub anonymous: bool,
    /// Users, by pattern; `*` is everybody who is known.
    pub users: Vec<String>,
    /// Groups, by pattern.
    pub groups: Vec<String>,
}

impl Who {
    fn fits(&self, person: &Person) -> bool {
        let is_user = |user: &String| self.users.iter().any(|pattern| matches(pattern, user));
        let in_group = |group: &String| self.groups.iter().any(|pattern| matches(pattern, group));
        self.anonymous
            || person.user.as_ref().is_some_and(is_user)
            || person.groups.iter().any(in_group)
    }
}

/// One rule: these may do this there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    /// Repositories, by pattern, in which `{user}` stands for the name of who asks.
    pub repositories: Vec<String>,
    /// Whom it gives something.
    pub who: Who,
    /// What it gives.
    pub actions: BTreeSet<Action>,
}

impl PolicyRule {
    fn is_about(&self, person: &Person, repository: &str) -> bool {
        self.repositories.iter().any(|pattern| {
            if !pattern.contains(USER) {
                return matches(pattern, repository);
            }
            // A name that could not be part of a repository's could mean something in a pattern.
            let user = person.user.as_deref().unwrap_or_default();
            RepositoryName::parse(user).is_ok()
                && !user.contains('/')
                && matches(&pattern.replace(USER, user), repository)
        })
    }
}

/// All rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// In no order.
    pub rules: Vec<PolicyRule>,
}

impl Policy {
    /// Whoever this is about may do everything everywhere.
    pub fn everything_to(who: Who) -> Policy {
        Policy {
            rules: vec![PolicyRule {
                repositories: vec!["*".to_owned()],
                who,
                actions: Action::ALL.into(),
            }],
        }
    }

    /// Whether a person may do something to a repository, which need not exist.
    pub fn allows(&self, person: &Person, action: Action, repository: &RepositoryName) -> bool {
        self.rules.iter().any(|rule| {
            rule.actions.contains(&action)
                && rule.who.fits(person)
                && rule.is_about(person, repository.as_str())
        })
    }

    /// Whether there is anything at all that a person may do.
    pub fn knows(&self, person: &Person) -> bool {
        self.rules.iter().any(|rule| rule.who.fits(person))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(repositories: &str, who: &str, actions: &[Action]) -> PolicyRule {
        let mut rule = PolicyRule {
            repositories: vec![repositories.to_owned()],
            who: Who::default(),
            actions: actions.iter().copied().collect(),
        };
        match who.split_once(':') {
            Some(("user", user)) => rule.who.users.push(user.to_owned()),
            Some(("group", group)) => rule.who.groups.push(group.to_owned()),
            _ => rule.who.anonymous = true,
        }
        rule
    }

    #[test]
    fn rules_give_and_nothing_else_does() {
        use Action::{Delete, Pull, Push};
        let policy = Policy {
            rules: vec![
                rule("public/*", "anybody", &[Pull]),
                rule("team/*", "group:team", &[Pull, Push]),
                rule("team/*", "user:ann", &[Delete]),
                rule("home/{user}/*", "user:*", &[Pull, Push, Delete]),
            ],
        };
        let nobody = Person::default();
        let ann = Person {
            user: Some("ann".to_owned()),
            groups: ["team".to_owned()].into(),
        };
        let bob = Person::named("bob");
        let odd = Person::named("*");
        let slashed = Person::named("ann/x");
        let check = |person: &Person, repository: &str, expected: &[Action]| {
            let name = RepositoryName::parse(repository).unwrap();
            let may = Action::ALL.into_iter();
            let may: Vec<Action> = may
                .filter(|action| policy.allows(person, *action, &name))
                .collect();
            assert_eq!(may, expected, "{person:?} {repository}");
        };
        check(&nobody, "public/a", &[Pull]);
        check(&ann, "public/a", &[Pull]);
        check(&nobody, "publics/a", &[]);
        check(&nobody, "team/a", &[]);
        check(&ann, "team/a/b", &[Pull, Push, Delete]);
        check(&bob, "team/a", &[]);
        check(&ann, "home/ann/x", &[Pull, Push, Delete]);
        check(&ann, "home/bob/x", &[]);
        check(&bob, "home/bob/x", &[Pull, Push, Delete]);
        check(&odd, "home/bob/x", &[]);
        check(&slashed, "home/ann/x/y", &[]);
        check(&nobody, "home/x", &[]);
        check(&ann, "other", &[]);
        assert!(policy.knows(&nobody));
        assert!(
            !Policy {
                rules: policy.rules[1..].to_vec()
            }
            .knows(&nobody)
        );
    }

    #[test]
    fn everything_to_somebody() {
        let users = Who {
            users: vec!["*".to_owned()],
            ..Who::default()
        };
        let policy = Policy::everything_to(users);
        let name = RepositoryName::parse("a").unwrap();
        assert!(policy.allows(&Person::named("x"), Action::Delete, &name));
        assert!(!policy.allows(&Person::default(), Action::Pull, &name));
        assert!(!policy.knows(&Person::default()));
    }
}
