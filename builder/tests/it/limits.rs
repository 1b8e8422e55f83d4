//! Dockerfiles of sizes that nobody writes by hand: each is answered, and says what is wrong with it if it is refused.
//!
//! The sizes are real, so that something quadratic would not end and something unbounded would not fit; no test looks at
//! a clock.

use std::collections::BTreeMap;
use std::fmt::Write;

use builder::dockerfile::{Diagnostic, Dockerfile, SourceFile, parse};
use builder::lower::{LowerRequest, Lowered, Plan, lower};
use store::oci::Platform;

/// Parses, and checks that the pieces are the text.
fn parsed(text: &str) -> (Dockerfile, Vec<Diagnostic>) {
    let (file, diagnostics) = parse(text);
    let mut end = 0;
    for piece in &file.pieces {
        assert_eq!(piece.span.start, end, "no gap and no overlap");
        end = piece.span.end;
    }
    assert_eq!(end, text.len(), "nothing is lost");
    (file, diagnostics)
}

fn lowered(text: &str) -> Result<Box<Plan>, Vec<Diagnostic>> {
    let (file, diagnostics) = parsed(text);
    if diagnostics.iter().any(Diagnostic::is_error) {
        return Err(diagnostics);
    }
    let source = SourceFile::new("Dockerfile", text);
    let images = BTreeMap::new();
    let request = LowerRequest::new(&file, &source, &Platform::host(), &images);
    match lower(&request)? {
        Lowered::Done(plan) => Ok(plan),
        Lowered::NeedImages(needed) => panic!("asks for {needed:?}"),
    }
}

/// The first error, and how many there are.
fn refused(text: &str) -> (String, usize) {
    let Err(diagnostics) = lowered(text) else {
        panic!("it is accepted");
    };
    let errors: Vec<&Diagnostic> = diagnostics.iter().filter(|said| said.is_error()).collect();
    (errors[0].message.clone(), errors.len())
}

#[test]
fn a_line_of_a_hundred_megabytes() {
    let long = "x".repeat(100_000_000);
    let check = |text: &str| {
        let (_, diagnostics) = parsed(text);
        let source = SourceFile::new("Dockerfile", text);
        let errors = diagnostics.iter().filter(|said| said.is_error());
        let texts: Vec<&str> = errors.clone().map(|said| said.message.as_str()).collect();
        assert_eq!(texts, ["a line has more than 65535 bytes"]);
        for error in errors {
            let shown = error.render(&source, false);
            assert!(shown.contains("Dockerfile:2:1"), "it says where");
            assert!(shown.len() < 5000, "it does not repeat the line");
        }
    };
    check(&format!("FROM scratch\nRUN {long}\n"));
    check(&format!("FROM scratch\n# {long}\n"));
    check(&format!("FROM scratch\n{long}").replace("xxxx", "RUN "));
}

#[test]
fn lines_up_to_the_longest() {
    let check = |text: &str, errors: usize| {
        let (_, diagnostics) = parsed(text);
        assert_eq!(diagnostics.len(), errors);
    };
    let x = |length: usize| "x".repeat(length);
    check(&format!("FROM scratch\nRUN {}\n", x(65_531)), 0);
    check(&format!("FROM scratch\nRUN {}\n", x(65_532)), 1);
    check(&format!("FROM scratch\nRUN {}", x(65_532)), 1);
    check(&format!("FROM scratch\nRUN {}\r\n", x(65_531)), 1);
    check(&format!("FROM scratch\nRUN <<E\n{}\nE\n", x(65_535)), 0);
    check(&format!("FROM scratch\nRUN <<E\n{}\nE\n", x(65_536)), 1);
    check(&format!("# {}\nFROM scratch\n", x(65_534)), 1);
}

#[test]
fn ten_million_continuation_lines() {
    let text = format!("FROM scratch\nRUN {}x\n", "\\\n".repeat(1_000_000));
    let (file, diagnostics) = parsed(&text);
    assert_eq!(diagnostics, []);
    assert_eq!(file.instructions[1].line, "RUN x");

    let text = format!("FROM scratch\nRUN {}x\n", "y\\\n".repeat(10_000_000));
    let (file, diagnostics) = parsed(&text);
    assert_eq!(diagnostics, []);
    assert_eq!(file.instructions[1].line.len(), 10_000_005);

    // Lines with nothing in them are told of once.
    let text = format!("FROM scratch\nRUN x \\\n{}y\n", "\n".repeat(1_000_000));
    let (_, diagnostics) = parsed(&text);
    assert_eq!(diagnostics.len(), 1);
    let text = format!("FROM scratch\nRUN x \\\n{}y\n", "# c\n".repeat(1_000_000));
    let (_, diagnostics) = parsed(&text);
    assert_eq!(diagnostics, []);
}

#[test]
fn expansions_inside_one_another() {
    let nested = |depth: usize| {
        let (open, close) = ("${A:-".repeat(depth), "}".repeat(depth));
        format!("FROM scratch\nENV B={open}x{close}\n")
    };
    let plan = lowered(&nested(64)).unwrap();
    assert_eq!(plan.config.config.env[1], "B=x");
    for depth in [65, 1000, 10_000] {
        let (message, _) = refused(&nested(depth));
        assert!(
            message.ends_with("`${…}` is nested more than 64 deep"),
            "{message}"
        );
    }
}

#[test]
fn values_that_double() {
    let mut text = String::from("FROM scratch\nENV A=xxxxxxxxxxxxxxxx\n");
    text += &"ENV A=$A$A\n".repeat(60);
    let (message, errors) = refused(&text);
    assert!(message.contains("it becomes too long"), "{}", message.len());
    assert!(errors >= 40, "each that is too long by itself");

    // None is too long by itself.
    let mut text = String::from("FROM scratch\nENV A=xxxxxxxxxxxxxxxx\n");
    text += &"ENV A=$A$A\n".repeat(16);
    for index in 0..1000 {
        writeln!(text, "ENV B{index}=$A").unwrap();
    }
    let expect = "the Dockerfile becomes too large once its variables are expanded";
    assert_eq!(refused(&text), (expect.to_owned(), 1));

    // Little text, and much work.
    let mut text = String::from("FROM scratch\nENV A=xxxxxxxxxxxxxxxx\n");
    text += &"ENV A=$A$A\n".repeat(12);
    text += &"ENV B=${A%x*x*x*x*x*x*y}\n".repeat(100_000 - 14);
    assert_eq!(refused(&text), (expect.to_owned(), 1));
}

#[test]
fn patterns_take_time_in_proportion() {
    let value = "x".repeat(60_000);
    for pattern in ["#", "##", "%", "%%", "/", "//"] {
        let to = if pattern.starts_with('/') { "/z" } else { "" };
        let text =
            format!("FROM scratch\nENV A={value}\nENV B=${{A{pattern}*x*x*x*x*x*x*x*x*y{to}}}\n");
        let plan = lowered(&text).unwrap();
        let length = plan.config.config.env[2].len();
        assert_eq!(length, value.len() + 2, "{pattern}");
    }
}

#[test]
fn history_that_multiplies() {
    let text = |count: usize| {
        let mut text = String::from("FROM scratch\n");
        for index in 0..count {
            write!(text, "ARG A{index}=value\nRUN x\n").unwrap();
        }
        text
    };
    assert_eq!(lowered(&text(300)).unwrap().steps, 300);
    let (message, errors) = refused(&text(50_000 - 1));
    let expect = "the Dockerfile becomes too large once its variables are expanded";
    assert_eq!((message.as_str(), errors), (expect, 1));

    let mut ports = String::from("FROM scratch\n");
    ports += &"EXPOSE 0-65535 0-65535 0-65535 0-65535\n".repeat(10_000);
    assert_eq!(refused(&ports), (expect.to_owned(), 1));
}

#[test]
fn ten_thousand_stages() {
    const STAGES: usize = 10_000;
    let mut chain = String::from("FROM scratch AS s0\n");
    let mut star = String::from("FROM scratch AS s0\nENV BASE=1\n");
    for index in 1..STAGES {
        let before = index - 1;
        writeln!(
            chain,
            "FROM s{before} AS s{index}\nENV V{index}=1\nLABEL l{index}=1"
        )
        .unwrap();
        writeln!(
            star,
            "FROM s0 AS s{index}\nCOPY --from=s{before} / /\nENV V{index}=1"
        )
        .unwrap();
    }
    let plan = lowered(&chain).unwrap();
    assert_eq!(plan.config.config.env.len(), STAGES);
    assert_eq!(plan.history.len(), 2 * (STAGES - 1));
    // The first stage has no files to copy.
    let star = star.replace("COPY --from=s0 / /", "WORKDIR /w");
    let plan = lowered(&star).unwrap();
    assert_eq!(plan.steps, STAGES - 1);
    assert_eq!(plan.stages.len(), STAGES);
}

#[test]
fn very_many_flags_and_words() {
    let flags = "--exclude=x ".repeat(100_000);
    let (_, diagnostics) =
        parsed(&format!("FROM scratch\nCOPY \\\n{flags}").replace("x -", "x \\\n-"));
    assert_eq!(diagnostics.len(), 1, "only the sources are missing");
    let twice = format!(
        "FROM scratch\nCOPY \\\n{}{}a b\n",
        "--exclude=x \\\n".repeat(100_000),
        "--from=x \\\n".repeat(100_000)
    );
    let (message, errors) = refused(&twice);
    assert_eq!(message, "`--from` is given twice");
    assert!(errors < 30, "{errors}");
    let unknown = format!("FROM scratch\nCOPY \\\n{}a b\n", "--y \\\n".repeat(100_000));
    assert!(refused(&unknown).1 < 30);

    let pairs = "a$b=c \\\n".repeat(100_000);
    let plan = lowered(&format!("FROM scratch\nENV \\\n{pairs}\n")).unwrap();
    assert_eq!(plan.config.config.env.len(), 2);

    let json = format!("[{}\"\"]", "\"x\", \\\n".repeat(100_000));
    let plan = lowered(&format!("FROM scratch\nCMD {json}\n")).unwrap();
    assert_eq!(plan.config.config.cmd.unwrap().len(), 100_001);

    let deep = "[".repeat(60_000);
    assert_eq!(
        lowered(&format!("FROM scratch\nRUN {deep}\n"))
            .unwrap()
            .steps,
        1
    );
}

#[test]
fn very_many_here_documents() {
    let words = |name: &str| format!(" <<{name} \\\n").repeat(20_000);
    let bodies = "x\nE\n".repeat(20_000);
    let text = format!("FROM scratch\nRUN cat \\\n{}x\n{bodies}", words("E"));
    let (file, diagnostics) = parsed(&text);
    assert_eq!(diagnostics, []);
    assert_eq!(file.instructions[1].heredocs.len(), 20_000);
    assert_eq!(lowered(&text).unwrap().steps, 1);

    // None of them ends.
    let text = format!("FROM scratch\nRUN cat \\\n{}x\n{bodies}", words("F"));
    let (message, errors) = refused(&text);
    assert_eq!(message, "the here-document `F` is never ended");
    assert!(errors <= 1000, "{errors}");

    let arithmetic = format!("FROM scratch\nRUN <<E {}\nE\n", "$((".repeat(20_000));
    assert_eq!(parsed(&arithmetic).1, []);
}

#[test]
fn very_many_instructions_and_errors() {
    let most = format!("FROM scratch\n{}", "USER x\n".repeat(99_999));
    assert_eq!(lowered(&most).unwrap().history.len(), 99_999);
    let (message, errors) = refused(&format!("{most}USER y\nRUNN\n"));
    assert_eq!(message, "there are more than 100000 instructions");
    assert_eq!(errors, 1);

    let (message, errors) = refused(&"x\n".repeat(99_999));
    assert_eq!(message, "unknown instruction `x`");
    assert!(errors <= 1010, "{errors}");
    let blank = "\n".repeat(1_000_000);
    assert_eq!(refused(&blank).0, "the Dockerfile is empty");
    let comments = "#\n".repeat(1_000_000);
    let expect = "the Dockerfile has no instructions, only comments";
    assert_eq!(refused(&comments).0, expect);

    // Each variable is looked for among all.
    let mut text = String::from("FROM scratch\n");
    for index in 0..20_000 {
        writeln!(text, "ENV VARIABLE_{index}=$VARIABLES_{index}").unwrap();
    }
    assert_eq!(lowered(&text).unwrap().config.config.env.len(), 20_001);
}

#[test]
fn bytes_that_are_no_text_for_people() {
    let check = |text: &str, expect: &str| {
        let (_, diagnostics) = parsed(text);
        let source = SourceFile::new("Docker\u{1b}[31mfile", text);
        let shown = diagnostics[0].render(&source, false);
        let controls = |char: char| char.is_control() && char != '\n';
        assert!(!shown.contains(controls), "{shown:?}");
        assert!(shown.contains(expect), "{shown}");
    };
    check(
        "FROM scratch\nRUN a\0b\n",
        "a NUL byte cannot be part of an instruction",
    );
    check(
        "FROM scratch\nRUN <<E\n\0\nE\n",
        "a NUL byte cannot be part of a command",
    );
    check("FROM scratch\nR\u{1b}[31mUN x\n", "unknown instruction");
    check("FROM scratch AS \u{7}\n", "cannot name a stage");
    check("FROM scratch\nCOPY --\u{9b}x=1 a b\n", "has no flag");
    let file = parsed("FROM scratch\nCOPY <<E /x\n\0\nE\n");
    assert_eq!(file.1, [], "a file may hold any byte");
}

#[test]
fn huge_numbers() {
    let nines = "9".repeat(1000);
    let check = |line: &str, expect: &str| {
        let (message, _) = refused(&format!("FROM scratch\n{line}\n"));
        assert!(message.contains(expect), "{message}");
    };
    check(
        &format!("EXPOSE {nines}"),
        "a port is a number from 0 to 65535",
    );
    check(&format!("STOPSIGNAL {nines}"), "is not a signal");
    check(
        &format!("HEALTHCHECK --interval={nines}h CMD x"),
        "is not a duration",
    );
    check(&format!("HEALTHCHECK --retries={nines} CMD x"), "--retries");
    check(&format!("COPY --from={nines} a b"), &nines[..50]);
    check(&format!("COPY --chmod={} a b", "7".repeat(1000)), "mode");
    assert_eq!(
        lowered(&format!("FROM scratch\nUSER {nines}\n"))
            .unwrap()
            .config
            .config
            .user,
        nines
    );
}
