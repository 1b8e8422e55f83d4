//! Signed tokens (JSON Web Tokens in compact form): reading, checking and writing them.
//!
//! ```text
//! text ─ Token::read ─► Token (nothing checked) ─ Key::verify ─► Claims (signature checked)
//! Claims ─ check_times, is_for ─► used
//! ```
//!
//! Which algorithm may be used follows from the key, never from the token alone; `none` and shared secrets are not known.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    self, ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED,
    EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaParameters, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Longest token that is looked at, in bytes; headers are no longer.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// How far other people's clocks may be off, in seconds.
const LEEWAY: i64 = 60;

/// Why a token is not taken. Never holds the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It is no token.
    #[error("it is not a signed token")]
    Malformed,
    /// It says that something must be understood that is not.
    #[error("it has critical headers, which are not known here")]
    Critical,
    /// No key fits it.
    #[error("it is signed with a key that is not known here")]
    UnknownKey,
    /// The signature is not the key's.
    #[error("its signature is wrong")]
    Signature,
    /// It is too old.
    #[error("it expired")]
    Expired,
    /// It is too young.
    #[error("it is not valid yet")]
    NotYet,
    /// It has no end.
    #[error("it never expires")]
    Endless,
    /// It was issued for somebody else.
    #[error("it is not for this registry: its audience is another")]
    Audience,
    /// Somebody else issued it.
    #[error("nobody who is trusted here issued it")]
    Issuer,
    /// Nobody by what it says.
    #[error("its claims fit no rule")]
    NoRule,
    /// Its issuer's keys cannot be had.
    #[error("the keys of its issuer cannot be had just now")]
    NoKeys,
}

/// A token's parts, none of which is to be believed.
#[derive(Debug)]
pub struct Token<'t> {
    /// What the signature is of.
    signed: &'t str,
    signature: Vec<u8>,
    /// The algorithm's name.
    algorithm: String,
    /// The name of the key, if it has one.
    pub key: Option<String>,
    claims: Claims,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

/// What a token says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims(pub Map<String, Value>);

impl<'t> Token<'t> {
    /// Whether a text looks like a token at all; passwords do not.
    pub fn is_like(text: &str) -> bool {
        text.starts_with("eyJ") && text.bytes().filter(|byte| *byte == b'.').count() == 2
    }

    /// Takes a token apart.
    pub fn read(text: &'t str) -> Result<Token<'t>, TokenError> {
        let malformed = TokenError::Malformed;
        if text.len() > TOKEN_BYTES_MAX {
            return Err(malformed);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |part: &str| {
            let decoded = URL_SAFE_NO_PAD.decode(part);
            decoded.map_err(|_| TokenError::Malformed)
        };
        let header: Header =
            serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
        if header.crit.is_some() {
            return Err(TokenError::Critical);
        }
        let claims = serde_json::from_slice(&decode(claims)?).map_err(|_| TokenError::Malformed)?;
        Ok(Token {
            signed,
            signature: decode(signature)?,
            algorithm: header.alg,
            key: header.kid,
            claims: Claims(claims),
        })
    }

    /// Who issued it, as it says itself: good for choosing the key to check that with.
    pub fn claimed_issuer(&self) -> Option<&str> {
        self.claims.text("iss")
    }
}

impl Claims {
    /// A claim that is a text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// A time, in seconds since 1970.
    fn time(&self, name: &str) -> Option<i64> {
        let value = self.0.get(name)?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "saturates, which is still a time"
        )]
        value
            .as_i64()
            .or_else(|| value.as_f64().map(|seconds| seconds as i64))
    }

    /// Whether it is valid now, by its own times.
    pub fn check_times(&self, now: i64) -> Result<(), TokenError> {
        let Some(end) = self.time("exp") else {
            return Err(TokenError::Endless);
        };
        if now >= end.saturating_add(LEEWAY) {
            return Err(TokenError::Expired);
        }
        match self.time("nbf") {
            Some(begin) if now < begin.saturating_sub(LEEWAY) => Err(TokenError::NotYet),
            _ => Ok(()),
        }
    }

    /// Whether it was issued for this audience, alone or among others.
    pub fn is_for(&self, audience: &str) -> Result<(), TokenError> {
        let fits = match self.0.get("aud") {
            Some(Value::String(text)) => text == audience,
            Some(Value::Array(all)) => all.iter().any(|one| one == audience),
            _ => false,
        };
        fits.then_some(()).ok_or(TokenError::Audience)
    }
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// Ed25519: 32 bytes.
    Ed25519(Vec<u8>),
    /// A point of P-256, uncompressed.
    P256(Vec<u8>),
    /// A point of P-384, uncompressed.
    P384(Vec<u8>),
    /// RSA: modulus and exponent, big-endian.
    Rsa(Vec<u8>, Vec<u8>),
}

impl PublicKey {
    /// Checks the signature; what the token says can be believed then.
    pub fn verify(&self, token: &Token<'_>) -> Result<Claims, TokenError> {
        let (message, signed) = (token.signed.as_bytes(), token.signature.as_slice());
        let by = |algorithm: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(message, signed)
        };
        let verified = match (self, token.algorithm.as_str()) {
            (PublicKey::Ed25519(key), "EdDSA") => by(&signature::ED25519, key),
            (PublicKey::P256(key), "ES256") => by(&ECDSA_P256_SHA256_FIXED, key),
            (PublicKey::P384(key), "ES384") => by(&ECDSA_P384_SHA384_FIXED, key),
            (PublicKey::Rsa(n, e), algorithm) => {
                let parameters = rsa(algorithm).ok_or(TokenError::Signature)?;
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signed)
            }
            _ => return Err(TokenError::Signature),
        };
        verified.map_err(|_| TokenError::Signature)?;
        Ok(token.claims.clone())
    }
}

fn rsa(algorithm: &str) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
        "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
        "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
        "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
        "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
        "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

/// Keys that somebody publishes (RFC 7517), by name where they have one. Keys of kinds that are not known are left out.
pub fn read_keys(text: &[u8]) -> Option<Vec<(Option<String>, PublicKey)>> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    #[derive(Deserialize)]
    struct Key {
        kty: String,
        #[serde(default)]
        crv: String,
        #[serde(rename = "use")]
        used_for: Option<String>,
        kid: Option<String>,
        x: Option<String>,
        y: Option<String>,
        n: Option<String>,
        e: Option<String>,
    }
    let decode = |text: Option<String>, length: Option<usize>| {
        let bytes = URL_SAFE_NO_PAD.decode(text?.trim_end_matches('=')).ok()?;
        length
            .is_none_or(|length| bytes.len() == length)
            .then_some(bytes)
    };
    let point = |x: Option<String>, y: Option<String>, length: usize| {
        let mut point = vec![4];
        point.extend(decode(x, Some(length))?);
        point.extend(decode(y, Some(length))?);
        Some(point)
    };
    let set: Set = serde_json::from_slice(text).ok()?;
    let keys = set.keys.into_iter().filter_map(|key| {
        let key: Key = serde_json::from_value(key).ok()?;
        if key.used_for.is_some_and(|used_for| used_for != "sig") {
            return None;
        }
        let public = match (key.kty.as_str(), key.crv.as_str()) {
            ("OKP", "Ed25519") => PublicKey::Ed25519(decode(key.x, Some(32))?),
            ("EC", "P-256") => PublicKey::P256(point(key.x, key.y, 32)?),
            ("EC", "P-384") => PublicKey::P384(point(key.x, key.y, 48)?),
            ("RSA", _) => PublicKey::Rsa(decode(key.n, None)?, decode(key.e, None)?),
            _ => return None,
        };
        Some((key.kid, public))
    });
    Some(keys.collect())
}

/// A private key that tokens are signed with, and its name.
pub struct SigningKey {
    pair: Pair,
    name: String,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A new Ed25519 key, as PKCS #8.
    pub fn generate() -> Vec<u8> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
        let document = document.expect("the kernel gives random bytes");
        document.as_ref().to_vec()
    }

    /// An Ed25519 or P-256 key as PKCS #8; `None` if it is neither.
    pub fn from_pkcs8(bytes: &[u8]) -> Option<SigningKey> {
        let pair = match Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes) {
            Ok(pair) => Pair::Ed25519(pair),
            Err(_) => {
                let random = SystemRandom::new();
                let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
                Pair::P256(EcdsaKeyPair::from_pkcs8(algorithm, bytes, &random).ok()?)
            }
        };
        let name = key_name(&pair);
        Some(SigningKey { pair, name })
    }

    /// Its name in tokens: libtrust's, by which CNCF distribution finds the certificate of the key.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What verifies what it signs.
    pub fn public(&self) -> PublicKey {
        match &self.pair {
            Pair::Ed25519(pair) => PublicKey::Ed25519(pair.public_key().as_ref().to_vec()),
            Pair::P256(pair) => PublicKey::P256(pair.public_key().as_ref().to_vec()),
        }
    }

    /// The same as others read it (RFC 7517).
    pub fn published(&self) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match &self.pair {
            Pair::Ed25519(pair) => json!({
                "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": self.name,
                "x": encode(pair.public_key().as_ref()),
            }),
            Pair::P256(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({
                    "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.name,
                    "x": encode(x), "y": encode(y),
                })
            }
        }
    }

    /// A token that says this. `chain` are certificates of the key, its own first, for those who know only their issuer.
    pub fn sign(&self, claims: &Map<String, Value>, chain: &[Vec<u8>]) -> String {
        let algorithm = match &self.pair {
            Pair::Ed25519(_) => "EdDSA",
            Pair::P256(_) => "ES256",
        };
        let mut header = json!({"typ": "JWT", "alg": algorithm, "kid": self.name});
        if !chain.is_empty() {
            let chain: Vec<String> = chain.iter().map(|bytes| STANDARD.encode(bytes)).collect();
            header["x5c"] = json!(chain);
        }
        let encode = |text: String| URL_SAFE_NO_PAD.encode(text);
        let claims = Value::Object(claims.clone());
        let mut token = format!(
            "{}.{}",
            encode(header.to_string()),
            encode(claims.to_string())
        );
        let signature = match &self.pair {
            Pair::Ed25519(pair) => pair.sign(token.as_bytes()).as_ref().to_vec(),
            Pair::P256(pair) => {
                let signed = pair.sign(&SystemRandom::new(), token.as_bytes());
                let signed = signed.expect("the kernel gives random bytes");
                signed.as_ref().to_vec()
            }
        };
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        token
    }
}

/// libtrust's name of a key: 240 bits of the SHA-256 of its DER form, in base 32, in groups of four.
fn key_name(pair: &Pair) -> String {
    // SubjectPublicKeyInfo up to the key: RFC 8410 and RFC 5480.
    const ED25519: &[u8] = &[0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];
    const P256: &[u8] = &[
        0x30, 0x59, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48,
        0xce, 0x3d, 3, 1, 7, 3, 0x42, 0,
    ];
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let (prefix, key) = match pair {
        Pair::Ed25519(pair) => (ED25519, pair.public_key().as_ref()),
        Pair::P256(pair) => (P256, pair.public_key().as_ref()),
    };
    let digest = ring::digest::digest(&ring::digest::SHA256, &[prefix, key].concat());
    let mut name = String::new();
    for (index, chunk) in digest.as_ref()[..30].chunks(5).enumerate() {
        let bits = chunk
            .iter()
            .fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        for digit in 0..8 {
            if digit % 4 == 0 && index + digit > 0 {
                name.push(':');
            }
            let at = usize::try_from(bits >> (35 - 5 * digit) & 31).unwrap_or_default();
            name.push(char::from(DIGITS[at]));
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(value: Value) -> Claims {
        match value {
            Value::Object(map) => Claims(map),
            _ => panic!("not an object"),
        }
    }

    fn key() -> SigningKey {
        SigningKey::from_pkcs8(&SigningKey::generate()).unwrap()
    }

    fn verify(key: &PublicKey, text: &str) -> Result<Claims, TokenError> {
        key.verify(&Token::read(text)?)
    }

    #[test]
    fn what_is_signed_is_verified() {
        let p256 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        let p256 = SigningKey::from_pkcs8(p256.unwrap().as_ref()).unwrap();
        for key in [key(), p256] {
            let said = claims(json!({"sub": "ann", "exp": 5}));
            let text = key.sign(&said.0, &[]);
            assert!(Token::is_like(&text));
            assert_eq!(verify(&key.public(), &text), Ok(said));
            assert_eq!(Token::read(&text).unwrap().key.as_deref(), Some(key.name()));
            // Published and read again it is the same.
            let set = json!({"keys": [key.published(), {"kty": "oct", "k": "AAAA"}, 3]});
            let read = read_keys(set.to_string().as_bytes()).unwrap();
            assert_eq!(read, [(Some(key.name().to_owned()), key.public())]);
            let groups: Vec<&str> = key.name().split(':').collect();
            assert!(groups.len() == 12 && groups.iter().all(|group| group.len() == 4));
        }
    }

    #[test]
    fn what_was_changed_is_not() {
        let (key, other) = (key(), key());
        let text = key.sign(&claims(json!({"sub": "ann"})).0, &[]);
        assert_eq!(verify(&other.public(), &text), Err(TokenError::Signature));
        let parts: Vec<&str> = text.split('.').collect();
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let with = |header: Value, claims: &str, signature: &str| {
            format!("{}.{claims}.{signature}", encode(header))
        };
        let eddsa = json!({"alg": "EdDSA"});
        let bob = encode(json!({"sub": "bob"}));
        let check = |text: &str, expected: TokenError| {
            assert_eq!(verify(&key.public(), text), Err(expected), "{text}");
        };
        check(&with(eddsa.clone(), &bob, parts[2]), TokenError::Signature);
        check(
            &with(json!({"alg": "none"}), parts[1], ""),
            TokenError::Signature,
        );
        check(
            &with(json!({"alg": "HS256"}), parts[1], parts[2]),
            TokenError::Signature,
        );
        check(
            &with(json!({"alg": "ES256"}), parts[1], parts[2]),
            TokenError::Signature,
        );
        check(
            &with(json!({"alg": "RS256"}), parts[1], parts[2]),
            TokenError::Signature,
        );
        check(&with(eddsa, parts[1], ""), TokenError::Signature);
        check(
            &with(json!({"alg": "EdDSA", "crit": ["b64"]}), parts[1], parts[2]),
            TokenError::Critical,
        );
        for text in [
            "",
            ".",
            "..",
            "a.b.c",
            "eyJ.eyJ.x",
            &text[..text.len() / 2],
            &"e".repeat(99_999),
        ] {
            check(text, TokenError::Malformed);
        }
        let array = format!("{}.{}.{}", parts[0], encode(json!([1])), parts[2]);
        check(&array, TokenError::Malformed);
    }

    #[test]
    fn times_and_audiences() {
        let check = |value: Value, expected: Result<(), TokenError>| {
            let shown = value.to_string();
            assert_eq!(claims(value).check_times(1000), expected, "{shown}");
        };
        check(json!({"exp": 1001}), Ok(()));
        check(json!({"exp": 1001.5}), Ok(()));
        check(json!({"exp": 1000 - LEEWAY}), Err(TokenError::Expired));
        check(json!({"exp": 1001 - LEEWAY}), Ok(()));
        check(json!({"exp": i64::MAX}), Ok(()));
        check(json!({"exp": "soon"}), Err(TokenError::Endless));
        check(json!({}), Err(TokenError::Endless));
        check(
            json!({"exp": 2000, "nbf": 1001 + LEEWAY}),
            Err(TokenError::NotYet),
        );
        check(json!({"exp": 2000, "nbf": 1000 + LEEWAY}), Ok(()));
        let is_for = |value: Value| claims(value).is_for("us").is_ok();
        assert!(is_for(json!({"aud": "us"})) && is_for(json!({"aud": ["them", "us"]})));
        assert!(
            !is_for(json!({"aud": "them"})) && !is_for(json!({})) && !is_for(json!({"aud": [1]}))
        );
    }
}
