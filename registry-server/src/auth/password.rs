//! Hashes of passwords as an htpasswd file has them: bcrypt and Argon2.

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

/// Most memory that one check may take, in KiB; several run at once.
const MEMORY_KIB_MAX: u32 = 256 * 1024;

/// Most passes over that memory, with which a check takes seconds.
const PASSES_MAX: u32 = 64;

/// Longest salt and longest hash, in bytes.
const BYTES_MAX: usize = 64;

/// What new hashes are made with: RFC 9106's choice for where memory is dear.
const NEW_MEMORY_KIB: u32 = 64 * 1024;
const NEW_PASSES: u32 = 3;
const NEW_LANES: u32 = 4;

/// Longest password that bcrypt looks at, in bytes; it would take any that begins alike.
pub const BCRYPT_BYTES_MAX: usize = 72;

/// A password's hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PasswordHash {
    /// `$2b$…` and its siblings.
    Bcrypt(String),
    /// `$argon2id$…`, `$argon2i$…`, `$argon2d$…`.
    Argon2(Argon2Hash),
}

/// The parts of an Argon2 hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argon2Hash {
    text: String,
    algorithm: Algorithm,
    params: Params,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

impl PasswordHash {
    /// Reads a hash; `None` if it is of no known kind, or would take more time and memory than a server has.
    pub fn parse(text: &str) -> Option<PasswordHash> {
        let bcrypt = ["$2a$", "$2b$", "$2x$", "$2y$"];
        if text.len() == 60 && bcrypt.iter().any(|version| text.starts_with(version)) {
            return Some(PasswordHash::Bcrypt(text.to_owned()));
        }
        argon2_hash(text).map(PasswordHash::Argon2)
    }

    /// The text that it was read from.
    pub fn as_str(&self) -> &str {
        match self {
            PasswordHash::Bcrypt(text) => text,
            PasswordHash::Argon2(hash) => &hash.text,
        }
    }

    /// Whether this is the hash of `password`. Takes its time.
    pub fn verify(&self, password: &[u8]) -> bool {
        match self {
            PasswordHash::Bcrypt(text) => bcrypt::verify(password, text).unwrap_or(false),
            PasswordHash::Argon2(hash) => {
                let argon2 = Argon2::new(hash.algorithm, Version::V0x13, hash.params.clone());
                let mut computed = vec![0; hash.hash.len()];
                let done = argon2.hash_password_into(password, &hash.salt, &mut computed);
                done.is_ok() && is_equal(&computed, &hash.hash)
            }
        }
    }

    /// The hash of a new password: Argon2id with a random salt.
    pub fn new(password: &[u8]) -> PasswordHash {
        let mut salt = [0; 16];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut salt)
            .expect("the kernel gives random bytes");
        let params = Params::new(NEW_MEMORY_KIB, NEW_PASSES, NEW_LANES, None)
            .expect("the constants are within Argon2's bounds");
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut hash = [0; 32];
        argon2
            .hash_password_into(password, &salt, &mut hash)
            .expect("the lengths are within Argon2's bounds");
        let text = format!(
            "$argon2id$v=19$m={NEW_MEMORY_KIB},t={NEW_PASSES},p={NEW_LANES}${}${}",
            STANDARD_NO_PAD.encode(salt),
            STANDARD_NO_PAD.encode(hash)
        );
        PasswordHash::parse(&text).expect("it was just written")
    }

    /// The hash of a new password: bcrypt, as `htpasswd -B` writes it. `cost` is the binary logarithm of its rounds, 4 to 31;
    /// `None` if it is another, or the password has more than [`BCRYPT_BYTES_MAX`] bytes.
    pub fn new_bcrypt(password: &[u8], cost: u32) -> Option<PasswordHash> {
        if password.len() > BCRYPT_BYTES_MAX {
            return None;
        }
        let parts = bcrypt::hash_with_result(password, cost).ok()?;
        PasswordHash::parse(&parts.format_for_version(bcrypt::Version::TwoY))
    }
}

/// Compares without telling by its time how much is equal.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b));
    a.len() == b.len() && differences == 0
}

fn argon2_hash(text: &str) -> Option<Argon2Hash> {
    let mut parts = text.strip_prefix('$')?.split('$');
    let algorithm = match parts.next()? {
        "argon2id" => Algorithm::Argon2id,
        "argon2i" => Algorithm::Argon2i,
        "argon2d" => Algorithm::Argon2d,
        _ => return None,
    };
    if parts.next()? != "v=19" {
        return None;
    }
    let (mut memory, mut passes, mut lanes) = (None, None, None);
    for part in parts.next()?.split(',') {
        let (key, value) = part.split_once('=')?;
        let value: u32 = value.parse().ok()?;
        match key {
            "m" => memory = Some(value),
            "t" => passes = Some(value),
            "p" => lanes = Some(value),
            _ => return None,
        }
    }
    let bytes = |part: &str| {
        let bytes = STANDARD_NO_PAD.decode(part).ok()?;
        (bytes.len() <= BYTES_MAX).then_some(bytes)
    };
    let (salt, hash) = (bytes(parts.next()?)?, bytes(parts.next()?)?);
    let memory = memory.filter(|memory| *memory <= MEMORY_KIB_MAX)?;
    let passes = passes.filter(|passes| *passes <= PASSES_MAX)?;
    let params = Params::new(memory, passes, lanes?, Some(hash.len())).ok()?;
    let whole = parts.next().is_none() && salt.len() >= argon2::MIN_SALT_LEN;
    whole.then(|| Argon2Hash {
        text: text.to_owned(),
        algorithm,
        params,
        salt,
        hash,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the authors' own command: `printf password | argon2 somesalt -t 2 -m 16 -p 4 -l 24`.
    const KNOWN: &str =
        "$argon2i$v=19$m=65536,t=2,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub+b+dWRWJTmaaJObG";

    #[test]
    fn hashes_are_told_apart_and_verified() {
        let check = |text: &str, password: &str, expected: bool| {
            let hash = PasswordHash::parse(text).unwrap();
            assert_eq!(hash.as_str(), text);
            assert_eq!(hash.verify(password.as_bytes()), expected, "{text}");
        };
        check(KNOWN, "password", true);
        check(KNOWN, "Password", false);
        let bcrypt = bcrypt::hash("secret", 4).unwrap();
        check(&bcrypt, "secret", true);
        check(&bcrypt, "", false);
    }

    #[test]
    fn new_hashes_are_each_their_own() {
        let (a, b) = (PasswordHash::new(b"secret"), PasswordHash::new(b"secret"));
        assert_ne!(a, b);
        assert!(a.verify(b"secret") && !a.verify(b"secre"));
    }

    #[test]
    fn bcrypt_takes_no_password_in_part() {
        let hash = PasswordHash::new_bcrypt(b"secret", 4).unwrap();
        assert!(hash.as_str().starts_with("$2y$04$"), "{}", hash.as_str());
        assert!(hash.verify(b"secret") && !hash.verify(b"secre"));
        let long = [b'x'; BCRYPT_BYTES_MAX + 1];
        assert_eq!(PasswordHash::new_bcrypt(&long, 4), None);
        assert!(PasswordHash::new_bcrypt(&long[1..], 4).is_some());
        assert_eq!(PasswordHash::new_bcrypt(b"x", 3), None);
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        for text in [
            "",
            "secret",
            "$2y$05$short",
            "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
            "$apr1$x$y",
            "$argon2id$v=16$m=64,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2g",
            "$argon2id$v=19$m=64,t=2$c2FsdHNhbHQ$aGFzaGhhc2g",
            "$argon2id$v=19$m=64,t=2,p=1,x=1$c2FsdHNhbHQ$aGFzaGhhc2g",
            "$argon2id$v=19$m=64,t=2,p=1$c2FsdHNhbHQ",
            "$argon2id$v=19$m=64,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2g$",
            "$argon2id$v=19$m=64,t=2,p=1$c2Fs$aGFzaGhhc2g",
            "$argon2id$v=19$m=4294967295,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2g",
            "$argon2id$v=19$m=64,t=4294967295,p=1$c2FsdHNhbHQ$aGFzaGhhc2g",
            "$argon2id$v=19$m=64,t=2,p=1$c2FsdHNhbHQ$!!!!",
        ] {
            assert_eq!(PasswordHash::parse(text), None, "{text}");
        }
    }
}
