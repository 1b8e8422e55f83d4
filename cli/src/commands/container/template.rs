//! `--format`: a Go template in the part of its language that people use for listings.
//!
//! `{{.Field}}`, `{{.Field.Inner}}`, `{{json .Field}}`, `{{.}}`, text around them, `\t` and `\n`; and `table …` for a
//! heading over it. Everything else is an error that says so.

use serde_json::Value;

use crate::error::{CliError, Kind};
use crate::ui::table::table;

/// A template, read.
#[derive(Debug)]
pub struct Template {
    parts: Vec<Part>,
    has_heading: bool,
}

#[derive(Debug)]
enum Part {
    Text(String),
    Field { path: Vec<String>, as_json: bool },
}

impl Template {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Template, CliError> {
        let (has_heading, text) = match text.strip_prefix("table ") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let bad = |what: &str| {
            CliError::new(
                Kind::Usage,
                format!("cannot read the template `{text}`: {what}"),
            )
            .hint("expected fields such as {{.ID}} or {{json .Labels}}")
        };
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let mut parts = Vec::new();
        let mut rest = &text[..];
        while let Some((before, after)) = rest.split_once("{{") {
            parts.push(Part::Text(before.to_owned()));
            let (inside, after) = after
                .split_once("}}")
                .ok_or_else(|| bad("`{{` without `}}`"))?;
            let words: Vec<&str> = inside.split_whitespace().collect();
            let (as_json, field) = match words[..] {
                [field] => (false, field),
                ["json", field] => (true, field),
                _ => return Err(bad(&format!("`{{{{{inside}}}}}` is not supported"))),
            };
            let path = field
                .strip_prefix('.')
                .ok_or_else(|| bad(&format!("`{field}` is no field: it has no dot")))?;
            let path = path.split('.').filter(|name| !name.is_empty());
            parts.push(Part::Field {
                path: path.map(str::to_owned).collect(),
                as_json,
            });
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Template { parts, has_heading })
    }

    /// What it makes of the rows, each a line.
    pub fn render(&self, rows: &[Value]) -> Result<String, CliError> {
        let lines: Vec<String> = rows
            .iter()
            .map(|row| self.line(row))
            .collect::<Result<_, _>>()?;
        if !self.has_heading {
            return Ok(lines.iter().map(|line| format!("{line}\n")).collect());
        }
        let cells = |line: &str| -> Vec<String> { line.split('\t').map(str::to_owned).collect() };
        let heading = self.parts.iter().map(|part| match part {
            Part::Text(text) => text.clone(),
            Part::Field { path, .. } => path.join(".").to_uppercase(),
        });
        let heading = cells(&heading.collect::<String>());
        let heading: Vec<&str> = heading.iter().map(String::as_str).collect();
        let rows: Vec<Vec<String>> = lines.iter().map(|line| cells(line)).collect();
        Ok(table(&heading, &rows))
    }

    fn line(&self, row: &Value) -> Result<String, CliError> {
        let mut line = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => line.push_str(text),
                Part::Field { path, as_json } => {
                    let mut value = row;
                    for name in path {
                        value = value.get(name).ok_or_else(|| {
                            let message = format!("there is no field `{name}` here");
                            let known = row.as_object().into_iter().flat_map(|o| o.keys());
                            let known: Vec<&str> = known.map(String::as_str).collect();
                            CliError::new(Kind::Usage, message)
                                .hint(format!("there are {}", known.join(", ")))
                        })?;
                    }
                    match value {
                        Value::String(text) if !as_json => line.push_str(text),
                        value => line.push_str(&value.to_string()),
                    }
                }
            }
        }
        Ok(line)
    }
}

/// How a listing is printed: docker's `--format`.
#[derive(Debug)]
pub enum Format {
    /// Its own table.
    Table,
    /// One JSON object per line.
    Json,
    /// As one likes.
    Template(Template),
}

impl Format {
    /// Reads it.
    pub fn parse(text: &str) -> Result<Format, CliError> {
        match text {
            "table" => Ok(Format::Table),
            "json" | "{{json .}}" => Ok(Format::Json),
            text => Template::parse(text).map(Format::Template),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_filled_in() {
        let rows = [json!({"ID": "abc", "Labels": {"a": "b"}, "State": {"Pid": 7}})];
        let check = |text: &str, expected: &str| {
            let rendered = Template::parse(text).unwrap().render(&rows).unwrap();
            assert_eq!(rendered, expected, "{text}");
        };
        check("{{.ID}}", "abc\n");
        check("<{{ .ID }}|{{.State.Pid}}>", "<abc|7>\n");
        check("{{json .Labels}}", "{\"a\":\"b\"}\n");
        check("{{json .ID}}", "\"abc\"\n");
        check("{{.ID}}\\t{{.ID}}", "abc\tabc\n");
        check(
            "table {{.ID}}\\t{{.State.Pid}}",
            "ID        STATE.PID\nabc       7\n",
        );
    }

    #[test]
    fn what_is_not_supported_is_said() {
        for bad in ["{{.ID", "{{if .ID}}x{{end}}", "{{ID}}", "{{upper .ID}}x"] {
            let parsed = Template::parse(bad);
            let failed = match parsed {
                Ok(template) => template.render(&[json!({"ID": ""})]).is_err(),
                Err(_) => true,
            };
            assert!(failed, "{bad}");
        }
        let unknown = Template::parse("{{.No}}")
            .unwrap()
            .render(&[json!({"ID": ""})]);
        assert!(unknown.unwrap_err().to_string().contains("no field `No`"));
    }
}
