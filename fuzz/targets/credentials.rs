//! Whatever says who somebody is: tokens, keys, files of users, hashes, certificates. Nothing unsigned is believed, and no
//! hash is taken that would cost too much to check.
#![no_main]

use registry_server::auth::certificate::{CertificateName, name_of};
use registry_server::auth::jwt::{PublicKey, Token, read_keys};
use registry_server::auth::password::PasswordHash;
use registry_server::fuzzing;
use registry_server::policy::{Action, Person, Policy, PolicyRule, Who};
use registry_server::routes::RepositoryName;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    for wanted in [
        CertificateName::CommonName,
        CertificateName::Email,
        CertificateName::Dns,
        CertificateName::Uri,
    ] {
        if let Some(name) = name_of(data, wanted) {
            assert!(!name.is_empty() && !name.chars().any(char::is_control));
            assert!(data.windows(name.len()).any(|part| part == name.as_bytes()));
        }
    }
    let text = String::from_utf8_lossy(data);
    let keys = read_keys(data).unwrap_or_default();
    token(&text, &keys);
    users(&text);
    policy(&text);
});

/// A token that nobody signed is no key's.
fn token(text: &str, keys: &[(Option<String>, PublicKey)]) {
    let Ok(token) = Token::read(text) else {
        return;
    };
    let issuer = token.claimed_issuer().map(str::to_owned);
    assert!(issuer.is_none_or(|issuer| issuer.len() < text.len()));
    let weak = [
        PublicKey::Ed25519(vec![0; 32]),
        PublicKey::P256(vec![4; 65]),
    ];
    let keys = keys.iter().map(|(_, key)| key).chain(&weak);
    for key in keys {
        assert!(key.verify(&token).is_err(), "{text:?}");
    }
}

fn users(text: &str) {
    let lines = text.lines().count();
    match fuzzing::users(text) {
        Ok(users) => {
            assert!(users.len() <= lines);
            for (user, hash) in users {
                assert!(!user.is_empty() && !user.contains(':'));
                let parsed = PasswordHash::parse(&hash).expect("it was taken");
                assert_eq!(parsed.as_str(), hash);
            }
        }
        Err(line) => assert!((1..=lines).contains(&line)),
    }
}

/// A pattern of repositories, a user's name and a repository, one on a line: a name is never a pattern.
fn policy(text: &str) {
    let mut lines = text.lines();
    let (Some(pattern), Some(user), Some(name)) = (lines.next(), lines.next(), lines.next()) else {
        return;
    };
    let Ok(repository) = RepositoryName::parse(name) else {
        return;
    };
    let policy = Policy {
        rules: vec![PolicyRule {
            repositories: vec![pattern.to_owned()],
            who: Who {
                users: vec!["*".to_owned()],
                ..Who::default()
            },
            actions: [Action::Pull].into(),
        }],
    };
    let person = Person::named(user);
    let allowed = policy.allows(&person, Action::Pull, &repository);
    assert!(!policy.allows(&person, Action::Push, &repository));
    assert!(!policy.allows(&Person::default(), Action::Pull, &repository));
    if pattern == "{user}" {
        assert!(!allowed || user == name, "{text:?}");
    }
    if !pattern.contains(['*', '?', '{']) {
        assert_eq!(allowed, pattern == name, "{text:?}");
    }
}
