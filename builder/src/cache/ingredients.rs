//! What a key is made of, in words: kept with each record, so that a later miss can be explained.
//!
//! [`Ingredients`] are texts by name (`docs/formats/cache-record.md`). The files that a copy selects are too many for that:
//! [`FileLists`] keeps a short digest of each, in a compact form of its own.

pub(crate) mod flags;

use std::collections::BTreeMap;

use crate::cache::{Identity, hex, slow_key};
use crate::graph::exec::MountKind;
use crate::graph::op::Encoder;
use crate::graph::{FileAction, Op};
use crate::ops::Selected;
use crate::ops::tree::{Kind, Listing};

/// What a key was made of, by name.
pub type Ingredients = BTreeMap<String, String>;

/// Longest value that is kept as it is, in characters.
const VALUE_CHARS_MAX: usize = 80;

/// Longest command that is kept as it is, in characters.
const COMMAND_CHARS_MAX: usize = 2000;

/// What a step stands on.
#[derive(Clone, Debug)]
pub struct Base {
    /// What it is.
    pub identity: Identity,
    /// `image NAME DIGEST`, or `step LABEL`.
    pub name: String,
}

/// What one source of a copy selects.
#[derive(Clone, Debug)]
pub struct SelectedSource {
    /// The pattern, as written but for variables.
    pub pattern: String,
    /// Where it selects from: `context`, `image NAME DIGEST` or `step LABEL`.
    pub from: String,
    /// Digest of all that it selects.
    pub digest: [u8; 32],
}

/// The ingredients of a step's key: its operation's fields, its base, and what it copies.
pub fn ingredients(op: &Op, base: Option<&Base>, selected: &[SelectedSource]) -> Ingredients {
    let mut named = Ingredients::new();
    if let Op::Exec(exec) = op {
        flags::put(exec, &mut named);
    }
    let mut put = |name: &str, value: String| named.insert(name.to_owned(), value);
    match op {
        Op::Exec(exec) => {
            let mut rest = exec.clone();
            let mut command = exec.argv.join(" ");
            if let Some((_, text)) = rest.script.take() {
                command.push('\n');
                command.push_str(&text);
            }
            put("command", clip(&command, COMMAND_CHARS_MAX));
            put("directory", exec.cwd.clone());
            put("user", exec.user.clone());
            for variable in &exec.env {
                let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
                put(&format!("env {name}"), shown(name, value));
            }
            rest.argv.clear();
            rest.cwd.clear();
            rest.user.clear();
            rest.env.clear();
            for (id, digest) in exec.keyed_secrets() {
                // Not even the key's digest of it, so that records tell nothing to who has the key alone.
                put(
                    &format!("secret {id}"),
                    short(blake3::hash(digest).as_bytes()),
                );
            }
            for mount in &mut rest.mounts {
                if let MountKind::Secret(secret) = &mut mount.kind {
                    secret.content = None;
                }
            }
            put("options", options(&Op::Exec(rest)));
        }
        Op::File(file) => {
            let mut rest = file.clone();
            for (number, action) in rest.actions.iter_mut().enumerate() {
                put(&format!("action {number}"), action_text(action));
                if let FileAction::Copy(copy) = action {
                    for document in copy.documents.drain(..) {
                        let digest = blake3::hash(document.content.as_bytes());
                        let name = format!("document {}", document.name);
                        put(&name, short(digest.as_bytes()));
                    }
                    copy.dest.clear();
                }
            }
            put("options", options(&Op::File(rest)));
        }
        _ => {}
    }
    if let Some(base) = base {
        put("base", hex(&base.identity.0));
        put("base name", base.name.clone());
    }
    for (number, source) in selected.iter().enumerate() {
        // What is in the digest's place in the key counts, whatever it is called.
        put(&format!("source {number}"), source.pattern.clone());
        put(&format!("from {number}"), source.from.clone());
        put(&format!("selected {number}"), hex(&source.digest));
    }
    named
}

fn action_text(action: &FileAction) -> String {
    match action {
        FileAction::Copy(copy) => {
            let mut text = format!("copy to {}", copy.dest);
            if let Some(chown) = &copy.chown {
                text.push_str(&format!(" --chown={}", chown.text));
            }
            if let Some(chmod) = &copy.chmod {
                text.push_str(&format!(" --chmod={chmod}"));
            }
            if copy.sources.iter().any(|source| source.parents) {
                text.push_str(" --parents");
            }
            // The same for each source.
            for pattern in copy.sources.first().map_or(&[][..], |first| &first.exclude) {
                text.push_str(&format!(" --exclude={pattern}"));
            }
            if copy.sources.iter().any(|source| source.unpack) {
                text.push_str(", unpacked");
            }
            text
        }
        FileAction::Mkdir(mkdir) => format!("make {}", mkdir.path),
        #[allow(
            unreachable_patterns,
            reason = "every kind that is added says at least that it is there"
        )]
        _ => "other".to_owned(),
    }
}

/// Digest of whatever of an operation has no ingredient of its own. Which paths it selects is none of it.
fn options(op: &Op) -> String {
    short(&slow_key(op, None, &[]).0)
}

/// The value of a variable, as far as it may be shown: `=VALUE`, `=START…#DIGEST`, or `#DIGEST` where name or value
/// sound like a secret. A record is readable by whoever can read the store, and may be shared.
fn shown(name: &str, value: &str) -> String {
    if sounds_secret(name, value) {
        return format!("#{}", short(blake3::hash(value.as_bytes()).as_bytes()));
    }
    format!("={}", clip(value, VALUE_CHARS_MAX))
}

/// Whether a variable may hold a secret: by the words of BuildKit's rule `SecretsUsedInArgOrEnv`, and by credentials in
/// a URL.
pub(crate) fn sounds_secret(name: &str, value: &str) -> bool {
    const WORDS: [&str; 9] = [
        "apikey",
        "auth",
        "credential",
        "credentials",
        "key",
        "passwd",
        "password",
        "secret",
        "token",
    ];
    let lower = name.to_ascii_lowercase();
    let mut parts = lower.split(|c: char| !c.is_ascii_alphanumeric());
    let named = parts.any(|part| WORDS.contains(&part))
        || ["password", "passwd", "secret", "token", "apikey", "pword"]
            .iter()
            .any(|word| lower.contains(word));
    let has_credentials = value.split_once("://").is_some_and(|(_, rest)| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        authority.contains('@')
    });
    named && !lower.contains("public") || has_credentials
}

/// The text, or its start and its digest.
fn clip(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    let start: String = text.chars().take(chars_max).collect();
    let digest = short(blake3::hash(text.as_bytes()).as_bytes());
    format!("{start}…#{digest}")
}

/// The first 16 digits: what is compared and shown, but nothing is found by.
fn short(bytes: &[u8; 32]) -> String {
    let mut digits = hex(bytes);
    digits.truncate(16);
    digits
}

/// Most entries of a copy's sources together that are listed one by one; of more, only their directories are.
const FILES_MAX: usize = 30_000;

/// The files that the sources of one step select, source by source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileLists {
    /// In the order of the sources.
    pub sources: Vec<FileList>,
}

/// What one source selects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileList {
    /// How many components of each path are kept; 0 is all of them. What lies deeper is counted to its directory.
    pub depth: u32,
    /// Sorted by path.
    pub entries: Vec<ListedFile>,
}

/// One file, or a directory with what is below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFile {
    /// Path below the root of the tree, without a leading `/`.
    pub path: Vec<u8>,
    /// Kind (3 bits) and permission bits (12); 0 for a directory that stands for what is below it.
    pub mode: u16,
    /// The start of a digest of its kind, owner and content.
    pub digest: [u8; 8],
}

impl FileLists {
    /// The lists of what was selected; the hashes of all files are known.
    pub fn of(selected: &[Selected]) -> FileLists {
        let mut lists: Vec<FileList> = selected.iter().map(FileList::of).collect();
        let mut depth = lists.iter().map(FileList::deepest).max().unwrap_or(0);
        while depth > 1 && lists.iter().map(|list| list.entries.len()).sum::<usize>() > FILES_MAX {
            depth -= 1;
            lists = lists.iter().map(|list| list.cut(depth)).collect();
        }
        // A directory of its own with more entries than that: what does not fit is not told apart.
        let room = FILES_MAX / lists.len().max(1);
        for list in &mut lists {
            list.entries.truncate(room);
        }
        FileLists { sources: lists }
    }

    /// The bytes that are kept.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        put_number(&mut bytes, self.sources.len());
        for list in &self.sources {
            put_number(&mut bytes, list.depth as usize);
            put_number(&mut bytes, list.entries.len());
            let mut before: &[u8] = &[];
            for entry in &list.entries {
                // Neighbours share most of their path.
                let same = before
                    .iter()
                    .zip(&entry.path)
                    .take_while(|(a, b)| a == b)
                    .count();
                put_number(&mut bytes, same);
                put_number(&mut bytes, entry.path.len() - same);
                bytes.extend_from_slice(&entry.path[same..]);
                bytes.extend_from_slice(&entry.mode.to_le_bytes());
                bytes.extend_from_slice(&entry.digest);
                before = &entry.path;
            }
        }
        bytes
    }

    /// Reads lists back; `None` for bytes that are damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Option<FileLists> {
        let mut rest = bytes.strip_prefix(&[VERSION])?;
        let mut lists = FileLists::default();
        for _ in 0..take_number(&mut rest)? {
            let depth = u32::try_from(take_number(&mut rest)?).ok()?;
            let count = take_number(&mut rest)?;
            let mut entries: Vec<ListedFile> = Vec::new();
            for _ in 0..count {
                let same = take_number(&mut rest)?;
                let length = take_number(&mut rest)?;
                let before = entries.last().map_or(&[][..], |entry| &entry.path);
                let mut path = before.get(..same)?.to_vec();
                path.extend_from_slice(take(&mut rest, length)?);
                let mode = u16::from_le_bytes(take(&mut rest, 2)?.try_into().ok()?);
                let digest = take(&mut rest, 8)?.try_into().ok()?;
                entries.push(ListedFile { path, mode, digest });
            }
            lists.sources.push(FileList { depth, entries });
        }
        rest.is_empty().then_some(lists)
    }
}

/// Version of the encoding.
const VERSION: u8 = 1;

impl FileList {
    fn of(selected: &Selected) -> FileList {
        let mut entries: Vec<ListedFile> = selected
            .entries()
            .map(|(listing, index)| listed(listing, index))
            .collect();
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        entries.dedup_by(|a, b| a.path == b.path);
        FileList { depth: 0, entries }
    }

    fn deepest(&self) -> u32 {
        let depths = self.entries.iter().map(|entry| {
            let slashes = entry.path.iter().filter(|&&byte| byte == b'/').count();
            u32::try_from(slashes + 1).unwrap_or(u32::MAX)
        });
        depths.max().unwrap_or(0)
    }

    /// The same with paths of at most `depth` components.
    pub fn cut(&self, depth: u32) -> FileList {
        if depth == 0 || (self.depth != 0 && self.depth <= depth) {
            return self.clone();
        }
        let mut groups: BTreeMap<&[u8], Vec<&ListedFile>> = BTreeMap::new();
        for entry in &self.entries {
            let end = entry
                .path
                .iter()
                .enumerate()
                .filter(|(_, byte)| **byte == b'/')
                .nth(depth as usize - 1);
            let end = end.map_or(entry.path.len(), |(at, _)| at);
            groups.entry(&entry.path[..end]).or_default().push(entry);
        }
        let entries = groups.into_iter().map(|(path, members)| {
            if let [only] = members.as_slice()
                && only.path == path
            {
                return (*only).clone();
            }
            let mut sink = Encoder::new(&[]);
            for member in members {
                sink.bytes(&member.path);
                sink.number(u64::from(member.mode));
                sink.bytes(&member.digest);
            }
            ListedFile {
                path: path.to_vec(),
                mode: 0,
                digest: start(&sink.finish()),
            }
        });
        FileList {
            depth,
            entries: entries.collect(),
        }
    }
}

fn listed(listing: &Listing, index: usize) -> ListedFile {
    let entry = &listing.entries[index];
    let meta = &entry.meta;
    let kind: u16 = match meta.kind {
        Kind::File => 1,
        Kind::Dir => 2,
        Kind::Symlink => 3,
        Kind::CharDevice => 4,
        Kind::BlockDevice => 5,
        Kind::Fifo => 6,
        Kind::Socket => 7,
    };
    let mut sink = Encoder::new(&[]);
    sink.number(u64::from(meta.uid));
    sink.number(u64::from(meta.gid));
    match meta.kind {
        Kind::File => {
            sink.number(meta.size);
            sink.bytes(entry.hash.get().map_or(&[], |hash| hash));
        }
        Kind::Symlink => sink.bytes(entry.known_link().unwrap_or_default()),
        Kind::CharDevice | Kind::BlockDevice => sink.number(meta.rdev),
        Kind::Dir | Kind::Fifo | Kind::Socket => {}
    }
    let mode = if meta.kind == Kind::Symlink {
        0
    } else {
        u16::try_from(meta.mode & 0o7777).unwrap_or(0)
    };
    ListedFile {
        path: listing.path_of(index),
        mode: kind << 12 | mode,
        digest: start(&sink.finish()),
    }
}

fn start(digest: &[u8; 32]) -> [u8; 8] {
    let mut short = [0; 8];
    short.copy_from_slice(&digest[..8]);
    short
}

/// Seven bits a byte, the lowest first.
fn put_number(bytes: &mut Vec<u8>, number: usize) {
    let mut rest = number;
    loop {
        let [low, ..] = rest.to_le_bytes();
        rest >>= 7;
        if rest == 0 {
            bytes.push(low & 0x7f);
            return;
        }
        bytes.push(low | 0x80);
    }
}

fn take_number(bytes: &mut &[u8]) -> Option<usize> {
    let mut number = 0_usize;
    for shift in (0..usize::BITS).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= usize::from(first & 0x7f).checked_shl(shift)?;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{CopyAction, CopySource, ExecOp, FileOp};

    fn listed(path: &str, digest: u8) -> ListedFile {
        ListedFile {
            path: path.as_bytes().to_vec(),
            mode: 1 << 12 | 0o644,
            digest: [digest; 8],
        }
    }

    #[test]
    fn secrets_are_not_written_down() {
        for (name, value) in [
            ("NPM_TOKEN", "abc"),
            ("dbPassword", "abc"),
            ("SIGNING_KEY", "abc"),
            ("MIRROR", "https://me:abc@mirror.example/x"),
        ] {
            let text = shown(name, value);
            assert!(text.starts_with('#') && !text.contains("abc"), "{text}");
        }
        assert_eq!(shown("KEYBOARD", "de"), "=de");
        assert_eq!(shown("PUBLIC_KEY", "ssh-rsa"), "=ssh-rsa");
        assert_eq!(shown("MAIL", "me@example"), "=me@example");
        assert_ne!(shown("TOKEN", "a"), shown("TOKEN", "b"));
    }

    #[test]
    fn long_values_are_clipped_and_still_differ() {
        let long = "x".repeat(200);
        let (a, b) = (
            shown("A", &format!("{long}a")),
            shown("A", &format!("{long}b")),
        );
        assert_ne!(a, b);
        assert!(a.chars().count() < 120, "{a}");
    }

    #[test]
    fn whatever_has_no_name_is_in_the_options() {
        let exec = |user: &str| {
            let op = ExecOp {
                argv: vec!["make".to_owned()],
                user: user.to_owned(),
                ..ExecOp::default()
            };
            ingredients(&Op::Exec(op), None, &[])
        };
        assert_eq!(exec("a")["options"], exec("b")["options"]);
        let copy = |unpack: bool, dest: &str| {
            let source = CopySource {
                unpack,
                ..CopySource::default()
            };
            let action = CopyAction {
                sources: vec![source],
                dest: dest.to_owned(),
                ..CopyAction::default()
            };
            let op = FileOp {
                on_base: true,
                actions: vec![FileAction::Copy(action)],
            };
            ingredients(&Op::File(op), None, &[])
        };
        assert_eq!(copy(true, "/a")["options"], copy(true, "/b")["options"]);
        assert_ne!(copy(true, "/a")["options"], copy(false, "/a")["options"]);
    }

    #[test]
    fn lists_read_back_and_damage_is_noticed() {
        let lists = FileLists {
            sources: vec![
                FileList {
                    depth: 0,
                    entries: vec![
                        listed("src/a.rs", 1),
                        listed("src/ab.rs", 2),
                        listed("z", 3),
                    ],
                },
                FileList::default(),
            ],
        };
        let bytes = lists.encode();
        assert_eq!(FileLists::decode(&bytes), Some(lists));
        for end in 0..bytes.len() {
            assert_eq!(FileLists::decode(&bytes[..end]), None);
        }
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(FileLists::decode(&longer), None);
        let mut huge = vec![VERSION];
        huge.extend([0xff; 12]);
        assert_eq!(FileLists::decode(&huge), None);
    }

    #[test]
    fn deep_trees_are_cut_to_directories() {
        let list = FileList {
            depth: 0,
            entries: vec![
                listed("a/b/c", 1),
                listed("a/b/d", 2),
                listed("a/e", 3),
                listed("f", 4),
            ],
        };
        let paths = |list: &FileList| -> Vec<String> {
            let paths = list.entries.iter();
            paths
                .map(|entry| String::from_utf8_lossy(&entry.path).into_owned())
                .collect()
        };
        assert_eq!(list.deepest(), 3);
        let two = list.cut(2);
        assert_eq!(paths(&two), ["a/b", "a/e", "f"]);
        assert_eq!(two.entries[1], listed("a/e", 3));
        assert_eq!(paths(&two.cut(1)), ["a", "f"]);
        assert_eq!(two.cut(3), two);
        let mut changed = list;
        changed.entries[1].digest = [9; 8];
        assert_ne!(changed.cut(2).entries[0], two.entries[0]);
        assert_eq!(changed.cut(2).entries[1..], two.entries[1..]);
    }
}
