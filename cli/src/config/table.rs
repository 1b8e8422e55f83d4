//! Reading a table of the configuration file key by key.
//!
//! Whoever reads a table asks for each key that it knows and then says that it is done: what is left is unknown, and an error
//! with its line. So no list of keys has to be kept beside the code.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use builder::dockerfile::suggest::nearest;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::quantity;

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct TableError {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// Parses a whole document.
pub(super) fn document(text: &str) -> Result<DeTable<'_>, TableError> {
    match DeTable::parse(text) {
        Ok(table) => Ok(table.into_inner()),
        Err(error) => {
            let span = error.span().unwrap_or(0..0);
            Err(error_at(text, span, error.message().to_owned()))
        }
    }
}

fn error_at(text: &str, span: Range<usize>, message: String) -> TableError {
    let before = text.get(..span.start).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    TableError {
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        message,
    }
}

/// A table being read.
pub(super) struct Table<'t> {
    text: &'t str,
    /// Its path, with a point at the end; empty at the top.
    path: String,
    table: &'t DeTable<'t>,
    known: BTreeSet<&'static str>,
}

impl<'t> Table<'t> {
    pub(super) fn new(text: &'t str, path: &str, table: &'t DeTable<'t>) -> Table<'t> {
        Table {
            text,
            path: path.to_owned(),
            table,
            known: BTreeSet::new(),
        }
    }

    fn find(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.known.insert(key);
        self.table.get(key)
    }

    /// A table in it.
    pub(super) fn table(&mut self, key: &'static str) -> Result<Option<Table<'t>>, TableError> {
        let Some(value) = self.find(key) else {
            return Ok(None);
        };
        self.as_table(key, value).map(Some)
    }

    fn as_table(
        &self,
        key: &'static str,
        value: &'t Spanned<DeValue<'t>>,
    ) -> Result<Table<'t>, TableError> {
        match value.get_ref() {
            DeValue::Table(table) => Ok(Table::new(
                self.text,
                &format!("{}{key}.", self.path),
                table,
            )),
            _ => Err(self.wrong(key, value, "a table")),
        }
    }

    /// The tables of an array `[[key]]`.
    pub(super) fn tables(
        &mut self,
        key: &'static str,
    ) -> Result<Option<Vec<Table<'t>>>, TableError> {
        let Some(value) = self.find(key) else {
            return Ok(None);
        };
        let DeValue::Array(values) = value.get_ref() else {
            let expected = format!("tables `[[{}{key}]]`", self.path);
            return Err(self.wrong(key, value, &expected));
        };
        let tables = values.iter().map(|value| self.as_table(key, value));
        tables.collect::<Result<_, _>>().map(Some)
    }

    /// The tables `[key."NAME"]`, by name.
    pub(super) fn named_tables(
        &mut self,
        key: &'static str,
    ) -> Result<Vec<(String, Table<'t>)>, TableError> {
        let Some(Table { table, path, .. }) = self.table(key)? else {
            return Ok(Vec::new());
        };
        let tables = table.iter().map(|(name, value)| {
            let name = name.get_ref().as_ref();
            let path = format!("{path}\"{name}\"");
            match value.get_ref() {
                DeValue::Table(table) => {
                    let inner = Table::new(self.text, &format!("{path}."), table);
                    Ok((name.to_owned(), inner))
                }
                _ => {
                    let message = format!("`{path}` is no table");
                    Err(error_at(self.text, value.span(), message))
                }
            }
        });
        tables.collect()
    }

    /// The lists of texts in `[key]`, by name.
    pub(super) fn named_texts(
        &mut self,
        key: &'static str,
    ) -> Result<Vec<(String, Vec<String>)>, TableError> {
        let Some(Table { table, path, .. }) = self.table(key)? else {
            return Ok(Vec::new());
        };
        let lists = table.iter().map(|(name, value)| {
            let name = name.get_ref().as_ref();
            let wrong = || {
                let message = format!("`{path}{name}` is no list of texts");
                error_at(self.text, value.span(), message)
            };
            let DeValue::Array(values) = value.get_ref() else {
                return Err(wrong());
            };
            let texts = values.iter().map(|value| match value.get_ref() {
                DeValue::String(text) => Ok(text.as_ref().to_owned()),
                _ => Err(wrong()),
            });
            Ok((name.to_owned(), texts.collect::<Result<_, _>>()?))
        });
        lists.collect()
    }

    /// The texts in `key = { NAME = TEXT }`, by name.
    pub(super) fn pairs(&mut self, key: &'static str) -> Result<Vec<(String, String)>, TableError> {
        let Some(Table { table, path, .. }) = self.table(key)? else {
            return Ok(Vec::new());
        };
        let texts = table.iter().map(|(name, value)| {
            let name = name.get_ref().as_ref();
            match value.get_ref() {
                DeValue::String(text) => Ok((name.to_owned(), text.as_ref().to_owned())),
                _ => {
                    let message = format!("`{path}{name}` is no text");
                    Err(error_at(self.text, value.span(), message))
                }
            }
        });
        texts.collect()
    }

    /// A text.
    pub(super) fn text(&mut self, key: &'static str) -> Result<Option<String>, TableError> {
        self.find(key)
            .map(|value| match value.get_ref() {
                DeValue::String(text) => Ok(text.as_ref().to_owned()),
                _ => Err(self.wrong(key, value, "a text")),
            })
            .transpose()
    }

    /// A list of files, each found by `file`.
    pub(super) fn files(
        &mut self,
        key: &'static str,
        file: impl Fn(String) -> PathBuf,
    ) -> Result<Vec<PathBuf>, TableError> {
        let texts = self.texts(key, |_| Ok(()))?;
        Ok(texts.into_iter().map(file).collect())
    }

    /// A list of texts, each of which `check` has to take.
    pub(super) fn texts(
        &mut self,
        key: &'static str,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Result<Vec<String>, TableError> {
        let Some(value) = self.find(key) else {
            return Ok(Vec::new());
        };
        let DeValue::Array(values) = value.get_ref() else {
            return Err(self.wrong(key, value, "a list of texts"));
        };
        let mut texts = Vec::new();
        for value in values {
            let DeValue::String(text) = value.get_ref() else {
                return Err(self.wrong(key, value, "texts"));
            };
            check(text).map_err(|reason| {
                let message = format!("`{}{key}`: {reason}", self.path);
                error_at(self.text, value.span(), message)
            })?;
            texts.push(text.as_ref().to_owned());
        }
        Ok(texts)
    }

    /// That the whole table is wrong.
    pub(super) fn error(&self, message: &str) -> TableError {
        let path = self.path.trim_end_matches('.');
        let span = self.table.iter().next().map(|(key, _)| key.span());
        error_at(
            self.text,
            span.unwrap_or(0..0),
            format!("`{path}`: {message}"),
        )
    }

    /// That a key is wrong, whatever its value.
    pub(super) fn error_at(&self, key: &str, message: &str) -> TableError {
        let span = self.table.iter().find(|(name, _)| name.get_ref() == key);
        let span = span.map_or(0..0, |(name, _)| name.span());
        error_at(self.text, span, message.to_owned())
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Result<Option<bool>, TableError> {
        self.find(key)
            .map(|value| match value.get_ref() {
                DeValue::Boolean(value) => Ok(*value),
                _ => Err(self.wrong(key, value, "true or false")),
            })
            .transpose()
    }

    pub(super) fn number(&mut self, key: &'static str) -> Result<Option<u64>, TableError> {
        let expected = "a number that is not negative";
        self.find(key)
            .map(|value| number(value).ok_or_else(|| self.wrong(key, value, expected)))
            .transpose()
    }

    /// A number that is not below `least`.
    pub(super) fn number_from(
        &mut self,
        least: u64,
        key: &'static str,
    ) -> Result<Option<u64>, TableError> {
        let expected = format!("a number that is at least {least}");
        self.find(key)
            .map(|value| {
                let found = number(value).filter(|number| *number >= least);
                found.ok_or_else(|| self.wrong(key, value, &expected))
            })
            .transpose()
    }

    pub(super) fn duration(&mut self, key: &'static str) -> Result<Option<Duration>, TableError> {
        self.find(key)
            .map(|value| {
                let read = match value.get_ref() {
                    DeValue::String(text) => quantity::duration(text),
                    _ => Err(quantity::QuantityError::Duration),
                };
                read.map_err(|error| self.wrong(key, value, &expected(error)))
            })
            .transpose()
    }

    /// A size, as a text or as a number of bytes; or what `other` makes of a text.
    pub(super) fn size<T>(
        &mut self,
        key: &'static str,
        bytes: fn(u64) -> T,
        other: fn(&str) -> Option<T>,
        other_expected: &str,
    ) -> Result<Option<T>, TableError> {
        self.find(key)
            .map(|value| {
                let read = match value.get_ref() {
                    DeValue::String(text) => other(text)
                        .map(Ok)
                        .unwrap_or_else(|| quantity::size(text).map(bytes)),
                    _ => number(value)
                        .map(bytes)
                        .ok_or(quantity::QuantityError::Size),
                };
                read.map_err(|error| {
                    let expected = format!("{}{other_expected}", expected(error));
                    self.wrong(key, value, &expected)
                })
            })
            .transpose()
    }

    /// A word out of a set, each with what it stands for.
    pub(super) fn word<T: Copy>(
        &mut self,
        key: &'static str,
        known: &[(&str, T)],
    ) -> Result<Option<T>, TableError> {
        self.find(key)
            .map(|value| match value.get_ref() {
                DeValue::String(text) => self.meaning(key, value, text, known),
                _ => Err(self.wrong(key, value, "a word")),
            })
            .transpose()
    }

    fn meaning<T: Copy>(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        text: &str,
        known: &[(&str, T)],
    ) -> Result<T, TableError> {
        let found = known.iter().find(|(word, _)| *word == text);
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
            let message = format!("`{}{key}` has `{text}`: {}", self.path, meant(text, &names));
            error_at(self.text, value.span(), message)
        })
    }

    /// A list of words out of a set, each with what it stands for.
    pub(super) fn words<T: Copy>(
        &mut self,
        key: &'static str,
        known: &[(&str, T)],
    ) -> Result<Option<Vec<T>>, TableError> {
        let Some(value) = self.find(key) else {
            return Ok(None);
        };
        let DeValue::Array(values) = value.get_ref() else {
            return Err(self.wrong(key, value, "a list"));
        };
        let mut words = Vec::new();
        for value in values {
            let DeValue::String(text) = value.get_ref() else {
                return Err(self.wrong(key, value, "words"));
            };
            words.push(self.meaning(key, value, text, known)?);
        }
        Ok(Some(words))
    }

    /// Refuses keys that were not asked for.
    pub(super) fn finish(self) -> Result<(), TableError> {
        let unknown = self
            .table
            .iter()
            .find(|(key, _)| !self.known.contains(key.get_ref().as_ref()));
        let Some((key, _)) = unknown else {
            return Ok(());
        };
        let known: Vec<&str> = self.known.iter().copied().collect();
        let name = key.get_ref();
        let message = format!("unknown key `{}{name}`: {}", self.path, meant(name, &known));
        Err(error_at(self.text, key.span(), message))
    }

    fn wrong(&self, key: &str, value: &Spanned<DeValue<'_>>, expected: &str) -> TableError {
        let found = match value.get_ref() {
            DeValue::String(text) => format!("`{text}`"),
            DeValue::Integer(number) if number.as_str().starts_with('-') => {
                format!("`{}`", number.as_str())
            }
            DeValue::Integer(_) | DeValue::Float(_) => "a number".to_owned(),
            DeValue::Boolean(value) => format!("`{value}`"),
            DeValue::Datetime(_) => "a time".to_owned(),
            DeValue::Array(_) => "a list".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
        };
        let message = format!("`{}{key}` is {found}: expected {expected}", self.path);
        error_at(self.text, value.span(), message)
    }
}

fn number(value: &Spanned<DeValue<'_>>) -> Option<u64> {
    match value.get_ref() {
        DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    }
}

/// A quantity's error without the word that `wrong` says itself.
fn expected(error: quantity::QuantityError) -> String {
    error.to_string().replacen("expected ", "", 1)
}

fn meant(text: &str, known: &[&str]) -> String {
    match nearest(text, known.iter().copied()) {
        Some(word) => format!("did you mean `{word}`?"),
        None => format!("expected one of {}", known.join(", ")),
    }
}
