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

/// The first public key of RFC 8032, section 7.1. A made-up one will not do: of a point of small order, such as 32 zero
/// bytes, one in four texts has a valid signature of zeros.
const ED25519: [u8; 32] = [
    0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a,
    0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
];

/// A token that nobody signed is no key's.
fn token(text: &str, keys: &[(Option<String>, PublicKey)]) {
    let Ok(token) = Token::read(text) else {
        return;
    };
    let issuer = token.claimed_issuer().map(str::to_owned);
    assert!(issuer.is_none_or(|issuer| issuer.len() < text.len()));
    let others = [PublicKey::Ed25519(ED25519.to_vec())];
    let keys = keys.iter().map(|(_, key)| key).chain(&others);
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
