//! Parsing never fails, loses no byte, and points only at what is there.
#![no_main]

use builder::dockerfile::ast::{Command, Healthcheck};
use builder::dockerfile::{
    Diagnostic, Instruction, InstructionKind, SourceFile, Span, parse, parse_trigger,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let source = SourceFile::new("Dockerfile", &*text);
    let (file, diagnostics) = parse(&text);
    let pieces: String = file
        .pieces
        .iter()
        .map(|piece| source.slice(piece.span))
        .collect();
    assert_eq!(pieces, text, "the pieces tile the text");
    for instruction in &file.instructions {
        check_instruction(&text, instruction);
    }
    for stage in &file.stages {
        assert!(stage.from < stage.body.start && stage.body.end <= file.instructions.len());
    }
    check_diagnostics(&source, &diagnostics);
    let (trigger, diagnostics) = parse_trigger(&text);
    if let Some(trigger) = &trigger {
        check_instruction(&text, trigger);
    }
    check_diagnostics(&source, &diagnostics);
});

fn check_diagnostics(source: &SourceFile, diagnostics: &[Diagnostic]) {
    for diagnostic in diagnostics {
        check_span(source.text(), diagnostic.span);
        for label in &diagnostic.labels {
            check_span(source.text(), label.span);
        }
        // Each costs as much as the text is long.
        if diagnostics.len() < 20 {
            assert!(diagnostic.render(source, true).contains("Dockerfile"));
        }
    }
}

fn check_span(text: &str, span: Span) {
    assert!(text.get(span.range()).is_some(), "{span:?}");
}

fn check_instruction(text: &str, instruction: &Instruction) {
    check_span(text, instruction.span);
    check_span(text, instruction.head);
    // An escape before a line's end may stand inside the name.
    let first = instruction.keyword.text.chars().next();
    assert_eq!(text[instruction.span.range()].chars().next(), first);
    for flag in &instruction.flags {
        check_span(text, flag.span);
        // The second dash may stand behind an escape and a line's end.
        assert!(text[flag.span.range()].starts_with('-'));
    }
    for heredoc in &instruction.heredocs {
        check_span(text, heredoc.word);
        check_span(text, heredoc.body);
        assert!(heredoc.word.end <= heredoc.body.start);
    }
    let words = match &instruction.kind {
        InstructionKind::Run(Command::Exec(words))
        | InstructionKind::Cmd(Command::Exec(words))
        | InstructionKind::Entrypoint(Command::Exec(words))
        | InstructionKind::Healthcheck(Healthcheck::Check {
            command: Command::Exec(words),
            ..
        })
        | InstructionKind::Shell(words)
        | InstructionKind::Volume(words)
        | InstructionKind::Expose(words) => words.as_slice(),
        InstructionKind::Copy(copy) | InstructionKind::Add(copy) => copy.sources.as_slice(),
        InstructionKind::Onbuild(trigger) => return check_instruction(text, trigger),
        _ => &[],
    };
    for word in words {
        check_span(text, word.span);
    }
}
