use super::super::source::SourceFile;
use super::*;

/// The kinds of a text's instructions and the errors, positions in front.
fn shape(text: &str) -> String {
    let source = SourceFile::new("Dockerfile", text);
    let (file, diagnostics) = parse(text);
    let mut lines: Vec<String> = Vec::new();
    for diagnostic in diagnostics {
        let (line, column) = source.position(diagnostic.span.start);
        lines.push(format!("{line}:{column} {}", diagnostic.message));
    }
    for instruction in &file.instructions {
        lines.push(instruction.line.clone());
    }
    lines.join("\n")
}

fn check(text: &str, expect: &str) {
    assert_eq!(shape(text), expect, "{text}");
}

/// Checks what holds for every text: pieces tile it, spans lie in it on character boundaries.
fn check_invariants(text: &str) {
    let (file, diagnostics) = parse(text);
    let mut again = String::new();
    let mut position = 0;
    for piece in &file.pieces {
        assert_eq!(piece.span.start, position, "a gap in {text:?}");
        position = piece.span.end;
        again.push_str(&text[piece.span.range()]);
    }
    assert_eq!(again, text);
    let source = SourceFile::new("Dockerfile", text);
    let valid = |span: Span| assert!(text.get(span.range()).is_some(), "{span:?} of {text:?}");
    for diagnostic in &diagnostics {
        valid(diagnostic.span);
        diagnostic.labels.iter().for_each(|label| valid(label.span));
        assert!(!diagnostic.render(&source, false).is_empty());
    }
    for instruction in &file.instructions {
        valid(instruction.span);
        valid(instruction.head);
        valid(instruction.keyword.span);
        instruction.flags.iter().for_each(|flag| valid(flag.span));
        for heredoc in &instruction.heredocs {
            valid(heredoc.word);
            valid(heredoc.body);
        }
        match &instruction.kind {
            InstructionKind::Run(Command::Shell(word)) | InstructionKind::User(word) => {
                valid(word.span);
            }
            InstructionKind::Env(env) => env.pairs.iter().for_each(|pair| {
                valid(pair.key.span);
                valid(pair.value.span);
            }),
            InstructionKind::Copy(copy) => {
                copy.sources.iter().for_each(|word| valid(word.span));
                valid(copy.dest.span);
            }
            InstructionKind::Cmd(Command::Exec(words)) => {
                words.iter().for_each(|word| valid(word.span));
            }
            _ => {}
        }
    }
}

#[test]
fn joins_lines() {
    check("FROM a\nrun wh\\\nat", "FROM a\nrun what");
    check(
        "FROM a\nRUN a \\\n  # comment\n   b \\ \n#c\nc",
        "FROM a\nRUN a    b c",
    );
    check("FROM a\r\nRUN b \\\r\nc\r\n", "FROM a\nRUN b c");
    check("\u{feff}FROM a", "FROM a");
    check("  FROM a\n\tRUN b\\", "FROM a\nRUN b");
    check("FROM a\nRUN b \\\\\nRUN c", "FROM a\nRUN b \\\\\nRUN c");
    check(
        "# escape=`\nFROM a\nRUN c:\\\nRUN d `\ne",
        "FROM a\nRUN c:\\\nRUN d e",
    );
    check(
        "FROM a\nRUN b \\\n\nc",
        "3:1 a blank line inside a continued instruction\nFROM a\nRUN b c",
    );
}

#[test]
fn whole_file_errors() {
    check("", "1:1 the Dockerfile is empty");
    check(" \n\n", "1:1 the Dockerfile is empty");
    check(
        "# a\n# b\n",
        "1:1 the Dockerfile has no instructions, only comments",
    );
    check(
        "ARG a\n",
        "1:1 the Dockerfile has no stage: `FROM` is missing\nARG a",
    );
    check(
        "RUN a\nFROM b",
        "1:1 `RUN` has no stage to build: it stands before the first `FROM`\nRUN a\nFROM b",
    );
}

#[test]
fn directives() {
    check("# syntax=docker/dockerfile:1.7-labs\nFROM a", "FROM a");
    check(
        "#Syntax = r.example:5000/x/dockerfile@sha256:00 \nFROM a",
        "FROM a",
    );
    check(
        "# syntax=example/mock\nFROM a",
        "1:10 the language of `example/mock` is not supported\nFROM a",
    );
    check(
        "# escape=x\nFROM a",
        "1:10 `x` cannot be the escape character\nFROM a",
    );
    check(
        "# escape=`\n# ESCAPE=\\\nFROM a",
        "2:1 the directive `escape` is given twice\nFROM a",
    );
    check("# note\n# escape=`\nFROM a\nRUN b \\\nc", "FROM a\nRUN b c");
    check("\n# escape=`\nFROM a\nRUN b \\\nc", "FROM a\nRUN b c");
    check("# x=y\n# escape=`\nFROM a\nRUN b \\\nc", "FROM a\nRUN b c");
}

#[test]
fn several_errors_at_once() {
    check(
        "FROM a\nRUNN x\nCOPY a\nENV\nCOPY --form=x a b\nUSER\nUSER x",
        "2:1 unknown instruction `RUNN`\n3:6 `COPY` needs at least one source and a destination\n\
         4:1 `ENV` needs at least one `key=value`\n5:6 `COPY` has no flag `--form`\n\
         6:1 `USER` needs exactly one argument\n\
         FROM a\nRUNN x\nCOPY a\nENV\nCOPY --form=x a b\nUSER\nUSER x",
    );
}

#[test]
fn flags() {
    let check = |line: &str, expect: &str| {
        let (file, diagnostics) = parse(&format!("FROM a\n{line}"));
        let flags: Vec<String> = file.instructions[1]
            .flags
            .iter()
            .map(|flag| format!("{}={:?}", flag.name, flag.value))
            .chain(diagnostics.into_iter().map(|diagnostic| diagnostic.message))
            .collect();
        assert_eq!(flags.join(" "), expect, "{line}");
    };
    check("COPY --from=b --link a b", "from=Some(\"b\") link=None");
    check("COPY --chown=\"a b\"c a b", "chown=Some(\"a bc\")");
    check("COPY --chown=a\\ b a b", "chown=Some(\"a b\")");
    check("COPY -- --a b", "");
    check(
        "COPY --link=no a b",
        "link=Some(\"no\") `--link` is `true` or `false`, not `no`",
    );
    check("COPY --link=FALSE a b", "link=Some(\"FALSE\")");
    check(
        "COPY --from a b c",
        "from=None `--from` needs a value: `--from=…`",
    );
    check(
        "COPY --from=a --from=b c d",
        "from=Some(\"a\") from=Some(\"b\") `--from` is given twice",
    );
    check(
        "RUN --mount=a --mount=b c",
        "mount=Some(\"a\") mount=Some(\"b\")",
    );
    check("CMD --help", "help=None `CMD` has no flag `--help`");
    check("ARG --x y", "x=None");
    check("STOPSIGNAL --x 9", "x=None");
}

#[test]
fn heredocs_take_lines_as_they_are() {
    let text =
        "FROM a\nRUN <<A cat <<-'B' \\\n# no\n && x\n# in A\\\nFROM x\nA\n\tin B\n\tB\nUSER u\n";
    let (file, diagnostics) = parse(text);
    assert_eq!(diagnostics, []);
    let run = &file.instructions[1];
    let bodies: Vec<&str> = run
        .heredocs
        .iter()
        .map(|heredoc| &text[heredoc.body.range()])
        .collect();
    assert_eq!(bodies, ["# in A\\\nFROM x\n", "\tin B\n"]);
    assert_eq!(run.line, "RUN <<A cat <<-'B'  && x");
    assert_eq!(&text[run.span.end - 1..run.span.end], "B");
    assert_eq!(file.instructions[2].line, "USER u");
    check(
        "FROM a\nRUN <<EOF\nx\n",
        "2:5 the here-document `EOF` is never ended\nFROM a\nRUN <<EOF",
    );
    check("FROM a\nCMD <<EOF\nUSER x", "FROM a\nCMD <<EOF\nUSER x");
    check(
        "FROM a\nRUN [\"<<EOF\"]\nUSER x",
        "FROM a\nRUN [\"<<EOF\"]\nUSER x",
    );
    check(
        "FROM a\nONBUILD COPY <<E /x\nb\nE\nUSER x",
        "FROM a\nONBUILD COPY <<E /x\nUSER x",
    );
    check(
        "FROM a\nCOPY x <<EOF\nEOF\n",
        "2:8 a here-document cannot be a destination\n3:1 unknown instruction `EOF`\nFROM a\nCOPY x <<EOF\nEOF",
    );
}

#[test]
fn json_falls_back() {
    let check = |line: &str, expect: &str| {
        let (file, diagnostics) = parse(&format!("FROM a\n{line}"));
        let found = match &file.instructions[1].kind {
            InstructionKind::Run(command)
            | InstructionKind::Cmd(command)
            | InstructionKind::Entrypoint(command) => match command {
                Command::Shell(word) => format!("shell {}", word.text),
                Command::Exec(words) => {
                    let words: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
                    format!("exec {}", words.join("|"))
                }
            },
            _ => diagnostics[0].message.clone(),
        };
        assert_eq!(found, expect, "{line}");
    };
    check(r#"RUN ["echo", "hi"]"#, "exec echo|hi");
    check(r#"RUN ["echo","hi"]x"#, r#"shell ["echo","hi"]x"#);
    check("CMD ['a']", "shell ['a']");
    check("ENTRYPOINT []abc", "shell []abc");
    check("ENTRYPOINT []", "exec ");
    check("ENTRYPOINT", "shell ");
    check(
        "CMD [ \"a\", 1 ]",
        "the JSON array of `CMD` has something other than strings",
    );
    check("RUN []", "`RUN` needs a command");
    check("RUN [ -f x ] && y", "shell [ -f x ] && y");
}

#[test]
fn every_text_is_tiled() {
    for text in [
        "",
        "\n",
        "\\",
        "\\\n\\\n",
        "  \\\n  \nFROM a",
        "\u{feff}\u{feff}FROM a",
        "FROM a \\",
        "RUN <<E\nä",
        "ENV a='\n\\",
        "COPY [\"ä\\\n\",\"b\"]",
        "ONBUILD ONBUILD RUN x",
        "HEALTHCHECK --interval=x CMD",
        "FROM\u{a0}a\u{2003}AS\u{3000}b",
    ] {
        check_invariants(text);
    }
}

/// A small generator with a seed: the same run every time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

#[test]
fn mutated_texts_neither_panic_nor_lose_a_byte() {
    const SEED: &str = "# syntax=docker/dockerfile:1\n# escape=\\\nARG V=1\nFROM --platform=$P a:${V:-x} AS b\n\
        RUN --mount=type=cache,target=/x cat <<EOF > /y && \\\n # c\n  z\nbody ${A//x/y}\nEOF\n\
        COPY --from=0 --chown=1:2 [\"a b\", \"ä\"] /d/\nENV a=b \"c d\"='e' f=\\ g\nENV old  style \n\
        LABEL x=\"y\\\"z\"\nEXPOSE 80/tcp $P\nHEALTHCHECK --interval=1m30s --retries=3 CMD [\"x\"]\n\
        ONBUILD ADD <<-A <<'B' /\n\t1\n\tA\n2\nB\nVOLUME [\"/v\"]\nSHELL [\"sh\",\"-c\"]\nSTOPSIGNAL 9\n\
        USER u:g\nWORKDIR /w\nCMD x\nENTRYPOINT [\"y\"]\nMAINTAINER m\n";
    const SNIPPETS: [&str; 16] = [
        "\\\n", "\n", "<<", "<<EOF", "\"", "'", "$", "${", "}", "[", "]", "--", "=", "#", "ä",
        "\r\n",
    ];
    let mut random = Random(0x10ad);
    for _ in 0..1000 {
        let mut text: Vec<char> = SEED.chars().collect();
        for _ in 0..1 + random.below(6) {
            let at = random.below(text.len());
            match random.below(3) {
                0 => {
                    let end = (at + 1 + random.below(20)).min(text.len());
                    text.drain(at..end);
                }
                1 => {
                    let snippet = SNIPPETS[random.below(SNIPPETS.len())];
                    text.splice(at..at, snippet.chars());
                }
                _ => {
                    let other = random.below(text.len());
                    text.swap(at, other);
                }
            }
        }
        check_invariants(&String::from_iter(text));
    }
}
