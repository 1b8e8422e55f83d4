//! Who a client's certificate says its owner is, pure. TLS has checked the certificate; here its names are read.
//!
//! DER is read as far as is needed, from the outside in: Certificate, TBSCertificate, then subject and extensions.

use std::path::PathBuf;

/// Clients that show a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// Whose certificates are believed, in PEM.
    pub ca: PathBuf,
    /// Whether there is no connection without one.
    pub required: bool,
    /// Which of its names is the user's.
    pub user: CertificateName,
}

/// A name in a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateName {
    /// The subject's common name.
    CommonName,
    /// The first alternative name that is a mail address.
    Email,
    /// The first that is a host's.
    Dns,
    /// The first that is a URI, as of SPIFFE.
    Uri,
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const OCTETS: u8 = 0x04;
/// `[3]`, in which the extensions are.
const EXTENSIONS: u8 = 0xa3;
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
/// 2.5.29.17
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];

/// The name in a certificate in DER; `None` if it has none such, or is none.
pub fn name_of(certificate: &[u8], wanted: CertificateName) -> Option<String> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (mut tbs, _) = element(certificate, SEQUENCE)?;
    let mut sequences = Vec::new();
    let mut extensions = None;
    while !tbs.is_empty() {
        let (tag, content, rest) = any(tbs)?;
        match tag {
            SEQUENCE => sequences.push(content),
            EXTENSIONS => extensions = Some(content),
            _ => {}
        }
        tbs = rest;
    }
    // Algorithm, issuer, validity, subject, key.
    let subject = sequences.get(3)?;
    let name = match wanted {
        CertificateName::CommonName => common_name(subject)?,
        CertificateName::Email => alternative_name(extensions?, 0x81)?,
        CertificateName::Dns => alternative_name(extensions?, 0x82)?,
        CertificateName::Uri => alternative_name(extensions?, 0x86)?,
    };
    let name = String::from_utf8(name.to_vec()).ok()?;
    let printable = !name.is_empty() && !name.chars().any(char::is_control);
    printable.then_some(name)
}

/// The last common name of a name, which is its most specific.
fn common_name(mut name: &[u8]) -> Option<&[u8]> {
    let mut found = None;
    while !name.is_empty() {
        let (mut set, rest) = element(name, SET)?;
        while !set.is_empty() {
            let (attribute, others) = element(set, SEQUENCE)?;
            let (kind, value) = element(attribute, OID)?;
            let (tag, text, _) = any(value)?;
            // UTF8String, PrintableString, IA5String; others are not UTF-8.
            if kind == COMMON_NAME && matches!(tag, 0x0c | 0x13 | 0x16) {
                found = Some(text);
            }
            set = others;
        }
        name = rest;
    }
    found
}

/// The first alternative name with this tag.
fn alternative_name(extensions: &[u8], wanted: u8) -> Option<&[u8]> {
    let (mut extensions, _) = element(extensions, SEQUENCE)?;
    while !extensions.is_empty() {
        let (extension, rest) = element(extensions, SEQUENCE)?;
        let (kind, mut value) = element(extension, OID)?;
        extensions = rest;
        if kind != ALTERNATIVE_NAMES {
            continue;
        }
        let (mut tag, mut content, rest) = any(value)?;
        if tag == 0x01 {
            // Critical, or not.
            value = rest;
            (tag, content, _) = any(value)?;
        }
        if tag != OCTETS {
            return None;
        }
        let (mut names, _) = element(content, SEQUENCE)?;
        while !names.is_empty() {
            let (tag, name, rest) = any(names)?;
            if tag == wanted {
                return Some(name);
            }
            names = rest;
        }
    }
    None
}

/// The content of the first element, which has to have this tag, and what follows it.
fn element(bytes: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = any(bytes)?;
    (tag == wanted).then_some((content, rest))
}

/// The first element: tag, content, and what follows it.
fn any(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let length = if first < 0x80 {
        usize::from(first)
    } else {
        let count = usize::from(first & 0x7f);
        if !(1..=4).contains(&count) {
            return None;
        }
        let (digits, after) = rest.split_at_checked(count)?;
        rest = after;
        digits
            .iter()
            .fold(0, |sum, digit| sum << 8 | usize::from(*digit))
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrap(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let length = u8::try_from(content.len()).unwrap();
        let mut bytes = vec![tag];
        if length >= 0x80 {
            bytes.push(0x81);
        }
        bytes.push(length);
        bytes.extend(content);
        bytes
    }

    /// As far as names go, a certificate.
    fn certificate() -> Vec<u8> {
        let empty = wrap(SEQUENCE, &[]);
        let name = |text: &str| {
            let kind = wrap(OID, &[COMMON_NAME]);
            let attribute = wrap(SEQUENCE, &[&kind, &wrap(0x0c, &[text.as_bytes()])]);
            wrap(SET, &[&attribute])
        };
        let subject = wrap(SEQUENCE, &[&name("outer"), &name("ann")]);
        let names = wrap(
            SEQUENCE,
            &[
                &wrap(0x87, &[&[1]]),
                &wrap(0x82, &[b"host"]),
                &wrap(0x86, &[b"a:b"]),
            ],
        );
        let kind = wrap(OID, &[ALTERNATIVE_NAMES]);
        let extension = wrap(
            SEQUENCE,
            &[&kind, &wrap(0x01, &[&[0xff]]), &wrap(OCTETS, &[&names])],
        );
        let extensions = wrap(EXTENSIONS, &[&wrap(SEQUENCE, &[&extension])]);
        let tbs = wrap(
            SEQUENCE,
            &[
                &wrap(0xa0, &[&[2]]),
                &wrap(2, &[&[1]]),
                &empty,
                &empty,
                &empty,
                &subject,
                &empty,
                &extensions,
            ],
        );
        wrap(SEQUENCE, &[&tbs, &empty])
    }

    #[test]
    fn names_are_found() {
        let check = |wanted: CertificateName, expected: Option<&str>| {
            assert_eq!(name_of(&certificate(), wanted).as_deref(), expected);
        };
        check(CertificateName::CommonName, Some("ann"));
        check(CertificateName::Dns, Some("host"));
        check(CertificateName::Uri, Some("a:b"));
        check(CertificateName::Email, None);
    }

    #[test]
    fn what_is_cut_or_changed_is_no_certificate_and_no_panic() {
        let whole = certificate();
        let all = [
            CertificateName::CommonName,
            CertificateName::Dns,
            CertificateName::Uri,
            CertificateName::Email,
        ];
        for end in 0..whole.len() {
            for wanted in all {
                assert_eq!(name_of(&whole[..end], wanted), None, "{end}");
            }
        }
        let mut random = crate::testing::Random(5);
        for _ in 0..20_000 {
            let mut changed = whole.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(changed.len());
                changed[at] = u8::try_from(random.below(256)).unwrap();
            }
            for wanted in all {
                let name = name_of(&changed, wanted);
                assert!(name.is_none_or(|name| !name.is_empty() && !name.contains('\0')));
            }
        }
    }
}
