//! Digests: `algorithm:hex`, parsed once, and the three meanings a digest can have.

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Hash algorithms that longshore can compute and therefore verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DigestAlgorithm {
    /// SHA-256, the default of every image tool.
    Sha256,
    /// SHA-512.
    Sha512,
    /// BLAKE3 with 256 bits, which image-spec registers since 1.1.
    Blake3,
}

impl DigestAlgorithm {
    /// Every algorithm, the default first.
    pub const ALL: [DigestAlgorithm; 3] = [
        DigestAlgorithm::Sha256,
        DigestAlgorithm::Sha512,
        DigestAlgorithm::Blake3,
    ];

    /// The name used before the colon.
    pub fn name(self) -> &'static str {
        match self {
            DigestAlgorithm::Sha256 => "sha256",
            DigestAlgorithm::Sha512 => "sha512",
            DigestAlgorithm::Blake3 => "blake3",
        }
    }

    /// Length of the raw hash in bytes.
    pub fn bytes_len(self) -> usize {
        match self {
            DigestAlgorithm::Sha256 | DigestAlgorithm::Blake3 => 32,
            DigestAlgorithm::Sha512 => 64,
        }
    }
}

impl FromStr for DigestAlgorithm {
    type Err = DigestError;

    fn from_str(name: &str) -> Result<Self, DigestError> {
        match name {
            "sha256" => Ok(DigestAlgorithm::Sha256),
            "sha512" => Ok(DigestAlgorithm::Sha512),
            "blake3" => Ok(DigestAlgorithm::Blake3),
            _ => Err(DigestError::UnknownAlgorithm {
                algorithm: clip(name),
            }),
        }
    }
}

impl fmt::Display for DigestAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A content digest, `algorithm:hex` (image-spec `descriptor.md`, "Digests").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: DigestAlgorithm,
    /// The raw hash; bytes past the algorithm's length are zero.
    bytes: [u8; 64],
}

/// Why a text is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// There is no colon.
    #[error("`{text}` is not a digest: expected `algorithm:hex`, such as `sha256:…`")]
    NoColon {
        /// The text, clipped.
        text: String,
    },
    /// The algorithm is none that can be verified.
    #[error("unsupported digest algorithm `{algorithm}`: expected sha256, sha512 or blake3")]
    UnknownAlgorithm {
        /// The algorithm's name, clipped.
        algorithm: String,
    },
    /// The part after the colon is not the right number of lower-case hex digits.
    #[error("`{text}` is not {expected} lower-case hexadecimal digits, as {algorithm} has")]
    BadHex {
        /// The part after the colon, clipped.
        text: String,
        /// The algorithm named.
        algorithm: DigestAlgorithm,
        /// Digits expected.
        expected: usize,
    },
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(DigestAlgorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The algorithm.
    pub fn algorithm(&self) -> DigestAlgorithm {
        self.algorithm
    }

    /// The raw hash.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.bytes_len()]
    }

    /// The hash in lower-case hex, without the algorithm.
    pub fn hex(&self) -> String {
        hex(self.bytes())
    }

    /// The first twelve hex digits, as listings show them.
    pub fn short(&self) -> String {
        hex(&self.bytes[..6])
    }

    fn from_raw(algorithm: DigestAlgorithm, raw: &[u8]) -> Digest {
        let mut bytes = [0; 64];
        bytes[..algorithm.bytes_len()].copy_from_slice(raw);
        Digest { algorithm, bytes }
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let Some((algorithm, digits)) = text.split_once(':') else {
            return Err(DigestError::NoColon { text: clip(text) });
        };
        let algorithm: DigestAlgorithm = algorithm.parse()?;
        let mut raw = [0; 64];
        let expected = algorithm.bytes_len() * 2;
        let bad = || DigestError::BadHex {
            text: clip(digits),
            algorithm,
            expected,
        };
        if digits.len() != expected {
            return Err(bad());
        }
        for (slot, pair) in raw.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let (Some(high), Some(low)) = (nibble(pair[0]), nibble(pair[1])) else {
                return Err(bad());
            };
            *slot = high << 4 | low;
        }
        Ok(Digest {
            algorithm,
            bytes: raw,
        })
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Keeps error messages short whatever a peer sent.
fn clip(text: &str) -> String {
    if text.chars().count() <= 100 {
        return text.to_owned();
    }
    text.chars().take(100).chain(['…']).collect()
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Computes a [`Digest`] piece by piece.
#[derive(Clone)]
pub struct Hasher {
    algorithm: DigestAlgorithm,
    context: HashContext,
}

/// A running hash of one of the two families.
#[derive(Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "nearly every hash is the large one, and short ones should not allocate"
)]
enum HashContext {
    Sha2(ring::digest::Context),
    // Two kilobytes, and rare.
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// Starts a hash.
    pub fn new(algorithm: DigestAlgorithm) -> Hasher {
        let sha2 = |family| HashContext::Sha2(ring::digest::Context::new(family));
        let context = match algorithm {
            DigestAlgorithm::Sha256 => sha2(&ring::digest::SHA256),
            DigestAlgorithm::Sha512 => sha2(&ring::digest::SHA512),
            DigestAlgorithm::Blake3 => HashContext::Blake3(Box::default()),
        };
        Hasher { algorithm, context }
    }

    /// Starts a SHA-256 hash.
    pub fn sha256() -> Hasher {
        Hasher::new(DigestAlgorithm::Sha256)
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.context {
            HashContext::Sha2(context) => context.update(bytes),
            HashContext::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        match self.context {
            HashContext::Sha2(context) => {
                Digest::from_raw(self.algorithm, context.finish().as_ref())
            }
            HashContext::Blake3(hasher) => {
                Digest::from_raw(self.algorithm, hasher.finalize().as_bytes())
            }
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// A writer that hashes and counts what it passes on.
#[derive(Debug)]
pub struct Hashing<W> {
    out: W,
    hasher: Hasher,
    size: u64,
}

impl<W> Hashing<W> {
    /// Starts a hash of what will be written to `out`.
    pub fn new(out: W, algorithm: DigestAlgorithm) -> Hashing<W> {
        let hasher = Hasher::new(algorithm);
        let size = 0;
        Hashing { out, hasher, size }
    }

    /// The writer beneath, the digest of what was written, and its bytes.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.out, self.hasher.finish(), self.size)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Digest of a layer's *uncompressed* tar (image-spec `config.md`, "Layer DiffID").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Digest of a stack of layers (image-spec `config.md`, "Layer ChainID").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(pub Digest);

impl ChainId {
    /// The chain of `layers`, oldest first; `None` for no layers.
    pub fn of(layers: &[DiffId]) -> Option<ChainId> {
        let (first, rest) = layers.split_first()?;
        Some(rest.iter().fold(ChainId(first.0), |below, layer| {
            ChainId(Digest::of(format!("{} {}", below.0, layer.0).as_bytes()))
        }))
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let digest: Digest = text.parse().unwrap();
        assert_eq!(digest.to_string(), text);
        assert_eq!(digest, Digest::of(b""));
        assert_eq!(digest.short(), "e3b0c44298fc");
        let mut long = Hasher::new(DigestAlgorithm::Sha512);
        long.update(b"abc");
        let long = long.finish();
        assert_eq!(long.to_string().parse::<Digest>().unwrap(), long);
    }

    /// Of nothing, as each algorithm's own documents print it.
    #[test]
    fn hashes_in_every_algorithm() {
        let check = |algorithm: DigestAlgorithm, hex: &str| {
            let mut hasher = Hasher::new(algorithm);
            hasher.update(b"");
            let digest = hasher.finish();
            assert_eq!(digest.hex(), hex);
            assert_eq!(digest.to_string(), format!("{algorithm}:{hex}"));
            assert_eq!(algorithm.name().parse(), Ok(algorithm));
        };
        let [sha256, sha512, blake3] = DigestAlgorithm::ALL;
        check(
            sha256,
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        );
        check(
            sha512,
            "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce\
             47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
        );
        check(
            blake3,
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        );
    }

    #[test]
    fn refuses_what_is_no_digest() {
        let check = |text: &str, expected: &str| {
            assert_eq!(text.parse::<Digest>().unwrap_err().to_string(), expected);
        };
        check(
            "abc",
            "`abc` is not a digest: expected `algorithm:hex`, such as `sha256:…`",
        );
        check(
            "md5:00",
            "unsupported digest algorithm `md5`: expected sha256, sha512 or blake3",
        );
        check(
            "sha256:00",
            "`00` is not 64 lower-case hexadecimal digits, as sha256 has",
        );
        let upper = format!("sha256:{}", "A".repeat(64));
        assert!(upper.parse::<Digest>().is_err());
    }

    #[test]
    fn chains_fold_from_the_oldest() {
        let a = DiffId(Digest::of(b"a"));
        let b = DiffId(Digest::of(b"b"));
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(&[a]), Some(ChainId(a.0)));
        let expected = Digest::of(format!("{a} {b}").as_bytes());
        assert_eq!(ChainId::of(&[a, b]), Some(ChainId(expected)));
    }
}
