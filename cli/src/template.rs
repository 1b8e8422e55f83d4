//! `--format`: Go's templates, in the part of their language that people use on what docker shows.
//!
//! | module | holds |
//! |---|---|
//! | [`parse`] | a text as a tree |
//! | [`functions`] | what can be called: `json`, `join`, `index`, `len`, `eq`, `printf` … |
//!
//! Fields, variables, pipelines, `if`, `range`, `with`, `else`, comments, and `{{-` and `-}}`; and `table …` for a heading over
//! it. Nested templates, methods and `break` are not there: an error says so.

mod functions;
mod parse;

use std::collections::BTreeMap;

use serde_json::Value;

use self::parse::{Call, Node, Pipe, Term};
use crate::error::{CliError, Kind};
use crate::ui::table::table;

/// A template, read.
#[derive(Clone, Debug)]
pub struct Template {
    nodes: Vec<Node>,
    has_heading: bool,
    /// What columns are called, before [`HEADINGS`].
    headings: &'static [(&'static str, &'static str)],
}

/// What a column is called in a heading, where that is not its field's name in capitals: docker's words.
const HEADINGS: [(&str, &str); 13] = [
    ("BlockIO", "BLOCK I/O"),
    ("CPUPerc", "CPU %"),
    ("Container", "CONTAINER"),
    ("CreatedAt", "CREATED AT"),
    ("ID", "CONTAINER ID"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("MemPerc", "MEM %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("NetIO", "NET I/O"),
    ("Name", "NAME"),
    ("PIDs", "PIDS"),
    ("RunningFor", "CREATED"),
    ("Mountpoint", "MOUNTPOINT"),
];

impl Template {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Template, CliError> {
        let (has_heading, text) = match text.strip_prefix("table ") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let unescaped = text.replace("\\t", "\t").replace("\\n", "\n");
        let nodes = parse::parse(&unescaped).map_err(|what| {
            let message = format!("cannot read the template `{text}`: {what}");
            CliError::new(Kind::Usage, message)
                .hint("expected fields such as {{.ID}} or {{json .Labels}}")
        })?;
        Ok(Template {
            nodes,
            has_heading,
            headings: &[],
        })
    }

    /// The same, with columns of other names: docker calls `.ID` what it is an ID of.
    pub fn called(mut self, headings: &'static [(&'static str, &'static str)]) -> Template {
        self.headings = headings;
        self
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
        let heading = |node| heading(node, self.headings);
        let heading: String = self.nodes.iter().map(heading).collect();
        let heading = cells(&heading);
        let heading: Vec<&str> = heading.iter().map(String::as_str).collect();
        let rows: Vec<Vec<String>> = lines.iter().map(|line| cells(line)).collect();
        Ok(table(&heading, &rows))
    }

    fn line(&self, row: &Value) -> Result<String, CliError> {
        let mut scope = Scope {
            root: row,
            variables: BTreeMap::new(),
            out: String::new(),
        };
        scope.run(&self.nodes, row)?;
        Ok(scope.out)
    }
}

/// What stands over a part of a line.
fn heading(node: &Node, own: &[(&str, &str)]) -> String {
    let Node::Print(pipe) = node else {
        return match node {
            Node::Text(text) => text.clone(),
            _ => String::new(),
        };
    };
    let field = pipe.calls.iter().flat_map(|call| &call.terms);
    let mut paths = field.filter_map(|term| match term {
        Term::Field(path) => Some(path),
        _ => None,
    });
    let Some(path) = paths.next() else {
        return String::new();
    };
    let name = path.join(".");
    let mut known = own.iter().chain(&HEADINGS);
    let known = known.find(|(field, _)| *field == name);
    known.map_or_else(|| name.to_uppercase(), |(_, heading)| (*heading).to_owned())
}

/// A row, and what is known while it is written.
struct Scope<'a> {
    root: &'a Value,
    variables: BTreeMap<String, Value>,
    out: String,
}

impl Scope<'_> {
    fn run(&mut self, nodes: &[Node], dot: &Value) -> Result<(), CliError> {
        for node in nodes {
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Print(pipe) => {
                    let value = self.value(pipe, dot)?;
                    self.out.push_str(&functions::shown(&value));
                }
                Node::Set(name, pipe) => {
                    let value = self.value(pipe, dot)?;
                    self.variables.insert(name.clone(), value);
                }
                Node::If(pipe, body, otherwise) => {
                    let body = match functions::is_true(&self.value(pipe, dot)?) {
                        true => body,
                        false => otherwise,
                    };
                    self.run(body, dot)?;
                }
                Node::With(pipe, body, otherwise) => {
                    let value = self.value(pipe, dot)?;
                    match functions::is_true(&value) {
                        true => self.run(body, &value)?,
                        false => self.run(otherwise, dot)?,
                    }
                }
                Node::Range {
                    names,
                    pipe,
                    body,
                    otherwise,
                } => {
                    let value = self.value(pipe, dot)?;
                    let items: Vec<(Value, Value)> = match value {
                        Value::Null => Vec::new(),
                        Value::Array(items) => {
                            let numbers = (0_u64..).map(Value::from);
                            numbers.zip(items).collect()
                        }
                        Value::Object(items) => items
                            .into_iter()
                            .map(|(key, value)| (Value::from(key), value))
                            .collect(),
                        value => {
                            return Err(failed(format!(
                                "cannot range over `{}`",
                                functions::shown(&value)
                            )));
                        }
                    };
                    if items.is_empty() {
                        self.run(otherwise, dot)?;
                    }
                    for (key, item) in items {
                        match &names[..] {
                            [value] => {
                                self.variables.insert(value.clone(), item.clone());
                            }
                            [number, value] => {
                                self.variables.insert(number.clone(), key);
                                self.variables.insert(value.clone(), item.clone());
                            }
                            _ => {}
                        }
                        self.run(body, &item)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn value(&self, pipe: &Pipe, dot: &Value) -> Result<Value, CliError> {
        let mut last = None;
        for call in &pipe.calls {
            last = Some(self.call(call, dot, last)?);
        }
        Ok(last.unwrap_or_default())
    }

    fn call(&self, call: &Call, dot: &Value, last: Option<Value>) -> Result<Value, CliError> {
        let terms = call.terms.iter().map(|term| self.term(term, dot));
        let mut values: Vec<Value> = terms.collect::<Result<_, _>>()?;
        values.extend(last);
        match &call.function {
            Some(name) => functions::call(name, &values).map_err(failed),
            None => match <[Value; 1]>::try_from(values) {
                Ok([value]) => Ok(value),
                Err(_) => Err(failed("a value is no function".to_owned())),
            },
        }
    }

    fn term(&self, term: &Term, dot: &Value) -> Result<Value, CliError> {
        match term {
            Term::Literal(value) => Ok(value.clone()),
            Term::Field(path) => field(dot, path),
            Term::Variable(name, path) => match name.as_str() {
                "" => field(self.root, path),
                name => match self.variables.get(name) {
                    Some(value) => field(value, path),
                    None => Err(failed(format!("there is no variable `${name}`"))),
                },
            },
            Term::Group(pipe, path) => field(&self.value(pipe, dot)?, path),
        }
    }
}

/// What is found beneath a value by names. A name that differs in its case alone will do: `.MediaType` is what Go's tools call
/// a manifest's `mediaType`.
fn field(value: &Value, path: &[String]) -> Result<Value, CliError> {
    let mut value = value;
    for name in path {
        let alike = || {
            let mut fields = value.as_object()?.iter();
            let (_, found) = fields.find(|(known, _)| known.eq_ignore_ascii_case(name))?;
            Some(found)
        };
        value = value.get(name).or_else(alike).ok_or_else(|| {
            let known = value.as_object().into_iter().flat_map(|o| o.keys());
            let known: Vec<&str> = known.map(String::as_str).collect();
            let error = failed(format!("there is no field `{name}` here"));
            match known.is_empty() {
                true => error,
                false => error.hint(format!("there are {}", known.join(", "))),
            }
        })?;
    }
    Ok(value.clone())
}

fn failed(message: String) -> CliError {
    CliError::new(Kind::Usage, message)
}

/// How something is printed: docker's `--format`.
#[derive(Clone, Debug, Default)]
pub enum Format {
    /// Its own table, or its own words.
    #[default]
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

    fn row() -> Value {
        json!({
            "ID": "abc",
            "Labels": {"a": "b", "c": "d"},
            "State": {"Pid": 7, "Running": true},
            "Names": ["one", "two"],
            "None": null,
            "Empty": [],
        })
    }

    fn check(text: &str, expected: &str) {
        let rendered = Template::parse(text).unwrap().render(&[row()]).unwrap();
        assert_eq!(rendered, expected, "{text}");
    }

    #[test]
    fn fields_are_filled_in() {
        check("{{.ID}}", "abc\n");
        check("<{{ .ID }}|{{.State.Pid}}>", "<abc|7>\n");
        check("{{json .Labels}}", "{\"a\":\"b\",\"c\":\"d\"}\n");
        check("{{json .ID}}", "\"abc\"\n");
        check("{{.ID}}\\t{{.ID}}", "abc\tabc\n");
        check(
            "table {{.ID}}\\t{{.State.Pid}}",
            "CONTAINER ID   STATE.PID\nabc            7\n",
        );
        check(
            "{{.Names}} {{.Labels}} {{.None}}",
            "[one two] map[a:b c:d] <no value>\n",
        );
    }

    #[test]
    fn actions_choose_and_repeat() {
        check("{{if .State.Running}}up{{else}}down{{end}}", "up\n");
        check("{{if not .State.Running}}up{{else}}down{{end}}", "down\n");
        check(
            "{{if eq .ID \"x\"}}x{{else if eq .ID \"abc\"}}it{{else}}no{{end}}",
            "it\n",
        );
        check("{{range .Names}}<{{.}}>{{end}}", "<one><two>\n");
        check(
            "{{range $k, $v := .Labels}}{{$k}}={{$v}};{{end}}",
            "a=b;c=d;\n",
        );
        check(
            "{{range $i, $n := .Names}}{{$i}}{{$n}}{{$.ID}} {{end}}",
            "0oneabc 1twoabc \n",
        );
        check("{{range .Empty}}x{{else}}none{{end}}", "none\n");
        check("{{with .State}}{{.Pid}}{{end}}", "7\n");
        check("{{$x := .ID}}{{$x}}{{$x}}", "abcabc\n");
        check("a {{- .ID -}} b", "aabcb\n");
        check("a{{/* nothing */}}b", "ab\n");
    }

    #[test]
    fn functions_are_called() {
        check("{{index .Labels \"a\"}}{{index .Names 1}}", "btwo\n");
        check("{{len .Names}}", "2\n");
        check("{{join .Names \"-\"}}", "one-two\n");
        check("{{upper .ID}} {{.ID | upper | lower}}", "ABC abc\n");
        check(
            "{{printf \"%s:%d:%v\" .ID .State.Pid .Names}}",
            "abc:7:[one two]\n",
        );
        check("{{(index .Names 0)}}", "one\n");
        check("{{if and .ID (gt .State.Pid 3)}}y{{end}}", "y\n");
        check("{{truncate .ID 2}}{{or .None \"x\"}}", "abx\n");
        check("{{println .ID}}", "abc\n\n");
        check("{{(split \"a,b\" \",\")}}", "[a b]\n");
    }

    #[test]
    fn what_is_not_supported_is_said() {
        let check = |text: &str, expected: &str| {
            let told = Template::parse(text).and_then(|template| template.render(&[row()]));
            let told = told.unwrap_err().to_string();
            assert!(told.contains(expected), "{text}: {told}");
        };
        check("{{.ID", "`{{` without `}}`");
        check("{{ID}}", "no function `ID`");
        check("{{if .ID}}x", "no `{{end}}`");
        check("{{end}}", "`{{end}}` ends nothing");
        check("{{else}}", "`{{else}}`");
        check("{{template \"x\"}}", "`template` is not supported");
        check("{{.No}}", "no field `No`");
        check("{{$no}}", "no variable `$no`");
        check("{{range .ID}}{{end}}", "cannot range");
        check("{{index .Names 7}}", "out of range");
        check("{{.ID .ID}}", "a value is no function");
        check("{{\"open}}", "`\"` without");
        check("{{len .State.Pid}}", "no length");
    }
}
