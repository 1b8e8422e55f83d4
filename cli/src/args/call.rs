//! `--call METHOD[,format=FORMAT][,ignorestatus]`, as `docker buildx build` writes it.

use std::str::FromStr;

/// What is asked of a Dockerfile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// What to do.
    pub method: Method,
    /// How the answer is written.
    pub format: Format,
    /// The exit code does not tell whether there are warnings.
    pub ignore_status: bool,
}

/// What can be done with a Dockerfile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Build it.
    Build,
    /// Look for mistakes.
    Check,
    /// Tell what the target can be given.
    Outline,
    /// List the stages.
    Targets,
    /// List these methods.
    Describe,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Call {
    /// `--check`.
    pub const CHECK: Call = Call {
        method: Method::Check,
        format: Format::Text,
        ignore_status: false,
    };
}

impl FromStr for Call {
    type Err = String;

    fn from_str(text: &str) -> Result<Call, String> {
        let mut fields = text.split(',');
        let mut call = Call {
            method: method(fields.next().unwrap_or_default())?,
            format: Format::Text,
            ignore_status: false,
        };
        for field in fields {
            match field.split_once('=').unwrap_or((field, "")) {
                ("format", "text") => call.format = Format::Text,
                ("format", "json") => call.format = Format::Json,
                ("format", other) => {
                    return Err(format!("unknown format `{other}`: expected text or json"));
                }
                ("ignorestatus", "" | "true" | "1") => call.ignore_status = true,
                ("ignorestatus", "false" | "0") => call.ignore_status = false,
                ("ignorestatus", other) => {
                    return Err(format!("`ignorestatus` is true or false, not `{other}`"));
                }
                (other, _) => {
                    return Err(format!(
                        "unknown field `{other}`: expected `format` or `ignorestatus`"
                    ));
                }
            }
        }
        Ok(call)
    }
}

fn method(name: &str) -> Result<Method, String> {
    Ok(match name {
        "build" => Method::Build,
        "check" | "lint" | "frontend.lint" => Method::Check,
        "outline" | "frontend.outline" => Method::Outline,
        "targets" | "frontend.targets" => Method::Targets,
        "subrequests.describe" | "frontend.subrequests.describe" => Method::Describe,
        other => {
            return Err(format!(
                "unknown method `{other}`: expected build, check, outline, targets or subrequests.describe"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_buildx_reads() {
        let check = |text: &str, expect: Call| assert_eq!(text.parse(), Ok(expect), "{text}");
        check("check", Call::CHECK);
        check("lint", Call::CHECK);
        let json = Call {
            format: Format::Json,
            ..Call::CHECK
        };
        check("check,format=json", json);
        let ignoring = Call {
            ignore_status: true,
            ..json
        };
        check("check,format=json,ignorestatus", ignoring);
        check("check,ignorestatus=true,format=json", ignoring);
        let refused = |text: &str| text.parse::<Call>().unwrap_err();
        assert!(refused("chek").starts_with("unknown method `chek`"));
        assert!(refused("check,format=xml").starts_with("unknown format `xml`"));
        assert!(refused("check,x=y").starts_with("unknown field `x`"));
    }
}
