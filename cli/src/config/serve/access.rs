//! `[auth]`, `[[policy]]`, `[[immutable]]` and `[[quota]]`: who somebody is, and what they may do.

use std::path::PathBuf;

use registry_server::AuthConfig;
use registry_server::auth::certificate::{CertificateName, ClientCertificates};
use registry_server::auth::issuers::{ClaimRule, IssuerConfig, KeySource};
use registry_server::auth::tokens::TokenConfig;
use registry_server::immutable::ImmutableRule;
use registry_server::policy::{Action, PolicyRule, Who};
use registry_server::quota::QuotaRule;

use crate::config::table::{Table, TableError};

/// The names of actions.
const ACTIONS: [(&str, Action); 3] = [
    ("pull", Action::Pull),
    ("push", Action::Push),
    ("delete", Action::Delete),
];

/// The names that a certificate may have its user in.
const CERTIFICATE_NAMES: [(&str, CertificateName); 4] = [
    ("common-name", CertificateName::CommonName),
    ("email", CertificateName::Email),
    ("dns", CertificateName::Dns),
    ("uri", CertificateName::Uri),
];

/// Reads both from the whole file. `file` makes a path of a name.
pub(super) fn read(
    root: &mut Table<'_>,
    file: &impl Fn(String) -> PathBuf,
) -> Result<AuthConfig, TableError> {
    let mut config = AuthConfig::default();
    if let Some(mut auth) = root.table("auth")? {
        config.htpasswd = auth.text("htpasswd")?.map(file);
        for (group, users) in auth.named_texts("groups")? {
            config.groups.insert(group, users.into_iter().collect());
        }
        if let Some(mut token) = auth.table("token")? {
            config.tokens = Some(tokens(&mut token, file)?);
            token.finish()?;
        }
        for mut table in auth.tables("issuer")?.unwrap_or_default() {
            config.issuers.push(issuer(&mut table, file)?);
            table.finish()?;
        }
        if let Some(mut table) = auth.table("certificates")? {
            config.certificates = Some(certificates(&mut table, file)?);
            table.finish()?;
        }
        auth.finish()?;
    }
    for mut table in root.tables("policy")?.unwrap_or_default() {
        config.policy.push(rule(&mut table)?);
        table.finish()?;
    }
    Ok(config)
}

/// Reads `[[immutable]]` from the whole file.
pub(super) fn immutable(root: &mut Table<'_>) -> Result<Vec<ImmutableRule>, TableError> {
    let any = |_: &str| Ok(());
    let all = |texts: Vec<String>| match texts.is_empty() {
        true => vec!["*".to_owned()],
        false => texts,
    };
    let mut rules = Vec::new();
    for mut table in root.tables("immutable")?.unwrap_or_default() {
        let repositories = table.texts("repositories", any)?;
        let tags = table.texts("tags", any)?;
        if repositories.is_empty() && tags.is_empty() {
            return Err(table.error("it needs `repositories`, `tags` or both"));
        }
        rules.push(ImmutableRule {
            repositories: all(repositories),
            tags: all(tags),
        });
        table.finish()?;
    }
    Ok(rules)
}

/// Reads `[[quota]]` from the whole file.
pub(super) fn quotas(root: &mut Table<'_>) -> Result<Vec<QuotaRule>, TableError> {
    let mut rules = Vec::new();
    for mut table in root.tables("quota")?.unwrap_or_default() {
        let repositories = table.texts("repositories", |_| Ok(()))?;
        if repositories.is_empty() {
            return Err(table.error("it needs `repositories`, such as [\"team/*\"]"));
        }
        let Some(bytes) = table.size("size", |bytes| bytes, |_| None, "")? else {
            return Err(table.error("it needs `size`"));
        };
        rules.push(QuotaRule {
            repositories,
            bytes,
        });
        table.finish()?;
    }
    Ok(rules)
}

fn tokens(
    table: &mut Table<'_>,
    file: &impl Fn(String) -> PathBuf,
) -> Result<TokenConfig, TableError> {
    let usual = TokenConfig::default();
    Ok(TokenConfig {
        realm: table.text("realm")?,
        service: table.text("service")?.unwrap_or(usual.service),
        lifetime: table.duration("lifetime")?.unwrap_or(usual.lifetime),
        refresh_lifetime: table
            .duration("refresh_lifetime")?
            .unwrap_or(usual.refresh_lifetime),
        key: table.text("key")?.map(file),
        certificates: table.text("certificates")?.map(file),
    })
}

fn issuer(
    table: &mut Table<'_>,
    file: &impl Fn(String) -> PathBuf,
) -> Result<IssuerConfig, TableError> {
    let (Some(issuer), Some(audience)) = (table.text("issuer")?, table.text("audience")?) else {
        return Err(table.error("it needs both `issuer` and `audience`"));
    };
    let keys = match (table.text("keys")?, table.text("keys_file")?) {
        (Some(_), Some(_)) => return Err(table.error("there are `keys` and `keys_file`: give one")),
        (Some(url), None) => KeySource::Url(url),
        (None, Some(path)) => KeySource::File(file(path)),
        (None, None) => KeySource::Discovery,
    };
    let mut rules = Vec::new();
    for mut rule in table.tables("rule")?.unwrap_or_default() {
        let claims = rule.named_texts("claims")?;
        let groups = rule.texts("groups", |_| Ok(()))?;
        let Some(user) = rule.text("user")? else {
            return Err(rule.error("it needs `user`, such as \"ci:{sub}\""));
        };
        rules.push(ClaimRule {
            claims: claims.into_iter().collect(),
            user,
            groups: groups.into_iter().collect(),
        });
        rule.finish()?;
    }
    let access = table.boolean("access")?.unwrap_or(false);
    if rules.is_empty() && !access {
        return Err(table.error("nobody would come of it: give rules, or `access`"));
    }
    Ok(IssuerConfig {
        issuer,
        audience,
        keys,
        access,
        rules,
    })
}

fn certificates(
    table: &mut Table<'_>,
    file: &impl Fn(String) -> PathBuf,
) -> Result<ClientCertificates, TableError> {
    let Some(ca) = table.text("ca")?.map(file) else {
        return Err(table.error("it needs `ca`, whose certificates are believed"));
    };
    Ok(ClientCertificates {
        ca,
        required: table.boolean("required")?.unwrap_or(false),
        user: table
            .word("user", &CERTIFICATE_NAMES)?
            .unwrap_or(CertificateName::CommonName),
    })
}

fn rule(table: &mut Table<'_>) -> Result<PolicyRule, TableError> {
    let any = |_: &str| Ok(());
    let repositories = table.texts("repositories", any)?;
    let who = Who {
        anonymous: table.boolean("anonymous")?.unwrap_or(false),
        users: table.texts("users", any)?,
        groups: table.texts("groups", any)?,
    };
    let actions = table.words("actions", &ACTIONS)?;
    if repositories.is_empty() {
        return Err(table.error("it needs `repositories`, such as [\"team/*\"]"));
    }
    if who == Who::default() {
        return Err(table.error("it is about nobody: give `users`, `groups` or `anonymous`"));
    }
    let Some(actions) = actions.filter(|actions| !actions.is_empty()) else {
        return Err(table.error("it needs `actions`: some of pull, push, delete"));
    };
    Ok(PolicyRule {
        repositories,
        who,
        actions: actions.into_iter().collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::ServeConfig;
    use super::*;

    fn parse(text: &str) -> Result<AuthConfig, TableError> {
        ServeConfig::parse(text, Path::new("/etc")).map(|config| config.server.auth)
    }

    #[test]
    fn everything_can_be_said() {
        let config = parse(
            r#"
[auth]
htpasswd = "users"
[auth.groups]
team = ["ann", "bob"]
[auth.token]
realm = "https://r.example/token"
service = "r.example"
lifetime = "1m"
refresh_lifetime = "1d"
key = "key.pem"
certificates = "key.crt"
[[auth.issuer]]
issuer = "https://gitlab.example"
audience = "r.example"
[[auth.issuer.rule]]
claims = { project_path = ["org/*"], ref_protected = ["true"] }
user = "ci:{project_path}"
groups = ["ci"]
[[auth.issuer]]
issuer = "tokens"
audience = "r.example"
keys_file = "jwks.json"
access = true
[auth.certificates]
ca = "ca.pem"
required = true
user = "uri"
[[policy]]
repositories = ["public/*"]
anonymous = true
actions = ["pull"]
[[policy]]
repositories = ["team/*", "shared"]
users = ["cy"]
groups = ["team"]
actions = ["pull", "push", "delete"]
"#,
        )
        .unwrap();
        assert_eq!(config.htpasswd.as_deref(), Some(Path::new("/etc/users")));
        assert_eq!(config.groups["team"].len(), 2);
        let tokens = config.tokens.unwrap();
        assert_eq!(tokens.service, "r.example");
        assert_eq!(tokens.lifetime.as_secs(), 60);
        assert_eq!(tokens.key.as_deref(), Some(Path::new("/etc/key.pem")));
        let [gitlab, server] = config.issuers.as_slice() else {
            panic!("{:?}", config.issuers);
        };
        assert_eq!(gitlab.keys, KeySource::Discovery);
        assert_eq!(gitlab.rules[0].claims["project_path"], ["org/*"]);
        assert_eq!(server.keys, KeySource::File("/etc/jwks.json".into()));
        assert!(server.access && server.rules.is_empty());
        let certificates = config.certificates.unwrap();
        assert!(certificates.required);
        assert_eq!(certificates.user, CertificateName::Uri);
        let [public, team] = config.policy.as_slice() else {
            panic!("{:?}", config.policy);
        };
        assert!(public.who.anonymous && public.actions.len() == 1);
        assert_eq!(team.repositories, ["team/*", "shared"]);
        assert_eq!(team.who.groups, ["team"]);
        assert_eq!(team.actions.len(), 3);
        assert_eq!(parse("").unwrap(), AuthConfig::default());
        let usual = parse("[auth.token]\n").unwrap().tokens;
        assert_eq!(usual, Some(TokenConfig::default()));
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let check = |text: &str, expect: &str| {
            assert_eq!(parse(text).unwrap_err().to_string(), expect);
        };
        check(
            "[auth]\nhtpaswd = \"x\"\n",
            "2:1: unknown key `auth.htpaswd`: did you mean `htpasswd`?",
        );
        check(
            "[auth.groups]\nteam = \"ann\"\n",
            "2:8: `auth.groups.team` is no list of texts",
        );
        check(
            "[[auth.issuer]]\nissuer = \"x\"\n",
            "2:1: `auth.issuer`: it needs both `issuer` and `audience`",
        );
        check(
            "[[auth.issuer]]\nissuer = \"x\"\naudience = \"y\"\n",
            "2:1: `auth.issuer`: nobody would come of it: give rules, or `access`",
        );
        check(
            "[auth.certificates]\nca = \"x\"\nuser = \"mail\"\n",
            "3:8: `auth.certificates.user` has `mail`: did you mean `email`?",
        );
        check(
            "[[policy]]\nanonymous = true\nactions = [\"pull\"]\n",
            "2:1: `policy`: it needs `repositories`, such as [\"team/*\"]",
        );
        check(
            "[[policy]]\nrepositories = [\"*\"]\nactions = [\"pull\"]\n",
            "2:1: `policy`: it is about nobody: give `users`, `groups` or `anonymous`",
        );
        check(
            "[[policy]]\nrepositories = [\"*\"]\nanonymous = true\n",
            "2:1: `policy`: it needs `actions`: some of pull, push, delete",
        );
        check(
            "[[policy]]\nrepositories = [\"*\"]\nanonymous = true\nactions = [\"pul\"]\n",
            "4:12: `policy.actions` has `pul`: did you mean `pull`?",
        );
    }
}
