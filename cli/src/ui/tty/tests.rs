//! What stands on the screen, as an emulated terminal shows it.

use super::*;
use builder::solve::{OutputStream, PlannedVertex, TransferKind};

fn cells(count: u16) -> std::num::NonZero<u16> {
    std::num::NonZero::new(count).unwrap()
}

/// A terminal with a display on it.
struct Screen {
    tty: Tty,
    terminal: vt100::Parser,
}

impl Screen {
    fn new(columns: u16, rows: u16) -> Screen {
        let ui = Ui {
            colour: true,
            live: true,
            ..Ui::new(Some(true), false)
        };
        let size = (usize::from(columns), usize::from(rows));
        Screen {
            tty: Tty::new(Work::Building, size, ui),
            terminal: vt100::Parser::new(cells(rows), cells(columns), 1000),
        }
    }

    /// Steps by number, from 0.
    fn planned(&mut self, count: u8) -> &mut Screen {
        let vertices = (0..count).map(|index| PlannedVertex {
            digest: builder::graph::VertexDigest([index; 32]),
            inputs: Vec::new(),
            name: String::new(),
            is_step: true,
        });
        let vertices = vertices.collect();
        self.event(0, &ProgressEvent::Planned { vertices })
    }

    fn event(&mut self, millis: u64, event: &ProgressEvent) -> &mut Screen {
        let text = self.tty.event(Duration::from_millis(millis), event);
        assert!(text.is_empty(), "drawn between ticks: {text:?}");
        self
    }

    fn started(&mut self, millis: u64, vertex: usize, name: &str) -> &mut Screen {
        let event = ProgressEvent::Started {
            vertex: VertexIndex(vertex),
            name: name.to_owned(),
            line: 1,
        };
        self.event(millis, &event)
    }

    fn output(&mut self, vertex: usize, bytes: &[u8]) -> &mut Screen {
        let event = ProgressEvent::Output {
            vertex: VertexIndex(vertex),
            stream: OutputStream::Stdout,
            bytes: bytes.to_vec(),
        };
        self.event(0, &event)
    }

    fn done(&mut self, vertex: usize, millis: u64) -> &mut Screen {
        let event = ProgressEvent::Done {
            vertex: VertexIndex(vertex),
            elapsed: Duration::from_millis(millis),
        };
        self.event(0, &event)
    }

    fn failed(&mut self, millis: u64, vertex: usize, message: &str) -> &mut Screen {
        let event = ProgressEvent::Failed {
            vertex: VertexIndex(vertex),
            message: message.to_owned(),
        };
        self.event(millis, &event)
    }

    fn show(&mut self, text: &[u8]) {
        // As the line discipline of a terminal has it.
        let text = String::from_utf8(text.to_vec()).unwrap();
        self.terminal.process(text.replace('\n', "\r\n").as_bytes());
        assert!(!self.terminal.screen().hide_cursor(), "the cursor is back");
    }

    /// What stands on the screen at a time.
    fn at(&mut self, millis: u64) -> String {
        let text = self.tty.tick(Duration::from_millis(millis));
        self.show(&text);
        self.contents()
    }

    fn finished(&mut self, millis: u64, succeeded: bool) -> String {
        let text = self.tty.finish(Duration::from_millis(millis), succeeded);
        self.show(&text);
        self.contents()
    }

    fn contents(&self) -> String {
        let screen = self.terminal.screen();
        let (rows, columns) = screen.size();
        let lines = screen.rows(0, columns.get()).take(usize::from(rows.get()));
        let lines: Vec<String> = lines.map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n").trim_end().to_owned() + "\n"
    }
}

#[test]
fn running_steps_are_drawn_over_and_finished_ones_stay() {
    let mut screen = Screen::new(50, 12);
    screen.planned(3).started(0, 1, "[2/3] RUN make");
    expect_test::expect![[r#"
        [+] Building 0.1s (0/3)
         => [2/3] RUN make                           0.1s
    "#]]
    .assert_eq(&screen.at(100));
    screen.output(1, b"\x1b[32mok\x1b[0m\n\x1b[2J\x1b[Hgone\x07\n50%\r60%");
    expect_test::expect![[r#"
        [+] Building 1.5s (0/3)
         => [2/3] RUN make                           1.5s
         => => # ok
         => => # gone
         => => # 60%
    "#]]
    .assert_eq(&screen.at(1500));
    screen
        .done(1, 1600)
        .started(1600, 2, "[3/3] COPY --from=a /x /");
    expect_test::expect![[r#"
         => [2/3] RUN make                           1.6s
        [+] Building 2.0s (1/3)
         => [3/3] COPY --from=a /x /                 0.4s
    "#]]
    .assert_eq(&screen.at(2000));
    screen.done(2, 500);
    expect_test::expect![[r#"
         => [2/3] RUN make                           1.6s
         => [3/3] COPY --from=a /x /                 0.5s
        [+] Building 2.1s (2/3) FINISHED: 2 ran, 0 cached
    "#]]
    .assert_eq(&screen.finished(2100, true));
}

#[test]
fn a_failed_step_is_reported_last_and_harmless() {
    let mut screen = Screen::new(60, 20);
    let begun = ProgressEvent::Begun {
        build: "00aa11bb".parse().unwrap(),
    };
    screen.event(0, &begun).planned(2);
    screen
        .started(0, 0, "[a 1/1] RUN x")
        .started(0, 1, "[b 1/1] RUN y");
    screen.output(0, b"first\n\x1b[5A\x1b[31mred\x1b[0m\nlast");
    screen.output(1, b"the other's\n");
    screen.at(100);
    screen
        .failed(2000, 0, "exit code 3")
        .failed(2100, 1, CANCELLED);
    expect_test::expect![[r#"
         => ERROR [a 1/1] RUN x                                2.0s
         => CANCELED [b 1/1] RUN y                             2.1s
        ------
         > [a 1/1] RUN x:
        first
        red
        last
        ------
        [+] Building 2.2s (1/2) FAILED: 1 ran, 0 cached
    "#]]
    .assert_eq(&screen.finished(2200, false));
}

#[test]
fn a_long_report_says_where_the_rest_is() {
    let mut screen = Screen::new(80, 8);
    let begun = ProgressEvent::Begun {
        build: "00aa11bb".parse().unwrap(),
    };
    screen.event(0, &begun).planned(1).started(0, 0, "RUN x");
    for line in 0..REPORT_LINES + 7 {
        screen.output(0, format!("line {line}\n").as_bytes());
    }
    screen.failed(1000, 0, "exit code 3");
    let text = screen.tty.finish(Duration::from_secs(1), false);
    let text = String::from_utf8(text).unwrap();
    let note = "[7 lines before these: `longshore history logs 00aa11bb` has them]\nline 7\n";
    assert!(text.contains(note), "{text}");
}

#[test]
fn no_drawing_is_wider_or_taller_than_the_screen() {
    for (columns, rows) in [(20, 6), (1, 1), (2, 3), (80, 5), (5, 24)] {
        let mut screen = Screen::new(columns, rows);
        screen.planned(9);
        for index in 0..9 {
            screen.started(0, index, "日本語 and more than fits 👍 on one line");
            screen.output(index, "語語語語語語語語語語語語語語語語\n".as_bytes());
        }
        for millis in [100, 200, 300] {
            let lines = screen.tty.live_lines(Duration::from_millis(millis));
            assert!(lines.len() < usize::from(rows).max(2), "{lines:?}");
            screen.at(millis);
        }
        // Whatever was drawn over is gone: a header that scrolled away would stand above.
        let all = screen.finished(400, true);
        assert!(all.matches("[+]").count() <= 1, "{columns}x{rows}: {all}");
    }
}

#[test]
fn many_steps_share_the_room() {
    let mut screen = Screen::new(40, 9);
    screen.planned(3);
    for index in 0..3 {
        screen.started(0, index, &format!("step {index}"));
    }
    for line in 0..9 {
        screen.output(0, format!("a{line}\n").as_bytes());
    }
    screen.output(2, b"c0\n");
    expect_test::expect![[r#"
        [+] Building 0.1s (0/3)
         => step 0                         0.1s
         => => # a7
         => => # a8
         => step 1                         0.1s
         => step 2                         0.1s
         => => # c0
    "#]]
    .assert_eq(&screen.at(100));
}

#[test]
fn a_screen_may_change_its_size() {
    let mut screen = Screen::new(60, 10);
    screen.planned(2);
    screen.event(
        0,
        &ProgressEvent::Cached {
            vertex: VertexIndex(0),
            name: "[1/2] FROM x".to_owned(),
        },
    );
    screen.started(0, 1, "[2/2] RUN a command with many words in it");
    screen.at(100);
    screen.terminal.screen_mut().set_size(cells(10), cells(90));
    screen.tty.resize((90, 10));
    let wide = screen.at(200);
    assert_eq!(wide.matches("RUN a command").count(), 1, "{wide}");
    // A terminal that wraps what does not fit any more: the header is one row, the step is two.
    screen.tty.resize((60, 10));
    let text = screen.tty.tick(Duration::from_millis(300));
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("\x1b[3A\r"), "{text:?}");
}

#[test]
fn layers_on_their_way_have_bars() {
    let mut screen = Screen::new(100, 12);
    screen.planned(1).started(0, 0, "[1/1] FROM x");
    let transfer = |vertex, kind, id: &str, done, total| ProgressEvent::Transfer {
        vertex,
        kind,
        id: id.to_owned(),
        name: format!("sha256:{id}"),
        done,
        total: Some(total),
    };
    let base = Some(VertexIndex(0));
    let pull = |id, done, total| transfer(base, TransferKind::Pull, id, done, total);
    let extract = |id, done, total| transfer(base, TransferKind::Extract, id, done, total);
    screen.event(0, &pull("aa", 0, 40_000_000));
    screen.event(0, &pull("bb", 0, 1_000));
    screen.event(500, &pull("bb", 1_000, 1_000));
    screen.event(500, &extract("bb", 1_000, 1_000));
    screen.event(1000, &pull("aa", 10_000_000, 40_000_000));
    expect_test::expect![[r#"
        [+] Building 1.0s (0/1)
         => [1/1] FROM x                                                                               1.0s
         => => pulling sha256:aa                     [=====>              ] 10MB / 40MB    10MB/s 3.0s left
         => => 1 of 2 done                                                                              1kB
    "#]]
    .assert_eq(&screen.at(1000));
    screen.event(2000, &pull("aa", 40_000_000, 40_000_000));
    screen.event(2000, &extract("aa", 20_000_000, 40_000_000));
    let text = screen.at(2000);
    assert!(text.contains("=> => extracting sha256:aa"), "{text}");
    screen.event(2500, &extract("aa", 40_000_000, 40_000_000));
    screen.done(0, 2500);
    let push = |done| transfer(None, TransferKind::Push, "cc", done, 5_000);
    screen.event(2600, &push(0));
    screen.event(2700, &push(5_000));
    expect_test::expect![[r#"
         => [1/1] FROM x                                                                               2.5s
         => => pulled 2 layers                                                                         40MB
         => pushed sha256:cc                                                                       5kB 0.1s
        [+] Building 2.8s (1/1) FINISHED: 1 ran, 0 cached
    "#]]
    .assert_eq(&screen.finished(2800, true));
}

#[test]
fn a_command_that_moves_bytes_tells_how_far_it_is() {
    let mut screen = Screen::new(100, 12);
    screen.tty.work = Work::Pulling;
    let pull = |id: &str, done, total| ProgressEvent::Transfer {
        vertex: None,
        kind: TransferKind::Pull,
        id: id.to_owned(),
        name: format!("sha256:{id}"),
        done,
        total: Some(total),
    };
    screen.event(0, &pull("aa", 0, 10_000_000));
    screen.event(0, &pull("bb", 0, 30_000_000));
    screen.event(1000, &pull("aa", 4_000_000, 10_000_000));
    expect_test::expect![[r#"
        [+] Pulling 1.0s (0/2) 4MB / 40MB 4MB/s, 9.0s left
         => pulling sha256:aa                         [========>           ] 4MB / 10MB     4MB/s 1.5s left
         => pulling sha256:bb                                    [>                   ] 0B / 30MB      0B/s
    "#]].assert_eq(&screen.at(1000));
    screen.event(2000, &pull("aa", 10_000_000, 10_000_000));
    screen.event(5000, &pull("bb", 30_000_000, 30_000_000));
    expect_test::expect![[r#"
         => pulled sha256:aa                                                                      10MB 2.0s
         => pulled sha256:bb                                                                      30MB 5.0s
        [+] Pulling 5.0s (2/2) FINISHED
    "#]].assert_eq(&screen.finished(5000, true));
}

#[test]
fn a_step_says_why_it_ran() {
    use builder::cache::explain::Ingredient;
    let mut screen = Screen::new(60, 12);
    let vertex = VertexIndex(0);
    let change = |name: &str| Reason {
        ingredient: Ingredient::File,
        name: Some(name.to_owned()),
        old: None,
        new: Some("00".to_owned()),
    };
    let reasons = ["a", "b", "c", "d"].map(change).to_vec();
    let runs = ProgressEvent::Runs { vertex, reasons };
    let recorded = ProgressEvent::Recorded {
        vertex,
        key: builder::cache::CacheKey([0; 32]),
        bytes: 0,
        unchanged: true,
    };
    let new = ProgressEvent::Runs {
        vertex: VertexIndex(1),
        reasons: vec![Reason::bare(Ingredient::NoRecord)],
    };
    screen
        .planned(2)
        .event(0, &runs)
        .started(0, 0, "[1/2] COPY . .");
    screen.event(0, &recorded).done(0, 100);
    screen
        .event(0, &new)
        .started(0, 1, "[2/2] RUN new")
        .done(1, 100);
    expect_test::expect![[r#"
         => [1/2] COPY . .                                     0.1s
         => => file a is new
         => => file b is new
         => => … and 2 more: `longshore explain` has them
         => => ran again, same result
         => [2/2] RUN new                                      0.1s
        [+] Building 1.0s (2/2) FINISHED: 2 ran, 0 cached
    "#]]
    .assert_eq(&screen.finished(1000, true));
}

#[test]
fn what_is_logged_scrolls_away_above() {
    let mut screen = Screen::new(60, 12);
    screen.planned(1).started(0, 0, "RUN x");
    screen.at(100);
    let text = screen.tty.logged(b"\x1b[33mWARN\x1b[0m odd\n");
    assert!(text.is_empty());
    let text = screen.at(200);
    assert!(text.starts_with("WARN odd\n[+] Building"), "{text}");
}
