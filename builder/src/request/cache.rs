//! `--cache-to` and `--cache-from`: `type=TYPE,key=value,…` as docker buildx and buildctl spell it.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use store::layer::compress::{Compression, CompressionChoice};
use store::oci::Reference;

use super::SecretText;
use crate::lower::mounts::fields;

/// Where results of earlier builds are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheImport {
    /// Where they are.
    pub place: CachePlace,
    /// Cache mounts that are filled from there where they do not exist here yet.
    pub mounts: MountChoice,
}

/// Where the results of a build go, for other builds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheExport {
    /// Where to; none for `type=inline`, which is the image itself.
    pub place: Option<CachePlace>,
    /// Which results.
    pub mode: CacheMode,
    /// Whether a failure is a mere warning.
    pub ignore_error: bool,
    /// How layers are compressed.
    pub layers: CompressionChoice,
    /// Cache mounts whose content goes there, too.
    pub mounts: MountChoice,
}

/// Something that holds a shared cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CachePlace {
    /// A repository of a registry.
    Registry(Box<Reference>),
    /// A folder.
    Local(PathBuf),
    /// A bucket.
    S3(Box<BucketSettings>),
}

impl fmt::Display for CachePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CachePlace::Registry(reference) => f.write_str(&reference.familiar()),
            CachePlace::Local(path) => path.display().fmt(f),
            CachePlace::S3(bucket) => {
                write!(f, "s3://{}", bucket.bucket)?;
                if !bucket.prefix.is_empty() {
                    write!(f, "/{}", bucket.prefix)?;
                }
                write!(f, "/{}", bucket.name)
            }
        }
    }
}

/// Which results are exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Of the steps whose layers are in the image.
    #[default]
    Min,
    /// Of all steps.
    Max,
}

/// Which cache mounts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MountChoice {
    /// None.
    #[default]
    None,
    /// All that steps of the build mount.
    All,
    /// Those with these ids.
    Only(BTreeSet<String>),
}

impl MountChoice {
    /// Whether a cache mount is chosen, by its id as a Dockerfile has it; a slash before it makes no difference, since an
    /// id that is not given is the mount's target.
    pub fn has(&self, id: &str) -> bool {
        match self {
            MountChoice::None => false,
            MountChoice::All => true,
            MountChoice::Only(ids) => ids.contains(id.trim_start_matches('/')),
        }
    }
}

/// A bucket of an S3-compatible store, and the way there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketSettings {
    /// The bucket.
    pub bucket: String,
    /// Its region.
    pub region: Option<String>,
    /// The server, where it is not Amazon's.
    pub endpoint_url: Option<String>,
    /// Credentials; without them requests are not signed.
    pub access_key_id: Option<String>,
    /// The secret part of the credentials.
    pub secret_access_key: Option<SecretText>,
    /// What temporary credentials have beside.
    pub session_token: Option<SecretText>,
    /// What the names of all objects begin with.
    pub prefix: String,
    /// Which of several caches below the prefix.
    pub name: String,
    /// Whether the bucket is part of the path (`HOST/BUCKET/…`) instead of the host's name.
    pub use_path_style: bool,
}

impl BucketSettings {
    /// Reads what names a bucket: the keys of `type=s3`, without the type. `flag` is what it was given to.
    ///
    /// # Errors
    /// It has unknown, missing or contradicting keys.
    pub fn parse(
        flag: &'static str,
        text: &str,
        variables: Variables<'_>,
    ) -> Result<BucketSettings, CacheSpecError> {
        let read = || {
            let mut keys = Keys::parse(&format!("type=s3,{text}"))?;
            let kind = keys.kind()?;
            let settings = keys.bucket(variables)?;
            keys.finish(&kind, "src")?;
            Ok(settings)
        };
        read().map_err(|reason| CacheSpecError { flag, reason })
    }
}

/// The name of a cache in a bucket where none is given.
const BUCKET_NAME: &str = "longshore";

/// Keys of S3, and the variable that gives each its default, as Amazon's own tools name them.
const S3_VARIABLES: [(&str, &[&str]); 6] = [
    ("bucket", &["AWS_BUCKET"]),
    ("region", &["AWS_REGION", "AWS_DEFAULT_REGION"]),
    ("endpoint_url", &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]),
    ("access_key_id", &["AWS_ACCESS_KEY_ID"]),
    ("secret_access_key", &["AWS_SECRET_ACCESS_KEY"]),
    ("session_token", &["AWS_SESSION_TOKEN"]),
];

/// Why a flag means nothing. It names keys, never values that may be secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {flag}: {reason}")]
pub struct CacheSpecError {
    /// `--cache-to` or `--cache-from`.
    pub flag: &'static str,
    /// What is wrong, and what would be right.
    pub reason: String,
}

/// Looks a variable of the environment up.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

impl CacheImport {
    /// Reads the value of `--cache-from`; without `=` in it, it is the reference of `type=registry`.
    ///
    /// # Errors
    /// It has unknown, missing or contradicting keys.
    pub fn parse(text: &str, variables: Variables<'_>) -> Result<CacheImport, CacheSpecError> {
        let flag = "--cache-from";
        let read = || {
            let mut keys = Keys::parse(text)?;
            let kind = keys.kind()?;
            let place = match kind.as_str() {
                "inline" => {
                    return Err(
                        "an inline cache is in an image: use type=registry,ref=IMAGE".into(),
                    );
                }
                _ => keys.place(&kind, "src", variables)?,
            };
            let mounts = keys.mounts()?;
            keys.finish(&kind, "src")?;
            Ok(CacheImport { place, mounts })
        };
        read().map_err(|reason| CacheSpecError { flag, reason })
    }
}

impl CacheExport {
    /// Reads the value of `--cache-to`; without `=` in it, it is the reference of `type=registry`.
    ///
    /// # Errors
    /// It has unknown, missing or contradicting keys.
    pub fn parse(text: &str, variables: Variables<'_>) -> Result<CacheExport, CacheSpecError> {
        let flag = "--cache-to";
        let read = || {
            let mut keys = Keys::parse(text)?;
            let kind = keys.kind()?;
            let mode = match keys.take("mode").as_deref() {
                None => CacheMode::default(),
                Some("min") => CacheMode::Min,
                Some("max") => CacheMode::Max,
                Some(_) => return Err("`mode` is neither `min` nor `max`".into()),
            };
            if kind == "inline" {
                if mode == CacheMode::Max {
                    return Err(
                        "type=inline holds what is in the image: mode=max needs another type"
                            .into(),
                    );
                }
                let export = CacheExport {
                    place: None,
                    mode,
                    ignore_error: keys.flag("ignore-error")?,
                    layers: CompressionChoice::AS_THEY_ARE,
                    mounts: MountChoice::None,
                };
                keys.finish(&kind, "dest")?;
                return Ok(export);
            }
            let export = CacheExport {
                place: Some(keys.place(&kind, "dest", variables)?),
                mode,
                ignore_error: keys.flag("ignore-error")?,
                layers: keys.layers()?,
                mounts: keys.mounts()?,
            };
            // What BuildKit can also write otherwise, longshore always writes so.
            for name in ["oci-mediatypes", "image-manifest"] {
                if keys.has(name) && !keys.flag(name)? {
                    return Err(format!(
                        "`{name}=false` is not supported: caches are OCI artifacts"
                    ));
                }
            }
            keys.finish(&kind, "dest")?;
            Ok(export)
        };
        read().map_err(|reason| CacheSpecError { flag, reason })
    }
}

/// The pairs of a flag, taken one by one.
struct Keys {
    pairs: Vec<(String, String)>,
}

impl Keys {
    fn parse(text: &str) -> Result<Keys, String> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        if !text.contains(['=', ',']) {
            return Ok(Keys {
                pairs: vec![
                    ("type".to_owned(), "registry".to_owned()),
                    ("ref".to_owned(), text.to_owned()),
                ],
            });
        }
        for field in fields(text)? {
            let key = field.key.trim().to_owned();
            let Some(value) = field.value else {
                return Err(format!("`{key}` has no value: expected `key=value`"));
            };
            if pairs.iter().any(|(known, _)| *known == key) {
                return Err(format!("`{key}` is given twice"));
            }
            pairs.push((key, value));
        }
        Ok(Keys { pairs })
    }

    fn has(&self, key: &str) -> bool {
        self.pairs.iter().any(|(known, _)| known == key)
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let at = self.pairs.iter().position(|(known, _)| known == key)?;
        Some(self.pairs.remove(at).1)
    }

    fn kind(&mut self) -> Result<String, String> {
        self.take("type")
            .ok_or_else(|| "`type` is missing: expected registry, local, s3 or inline".to_owned())
    }

    fn flag(&mut self, key: &str) -> Result<bool, String> {
        match self.take(key).as_deref() {
            None => Ok(false),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(_) => Err(format!("`{key}` is neither `true` nor `false`")),
        }
    }

    fn layers(&mut self) -> Result<CompressionChoice, String> {
        let mut choice = CompressionChoice::all(Compression::GZIP);
        if let Some(name) = self.take("compression") {
            choice.compression = name.parse::<Compression>().map_err(|e| e.to_string())?;
        }
        if let Some(level) = self.take("compression-level") {
            let level: u8 = level
                .parse()
                .map_err(|_| "`compression-level` is no number of a level".to_owned())?;
            let at_level = choice.compression.at_level(level);
            choice.compression = at_level.map_err(|e| e.to_string())?;
        }
        if self.has("force-compression") {
            choice.force = self.flag("force-compression")?;
        }
        Ok(choice)
    }

    fn mounts(&mut self) -> Result<MountChoice, String> {
        let Some(text) = self.take("mounts") else {
            return Ok(MountChoice::None);
        };
        if text == "all" {
            return Ok(MountChoice::All);
        }
        let ids = text
            .split(';')
            .map(|id| id.trim_start_matches('/').to_owned());
        let ids: BTreeSet<String> = ids.collect();
        if ids.contains("") {
            return Err(
                "`mounts` has an empty id: expected `all`, or ids with `;` between them".into(),
            );
        }
        Ok(MountChoice::Only(ids))
    }

    fn place(
        &mut self,
        kind: &str,
        path_key: &str,
        variables: Variables<'_>,
    ) -> Result<CachePlace, String> {
        match kind {
            "registry" => {
                let text = self.take("ref").filter(|text| !text.is_empty());
                let text = text.ok_or("`ref` is missing: expected REGISTRY/REPOSITORY[:TAG]")?;
                let reference: Reference = text
                    .parse()
                    .map_err(|error: store::oci::ReferenceError| error.to_string())?;
                if reference.digest().is_some() {
                    return Err("`ref` has a digest: a cache has a name, and perhaps a tag".into());
                }
                Ok(CachePlace::Registry(Box::new(reference)))
            }
            "local" => match self.take(path_key).filter(|path| !path.is_empty()) {
                Some(path) => Ok(CachePlace::Local(PathBuf::from(path))),
                None => Err(format!("`{path_key}` is missing: expected a folder")),
            },
            "s3" => self
                .bucket(variables)
                .map(|s3| CachePlace::S3(Box::new(s3))),
            "gha" | "azblob" => Err(format!(
                "type={kind} is not supported: use registry, local, s3 or inline"
            )),
            _ => Err(format!(
                "unknown type `{kind}`: expected registry, local, s3 or inline"
            )),
        }
    }

    fn bucket(&mut self, variables: Variables<'_>) -> Result<BucketSettings, String> {
        let mut given = |key: &str| {
            let (_, names) = S3_VARIABLES.iter().find(|(known, _)| *known == key)?;
            self.take(key)
                .or_else(|| names.iter().find_map(|name| variables(name)))
                .filter(|value| !value.is_empty())
        };
        let secret = |text: Option<String>| text.map(|text| SecretText(text.into_bytes()));
        let bucket = given("bucket").ok_or("`bucket` is missing")?;
        let region = given("region");
        let endpoint_url = given("endpoint_url");
        let access_key_id = given("access_key_id");
        let secret_access_key = secret(given("secret_access_key"));
        let session_token = secret(given("session_token"));
        if access_key_id.is_some() != secret_access_key.is_some() {
            return Err("of `access_key_id` and `secret_access_key` only one is given".into());
        }
        if region.is_none() && endpoint_url.is_none() {
            return Err("`region` is missing".into());
        }
        let prefix = self.take("prefix").unwrap_or_default();
        let name = self.take("name").unwrap_or_else(|| BUCKET_NAME.to_owned());
        if name.is_empty() || name.contains(['/', ';']) {
            return Err("`name` is not one name without `/` and `;`".into());
        }
        Ok(BucketSettings {
            bucket,
            region,
            endpoint_url,
            access_key_id,
            secret_access_key,
            session_token,
            prefix: prefix.trim_matches('/').to_owned(),
            name,
            use_path_style: self.flag("use_path_style")?,
        })
    }

    /// Refuses what nobody took.
    fn finish(self, kind: &str, path_key: &str) -> Result<(), String> {
        let Some((key, _)) = self.pairs.first() else {
            return Ok(());
        };
        let exports = path_key == "dest";
        let mut known = match kind {
            "registry" => vec!["ref"],
            "local" => vec![path_key],
            "s3" => vec![
                "bucket",
                "region",
                "endpoint_url",
                "access_key_id",
                "secret_access_key",
                "session_token",
                "prefix",
                "name",
                "use_path_style",
            ],
            _ => vec![],
        };
        match (kind, exports) {
            ("inline", _) => known.extend(["mode", "ignore-error"]),
            (_, true) => known.extend([
                "mode",
                "ignore-error",
                "compression",
                "compression-level",
                "force-compression",
                "mounts",
            ]),
            (_, false) => known.push("mounts"),
        }
        Err(format!(
            "`{key}` is not supported with type={kind}: expected {}",
            known.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_name: &str) -> Option<String> {
        None
    }

    fn to(text: &str) -> CacheExport {
        CacheExport::parse(text, &nothing).unwrap()
    }

    #[test]
    fn places() {
        let registry = |text: &str| {
            let reference = text.parse().unwrap();
            Some(CachePlace::Registry(Box::new(reference)))
        };
        assert_eq!(to("localhost:5000/c").place, registry("localhost:5000/c"));
        assert_eq!(
            to("type=registry,ref=h.example/c:t").place,
            registry("h.example/c:t")
        );
        let local = Some(CachePlace::Local(PathBuf::from("/a,b")));
        assert_eq!(to(r#"type=local,"dest=/a,b""#).place, local);
        assert_eq!(to("type=inline").place, None);
        let from = CacheImport::parse("type=local,src=/x", &nothing).unwrap();
        assert_eq!(from.place, CachePlace::Local(PathBuf::from("/x")));
        let variables = |name: &str| match name {
            "AWS_REGION" => Some("r".to_owned()),
            "AWS_ACCESS_KEY_ID" => Some("id".to_owned()),
            "AWS_SECRET_ACCESS_KEY" => Some("key".to_owned()),
            _ => None,
        };
        let text = "type=s3,bucket=b,region=q,prefix=/p/,use_path_style=true";
        let place = CacheImport::parse(text, &variables).unwrap().place;
        let expected = BucketSettings {
            bucket: "b".to_owned(),
            region: Some("q".to_owned()),
            access_key_id: Some("id".to_owned()),
            secret_access_key: Some(SecretText(b"key".to_vec())),
            prefix: "p".to_owned(),
            name: "longshore".to_owned(),
            use_path_style: true,
            ..BucketSettings::default()
        };
        assert_eq!(place, CachePlace::S3(Box::new(expected)));
    }

    #[test]
    fn how_it_is_exported() {
        let export = to(
            "type=registry,ref=h/c,mode=max,ignore-error=true,compression=zstd,compression-level=9,oci-mediatypes=true",
        );
        assert_eq!((export.mode, export.ignore_error), (CacheMode::Max, true));
        assert_eq!(export.layers, CompressionChoice::all(Compression::Zstd(9)));
        let export = to("type=registry,ref=h/c");
        assert_eq!((export.mode, export.ignore_error), (CacheMode::Min, false));
        assert_eq!(export.layers, CompressionChoice::all(Compression::GZIP));
    }

    #[test]
    fn mounts() {
        let of = |text: &str| to(&format!("type=registry,ref=h/c,mounts={text}")).mounts;
        assert_eq!(of("all"), MountChoice::All);
        let some = of("go;/root/.cache");
        assert!(some.has("go") && some.has("/root/.cache") && some.has("root/.cache"));
        assert!(!some.has("apt"));
        assert!(!to("h/c").mounts.has("go"));
    }

    #[test]
    fn mistakes_say_what_would_be_right() {
        let check = |text: &str, expected: &str| {
            let error = CacheExport::parse(text, &nothing).unwrap_err();
            assert_eq!(error.to_string(), format!("invalid --cache-to: {expected}"));
        };
        check(
            "type=registry",
            "`ref` is missing: expected REGISTRY/REPOSITORY[:TAG]",
        );
        check(
            "ref=h/c",
            "`type` is missing: expected registry, local, s3 or inline",
        );
        check("type=local", "`dest` is missing: expected a folder");
        check(
            "type=gha",
            "type=gha is not supported: use registry, local, s3 or inline",
        );
        check(
            "type=ftp",
            "unknown type `ftp`: expected registry, local, s3 or inline",
        );
        check(
            "type=local,dest=a,x=1",
            "`x` is not supported with type=local: expected dest, mode, ignore-error, compression, compression-level, force-compression, mounts",
        );
        check(
            "type=inline,mode=max",
            "type=inline holds what is in the image: mode=max needs another type",
        );
        check(
            "type=registry,ref=h/c,mode=all",
            "`mode` is neither `min` nor `max`",
        );
        check(
            "type=registry,ref=h/c,compression=lz4",
            "unknown compression `lz4`: expected gzip, zstd, zstd:chunked, estargz or none",
        );
        check(
            "type=registry,ref=h/c,image-manifest=false",
            "`image-manifest=false` is not supported: caches are OCI artifacts",
        );
        check(
            "type=registry,ref=h/c,mounts=a;;b",
            "`mounts` has an empty id: expected `all`, or ids with `;` between them",
        );
        check("type=s3,bucket=b", "`region` is missing");
        check(
            "type=s3,bucket=b,region=r,access_key_id=x",
            "of `access_key_id` and `secret_access_key` only one is given",
        );
        check(
            "type=local,dest",
            "`dest` has no value: expected `key=value`",
        );
        check("type=local,dest=a,dest=b", "`dest` is given twice");
        let error = CacheImport::parse("type=inline", &nothing).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid --cache-from: an inline cache is in an image: use type=registry,ref=IMAGE"
        );
    }
}
