//! `[traces]`: where a registry sends spans of its requests.

use std::path::PathBuf;
use std::time::Duration;

use super::super::table::{Table, TableError};

/// What the table says; what it does not say, OpenTelemetry's variables may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TracesConfig {
    /// `endpoint`: what `/v1/traces` is below.
    pub endpoint: Option<String>,
    /// `headers`.
    pub headers: Vec<(String, String)>,
    /// `token_file`: what is sent as `Authorization: Bearer`.
    pub token: Option<PathBuf>,
    /// `sample`: how many of a million requests are traced.
    pub sample_per_million: Option<u32>,
    /// `service`.
    pub service: Option<String>,
    /// `insecure`.
    pub insecure: bool,
    /// `ca`.
    pub ca: Vec<PathBuf>,
    /// `interval`.
    pub interval: Option<Duration>,
    /// `timeout`.
    pub timeout: Option<Duration>,
}

impl TracesConfig {
    /// Reads a table whose files are found by `file`.
    pub(super) fn read(
        table: &mut Table<'_>,
        file: impl Fn(String) -> PathBuf,
    ) -> Result<TracesConfig, TableError> {
        let sample = table.text("sample")?;
        let sample = sample.map(|text| per_million(&text)).transpose();
        Ok(TracesConfig {
            endpoint: table.text("endpoint")?,
            headers: table.pairs("headers")?,
            token: table.text("token_file")?.map(&file),
            sample_per_million: sample.map_err(|why| table.error_at("sample", &why))?,
            service: table.text("service")?,
            insecure: table.boolean("insecure")?.unwrap_or(false),
            ca: table.files("ca", &file)?,
            interval: table.duration("interval")?,
            timeout: table.duration("timeout")?,
        })
    }
}

/// A part, as `0.25` or `25%`, in millionths.
pub fn per_million(text: &str) -> Result<u32, String> {
    let (number, whole) = match text.trim().strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text.trim(), 1.0),
    };
    let part = number.parse::<f64>().ok().map(|number| number / whole);
    let part = part.filter(|part| (0.0..=1.0).contains(part));
    let part = part.ok_or_else(|| {
        format!("`{text}` is no part: expected one from 0 to 1, or in per cent, such as `5%`")
    })?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is from 0 to 1"
    )]
    Ok((part * 1e6).round() as u32)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::ServeConfig;
    use super::*;

    fn parse(text: &str) -> Result<Option<TracesConfig>, TableError> {
        ServeConfig::parse(text, Path::new("/etc")).map(|config| config.traces)
    }

    #[test]
    fn everything_can_be_said() {
        let text = "[traces]\nendpoint = \"http://127.0.0.1:4318\"\nheaders = { a = \"b\" }\ntoken_file = \"t\"\nsample = \"25%\"\nservice = \"r\"\ninterval = \"1s\"\n";
        let read = parse(text).unwrap().unwrap();
        assert_eq!(read.endpoint.as_deref(), Some("http://127.0.0.1:4318"));
        assert_eq!(read.sample_per_million, Some(250_000));
        assert_eq!(read.token.as_deref(), Some(Path::new("/etc/t")));
        assert_eq!(parse("").unwrap(), None);
    }

    #[test]
    fn parts_are_numbers_from_0_to_1() {
        let check =
            |text: &str, expect: Option<u32>| assert_eq!(per_million(text).ok(), expect, "{text}");
        check("0", Some(0));
        check("1", Some(1_000_000));
        check("0.1%", Some(1000));
        check("1.5", None);
        check("-1", None);
        check("NaN", None);
        check("x", None);
    }
}
