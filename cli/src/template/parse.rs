//! A template's text as a tree.

use serde_json::Value;

/// How deep actions and parentheses may nest.
const DEPTH_MAX: usize = 64;

/// A piece of a template.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Text(String),
    Print(Pipe),
    /// `{{$name := …}}`
    Set(String, Pipe),
    If(Pipe, Vec<Node>, Vec<Node>),
    With(Pipe, Vec<Node>, Vec<Node>),
    Range {
        /// The variables: none, the item's, or the key's and the item's.
        names: Vec<String>,
        pipe: Pipe,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// Calls, each of which gets the last one's value as its last argument.
#[derive(Clone, Debug)]
pub(super) struct Pipe {
    pub(super) calls: Vec<Call>,
}

/// A function with its arguments, or a single value.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) function: Option<String>,
    pub(super) terms: Vec<Term>,
}

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Term {
    Literal(Value),
    /// `.A.B`; empty for the dot itself.
    Field(Vec<String>),
    /// `$name.A.B`
    Variable(String, Vec<String>),
    /// `(…).A.B`
    Group(Pipe, Vec<String>),
}

/// A text or an action's inside, in order.
enum Piece {
    Text(String),
    Action(Vec<Token>),
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Open,
    Close,
    Bar,
    Comma,
    Assign,
    Word(String),
    Field(Vec<String>),
    Variable(String, Vec<String>),
    /// What directly follows a parenthesis.
    Tail(Vec<String>),
    Literal(Value),
}

/// Reads a template.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, String> {
    let mut pieces = pieces(text)?.into_iter();
    let (nodes, end) = nodes(&mut pieces, 0)?;
    match end {
        Stop::Text => Ok(nodes),
        Stop::End => Err("`{{end}}` ends nothing".to_owned()),
        Stop::Else(_) => Err("`{{else}}` has nothing before it".to_owned()),
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (before, after) = match after.strip_prefix("- ") {
            Some(after) => (before.trim_end(), after),
            None => (before, after),
        };
        pieces.push(Piece::Text(before.to_owned()));
        let end = end_of_action(after)?;
        let (inside, after) = (&after[..end], &after[end + 2..]);
        let (inside, after) = match inside.strip_suffix(" -") {
            Some(inside) => (inside, after.trim_start()),
            None => (inside, after),
        };
        let inside = inside.trim();
        if !(inside.starts_with("/*") && inside.ends_with("*/")) {
            pieces.push(Piece::Action(tokens(inside)?));
        }
        rest = after;
    }
    pieces.push(Piece::Text(rest.to_owned()));
    Ok(pieces)
}

/// Where the `}}` is that ends an action: not in a quoted text.
fn end_of_action(text: &str) -> Result<usize, String> {
    let mut quote = None;
    let mut is_escaped = false;
    for (at, letter) in text.char_indices() {
        match quote {
            Some('"') if is_escaped => is_escaped = false,
            Some('"') if letter == '\\' => is_escaped = true,
            Some(open) if letter == open => quote = None,
            Some(_) => {}
            None if matches!(letter, '"' | '`') => quote = Some(letter),
            None if text[at..].starts_with("}}") => return Ok(at),
            None => {}
        }
    }
    match quote {
        Some(open) => Err(format!("`{open}` without a second one")),
        None => Err("`{{` without `}}`".to_owned()),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    let mut follows_group = false;
    while let Some(letter) = rest.chars().next() {
        let (token, length) = match letter {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '|' => (Token::Bar, 1),
            ',' => (Token::Comma, 1),
            ':' if rest.starts_with(":=") => (Token::Assign, 2),
            '=' => (Token::Assign, 1),
            '"' => quoted(rest)?,
            '`' => {
                let end = rest[1..].find('`').ok_or("` without a second one")?;
                (Token::Literal(rest[1..=end].into()), end + 2)
            }
            '.' => {
                let length = path_length(rest);
                let path = path_of(&rest[..length]);
                match follows_group {
                    true => (Token::Tail(path), length),
                    false => (Token::Field(path), length),
                }
            }
            '$' => {
                let name = word_length(&rest[1..]);
                let length = 1 + name + path_length(&rest[1 + name..]);
                let path = path_of(&rest[1 + name..length]);
                (Token::Variable(rest[1..=name].to_owned(), path), length)
            }
            letter if letter.is_ascii_digit() || letter == '-' => {
                let is_digit = |c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-'));
                let length = rest.find(is_digit).unwrap_or(rest.len());
                let number = serde_json::from_str(&rest[..length])
                    .map_err(|_| format!("`{}` is no number", &rest[..length]))?;
                (Token::Literal(number), length)
            }
            _ => {
                let length = word_length(rest);
                let token = match &rest[..length] {
                    "" => return Err(format!("`{letter}` is not supported")),
                    "true" => Token::Literal(true.into()),
                    "false" => Token::Literal(false.into()),
                    "nil" => Token::Literal(Value::Null),
                    word => Token::Word(word.to_owned()),
                };
                (token, length)
            }
        };
        let closes = token == Token::Close;
        tokens.push(token);
        let after = &rest[length..];
        rest = after.trim_start();
        follows_group = closes && after.len() == rest.len();
    }
    Ok(tokens)
}

/// A text in double quotes, which is written as JSON's.
fn quoted(text: &str) -> Result<(Token, usize), String> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<String>();
    match values.next() {
        Some(Ok(value)) => Ok((Token::Literal(value.into()), values.byte_offset())),
        _ => Err(format!("cannot read the text {text}")),
    }
}

fn word_length(text: &str) -> usize {
    text.find(|c: char| !(c.is_alphanumeric() || c == '_'))
        .unwrap_or(text.len())
}

/// How long `.A.B` is; a dot alone is one, too.
fn path_length(text: &str) -> usize {
    let mut length = 0;
    while text[length..].starts_with('.') {
        length += 1 + word_length(&text[length + 1..]);
    }
    length
}

fn path_of(text: &str) -> Vec<String> {
    let names = text.split('.').filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

/// What ended a list of nodes.
enum Stop {
    Text,
    End,
    /// `{{else}}`, or `{{else if …}}` with the rest of that.
    Else(Vec<Token>),
}

fn nodes(
    pieces: &mut impl Iterator<Item = Piece>,
    depth: usize,
) -> Result<(Vec<Node>, Stop), String> {
    if depth > DEPTH_MAX {
        return Err("it is nested too deeply".to_owned());
    }
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let tokens = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(tokens) => tokens,
        };
        let keyword = match tokens.first() {
            Some(Token::Word(word)) => word.as_str(),
            _ => "",
        };
        match keyword {
            "end" => return Ok((nodes, Stop::End)),
            "else" => return Ok((nodes, Stop::Else(tokens[1..].to_vec()))),
            "if" | "with" | "range" => {
                nodes.push(block(keyword, &tokens[1..], pieces, depth)?);
            }
            "template" | "define" | "block" | "break" | "continue" => {
                return Err(format!("`{keyword}` is not supported"));
            }
            _ => nodes.push(match &tokens[..] {
                [Token::Variable(name, path), Token::Assign, rest @ ..] if path.is_empty() => {
                    Node::Set(name.clone(), pipe(rest)?)
                }
                tokens => Node::Print(pipe(tokens)?),
            }),
        }
    }
    Ok((nodes, Stop::Text))
}

/// `if`, `with` or `range`, up to its end.
fn block(
    keyword: &str,
    tokens: &[Token],
    pieces: &mut impl Iterator<Item = Piece>,
    depth: usize,
) -> Result<Node, String> {
    let (names, tokens) = match tokens {
        [
            Token::Variable(key, _),
            Token::Comma,
            Token::Variable(value, _),
            Token::Assign,
            rest @ ..,
        ] if keyword == "range" => (vec![key.clone(), value.clone()], rest),
        [Token::Variable(value, _), Token::Assign, rest @ ..] if keyword == "range" => {
            (vec![value.clone()], rest)
        }
        tokens => (Vec::new(), tokens),
    };
    let pipe = pipe(tokens)?;
    // A trait object: each level would be a type of its own.
    let pieces: &mut dyn Iterator<Item = Piece> = pieces;
    let mut pieces = pieces;
    let (body, end) = nodes(&mut pieces, depth + 1)?;
    let unended = || format!("`{{{{{keyword}}}}}` has no `{{{{end}}}}`");
    let otherwise = match end {
        Stop::Text => return Err(unended()),
        Stop::End => Vec::new(),
        Stop::Else(rest) => match rest.split_first() {
            None => match nodes(&mut pieces, depth + 1)? {
                (nodes, Stop::End) => nodes,
                _ => return Err(unended()),
            },
            Some((Token::Word(word), rest)) if word == "if" || word == "with" => {
                vec![block(word, rest, &mut pieces, depth + 1)?]
            }
            Some(_) => return Err("`{{else}}` is followed by `if` or nothing".to_owned()),
        },
    };
    Ok(match keyword {
        "if" => Node::If(pipe, body, otherwise),
        "with" => Node::With(pipe, body, otherwise),
        _ => Node::Range {
            names,
            pipe,
            body,
            otherwise,
        },
    })
}

fn pipe(tokens: &[Token]) -> Result<Pipe, String> {
    let mut tokens = tokens;
    let pipe = pipe_at(&mut tokens, 0)?;
    match tokens.is_empty() {
        true => Ok(pipe),
        false => Err("there is a `)` too many".to_owned()),
    }
}

fn pipe_at(tokens: &mut &[Token], depth: usize) -> Result<Pipe, String> {
    if depth > DEPTH_MAX {
        return Err("it is nested too deeply".to_owned());
    }
    let mut calls = Vec::new();
    let mut call = Call {
        function: None,
        terms: Vec::new(),
    };
    while let Some((token, rest)) = tokens.split_first() {
        if *token == Token::Close {
            break;
        }
        *tokens = rest;
        match token {
            Token::Bar => {
                calls.push(call);
                call = Call {
                    function: None,
                    terms: Vec::new(),
                };
            }
            Token::Word(name) if call.function.is_none() && call.terms.is_empty() => {
                call.function = Some(name.clone());
            }
            Token::Word(name) => return Err(format!("`{name}` is no field: it has no dot")),
            Token::Literal(value) => call.terms.push(Term::Literal(value.clone())),
            Token::Field(path) => call.terms.push(Term::Field(path.clone())),
            Token::Variable(name, path) => {
                call.terms.push(Term::Variable(name.clone(), path.clone()));
            }
            Token::Open => {
                let inner = pipe_at(tokens, depth + 1)?;
                let Some((Token::Close, rest)) = tokens.split_first() else {
                    return Err("there is a `(` without `)`".to_owned());
                };
                *tokens = rest;
                let mut path = Vec::new();
                if let Some((Token::Tail(tail), rest)) = tokens.split_first() {
                    path.clone_from(tail);
                    *tokens = rest;
                }
                call.terms.push(Term::Group(inner, path));
            }
            Token::Close | Token::Comma | Token::Assign | Token::Tail(_) => {
                return Err("a `,`, `=` or `.` is where none belongs".to_owned());
            }
        }
    }
    calls.push(call);
    match calls
        .iter()
        .any(|c| c.function.is_none() && c.terms.is_empty())
    {
        true => Err("there is nothing in it".to_owned()),
        false => Ok(Pipe { calls }),
    }
}
