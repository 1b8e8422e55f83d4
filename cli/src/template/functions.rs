//! What a template can call: Go's functions and docker's.

use std::cmp::Ordering;

use serde_json::Value;

/// Most that `printf` and `join` may make of a row.
const TEXT_BYTES_MAX: usize = 16 << 20;

/// A value as Go prints it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(shown).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(items) => {
            let items = items
                .iter()
                .map(|(key, item)| format!("{key}:{}", shown(item)));
            format!("map[{}]", items.collect::<Vec<_>>().join(" "))
        }
    }
}

/// Whether `if` takes it for true: all but false, nothing, zero and what is empty.
pub(super) fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
    }
}

/// Calls a function by its name.
pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value, String> {
    let count = arguments.len();
    let wrong = || format!("`{name}` does not take {count} values like these");
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(wrong);
    Ok(match (name, arguments) {
        ("json", [value]) => value.to_string().into(),
        ("lower", [value]) => text(value)?.to_lowercase().into(),
        ("upper", [value]) => text(value)?.to_uppercase().into(),
        ("title", [value]) => title(&text(value)?).into(),
        ("split", [value, by]) => {
            let (value, by) = (text(value)?, text(by)?);
            value
                .split(&by)
                .map(str::to_owned)
                .collect::<Vec<_>>()
                .into()
        }
        ("join", [Value::Array(items), by]) => {
            let items: Vec<String> = items.iter().map(shown).collect();
            items.join(&text(by)?).into()
        }
        ("join", [Value::Null, _]) => "".into(),
        ("truncate", [value, Value::Number(length)]) => {
            let length = length.as_u64().and_then(|l| usize::try_from(l).ok());
            let length = length.ok_or_else(wrong)?;
            text(value)?.chars().take(length).collect::<String>().into()
        }
        ("pad", [value, Value::Number(before), Value::Number(after)]) => {
            let spaces = |number: &serde_json::Number| {
                let count = number.as_u64().and_then(|n| usize::try_from(n).ok());
                count.filter(|n| *n <= TEXT_BYTES_MAX).ok_or_else(wrong)
            };
            let (before, after) = (spaces(before)?, spaces(after)?);
            format!(
                "{}{}{}",
                " ".repeat(before),
                text(value)?,
                " ".repeat(after)
            )
            .into()
        }
        ("len", [value]) => match value {
            Value::String(text) => text.len().into(),
            Value::Array(items) => items.len().into(),
            Value::Object(items) => items.len().into(),
            Value::Null => 0.into(),
            value => return Err(format!("`{}` has no length", shown(value))),
        },
        ("index", [value, path @ ..]) => index(value, path)?,
        ("not", [value]) => (!is_true(value)).into(),
        ("and", [first, ..]) => {
            let decides = arguments.iter().find(|value| !is_true(value));
            decides.unwrap_or(arguments.last().unwrap_or(first)).clone()
        }
        ("or", [first, ..]) => {
            let decides = arguments.iter().find(|value| is_true(value));
            decides.unwrap_or(arguments.last().unwrap_or(first)).clone()
        }
        ("eq", [first, others @ ..]) if !others.is_empty() => others.contains(first).into(),
        ("ne", [a, b]) => (a != b).into(),
        ("lt", [a, b]) => (order(a, b).ok_or_else(wrong)? == Ordering::Less).into(),
        ("le", [a, b]) => (order(a, b).ok_or_else(wrong)? != Ordering::Greater).into(),
        ("gt", [a, b]) => (order(a, b).ok_or_else(wrong)? == Ordering::Greater).into(),
        ("ge", [a, b]) => (order(a, b).ok_or_else(wrong)? != Ordering::Less).into(),
        ("print", values) => values.iter().map(shown).collect::<String>().into(),
        ("println", values) => {
            let values: Vec<String> = values.iter().map(shown).collect();
            format!("{}\n", values.join(" ")).into()
        }
        ("printf", [Value::String(format), values @ ..]) => printf(format, values)?.into(),
        (
            "json" | "lower" | "upper" | "title" | "split" | "join" | "truncate" | "pad" | "index"
            | "len" | "not" | "and" | "or" | "eq" | "ne" | "lt" | "le" | "gt" | "ge" | "printf",
            _,
        ) => return Err(wrong()),
        _ => {
            return Err(format!(
                "there is no function `{name}`, and a field begins with a dot"
            ));
        }
    })
}

fn title(text: &str) -> String {
    let mut begins = true;
    let letters = text.chars().flat_map(|letter| {
        let upper = begins;
        begins = letter.is_whitespace();
        match upper {
            true => letter.to_uppercase().collect::<Vec<_>>(),
            false => vec![letter],
        }
    });
    letters.collect()
}

fn index(value: &Value, path: &[Value]) -> Result<Value, String> {
    let mut value = value.clone();
    for key in path {
        value = match (&value, key) {
            // As in Go: what is not in a map is nothing.
            (Value::Object(items), Value::String(key)) => {
                items.get(key).cloned().unwrap_or_else(|| "".into())
            }
            (Value::Array(items), Value::Number(number)) => {
                let at = number.as_u64().and_then(|at| usize::try_from(at).ok());
                let found = at.and_then(|at| items.get(at)).cloned();
                found.ok_or_else(|| format!("index {number} is out of range"))?
            }
            (value, key) => {
                return Err(format!("`{}` has no index {key}", shown(value)));
            }
        };
    }
    Ok(value)
}

fn order(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

/// `%s`, `%v`, `%d`, `%t`, `%q` and `%%`, with a width or without.
fn printf(format: &str, values: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut letters = format.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut width = String::new();
        while let Some(digit) = letters.next_if(|c| c.is_ascii_digit() || *c == '-') {
            width.push(digit);
        }
        let (is_left, width) = match width.strip_prefix('-') {
            Some(width) => (true, width.to_owned()),
            None => (false, width),
        };
        let width: usize = match width.as_str() {
            "" => 0,
            width => width.parse().unwrap_or(usize::MAX),
        };
        if width > TEXT_BYTES_MAX {
            return Err("the width is too large".to_owned());
        }
        let verb = letters.next().ok_or("the format ends with `%`")?;
        if verb == '%' {
            out.push('%');
            continue;
        }
        let value = values.next().ok_or("there are fewer values than `%`")?;
        let text = match verb {
            's' | 'v' | 'd' | 't' => shown(value),
            'q' => Value::from(shown(value)).to_string(),
            verb => return Err(format!("`%{verb}` is not supported")),
        };
        let missing = " ".repeat(width.saturating_sub(text.chars().count()));
        match is_left {
            true => out.extend([text, missing]),
            false => out.extend([missing, text]),
        }
    }
    Ok(out)
}
