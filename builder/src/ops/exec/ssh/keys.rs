//! Private keys in files, as `ssh-keygen` and OpenSSL write them, and signing with them.
//!
//! Ed25519, RSA, and ECDSA on P-256 and P-384; encrypted ones are for an agent, which can ask for the passphrase.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaKeyPair,
};

/// Largest key file, in bytes: one of 16,384 bits has 13 KB.
const FILE_BYTES_MAX: u64 = 64 * 1024;

const OPENSSH: &[u8] = b"openssh-key-v1\0";

// Flags of a request to sign: which hash an RSA signature has.
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

/// A private key.
pub(super) struct Key {
    /// As SSH writes it.
    public: Vec<u8>,
    comment: String,
    secret: Secret,
}

enum Secret {
    Ed25519(Ed25519KeyPair),
    Rsa(Box<RsaKeyPair>),
    Ecdsa(&'static str, EcdsaKeyPair),
}

impl Key {
    pub(super) fn public(&self) -> &[u8] {
        &self.public
    }

    pub(super) fn comment(&self) -> &str {
        &self.comment
    }

    /// The signature of `data`, as SSH writes it: the algorithm's name and the bytes. None if it cannot be made.
    pub(super) fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        let (name, bytes) = match &self.secret {
            Secret::Ed25519(pair) => ("ssh-ed25519", pair.sign(data).as_ref().to_vec()),
            Secret::Rsa(pair) => {
                // Without a flag the client means SHA-1, which no server should take any more.
                let (name, encoding) = match flags {
                    flags if flags & RSA_SHA2_512 != 0 => ("rsa-sha2-512", &RSA_PKCS1_SHA512),
                    flags if flags & RSA_SHA2_256 != 0 => ("rsa-sha2-256", &RSA_PKCS1_SHA256),
                    _ => return None,
                };
                let mut bytes = vec![0; pair.public().modulus_len()];
                pair.sign(encoding, &random, data, &mut bytes).ok()?;
                (name, bytes)
            }
            Secret::Ecdsa(name, pair) => {
                let signature = pair.sign(&random, data).ok()?;
                let (r, s) = signature.as_ref().split_at(signature.as_ref().len() / 2);
                let mut bytes = Vec::new();
                put_integer(&mut bytes, r);
                put_integer(&mut bytes, s);
                (*name, bytes)
            }
        };
        let mut signature = Vec::new();
        put(&mut signature, name.as_bytes());
        put(&mut signature, &bytes);
        Some(signature)
    }
}

/// Reads a key file.
pub(super) fn read(path: &Path) -> io::Result<Key> {
    let mut text = String::new();
    File::open(path)?
        .take(FILE_BYTES_MAX)
        .read_to_string(&mut text)?;
    parse(&text).map_err(io::Error::other)
}

fn parse(text: &str) -> Result<Key, String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let label = lines
        .next()
        .and_then(|line| line.strip_prefix("-----BEGIN ")?.strip_suffix("-----"))
        .ok_or("neither an agent's socket nor a private key in PEM")?;
    let mut body = String::new();
    for line in lines.take_while(|line| !line.starts_with("-----END")) {
        // A header, which only keys have that are encrypted in the old way.
        if line.contains(':') {
            return Err(encrypted());
        }
        body.push_str(line);
    }
    let bytes = STANDARD
        .decode(body)
        .map_err(|_| "the key is damaged: it is no base64")?;
    match label {
        "OPENSSH PRIVATE KEY" => openssh(&bytes).ok_or_else(damaged)?,
        "RSA PRIVATE KEY" => {
            let pair = RsaKeyPair::from_der(&bytes).map_err(|error| error.to_string())?;
            Ok(rsa(pair, String::new()))
        }
        "PRIVATE KEY" => {
            if let Ok(pair) = RsaKeyPair::from_pkcs8(&bytes) {
                return Ok(rsa(pair, String::new()));
            }
            let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&bytes)
                .map_err(|_| "only RSA and Ed25519 keys can be read in this form")?;
            Ok(ed25519(pair, String::new()))
        }
        label if label.contains("ENCRYPTED") => Err(encrypted()),
        label => Err(format!(
            "a file with `{label}` cannot be read: convert it with `ssh-keygen -p -f FILE`"
        )),
    }
}

fn encrypted() -> String {
    "the key is encrypted: add it to an agent with `ssh-add`, and pass that on".to_owned()
}

fn damaged() -> String {
    "the key is damaged: it ends early, or its parts do not fit".to_owned()
}

/// The form of `ssh-keygen`; none if it is damaged.
fn openssh(bytes: &[u8]) -> Option<Result<Key, String>> {
    let mut outer = Reader(bytes.strip_prefix(OPENSSH)?);
    let cipher = outer.string()?;
    let (_kdf, _options) = (outer.string()?, outer.string()?);
    if cipher != b"none" {
        return Some(Err(encrypted()));
    }
    if outer.number()? != 1 {
        return Some(Err("the file holds several keys".to_owned()));
    }
    let _public = outer.string()?;
    let mut inner = Reader(outer.string()?);
    if inner.number()? != inner.number()? {
        return None;
    }
    let kind = inner.string()?;
    let key = match kind {
        b"ssh-ed25519" => {
            let public = inner.string()?;
            let seed = inner.string()?.get(..32)?;
            let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public).ok()?;
            ed25519(pair, comment(&mut inner)?)
        }
        b"ssh-rsa" => {
            let [n, e, d, q_inverse, p, q] = [(); 6].map(|()| inner.integer());
            let (p, q, d) = (p?, q?, d?);
            let components = KeyPairComponents {
                public_key: PublicKeyComponents { n: n?, e: e? },
                d,
                p,
                q,
                dP: &modulo(d, &less_one(p))?,
                dQ: &modulo(d, &less_one(q))?,
                qInv: q_inverse?,
            };
            match RsaKeyPair::from_components(&components) {
                Ok(pair) => rsa(pair, comment(&mut inner)?),
                Err(error) => return Some(Err(error.to_string())),
            }
        }
        b"ecdsa-sha2-nistp256" | b"ecdsa-sha2-nistp384" => {
            let (name, curve, size, algorithm): (_, _, _, &'static EcdsaSigningAlgorithm) =
                match kind {
                    b"ecdsa-sha2-nistp256" => (
                        "ecdsa-sha2-nistp256",
                        "nistp256",
                        32,
                        &ECDSA_P256_SHA256_FIXED_SIGNING,
                    ),
                    _ => (
                        "ecdsa-sha2-nistp384",
                        "nistp384",
                        48,
                        &ECDSA_P384_SHA384_FIXED_SIGNING,
                    ),
                };
            let _curve = inner.string()?;
            let public = inner.string()?;
            let number = inner.integer()?;
            let mut secret = vec![0; size - number.len().min(size)];
            secret.extend(number);
            let pair = EcdsaKeyPair::from_private_key_and_public_key(
                algorithm,
                &secret,
                public,
                &SystemRandom::new(),
            )
            .ok()?;
            let mut encoded = Vec::new();
            put(&mut encoded, name.as_bytes());
            put(&mut encoded, curve.as_bytes());
            put(&mut encoded, public);
            Key {
                public: encoded,
                comment: comment(&mut inner)?,
                secret: Secret::Ecdsa(name, pair),
            }
        }
        kind => {
            let kind = String::from_utf8_lossy(kind);
            return Some(Err(format!(
                "keys of type `{kind}` cannot be used: pass on an agent that has it"
            )));
        }
    };
    Some(Ok(key))
}

fn comment(inner: &mut Reader<'_>) -> Option<String> {
    Some(String::from_utf8_lossy(inner.string()?).into_owned())
}

fn ed25519(pair: Ed25519KeyPair, comment: String) -> Key {
    let mut public = Vec::new();
    put(&mut public, b"ssh-ed25519");
    put(&mut public, pair.public_key().as_ref());
    Key {
        public,
        comment,
        secret: Secret::Ed25519(pair),
    }
}

fn rsa(pair: RsaKeyPair, comment: String) -> Key {
    let components: PublicKeyComponents<Vec<u8>> = pair.public().into();
    let mut public = Vec::new();
    put(&mut public, b"ssh-rsa");
    put_integer(&mut public, &components.e);
    put_integer(&mut public, &components.n);
    Key {
        public,
        comment,
        secret: Secret::Rsa(Box::new(pair)),
    }
}

/// A number less one; it is odd, being a large prime.
fn less_one(number: &[u8]) -> Vec<u8> {
    let mut number = number.to_vec();
    if let Some(last) = number.last_mut() {
        *last &= !1;
    }
    number
}

/// The rest of a division of large numbers, bit by bit: OpenSSH leaves out what ring wants to have. None for a divisor of 0.
fn modulo(number: &[u8], divisor: &[u8]) -> Option<Vec<u8>> {
    if divisor.iter().all(|byte| *byte == 0) {
        return None;
    }
    // One byte more than the divisor, so that doubling does not overflow.
    let mut divisor_wide = vec![0];
    divisor_wide.extend(divisor);
    let mut rest = vec![0_u8; divisor_wide.len()];
    for byte in number {
        for bit in (0..8).rev() {
            let mut carry = byte >> bit & 1;
            for digit in rest.iter_mut().rev() {
                let next = *digit >> 7;
                *digit = *digit << 1 | carry;
                carry = next;
            }
            if rest >= divisor_wide {
                let mut borrow = false;
                for (digit, subtract) in rest.iter_mut().zip(&divisor_wide).rev() {
                    let (first, one) = digit.overflowing_sub(*subtract);
                    let (second, two) = first.overflowing_sub(u8::from(borrow));
                    *digit = second;
                    borrow = one || two;
                }
            }
        }
    }
    let zeros = rest.iter().take_while(|byte| **byte == 0).count();
    Some(rest.split_off(zeros))
}

/// Appends a string with its length.
pub(super) fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    to.extend(length.to_be_bytes());
    to.extend(bytes);
}

/// Appends a number that is not negative: without leading zeros, but for one where the first bit would be a sign.
fn put_integer(to: &mut Vec<u8>, bytes: &[u8]) {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let mut digits = bytes[zeros..].to_vec();
    if digits.first().is_some_and(|first| first & 0x80 != 0) {
        digits.insert(0, 0);
    }
    put(to, &digits);
}

/// What is left of a message.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn number(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*number))
    }

    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (string, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(string)
    }

    /// A number without leading zeros.
    fn integer(&mut self) -> Option<&'a [u8]> {
        let string = self.string()?;
        let zeros = string.iter().take_while(|byte| **byte == 0).count();
        Some(&string[zeros..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_of_divisions() {
        let check = |number: u64, divisor: u64| {
            let rest = modulo(&number.to_be_bytes(), &divisor.to_be_bytes()).unwrap();
            let value = rest
                .iter()
                .fold(0, |value, byte| value << 8 | u64::from(*byte));
            assert_eq!(value, number % divisor, "{number} / {divisor}");
        };
        check(0, 7);
        check(6, 7);
        check(7, 7);
        check(1_000_003, 1_009);
        check(u64::MAX, 0x8000_0000_0000_0001);
        check(u64::MAX, u64::MAX - 1);
        assert_eq!(modulo(&[1], &[0]), None);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let check = |text: &str, expect: &str| {
            let error = parse(text).err().unwrap();
            assert!(error.contains(expect), "{error}");
        };
        check("", "neither an agent's socket");
        check("hello", "neither an agent's socket");
        let pem = |label: &str, body: &str| {
            format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
        };
        check(&pem("OPENSSH PRIVATE KEY", "????"), "no base64");
        check(&pem("OPENSSH PRIVATE KEY", "AAAA"), "damaged");
        check(&pem("ENCRYPTED PRIVATE KEY", "AAAA"), "is encrypted");
        check(&pem("DSA PRIVATE KEY", "AAAA"), "convert it");
        let old = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA";
        check(&pem("RSA PRIVATE KEY", old), "is encrypted");
    }
}
