use super::super::assemble::answer;
use super::*;

fn parse(json: &str) -> Profile {
    Profile::parse(json.as_bytes()).unwrap_or_else(|error| panic!("{error}: {json}"))
}

fn filter(json: &str) -> Filter {
    parse(json).filter(Capabilities::DOCKER).unwrap().0
}

/// What `filter` answers to a native call with this first argument.
fn says(filter: &Filter, name: &str, argument: u64) -> Action {
    let number = calls::number(calls::NATIVE, name).unwrap().unwrap();
    answer(
        &filter.program(),
        audit(calls::NATIVE),
        number,
        [argument, 0, 0, 0, 0, 0],
    )
}

fn error(json: &str) -> String {
    match Profile::parse(json.as_bytes()) {
        Err(error) => error.to_string(),
        Ok(profile) => profile
            .filter(Capabilities::DOCKER)
            .unwrap_err()
            .to_string(),
    }
}

#[test]
fn actions() {
    for (action, expect) in [
        (r#""SCMP_ACT_ALLOW""#, SECCOMP_RET_ALLOW),
        (r#""SCMP_ACT_LOG""#, SECCOMP_RET_LOG),
        (r#""SCMP_ACT_KILL""#, SECCOMP_RET_KILL_THREAD),
        (r#""SCMP_ACT_KILL_THREAD""#, SECCOMP_RET_KILL_THREAD),
        (r#""SCMP_ACT_KILL_PROCESS""#, SECCOMP_RET_KILL_PROCESS),
        (r#""SCMP_ACT_TRAP""#, SECCOMP_RET_TRAP),
        (r#""SCMP_ACT_ERRNO""#, SECCOMP_RET_ERRNO | 1),
        (
            r#""SCMP_ACT_ERRNO", "errnoRet": 38"#,
            SECCOMP_RET_ERRNO | 38,
        ),
        (r#""SCMP_ACT_TRACE", "errnoRet": 7"#, SECCOMP_RET_TRACE | 7),
    ] {
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["mkdirat"],"action":{action}}}]}}"#
        );
        let filter = filter(&json);
        assert_eq!(says(&filter, "mkdirat", 0), expect, "{action}");
        assert_eq!(says(&filter, "openat", 0), SECCOMP_RET_ALLOW, "{action}");
    }
}

#[test]
fn defaults_and_what_is_newer() {
    let list = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":13,"syscalls":[{"name":"faccessat2","action":"SCMP_ACT_ALLOW"}]}"#,
    );
    assert_eq!(says(&list, "faccessat2", 0), SECCOMP_RET_ALLOW);
    assert_eq!(says(&list, "openat2", 0), SECCOMP_RET_ERRNO | 13);
    // Newer than every call that the profile knows: programs are to fall back.
    assert_eq!(says(&list, "mseal", 0), SECCOMP_RET_ERRNO | 38);
    let open = filter(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"faccessat2","action":"SCMP_ACT_ERRNO"}]}"#,
    );
    assert_eq!(says(&open, "mseal", 0), SECCOMP_RET_ALLOW);
    // Nothing at all is a profile too.
    assert_eq!(
        says(&filter(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#), "mount", 0),
        SECCOMP_RET_ALLOW
    );
    let none = filter(r#"{"defaultAction":"SCMP_ACT_KILL_PROCESS","syscalls":null}"#);
    assert_eq!(says(&none, "read", 0), SECCOMP_RET_KILL_PROCESS);
}

#[test]
fn arguments() {
    let check = |args: &str, matching: &[u64], others: &[u64]| {
        let filter = filter(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{args}]}}]}}"#
        ));
        for argument in matching {
            assert_eq!(
                says(&filter, "personality", *argument),
                SECCOMP_RET_ALLOW,
                "{args} {argument:#x}"
            );
        }
        for argument in others {
            assert_eq!(
                says(&filter, "personality", *argument),
                SECCOMP_RET_ERRNO | 1,
                "{args} {argument:#x}"
            );
        }
    };
    let huge = 1 << 40;
    check("", &[0, huge], &[]);
    check(
        r#"{"index":0,"value":8,"op":"SCMP_CMP_EQ"}"#,
        &[8],
        &[0, 9, 8 + huge],
    );
    check(
        r#"{"index":0,"value":8,"op":"SCMP_CMP_NE"}"#,
        &[0, 9, 8 + huge],
        &[8],
    );
    check(
        r#"{"index":0,"value":8,"op":"SCMP_CMP_LT"}"#,
        &[0, 7],
        &[8, huge],
    );
    check(
        r#"{"index":0,"value":8,"op":"SCMP_CMP_LE"}"#,
        &[0, 8],
        &[9, huge],
    );
    check(
        r#"{"index":0,"value":8,"op":"SCMP_CMP_GT"}"#,
        &[9, huge],
        &[0, 8],
    );
    check(
        r#"{"index":0,"value":8,"op":"SCMP_CMP_GE"}"#,
        &[8, huge],
        &[7],
    );
    check(
        r#"{"index":0,"value":12,"valueTwo":4,"op":"SCMP_CMP_MASKED_EQ"}"#,
        &[4, 7, 4 + huge],
        &[0, 8, 12],
    );
    check(
        r#"{"index":0,"value":12,"op":"SCMP_CMP_MASKED_EQ"}"#,
        &[0, 3, huge],
        &[4, 8],
    );
    // About different arguments: both must hold. About the same: one is enough, as docker has it.
    check(
        r#"{"index":0,"value":8,"op":"SCMP_CMP_EQ"},{"index":1,"value":1,"op":"SCMP_CMP_EQ"}"#,
        &[],
        &[8],
    );
    check(
        r#"{"index":0,"value":8,"op":"SCMP_CMP_EQ"},{"index":1,"value":0,"op":"SCMP_CMP_EQ"}"#,
        &[8],
        &[0],
    );
    check(
        r#"{"index":0,"value":8,"op":"SCMP_CMP_EQ"},{"index":0,"value":9,"op":"SCMP_CMP_EQ"}"#,
        &[8, 9],
        &[0],
    );
}

#[test]
fn of_several_rules() {
    let rules = [
        r#"{"names":["socket"],"action":"SCMP_ACT_ALLOW"}"#,
        r#"{"names":["socket"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":40,"op":"SCMP_CMP_GE"}]}"#,
        r#"{"names":["socket"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":2,"op":"SCMP_CMP_LE"}]}"#,
        r#"{"names":["socket"],"action":"SCMP_ACT_KILL_PROCESS","args":[{"index":0,"value":50,"op":"SCMP_CMP_GE"}]}"#,
    ];
    let check = |rules: &[&str], expect: &[(u64, Action)]| {
        let filter = filter(&format!(
            r#"{{"defaultAction":"SCMP_ACT_TRAP","syscalls":[{}]}}"#,
            rules.join(",")
        ));
        for (argument, expect) in expect {
            assert_eq!(
                says(&filter, "socket", *argument),
                *expect,
                "{rules:?} {argument}"
            );
        }
        assert_eq!(says(&filter, "read", 0), SECCOMP_RET_TRAP);
    };
    let errno = SECCOMP_RET_ERRNO | 1;
    // In whatever order, the strictest that matches.
    for turn in 0..rules.len() {
        let mut rules = rules;
        rules.rotate_left(turn);
        let expect = [
            (1, SECCOMP_RET_LOG),
            (3, SECCOMP_RET_ALLOW),
            (40, errno),
            (60, SECCOMP_RET_KILL_PROCESS),
        ];
        check(&rules, &expect);
    }
    // One with conditions allows nothing that one without refuses; of two without, the first holds.
    let refuses = r#"{"names":["socket"],"action":"SCMP_ACT_ERRNO"}"#;
    check(&[rules[2], refuses], &[(1, errno), (3, errno)]);
    check(&[refuses, rules[0]], &[(1, errno)]);
    check(&[rules[0], refuses], &[(1, SECCOMP_RET_ALLOW)]);
}

#[test]
fn includes_and_excludes() {
    let check = |choice: &str, capabilities: Capabilities, applies: bool| {
        let profile = parse(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["mount"],"action":"SCMP_ACT_ALLOW",{choice}}}]}}"#
        ));
        let filter = profile.filter(capabilities).unwrap().0;
        let expect = if applies {
            SECCOMP_RET_ALLOW
        } else {
            SECCOMP_RET_ERRNO | 1
        };
        assert_eq!(
            says(&filter, "mount", 0),
            expect,
            "{choice} {capabilities:?}"
        );
    };
    let docker = Capabilities::DOCKER;
    let admin = Capabilities(1 << 21);
    check(r#""includes":{"caps":["CAP_SYS_ADMIN"]}"#, docker, false);
    check(r#""includes":{"caps":["CAP_SYS_ADMIN"]}"#, admin, true);
    check(
        r#""includes":{"caps":["CAP_SYS_ADMIN","CAP_CHOWN"]}"#,
        admin,
        false,
    );
    check(r#""includes":{}"#, docker, true);
    check(
        r#""includes":null,"excludes":null,"args":null"#,
        docker,
        true,
    );
    check(r#""excludes":{"caps":["CAP_SYS_ADMIN"]}"#, docker, true);
    check(r#""excludes":{"caps":["CAP_SYS_ADMIN"]}"#, admin, false);
    let native = native_name();
    check(
        &format!(r#""includes":{{"arches":["s390x","{native}"]}}"#),
        docker,
        true,
    );
    check(r#""includes":{"arches":["s390x"]}"#, docker, false);
    check(
        &format!(r#""excludes":{{"arches":["{native}"]}}"#),
        docker,
        false,
    );
    check(r#""includes":{"minKernel":"4.8"}"#, docker, true);
    check(r#""includes":{"minKernel":"9999.0"}"#, docker, false);
    check(r#""excludes":{"minKernel":"4.8"}"#, docker, false);
}

#[test]
fn kernels() {
    let version = |text| KernelVersion::parse(text);
    assert_eq!(version("4.8"), Some(KernelVersion(4, 8)));
    assert_eq!(version("6.18.44-rc1+"), Some(KernelVersion(6, 18)));
    assert!(version("4.10") > version("4.8"));
    assert_eq!(version("four"), None);
    assert_eq!(version("4."), None);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn architectures() {
    let i386 = |filter: &Filter| answer(&filter.program(), audit(Arch::I386), 20, [0; 6]);
    let rules = r#""syscalls":[{"names":["getpid"],"action":"SCMP_ACT_ALLOW"}]"#;
    let with = |arches: &str| format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO",{arches}{rules}}}"#);
    for arches in [
        "",
        r#""architectures":["SCMP_ARCH_X86_64"],"#,
        r#""archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":null}],"#,
    ] {
        assert_eq!(
            i386(&filter(&with(arches))),
            SECCOMP_RET_KILL_PROCESS,
            "{arches}"
        );
    }
    for arches in [
        r#""architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],"#,
        r#""archMap":[{"architecture":"SCMP_ARCH_S390X","subArchitectures":["SCMP_ARCH_S390"]},
           {"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"]}],"#,
    ] {
        let filter = filter(&with(arches));
        // getpid is 20 there, and 39 here; x32 is never let through.
        assert_eq!(i386(&filter), SECCOMP_RET_ALLOW, "{arches}");
        assert_eq!(says(&filter, "getpid", 0), SECCOMP_RET_ALLOW);
        let x32 = answer(
            &filter.program(),
            audit(Arch::X86_64),
            0x4000_0000 + 39,
            [0; 6],
        );
        assert_eq!(x32, SECCOMP_RET_ERRNO | 38);
    }
    let both = with(
        r#""architectures":["SCMP_ARCH_X86_64"],"archMap":[{"architecture":"SCMP_ARCH_X86_64"}],"#,
    );
    assert_eq!(
        error(&both),
        "the profile: `architectures` and `archMap` say the same, only one of them is taken"
    );
    assert_eq!(
        error(&with(
            r#""architectures":["SCMP_ARCH_S390X","SCMP_ARCH_S390"],"#
        )),
        "the profile is for `SCMP_ARCH_S390X`, `SCMP_ARCH_S390`, not for amd64"
    );
}

#[test]
fn names_that_nobody_knows() {
    // Without effect where they are allowed, or of another machine; a slip where they are to be refused.
    let (_, unknown) = parse(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["raed","read","s390_sthyi"],"action":"SCMP_ACT_ALLOW"}]}"#,
    )
    .filter(Capabilities::DOCKER)
    .unwrap();
    assert_eq!(unknown, ["raed"]);
    let refused = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"},{"names":["s390_sthyi","monut"],"action":"SCMP_ACT_ERRNO"}]}"#;
    assert_eq!(
        error(refused),
        "syscalls[1]: there is no system call `monut` that could be refused"
    );
}

#[test]
fn bad_files_are_told_with_their_place() {
    let check = |json: &str, expect: &str| assert_eq!(error(json), expect, "{json}");
    check("", "EOF while parsing a value at line 1 column 0");
    check(
        "{\n  \"defaultAction\": \"SCMP_ACT_ALLOW\",\n}",
        "trailing comma at line 3 column 1",
    );
    check(
        "[]",
        "invalid length 0, expected struct Profile with 7 elements at line 1 column 2",
    );
    check("{}", "missing field `defaultAction` at line 1 column 2");
    check(
        "{\n\"defaultAction\": \"ALLOW\"}",
        "unknown variant `ALLOW`, expected one of `SCMP_ACT_KILL`, `SCMP_ACT_KILL_THREAD`, `SCMP_ACT_KILL_PROCESS`, \
         `SCMP_ACT_TRAP`, `SCMP_ACT_ERRNO`, `SCMP_ACT_TRACE`, `SCMP_ACT_ALLOW`, `SCMP_ACT_LOG` at line 2 column 24",
    );
    let with =
        |entry: &str| format!("{{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[\n{entry}]}}");
    for (entry, expect) in [
        (
            r#"{"names":["read"],"action":"SCMP_ACT_NOTIFY"}"#,
            "unknown variant `SCMP_ACT_NOTIFY`",
        ),
        (
            r#"{"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":4096}"#,
            "invalid value: integer `4096`, expected an error number of 0 to 4095 at line 2",
        ),
        (
            r#"{"names":["read"],"action":"SCMP_ACT_ERRNO","argz":[]}"#,
            "unknown field `argz`",
        ),
        (
            r#"{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}"#,
            "invalid value: integer `6`, expected an argument of 0 to 5 at line 2",
        ),
        (
            r#"{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":-1,"op":"SCMP_CMP_EQ"}]}"#,
            "invalid value: integer `-1`, expected u64 at line 2",
        ),
        (
            r#"{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":1,"op":"=="}]}"#,
            "unknown variant `==`",
        ),
        (
            r#"{"names":["read"],"action":"SCMP_ACT_ERRNO","includes":{"caps":["SYS_ADMIN"]}}"#,
            "invalid value: string \"SYS_ADMIN\", expected a capability such as `CAP_SYS_ADMIN` at line 2",
        ),
        (
            r#"{"names":["read"],"action":"SCMP_ACT_ERRNO","includes":{"minKernel":"new"}}"#,
            "expected a kernel such as `4.8` at line 2",
        ),
        (
            r#"{"names":"read","action":"SCMP_ACT_ERRNO"}"#,
            "invalid type: string \"read\", expected a sequence at line 2",
        ),
        (r#"{"names":["read"]}"#, "missing field `action` at line 2"),
        (
            r#"{"action":"SCMP_ACT_ERRNO"}"#,
            "syscalls[0]: a rule without `names`",
        ),
        (
            r#"{"name":"read","names":["write"],"action":"SCMP_ACT_ERRNO"}"#,
            "syscalls[0]: `name` and `names` say the same",
        ),
    ] {
        let found = error(&with(entry));
        assert!(found.contains(expect), "{entry}: {found}");
    }
    assert!(
        error(r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}"#)
            .contains("unknown field `listenerPath`")
    );
    assert!(
        error(r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["amd64"]}"#)
            .contains("such as `SCMP_ARCH_X86_64` at line 1")
    );
    assert!(
        error(r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}"#)
            .contains("unknown variant")
    );
    let large: Vec<String> = (0..1200)
        .map(|value| format!(r#"{{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{{"index":0,"value":{value},"op":"SCMP_CMP_EQ"}}]}}"#))
        .collect();
    assert!(error(&with(&large.join(","))).contains("the kernel takes 4096"));
}

#[test]
fn flags() {
    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_TSYNC","SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}"#;
    assert_eq!(filter(json).flags(), 6);
}
