use super::*;

fn known(ingredients: &[(&str, &str)]) -> Known {
    let named = ingredients.iter();
    Known {
        ingredients: named
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        files: None,
    }
}

fn listed(files: &[(&str, u16, u8)]) -> FileLists {
    let entries = files.iter().map(|(path, mode, digest)| ListedFile {
        path: path.as_bytes().to_vec(),
        mode: 1 << 12 | mode,
        digest: [*digest; 8],
    });
    FileLists {
        sources: vec![FileList {
            depth: 0,
            entries: entries.collect(),
        }],
    }
}

/// What differs, one line each: `kind name: old -> new`.
#[track_caller]
fn check(old: &Known, new: &Known, expected: &[&str]) {
    let arguments = BTreeSet::from(["VERSION".to_owned()]);
    let found: Vec<String> = compare(old, new, &arguments)
        .into_iter()
        .map(|reason| {
            let kind = serde_json::to_value(reason.ingredient).unwrap();
            let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            let (name, old, new) = (text(&reason.name), text(&reason.old), text(&reason.new));
            format!("{} {name}: {old} > {new}", kind.as_str().unwrap())
        })
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn the_same_twice_has_no_difference() {
    let one = known(&[("command", "make"), ("env A", "=1"), ("base", "00")]);
    check(&one, &one, &[]);
}

#[test]
fn each_field_of_a_process_is_named() {
    let old = known(&[
        ("command", "make"),
        ("user", ""),
        ("directory", "/"),
        ("env GONE", "=1"),
        ("env VERSION", "=1"),
        ("options", "aa"),
    ]);
    let new = known(&[
        ("command", "make all"),
        ("user", "me"),
        ("directory", "/src"),
        ("env TOKEN", "#0123"),
        ("env VERSION", "=2"),
        ("options", "bb"),
    ]);
    check(
        &old,
        &new,
        &[
            "command -: make > make all",
            "user -:  > me",
            "directory -: / > /src",
            "variable GONE: 1 > -",
            "variable TOKEN: - > #0123",
            "argument VERSION: 1 > 2",
            "options -: - > -",
        ],
    );
}

#[test]
fn flags_are_named_one_by_one() {
    let with = |flags: &[(&str, &str)], options: &str| {
        let mut all = vec![("options", options)];
        all.extend(flags);
        known(&all)
    };
    let network = ("flag --network", "default");
    let mount = ("flag --mount /c", "type=cache,mode=0755");
    let old = with(&[network, mount], "aa");
    let new = with(
        &[("flag --network", "none"), ("flag --ulimit core", "1:1")],
        "bb",
    );
    check(
        &old,
        &new,
        &[
            "options --mount /c: type=cache,mode=0755 > -",
            "options --network: default > none",
            "options --ulimit core: - > 1:1",
        ],
    );
    // Written before flags were.
    check(&with(&[], "aa"), &new, &["options -: - > -"]);
}

#[test]
fn a_base_is_an_image_or_a_step() {
    let base = |identity: &str, name: &str| known(&[("base", identity), ("base name", name)]);
    check(
        &base("00", "image busybox sha256:aa"),
        &base("01", "image busybox sha256:bb"),
        &["base-image busybox: sha256:aa > sha256:bb"],
    );
    check(
        &base("00", "image busybox sha256:aa"),
        &base("01", "image busybox sha256:aa"),
        &["base-image busybox: 00 > 01"],
    );
    check(
        &base("00", "image busybox sha256:aa"),
        &base("01", "image debian sha256:bb"),
        &["base-image debian: busybox sha256:aa > debian sha256:bb"],
    );
    // The number of the step does not matter, its text does.
    check(
        &base("00", "step [2/3] RUN a"),
        &base("01", "step [3/4] RUN a"),
        &["parent [3/4] RUN a: 00 > 01"],
    );
    check(
        &base("00", "step [2/3] RUN a"),
        &base("01", "step [2/3] RUN b"),
        &["parent [2/3] RUN b: [2/3] RUN a > [2/3] RUN b"],
    );
    // The same content by another name is no difference.
    check(
        &base("00", "step [2/3] RUN a"),
        &base("00", "image busybox sha256:aa"),
        &[],
    );
}

#[test]
fn files_are_named_with_what_differs() {
    let with = |digest: &str, files: &[(&str, u16, u8)]| Known {
        files: Some(listed(files)),
        ..known(&[
            ("selected 0", digest),
            ("source 0", "."),
            ("from 0", "context"),
        ])
    };
    let old = with(
        "00",
        &[
            ("a", 0o644, 1),
            ("b", 0o644, 2),
            ("c", 0o644, 3),
            ("d", 0o644, 4),
        ],
    );
    let new = with(
        "01",
        &[
            ("a", 0o755, 1),
            ("b", 0o644, 9),
            ("d", 0o644, 4),
            ("e", 0o644, 5),
        ],
    );
    check(
        &old,
        &new,
        &[
            "file a: mode 0644 > mode 0755",
            "file b: 0202020202020202 > 0909090909090909",
            "file c: 0303030303030303 > -",
            "file e: - > 0505050505050505",
        ],
    );
    // The lists agree, so it is something that they do not hold: an extended attribute.
    let same = Known {
        files: old.files.clone(),
        ..new
    };
    check(&old, &same, &["file .: 00 > 01"]);
    let many: Vec<(String, u16, u8)> = (10..30).map(|n| (format!("f{n}"), 0, 1)).collect();
    let many: Vec<(&str, u16, u8)> = many.iter().map(|(p, m, d)| (p.as_str(), *m, *d)).collect();
    let arguments = BTreeSet::new();
    let reasons = compare(&with("00", &[]), &with("01", &many), &arguments);
    assert_eq!(reasons.len(), FILES_NAMED_MAX + 1);
    assert_eq!(reasons[FILES_NAMED_MAX].name.as_deref(), Some("10 more"));
}

#[test]
fn without_lists_the_pattern_is_named() {
    let with = |digest: &str, from: &str| {
        known(&[
            ("selected 0", digest),
            ("source 0", "/out"),
            ("from 0", from),
        ])
    };
    check(
        &with("00", "step [a 2/2] RUN x"),
        &with("01", "step [a 3/3] RUN x"),
        &["file /out: 00 > 01"],
    );
    check(
        &with("00", "step [a 2/2] RUN x"),
        &with("01", "step [a 2/2] RUN y"),
        &["file /out: 00 > 01", "source /out: RUN x > RUN y"],
    );
}

#[test]
fn lists_of_other_depths_are_compared_at_the_lesser() {
    let full = FileList {
        depth: 0,
        entries: listed(&[("a/b", 0o644, 1), ("a/c", 0o644, 2), ("d", 0o644, 3)]).sources[0]
            .entries
            .clone(),
    };
    let mut other = full.clone();
    other.entries[1].digest = [7; 8];
    let names = |old: &FileList, new: &FileList| -> Vec<String> {
        changed_files(old, new)
            .into_iter()
            .filter_map(|reason| reason.name)
            .collect()
    };
    assert_eq!(names(&full.cut(1), &full), Vec::<String>::new());
    assert_eq!(names(&full.cut(1), &other), ["a"]);
    assert_eq!(names(&full, &other), ["a/c"]);
}

#[test]
fn steps_are_found_again() {
    let check = |old: &[&str], new: &[&str], expected: &[Option<usize>]| {
        assert_eq!(pair(old, new), expected, "{old:?} {new:?}");
    };
    let old = ["[1/3] FROM x", "[2/3] COPY . .", "[3/3] RUN make"];
    check(&old, &old, &[Some(0), Some(1), Some(2)]);
    // One was added, one changed.
    check(
        &old,
        &[
            "[1/4] FROM x",
            "[2/4] RUN new",
            "[3/4] COPY . .",
            "[4/4] RUN make all",
        ],
        &[Some(0), None, Some(1), Some(2)],
    );
    // One was removed.
    check(
        &old,
        &["[1/2] FROM y", "[2/2] RUN make"],
        &[Some(0), Some(2)],
    );
    // Stages are kept apart, whatever their numbers.
    check(
        &[
            "[a 1/2] FROM x",
            "[a 2/2] RUN y",
            "[b 1/2] FROM x",
            "[b 2/2] RUN y",
        ],
        &[
            "[b 1/2] FROM x",
            "[b 2/2] RUN z",
            "[c 1/1] FROM x",
            "[internal] load build context",
        ],
        &[Some(2), Some(3), None, None],
    );
    check(&[], &["[1/1] FROM x"], &[None]);
}
