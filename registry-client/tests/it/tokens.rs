//! Registries behind a token server, and what is told to whom.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use registry_client::{
    BlobSource, Client, Clock, Credential, ErrorKind, Keychain, Options, Silent,
};
use store::oci::{Descriptor, MediaType};

use crate::support::{noise, options};
use crate::wire::{Line, Seen, Then, Wire};

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"manifests":[]}"#;

fn user() -> Credential {
    Credential::Basic {
        username: "user".to_owned(),
        password: "hunter2".to_owned(),
    }
}

fn known(wire: &Wire, credential: Credential) -> Client {
    let keychain = Keychain::anonymous().with(&wire.host, credential);
    Client::new(Options {
        keychain,
        ..options()
    })
    .unwrap()
}

/// A registry and its token server in one. Tokens are numbered; the registry takes those that `takes` does.
fn guarded(
    life: u64,
    takes: impl Fn(&str, usize) -> bool + Send + Sync + 'static,
    then: impl Fn(&Seen, &mut Line<'_>) -> Then + Send + Sync + 'static,
) -> Wire {
    let tokens = AtomicUsize::new(0);
    Wire::bare(move |seen, line| {
        if seen.target.starts_with("/token") {
            let nth = tokens.fetch_add(1, Ordering::SeqCst) + 1;
            let body = format!("{{\"token\":\"t{nth}\",\"expires_in\":{life}}}");
            return line.answer(200, &[], body.as_bytes());
        }
        if !takes(seen.header("authorization"), tokens.load(Ordering::SeqCst)) {
            let realm = format!(
                "Bearer realm=\"http://{}/token\",service=\"tests\"",
                seen.header("host")
            );
            let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"who?"}]}"#;
            return line.answer(401, &[("www-authenticate", &realm)], body);
        }
        then(seen, line)
    })
}

fn latest(authorization: &str, nth: usize) -> bool {
    nth > 0 && authorization == format!("Bearer t{nth}")
}

fn manifest(_: &Seen, line: &mut Line<'_>) -> Then {
    line.answer(200, &[], MANIFEST)
}

fn to_token_server(wire: &Wire) -> Vec<Seen> {
    let seen = wire.seen().into_iter();
    seen.filter(|seen| seen.target.starts_with("/token"))
        .collect()
}

#[tokio::test]
async fn anonymous_tokens() {
    let wire = guarded(300, latest, manifest);
    let client = Client::new(options()).unwrap();
    for _ in 0..3 {
        client.manifest(&wire.reference("a/b:1")).await.unwrap();
    }
    client.manifest(&wire.reference("c:1")).await.unwrap();
    let asked = to_token_server(&wire);
    let targets: Vec<&str> = asked.iter().map(|seen| seen.target.as_str()).collect();
    assert_eq!(
        targets,
        [
            "/token?service=tests&scope=repository%3Aa%2Fb%3Apull&client_id=longshore",
            "/token?service=tests&scope=repository%3Ac%3Apull&client_id=longshore",
        ]
    );
    assert!(
        asked
            .iter()
            .all(|seen| seen.header("authorization").is_empty())
    );
}

#[tokio::test]
async fn passwords_go_to_the_token_server_only() {
    let wire = guarded(300, latest, manifest);
    known(&wire, user())
        .manifest(&wire.reference("x:1"))
        .await
        .unwrap();
    let basic = format!("Basic {}", STANDARD.encode("user:hunter2"));
    for seen in wire.seen() {
        let token = seen.target.starts_with("/token");
        assert_eq!(
            seen.header("authorization") == basic,
            token,
            "{}",
            seen.line()
        );
        assert_eq!(
            seen.target.contains("account=user"),
            token,
            "{}",
            seen.line()
        );
    }
}

#[tokio::test]
async fn identity_tokens_are_posted() {
    let wire = guarded(300, latest, manifest);
    let credential = Credential::IdentityToken {
        username: None,
        token: "id&token".to_owned(),
    };
    known(&wire, credential)
        .manifest(&wire.reference("x:1"))
        .await
        .unwrap();
    let asked = to_token_server(&wire);
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].line(), "POST /token");
    assert_eq!(
        asked[0].header("content-type"),
        "application/x-www-form-urlencoded"
    );
    assert_eq!(
        String::from_utf8_lossy(&asked[0].body),
        "grant_type=refresh_token&client_id=longshore&service=tests&scope=repository%3Ax%3Apull&refresh_token=id%26token"
    );
}

#[tokio::test]
async fn registry_tokens_are_sent_as_they_are() {
    let wire = guarded(
        300,
        |authorization, _| authorization == "Bearer mine",
        manifest,
    );
    let credential = Credential::RegistryToken("mine".to_owned());
    known(&wire, credential)
        .manifest(&wire.reference("x:1"))
        .await
        .unwrap();
    assert!(to_token_server(&wire).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_requests_share_a_token() {
    let wire = guarded(300, latest, manifest);
    let client = Client::new(options()).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (client, reference) = (client.clone(), wire.reference("x:1"));
        tasks.spawn(async move { client.manifest(&reference).await.map(drop) });
    }
    for result in tasks.join_all().await {
        result.unwrap();
    }
    assert_eq!(to_token_server(&wire).len(), 1);
}

/// A clock that tests set.
#[derive(Debug)]
struct Set(Mutex<SystemTime>);

impl Clock for Set {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }

    fn sleep(&self, _: Duration) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::ready(()))
    }

    fn random(&self) -> u8 {
        0
    }
}

#[tokio::test]
async fn tokens_are_renewed_before_they_end() {
    let wire = guarded(300, latest, manifest);
    let clock = Arc::new(Set(Mutex::new(SystemTime::UNIX_EPOCH)));
    let client = Client::new(Options {
        clock: clock.clone(),
        ..options()
    })
    .unwrap();
    let reference = wire.reference("x:1");
    for (seconds, tokens) in [(0, 1), (289, 1), (290, 2), (579, 2), (581, 3)] {
        *clock.0.lock().unwrap() = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        client.manifest(&reference).await.unwrap();
        assert_eq!(to_token_server(&wire).len(), tokens, "after {seconds} s");
    }
    // The first look learnt of the token server; since then nothing was refused.
    assert_eq!(wire.seen().len(), 5 + 3);
}

#[tokio::test]
async fn a_revoked_token_is_replaced_once() {
    // The first is taken once, then the second only.
    let taken = AtomicUsize::new(0);
    let takes = move |authorization: &str, nth: usize| match authorization {
        "Bearer t1" => taken.fetch_add(1, Ordering::SeqCst) == 0,
        _ => nth == 2 && authorization == "Bearer t2",
    };
    let wire = guarded(300, takes, manifest);
    let client = Client::new(options()).unwrap();
    client.manifest(&wire.reference("x:1")).await.unwrap();
    client.manifest(&wire.reference("x:1")).await.unwrap();
    assert_eq!(to_token_server(&wire).len(), 2);
}

#[tokio::test]
async fn refusals_for_ever_end() {
    let wire = guarded(300, |_, _| false, manifest);
    let error = Client::new(options())
        .unwrap()
        .manifest(&wire.reference("x:1"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(
        error.to_string().contains("refused anonymous access"),
        "{error}"
    );
    assert!(error.to_string().contains("UNAUTHORIZED: who?"), "{error}");
    // A token, another in case it was revoked, and that is it.
    assert_eq!(wire.seen().len(), 4, "{:?}", wire.lines());

    let wire = guarded(300, |_, _| false, manifest);
    let error = known(&wire, user())
        .manifest(&wire.reference("x:1"))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("refused the credentials"),
        "{error}"
    );

    let basic = Wire::start(|_, line| line.answer(401, &[("www-authenticate", "Basic")], b""));
    let error = known(&basic, user())
        .manifest(&basic.reference("x:1"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    assert_eq!(basic.seen().len(), 2, "{:?}", basic.lines());

    let odd = Wire::start(|_, line| line.answer(401, &[("www-authenticate", "Negotiate")], b""));
    let error = known(&odd, user())
        .manifest(&odd.reference("x:1"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert_eq!(odd.seen().len(), 1);
}

#[tokio::test]
async fn token_servers_that_fail() {
    let check = async |status: u16, body: &'static str, kind: ErrorKind, words: &str| {
        let wire = Wire::start(move |seen, line| {
            if seen.target.starts_with("/token") {
                return line.answer(status, &[], body.as_bytes());
            }
            let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host"));
            line.answer(401, &[("www-authenticate", &realm)], b"")
        });
        let error = known(&wire, user())
            .manifest(&wire.reference("x:1"))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(!error.to_string().contains("account"), "{error}");
    };
    let details = r#"{"details":"incorrect username or password"}"#;
    check(
        401,
        details,
        ErrorKind::Unauthorized,
        "incorrect username or password",
    )
    .await;
    check(403, "", ErrorKind::Unauthorized, "403").await;
    check(500, "", ErrorKind::ServerFault, "500").await;
    check(
        200,
        "<html>",
        ErrorKind::Protocol,
        "the token server's answer is not JSON",
    )
    .await;
    check(
        200,
        "{}",
        ErrorKind::Protocol,
        "the token server's answer has no token",
    )
    .await;
    check(
        200,
        r#"{"token":"a\nb"}"#,
        ErrorKind::Unauthorized,
        "no header may have",
    )
    .await;
    check(404, "", ErrorKind::NotFound, "404").await;
}

#[tokio::test]
async fn bad_realms_get_no_password() {
    for realm in ["", "ftp://x/", "http://token.invalid/", "//x", "http://"] {
        let challenge = format!("Bearer realm=\"{realm}\"");
        let wire =
            Wire::start(move |_, line| line.answer(401, &[("www-authenticate", &challenge)], b""));
        let error = known(&wire, user())
            .manifest(&wire.reference("x:1"))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{realm}: {error}");
        assert_eq!(wire.seen().len(), 1);
    }
}

#[tokio::test]
async fn logins_are_checked() {
    let wire = guarded(300, latest, |_, line| line.answer(200, &[], b"{}"));
    let client = Client::new(options()).unwrap();
    let kept = client.check_login(&wire.host, &user()).await.unwrap();
    assert_eq!(kept, user());
    let asked = to_token_server(&wire);
    assert_eq!(
        asked[0].target,
        "/token?service=tests&account=user&client_id=longshore&offline_token=true"
    );
    // The credential was for that check alone.
    client.ping(&wire.host).await.unwrap();
    let asked = to_token_server(&wire);
    assert_eq!(asked[1].target, "/token?service=tests&client_id=longshore");
}

#[tokio::test]
async fn an_identity_token_is_kept_instead_of_a_password() {
    let wire = Wire::bare(|seen, line| {
        if seen.target.starts_with("/token") {
            return line.answer(200, &[], br#"{"token":"t","refresh_token":"id"}"#);
        }
        if seen.header("authorization") == "Bearer t" {
            return line.answer(200, &[], MANIFEST);
        }
        let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host"));
        line.answer(401, &[("www-authenticate", &realm)], b"")
    });
    let client = Client::new(options()).unwrap();
    let kept = client.check_login(&wire.host, &user()).await.unwrap();
    let expect = Credential::IdentityToken {
        username: Some("user".to_owned()),
        token: "id".to_owned(),
    };
    assert_eq!(kept, expect);
    let reference = wire.reference("x:1");
    known(&wire, kept).manifest(&reference).await.unwrap();
    known(&wire, user()).manifest(&reference).await.unwrap();
    let asked = to_token_server(&wire);
    let lines: Vec<String> = asked.iter().map(Seen::line).collect();
    // What lasts is asked for at the login only.
    let get = "GET /token?account=user&client_id=longshore&offline_token=true";
    let later = "GET /token?scope=repository%3Ax%3Apull&account=user&client_id=longshore";
    assert_eq!(lines, [get, "POST /token", later]);
}

#[tokio::test]
async fn mounts_ask_for_both_repositories() {
    let wire = guarded(300, latest, |seen, line| match seen.method.as_str() {
        "HEAD" => line.answer(404, &[], b""),
        _ => line.answer(201, &[("location", "/v2/to/blobs/x")], b""),
    });
    let client = Client::new(options()).unwrap();
    let descriptor = Descriptor::of(MediaType::OCI_LAYER, b"x");
    let source = BlobSource::Bytes(Bytes::from_static(b"x"));
    let from = ["from/here".to_owned()];
    client
        .push_blob(
            &wire.reference("to"),
            &descriptor,
            source,
            &from,
            Arc::new(Silent),
        )
        .await
        .unwrap();
    let asked = to_token_server(&wire);
    assert_eq!(
        asked.last().unwrap().target,
        "/token?service=tests&scope=repository%3Afrom%2Fhere%3Apull&scope=repository%3Ato%3Apull%2Cpush&client_id=longshore"
    );
    let lines = wire.lines();
    let mount = format!(
        "POST /v2/to/blobs/uploads/?mount={}&from=from%2Fhere",
        descriptor.digest.to_string().replace(':', "%3A")
    );
    assert_eq!(*lines.last().unwrap(), mount);
}

#[tokio::test]
async fn other_hosts_see_no_credentials() {
    let bytes = noise(31, 10_000);
    let descriptor = Descriptor::of(MediaType::OCI_LAYER, &bytes);
    let stored = bytes.clone();
    let expired = Arc::new(AtomicBool::new(false));
    let is_expired = Arc::clone(&expired);
    let other = Wire::start(move |seen, line| match seen.method.as_str() {
        "GET" if is_expired.load(Ordering::SeqCst) => line.answer(403, &[], b""),
        "GET" => line.answer(200, &[], &stored),
        _ => line.answer(201, &[], b""),
    });
    let elsewhere = format!("http://{}/signed?secret=s3", other.host);
    let wire = guarded(300, latest, move |seen, line| match seen.method.as_str() {
        "HEAD" => line.answer(404, &[], b""),
        "GET" => line.answer(307, &[("location", &elsewhere)], b""),
        _ => line.answer(202, &[("location", &elsewhere)], b""),
    });
    let client = known(&wire, user());
    let reference = wire.reference("x");
    let read = client
        .read_small(&reference, &descriptor, 1 << 20)
        .await
        .unwrap();
    assert_eq!(read, bytes);
    let source = BlobSource::Bytes(Bytes::from(bytes));
    client
        .push_blob(&reference, &descriptor, source, &[], Arc::new(Silent))
        .await
        .unwrap();
    let seen = other.seen();
    assert_eq!(seen.len(), 2, "{:?}", other.lines());
    for seen in seen {
        assert_eq!(seen.header("authorization"), "", "{}", seen.line());
        assert!(
            seen.target.starts_with("/signed?secret=s3"),
            "{}",
            seen.line()
        );
    }
    // What goes wrong there is told without its secret.
    expired.store(true, Ordering::SeqCst);
    let error = client
        .read_small(&reference, &descriptor, 1 << 20)
        .await
        .unwrap_err();
    assert!(error.to_string().contains(&other.host), "{error}");
    assert!(!error.to_string().contains("s3"), "{error}");
}
