use super::*;

fn step(number: usize, name: &str, inputs: &[usize], verdict: Verdict) -> StepHistory {
    StepHistory {
        number,
        name: name.to_owned(),
        kind: "exec".to_owned(),
        line: number,
        inputs: inputs.to_vec(),
        verdict,
        reasons: Vec::new(),
        unchanged: false,
        started: None,
        took: None,
        saved: None,
        bytes: None,
        key: None,
        error: None,
        notes: Vec::new(),
        used: None,
        output_bytes: 0,
    }
}

fn ran(number: usize, name: &str, inputs: &[usize], started: u64, took: u64) -> StepHistory {
    StepHistory {
        started: Some(started),
        took: Some(took),
        ..step(number, name, inputs, Verdict::Ran)
    }
}

fn cached(number: usize, name: &str, inputs: &[usize], saved: u64) -> StepHistory {
    StepHistory {
        saved: Some(saved),
        ..step(number, name, inputs, Verdict::Cached)
    }
}

/// Two stages; the second copies from the first.
fn build() -> BuildHistory {
    BuildHistory::of_steps(vec![
        cached(1, "[a 1/2] FROM x", &[], 0),
        ran(2, "[a 2/2] RUN slow", &[1], 0, 5_000_000),
        cached(3, "[b 1/3] FROM x", &[], 0),
        cached(4, "[b 2/3] RUN long", &[3], 9_000_000),
        ran(
            5,
            "[b 3/3] COPY --from=a <&\"> /",
            &[4, 2],
            5_000_000,
            1_000_000,
        ),
    ])
}

#[test]
fn the_critical_path_is_what_one_waits_for() {
    let build = build();
    let path = critical_path(&build, false);
    assert_eq!((path.steps.as_slice(), path.took), (&[2, 5][..], 6_000_000));
    let path = critical_path(&build, true);
    assert_eq!(
        (path.steps.as_slice(), path.took),
        (&[4, 5][..], 10_000_000)
    );
    // What follows the last that ran, and was cached, is not waited for.
    let mut longer = build;
    longer.steps.push(cached(6, "[b 4/4] RUN more", &[5], 0));
    assert_eq!(critical_path(&longer, false).steps, [2, 5]);
    let nothing = BuildHistory::of_steps(vec![cached(1, "x", &[], 0)]);
    assert_eq!(critical_path(&nothing, false).steps, Vec::<usize>::new());
}

#[test]
fn boxes_stand_below_their_inputs_and_apart() {
    let layout = Layout::of(&build());
    let lanes: Vec<&str> = layout.lanes.iter().map(|lane| lane.name.as_str()).collect();
    assert_eq!(lanes, ["a", "b"]);
    let [first, slow, other, long, copy] = layout.boxes[..] else {
        panic!("{:?}", layout.boxes);
    };
    assert!(slow.y > first.y && long.y > other.y && copy.y > long.y);
    assert!(slow.x == first.x && other.x > first.x && long.x == other.x);
    let places: std::collections::BTreeSet<(i64, i64)> = layout
        .boxes
        .iter()
        .map(|place| (place.x, place.y))
        .collect();
    assert_eq!(places.len(), 5);
    assert!(
        places
            .iter()
            .all(|(x, y)| x + layout::BOX_WIDTH <= layout.width
                && y + layout::BOX_HEIGHT <= layout.height)
    );
}

#[test]
fn what_others_wrote_is_escaped() {
    let page = page(&build());
    assert!(page.contains("&lt;&amp;&quot;&gt;"));
    assert!(!page.contains("<&\">"));
    assert_eq!(escape("a\x1b[1m"), "a\u{fffd}[1m");
}

#[test]
fn what_went_before_the_steps_is_on_the_timeline() {
    let mut build = build();
    build.before.push(builder::history::Before {
        name: "[internal] load metadata for x".to_owned(),
        started: 0,
        took: 1_000,
    });
    let page = page(&build);
    assert!(page.contains("class=\"bar before\""));
    assert!(page.contains("[internal] load metadata for x"));
}

#[test]
fn the_page_loads_nothing() {
    let page = page(&build());
    for word in ["http:", "https:", "src=", "@import", "url("] {
        assert!(!page.contains(word), "{word}");
    }
}
