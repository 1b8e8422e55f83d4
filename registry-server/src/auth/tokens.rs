//! Tokens that this registry issues and verifies itself: short-lived ones that say what their bearer may do, and long-lived
//! ones that those can be had for again.

use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Map, Value, json};

use super::jwt::{PublicKey, SigningKey, Token, TokenError};
use super::scope::Grant;
use crate::policy::Person;
use crate::routes::UploadId;
use crate::storage::{RegistryStorage, StorageError};

/// The name of the key in the storage.
const SECRET: &str = "token-key";

/// How the registry issues tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenConfig {
    /// URL of `/token` as clients reach it; by default what the request itself was sent to.
    pub realm: Option<String>,
    /// Whom tokens are for, and who they are from.
    pub service: String,
    /// How long one is valid.
    pub lifetime: Duration,
    /// How long one can be had again without the password.
    pub refresh_lifetime: Duration,
    /// PKCS #8 in PEM, of Ed25519 or P-256; by default one that is made once and kept with the images.
    pub key: Option<PathBuf>,
    /// Certificates of the key in PEM, its own first, for verifiers that know only their issuer.
    pub certificates: Option<PathBuf>,
}

impl Default for TokenConfig {
    fn default() -> TokenConfig {
        TokenConfig {
            realm: None,
            service: "longshore registry".to_owned(),
            lifetime: Duration::from_secs(5 * 60),
            refresh_lifetime: Duration::from_secs(30 * 24 * 60 * 60),
            key: None,
            certificates: None,
        }
    }
}

/// Why no tokens can be issued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenKeyError {
    /// A file cannot be read as PEM.
    #[error("cannot read `{}` as PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// It is another kind of key.
    #[error("the key in `{}` is not one that tokens are signed with: expected Ed25519 or P-256, as PKCS #8", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// The storage does not give or take it.
    #[error("cannot keep the key of tokens with the images")]
    Storage(#[from] StorageError),
    /// What the storage has is no key.
    #[error("what is kept as the key of tokens is none: remove `_secrets/{SECRET}` for a new one")]
    Kept,
}

/// Issues and verifies.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) config: TokenConfig,
    key: SigningKey,
    public: PublicKey,
    chain: Vec<Vec<u8>>,
}

/// A token as it is given out.
pub(crate) struct Issued {
    pub(crate) text: String,
    /// Its name in logs.
    pub(crate) id: String,
}

/// Who may have tokens again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refresh {
    pub(crate) user: String,
    /// What [`super::htpasswd::Htpasswd::stamp`] said when it was issued.
    pub(crate) stamp: String,
}

impl Tokens {
    /// Reads the key, or makes one. Blocks.
    pub(crate) fn open(
        config: TokenConfig,
        storage: &dyn RegistryStorage,
    ) -> Result<Tokens, TokenKeyError> {
        let pem = |path: &PathBuf| {
            let path = path.clone();
            move |source| TokenKeyError::Pem { path, source }
        };
        let key = match &config.key {
            Some(path) => {
                let key = PrivateKeyDer::from_pem_file(path).map_err(pem(path))?;
                let kind = || TokenKeyError::Kind { path: path.clone() };
                SigningKey::from_pkcs8(key.secret_der()).ok_or_else(kind)?
            }
            None => {
                let kept = storage.secret(SECRET, &SigningKey::generate())?;
                SigningKey::from_pkcs8(&kept).ok_or(TokenKeyError::Kept)?
            }
        };
        let chain = match &config.certificates {
            Some(path) => CertificateDer::pem_file_iter(path)
                .and_then(|found| {
                    let found = found.map(|found| found.map(|found| found.to_vec()));
                    found.collect::<Result<Vec<_>, _>>()
                })
                .map_err(pem(path))?,
            None => Vec::new(),
        };
        let public = key.public();
        Ok(Tokens {
            config,
            key,
            public,
            chain,
        })
    }

    /// A token for `person` that gives what `grants` say.
    pub(crate) fn issue(&self, person: &Person, grants: &[Grant], now: i64) -> Issued {
        let mut claims = self.claims(person.user.as_deref(), now, self.config.lifetime);
        claims.insert("aud".to_owned(), json!(self.config.service));
        claims.insert("access".to_owned(), json!(grants));
        if !person.groups.is_empty() {
            claims.insert("groups".to_owned(), json!(person.groups));
        }
        self.sign(&claims)
    }

    /// A token for which `user` gets others as long as the password is the one that `stamp` is of.
    pub(crate) fn issue_refresh(&self, user: &str, stamp: &str, now: i64) -> Issued {
        let mut claims = self.claims(Some(user), now, self.config.refresh_lifetime);
        claims.insert("aud".to_owned(), json!(self.refresh_audience()));
        claims.insert("stamp".to_owned(), json!(stamp));
        self.sign(&claims)
    }

    fn sign(&self, claims: &Map<String, Value>) -> Issued {
        let id = claims
            .get("jti")
            .and_then(Value::as_str)
            .unwrap_or_default();
        Issued {
            text: self.key.sign(claims, &self.chain),
            id: id.to_owned(),
        }
    }

    fn claims(&self, user: Option<&str>, now: i64, lifetime: Duration) -> Map<String, Value> {
        let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        let claims = json!({
            "iss": self.config.service,
            "sub": user.unwrap_or_default(),
            "iat": now,
            "nbf": now,
            "exp": now.saturating_add(lifetime),
            "jti": UploadId::random().as_str(),
        });
        match claims {
            Value::Object(claims) => claims,
            _ => Map::new(),
        }
    }

    fn refresh_audience(&self) -> String {
        format!("{} refresh", self.config.service)
    }

    /// Whether a token says that it is one of these; [`Tokens::check`] tells whether it is.
    pub(crate) fn claims_to_be(&self, token: &Token<'_>) -> bool {
        token.key.as_deref() == Some(self.key.name())
    }

    /// Whose token it is and what it gives.
    pub(crate) fn check(
        &self,
        token: &Token<'_>,
        now: i64,
    ) -> Result<(Person, Vec<Grant>), TokenError> {
        let claims = self.public.verify(token)?;
        claims.check_times(now)?;
        claims.is_for(&self.config.service)?;
        let read = |name: &str| {
            claims
                .0
                .get(name)
                .cloned()
                .unwrap_or(Value::Array(Vec::new()))
        };
        let grants = serde_json::from_value(read("access"));
        let groups = serde_json::from_value(read("groups"));
        let (Ok(grants), Ok(groups)) = (grants, groups) else {
            return Err(TokenError::Malformed);
        };
        let user = claims.text("sub").filter(|user| !user.is_empty());
        let person = Person {
            user: user.map(str::to_owned),
            groups,
        };
        Ok((person, grants))
    }

    /// Who may have tokens again for this one.
    pub(crate) fn check_refresh(&self, text: &str, now: i64) -> Result<Refresh, TokenError> {
        let claims = self.public.verify(&Token::read(text)?)?;
        claims.check_times(now)?;
        claims.is_for(&self.refresh_audience())?;
        let text = |name: &str| claims.text(name).unwrap_or_default().to_owned();
        Ok(Refresh {
            user: text("sub"),
            stamp: text("stamp"),
        })
    }

    /// The key's public half, as other verifiers read it.
    pub(crate) fn published(&self) -> Value {
        json!({"keys": [self.key.published()]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Action;
    use crate::routes::RepositoryName;
    use crate::storage::memory::MemoryStorage;

    #[test]
    fn tokens_are_what_they_were_issued_for() {
        let storage = MemoryStorage::default();
        let open = || Tokens::open(TokenConfig::default(), &storage).unwrap();
        // Another server on the same storage.
        let (tokens, other) = (open(), open());
        let person = Person {
            user: Some("ann".to_owned()),
            groups: ["team".to_owned()].into(),
        };
        let name = RepositoryName::parse("a").unwrap();
        let grants = vec![Grant::repository(&name, [Action::Pull])];
        let issued = tokens.issue(&person, &grants, 1000);
        let read = Token::read(&issued.text).unwrap();
        assert!(other.claims_to_be(&read));
        assert_eq!(other.check(&read, 1000), Ok((person, grants)));
        assert_eq!(other.check(&read, 1000 + 361), Err(TokenError::Expired));
        assert_eq!(
            other.check_refresh(&issued.text, 1000),
            Err(TokenError::Audience)
        );
        let refresh = tokens.issue_refresh("ann", "x", 1000);
        let read = Token::read(&refresh.text).unwrap();
        assert_eq!(other.check(&read, 1000), Err(TokenError::Audience));
        let again = other.check_refresh(&refresh.text, 1000).unwrap();
        assert_eq!((again.user.as_str(), again.stamp.as_str()), ("ann", "x"));
        assert_ne!(issued.id, refresh.id);
        let stranger = Tokens::open(TokenConfig::default(), &MemoryStorage::default()).unwrap();
        assert!(!stranger.claims_to_be(&read));
        assert_eq!(stranger.check(&read, 1000), Err(TokenError::Signature));
        let nobody = tokens.issue(&Person::default(), &[], 1000);
        let read = Token::read(&nobody.text).unwrap();
        assert_eq!(
            tokens.check(&read, 1000),
            Ok((Person::default(), Vec::new()))
        );
    }
}
