use super::*;

fn started(vertex: usize, name: &str) -> ProgressEvent {
    ProgressEvent::Started {
        vertex: VertexIndex(vertex),
        name: name.to_owned(),
        line: 0,
    }
}

fn output(vertex: usize, bytes: &[u8]) -> ProgressEvent {
    ProgressEvent::Output {
        vertex: VertexIndex(vertex),
        stream: OutputStream::Stdout,
        bytes: bytes.to_vec(),
    }
}

fn done(vertex: usize, millis: u64) -> ProgressEvent {
    ProgressEvent::Done {
        vertex: VertexIndex(vertex),
        elapsed: Duration::from_millis(millis),
    }
}

/// What is printed of events, each with its time in milliseconds, with a tick after each.
fn printed(events: &[(u64, ProgressEvent)]) -> Vec<u8> {
    let mut plain = Plain::default();
    let mut text = Vec::new();
    for (at, event) in events {
        let at = Duration::from_millis(*at);
        text.extend(plain.event(at, event));
        text.extend(plain.tick(at));
    }
    text.extend(plain.finish(Duration::from_secs(1), false));
    text
}

#[track_caller]
fn check(events: &[(u64, ProgressEvent)], expect: &expect_test::Expect) {
    let text = printed(events);
    expect.assert_eq(std::str::from_utf8(&text).unwrap());
}

#[test]
fn steps_that_overlap_stay_readable() {
    let cached = ProgressEvent::Cached {
        vertex: VertexIndex(0),
        name: "[a 1/2] FROM x".to_owned(),
    };
    let failed = ProgressEvent::Failed {
        vertex: VertexIndex(2),
        message: "exit code 3".to_owned(),
    };
    check(
        &[
            (0, cached),
            (100, started(1, "[a 2/2] RUN one")),
            (200, output(1, b"first\nsec")),
            (300, started(2, "[b 2/2] RUN two")),
            (400, output(2, b"other\n")),
            (500, output(1, b"ond\n")),
            (600, done(1, 500)),
            (700, failed),
        ],
        &expect_test::expect![[r#"
            #1 [a 1/2] FROM x
            #1 CACHED

            #2 [a 2/2] RUN one
            #2 0.100 first
            #2 0.400 second
            #2 DONE 0.5s

            #3 [b 2/2] RUN two
            #3 0.100 other
            #3 ERROR: exit code 3
            ------
             > [b 2/2] RUN two:
            0.100 other
            ------
        "#]],
    );
}

#[test]
fn nobody_keeps_the_word_for_ever() {
    check(
        &[
            (0, started(1, "RUN one")),
            (0, started(2, "RUN two")),
            (1_000, output(2, b"two speaks\n")),
            (4_900, output(1, b"one speaks\n")),
            (5_100, output(1, b"one again\n")),
            (5_200, output(2, b"two again\n")),
            (6_000, done(1, 6_000)),
            (7_000, output(2, b"end")),
        ],
        &expect_test::expect![[r#"
            #2 RUN one
            #2 4.900 one speaks
            #2 5.100 one again
            #2 ...

            #3 RUN two
            #3 1.000 two speaks
            #3 5.200 two again
            #3 ...

            #2 RUN one
            #2 DONE 6.0s

            #3 RUN two
            #3 1.000 end
        "#]],
    );
}

#[test]
fn nothing_is_lost() {
    let long = vec![b'x'; 3_000_000];
    let odd = b"a\rb\xff\xfe\n\n\r\npart".to_vec();
    let text = printed(&[
        (0, started(1, "RUN one")),
        (0, started(2, "RUN two")),
        (0, output(2, &long)),
        (0, output(1, &odd)),
        (0, done(1, 0)),
        (0, done(2, 0)),
    ]);
    let count = text.iter().filter(|&&byte| byte == b'x').count();
    assert_eq!(count, long.len());
    let expected = b"#2 0.000 a\rb\xff\xfe\n#2 0.000 \n#2 0.000 \n#2 0.000 part\n#2 DONE 0.0s\n";
    assert!(
        text.windows(expected.len())
            .any(|window| window == expected)
    );
}

#[test]
fn transfers_are_told_of_now_and_then() {
    let transfer = |kind, done, total| ProgressEvent::Transfer {
        vertex: Some(VertexIndex(1)),
        kind,
        id: "sha256:aa11".to_owned(),
        name: "aa".to_owned(),
        done,
        total,
    };
    let pull = |done| transfer(TransferKind::Pull, done, Some(3_400_000));
    check(
        &[
            (0, started(1, "[1/1] FROM x")),
            (0, pull(0)),
            (1_000, pull(500_000)),
            (5_000, pull(1_000_000)),
            (6_000, pull(1_200_000)),
            (7_000, pull(3_400_000)),
            (7_000, pull(3_400_000)),
            (7_000, transfer(TransferKind::Extract, 0, Some(3_400_000))),
            (
                7_500,
                transfer(TransferKind::Extract, 3_400_000, Some(3_400_000)),
            ),
            (8_000, transfer(TransferKind::Download, 5, None)),
            (14_000, transfer(TransferKind::Download, 7, None)),
            (15_000, done(1, 15_000)),
        ],
        &expect_test::expect![[r#"
            #2 [1/1] FROM x
            #2 sha256:aa11 1MB / 3.4MB 5.0s (125kB/s, 19.2s left)
            #2 sha256:aa11 3.4MB / 3.4MB 7.0s done
            #2 extracting sha256:aa11 3.4MB / 3.4MB 0.5s done
            #2 downloading aa 7B 6.0s (0B/s)
            #2 DONE 15.0s
        "#]],
    );
}

#[test]
fn transfers_of_no_step_are_told_of_together() {
    let push = |id: &str, done, total| ProgressEvent::Transfer {
        vertex: None,
        kind: TransferKind::Push,
        id: format!("sha256:{id}"),
        name: id.to_owned(),
        done,
        total: Some(total),
    };
    check(
        &[
            (0, push("aa", 0, 10_000_000)),
            (0, push("bb", 0, 90_000_000)),
            (1_000, push("aa", 0, 10_000_000)),
            (3_000, push("aa", 4_000_000, 10_000_000)),
            (5_500, push("aa", 10_000_000, 10_000_000)),
            (5_500, push("bb", 0, 90_000_000)),
            (8_000, push("bb", 20_000_000, 90_000_000)),
            (11_000, push("bb", 40_000_000, 90_000_000)),
            (15_000, push("bb", 90_000_000, 90_000_000)),
        ],
        &expect_test::expect![[r#"
            pushing sha256:aa 10MB / 10MB 4.5s done
            1 of 2 done, 10MB / 100MB (2.22MB/s, 40.5s left)
            pushing sha256:bb 40MB / 90MB 5.5s (7.27MB/s, 6.8s left)
            1 of 2 done, 50MB / 100MB (7.27MB/s, 6.8s left)
            pushing sha256:bb 90MB / 90MB 9.5s done
        "#]],
    );
}

#[test]
fn a_step_says_why_it_runs_and_that_it_changed_nothing() {
    use builder::cache::explain::Ingredient;
    let vertex = VertexIndex(1);
    let reason = Reason {
        ingredient: Ingredient::Argument,
        name: Some("VERSION".to_owned()),
        old: Some("1".to_owned()),
        new: Some("2".to_owned()),
    };
    let runs = ProgressEvent::Runs {
        vertex,
        reasons: vec![reason],
    };
    let recorded = ProgressEvent::Recorded {
        vertex,
        key: builder::cache::CacheKey([0; 32]),
        bytes: 1,
        unchanged: true,
    };
    check(
        &[
            (0, runs),
            (0, started(1, "RUN a\nb")),
            (0, output(1, b"no newline")),
            (0, recorded),
            (0, done(1, 0)),
        ],
        &expect_test::expect![[r#"
            #2 RUN a b
            #2 runs: build argument VERSION: 1 → 2
            #2 0.000 no newline
            #2 ran again, same result
            #2 DONE 0.0s
        "#]],
    );
}
