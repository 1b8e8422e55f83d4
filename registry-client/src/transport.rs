//! HTTP: the only place that sends requests.
//!
//! | file | part |
//! |---|---|
//! | this | one exchange, redirects followed by hand, answers read within limits |
//! | [`target`] | where answers may send us |
//! | [`names`] | addresses that the names in answers may have |
//! | [`retry`] | when a request is sent again |
//! | [`tls`] | trust and client certificates |
//! | [`body`] | what requests send |
//!
//! A request goes to one URL; [`Transport::follow`] adds redirects, and never shows `Authorization` to an origin other
//! than the first. Authentication and retries are the caller's ([`crate::registry`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, LOCATION,
};
use reqwest::{Method, Request, Response, StatusCode, Url};
use rustls::RootCertStore;

use crate::blocking::blocking;
use crate::error::{ClientError, Refusal, RequestLine, causes, printable, redacted};
use crate::headers::{self, RateLimit};
use crate::hosts::Host;
use crate::options::Options;
use names::OutsideOnly;

pub(crate) mod body;
mod names;
pub(crate) mod retry;
pub(crate) mod target;
pub(crate) mod tls;

pub(crate) use body::Payload;

/// Most redirects of one request.
const REDIRECTS_MAX: u32 = 8;

/// Most bytes of a refusal that are read for its error envelope.
const REFUSAL_BYTES_MAX: u64 = 64 * 1024;

/// Most warnings that are kept, and the longest of one, in bytes (distribution-spec, "Warnings").
const WARNINGS_MAX: usize = 64;
const WARNING_BYTES_MAX: usize = 4096;

tokio::task_local! {
    /// What every request of a task carries.
    static HEADERS: Vec<(&'static str, String)>;
}

/// Runs a future whose requests all carry these headers beside their own, to whomever they go: no secrets, such as
/// `traceparent`.
pub async fn with_headers<F: Future>(headers: Vec<(&'static str, String)>, future: F) -> F::Output {
    HEADERS.scope(headers, future).await
}

/// What a registry wants its users to know (`Warning` headers).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// Host and port that sent it.
    pub host: String,
    /// Its text.
    pub text: String,
}

/// One request.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Payload,
    /// How the server at an authority is spoken to; says nothing of others that it leads to.
    pub(crate) host: Option<(String, Arc<Host>)>,
    /// Whether a server outside gave us the URL, so that its name must not lead inside.
    pub(crate) must_be_outside: bool,
}

impl Call {
    pub(crate) fn new(method: Method, url: Url) -> Call {
        Call {
            method,
            url,
            headers: HeaderMap::new(),
            body: Payload::Empty,
            host: None,
            must_be_outside: false,
        }
    }

    pub(crate) fn get(url: Url) -> Call {
        Call::new(Method::GET, url)
    }

    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Call {
        // Values are our own or were received as header values; what cannot be one is not worth a failure.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    pub(crate) fn body(mut self, body: Payload) -> Call {
        self.body = body;
        self
    }

    /// The same, to a URL that is from an answer; `is_outside` says whether the server that gave it was.
    pub(crate) fn told_by(mut self, is_outside: bool) -> Call {
        self.must_be_outside = is_outside;
        self
    }

    /// The same, to a server that is spoken to as `host` has it.
    pub(crate) fn to(mut self, host: &Arc<Host>) -> Call {
        for (name, value) in &host.headers {
            let name = HeaderName::try_from(name.as_str());
            let value = HeaderValue::try_from(value.as_str());
            // Whoever reads settings has checked them.
            if let (Ok(name), Ok(mut value)) = (name, value) {
                value.set_sensitive(true);
                self.headers.insert(name, value);
            }
        }
        let said = self.url.query_pairs().any(|(key, _)| key == "ns");
        if let Some(name) = host.stands_for.as_ref().filter(|_| !said) {
            self.url.query_pairs_mut().append_pair("ns", name);
        }
        self.host = Some((target::authority(&self.url), Arc::clone(host)));
        self
    }

    pub(crate) fn line(&self) -> RequestLine {
        RequestLine::new(&self.method, &self.url)
    }

    /// Whether the server at an authority is the one that is spoken to, and needs no trust.
    fn is_insecure(&self, authority: &str) -> bool {
        let own = self.host.as_ref();
        own.is_some_and(|(own, host)| own == authority && host.insecure)
    }

    /// What is said of the server at `url`.
    fn host_at(&self, url: &Url) -> Option<&Host> {
        let (authority, host) = self.host.as_ref()?;
        (*authority == target::authority(url)).then_some(host)
    }
}

/// A server, and what its certificate has to be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Trust {
    authority: String,
    unverified: bool,
    ca: Vec<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
}

/// What connections of one pool have in common.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    /// Whom is trusted; `None` is for what is not encrypted.
    trust: Option<Trust>,
    /// How long is waited for a connection, where that is said of the host.
    connect: Option<Duration>,
    /// The proxy that is said of the host.
    proxy: Option<String>,
    /// Whether names must not lead inside.
    must_be_outside: bool,
}

/// Sends requests, with one connection pool per host.
pub(crate) struct Transport {
    pub(crate) options: Arc<Options>,
    pools: tokio::sync::Mutex<BTreeMap<Way, reqwest::Client>>,
    roots: Arc<OnceLock<Result<RootCertStore, String>>>,
    warnings: Mutex<BTreeSet<Warning>>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Transport {
    pub(crate) fn new(options: Arc<Options>) -> Transport {
        Transport {
            options,
            pools: tokio::sync::Mutex::default(),
            roots: Arc::default(),
            warnings: Mutex::default(),
        }
    }

    /// Sends a request and follows redirects. Any status is an answer.
    pub(crate) async fn follow(
        &self,
        call: &Call,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, ClientError> {
        let mut hop = call.clone();
        if let Some(value) = authorization {
            hop.headers.insert(AUTHORIZATION, value.clone());
        }
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.exchange(&hop).await?;
            if !redirects(&hop.method, answer.status()) {
                return Ok(answer);
            }
            let next = self.target(&answer, |name| {
                hop.is_insecure(name) || self.options.may_be_inside(name)
            })?;
            if !target::same_origin(&call.url, &next) {
                hop.headers.remove(AUTHORIZATION);
                for (name, _) in hop.host.iter().flat_map(|(_, host)| &host.headers) {
                    hop.headers.remove(name);
                }
            }
            let elsewhere = target::authority(&hop.url) != target::authority(&next);
            hop.must_be_outside |= elsewhere && answer.is_outside();
            hop.url = next;
        }
        Err(ClientError::bad_answer(
            &call.line(),
            format!("more than {REDIRECTS_MAX} redirects"),
        ))
    }

    /// The `Location` of an answer, if it may be followed; `inside` says which hosts may be in our network.
    pub(crate) fn target(
        &self,
        answer: &Answer,
        inside: impl Fn(&str) -> bool,
    ) -> Result<Url, ClientError> {
        let from = answer.url();
        let to = target::locate(from, answer.headers().get(LOCATION))
            .map_err(|reason| ClientError::bad_answer(&answer.line, reason))?;
        target::check(from, &to, inside).map_err(|reason| ClientError::Misdirected {
            request: answer.line.clone(),
            target: redacted(&to),
            reason,
        })?;
        Ok(to)
    }

    /// Sends one request to one URL, following nothing.
    pub(crate) async fn exchange(&self, call: &Call) -> Result<Answer, ClientError> {
        let line = call.line();
        let may_be_inside = self.options.may_be_inside(&target::authority(&call.url));
        let must_be_outside = call.must_be_outside && !may_be_inside;
        let host = call.host_at(&call.url);
        let pool = self.pool(&call.url, host, must_be_outside).await?;
        let activity = Arc::new(AtomicU64::new(0));
        let mut request = Request::new(call.method.clone(), call.url.clone());
        *request.headers_mut() = call.headers.clone();
        // Without a task that has some there are none.
        let _ = HEADERS.try_with(|headers| {
            for (name, value) in headers {
                if let Ok(value) = HeaderValue::from_str(value) {
                    request.headers_mut().insert(*name, value);
                }
            }
        });
        let length = call.body.len();
        let sends = matches!(call.method, Method::POST | Method::PUT | Method::PATCH);
        if let Some(length) = length.or(sends.then_some(0)) {
            request.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        *request.body_mut() = call.body.open(&activity).await?;

        let sending = pool.execute(request);
        tokio::pin!(sending);
        let idle = self.options.timeouts.idle;
        let mut taken = 0;
        let response = loop {
            // A server may hash or move all of a blob before it answers.
            let all_sent = length.is_some_and(|length| length > 0 && taken == length);
            let patience = match all_sent {
                true => self.options.timeouts.answer,
                false => idle,
            };
            match tokio::time::timeout(patience, &mut sending).await {
                Ok(response) => break response,
                Err(_) => {
                    let now = activity.load(Ordering::Relaxed);
                    if now == taken {
                        return Err(ClientError::Stalled {
                            request: line,
                            idle: patience,
                        });
                    }
                    taken = now;
                }
            }
        };
        let response = response.map_err(|error| failure(&error, &line, &call.url))?;
        let answer = Answer {
            retry_after: retry_after(&response, &self.options),
            line,
            response,
            idle,
        };
        self.keep_warnings(&call.url, &answer);
        Ok(answer)
    }

    /// The registries' warnings so far, each once, in order.
    pub(crate) fn warnings(&self) -> Vec<Warning> {
        let warnings = self.warnings.lock();
        let warnings = warnings.unwrap_or_else(std::sync::PoisonError::into_inner);
        warnings.iter().cloned().collect()
    }

    fn keep_warnings(&self, url: &Url, answer: &Answer) {
        if let Some(limit) = answer.rate_limit()
            && limit.is_low()
        {
            // Without the number itself, which each answer has another of: it is told once.
            let text = format!("less than a tenth of {} is left", limit.allowance());
            self.warn(&target::authority(url), &text);
        }
        let values = answer.headers().get_all(reqwest::header::WARNING);
        let texts = values.iter().filter_map(|value| value.to_str().ok());
        let mut bytes = 0;
        for text in texts.filter_map(headers::warning) {
            bytes += text.len();
            if bytes > WARNING_BYTES_MAX {
                return;
            }
            self.warn(&target::authority(url), &text);
        }
    }

    /// Keeps what the user should know of a host, once.
    pub(crate) fn warn(&self, host: &str, text: &str) {
        let warning = Warning {
            host: host.to_owned(),
            text: printable(text),
        };
        let kept = self.warnings.lock();
        let mut kept = kept.unwrap_or_else(std::sync::PoisonError::into_inner);
        if kept.len() < WARNINGS_MAX && kept.insert(warning.clone()) {
            tracing::warn!(host = %warning.host, "{}", warning.text);
        }
    }

    /// The connection pool for a URL, and what is said of its server; whether its name must not lead inside. TLS is set up only
    /// where it is needed.
    pub(crate) async fn pool(
        &self,
        url: &Url,
        host: Option<&Host>,
        must_be_outside: bool,
    ) -> Result<reqwest::Client, ClientError> {
        let authority = target::authority(url);
        let secure = url.scheme() == "https";
        let trust = Trust {
            authority: authority.clone(),
            unverified: host.is_some_and(|host| host.insecure)
                || self.options.is_unverified(&authority),
            ca: host.map(|host| host.ca.clone()).unwrap_or_default(),
            identity: host.and_then(|host| host.identity.clone()),
        };
        let key = Way {
            trust: secure.then(|| trust.clone()),
            connect: host.and_then(|host| host.connect_timeout),
            proxy: host.and_then(|host| host.proxy.clone()),
            must_be_outside,
        };
        let mut pools = self.pools.lock().await;
        if let Some(pool) = pools.get(&key) {
            return Ok(pool.clone());
        }
        let tls = if secure {
            let (options, roots) = (Arc::clone(&self.options), Arc::clone(&self.roots));
            let reading = blocking(move || {
                let mut extra = match options.certs_of.get(&authority) {
                    Some(folder) => tls::certificates_in(folder)?,
                    None => tls::certs_d(&options.certs_dirs, &authority)?,
                };
                extra.add(&trust.ca, trust.identity.as_ref())?;
                let roots = roots
                    .get_or_init(|| load_roots(&options))
                    .as_ref()
                    .map_err(|reason| ClientError::Setup {
                        what: "trusted certificates".to_owned(),
                        reason: reason.clone(),
                    })?;
                tls::config(roots, extra, trust.unverified)
            });
            reading.await?
        } else {
            tls::unused()
        };
        let pool = self.new_pool(tls, &key)?;
        pools.insert(key, pool.clone());
        Ok(pool)
    }

    fn new_pool(
        &self,
        tls: rustls::ClientConfig,
        way: &Way,
    ) -> Result<reqwest::Client, ClientError> {
        let options = &self.options;
        let setup = |what: &str, error: &reqwest::Error| ClientError::Setup {
            what: what.to_owned(),
            reason: chain(error),
        };
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(way.connect.unwrap_or(options.timeouts.connect))
            .http2_initial_stream_window_size(4 * 1024 * 1024)
            .http2_initial_connection_window_size(16 * 1024 * 1024)
            .user_agent(&options.user_agent)
            .no_proxy();
        match way.must_be_outside {
            true => builder = builder.dns_resolver(Arc::new(outside_only(options, way))),
            false => {
                for (host, address) in &options.addresses {
                    builder = builder.resolve(host, *address);
                }
            }
        }
        if let Some(url) = &way.proxy {
            let proxy = reqwest::Proxy::all(url).map_err(|error| setup("proxy", &error))?;
            let pool = builder.proxy(proxy).build();
            return pool.map_err(|error| setup("user agent", &error));
        }
        let proxies = &options.proxies;
        let except = || reqwest::NoProxy::from_string(&proxies.exceptions());
        if let Some(url) = proxies.http.as_ref().filter(|url| !url.is_empty()) {
            let proxy = reqwest::Proxy::http(url).map_err(|error| setup("http proxy", &error))?;
            builder = builder.proxy(proxy.no_proxy(except()));
        }
        if let Some(url) = proxies.https.as_ref().filter(|url| !url.is_empty()) {
            let proxy = reqwest::Proxy::https(url).map_err(|error| setup("https proxy", &error))?;
            builder = builder.proxy(proxy.no_proxy(except()));
        }
        builder.build().map_err(|error| setup("user agent", &error))
    }
}

fn outside_only(options: &Options, way: &Way) -> OutsideOnly {
    let proxies = &options.proxies;
    let proxies = [&way.proxy, &proxies.http, &proxies.https];
    let host_of = |url: &String| Some(Url::parse(url).ok()?.host_str()?.to_owned());
    OutsideOnly {
        addresses: options.addresses.clone(),
        named: proxies.into_iter().flatten().filter_map(host_of).collect(),
    }
}

fn load_roots(options: &Options) -> Result<RootCertStore, String> {
    let mut roots = tls::native_roots();
    for path in &options.ca_files {
        let certificates = tls::certificates(path).map_err(|error| error.to_string())?;
        roots.add_parsable_certificates(certificates);
    }
    Ok(roots)
}

fn redirects(method: &Method, status: StatusCode) -> bool {
    match status.as_u16() {
        // These turn other methods into GET, which would lose the body silently.
        301..=303 => matches!(*method, Method::GET | Method::HEAD),
        307 | 308 => true,
        _ => false,
    }
}

fn retry_after(response: &Response, options: &Options) -> Option<Duration> {
    let value = response.headers().get(reqwest::header::RETRY_AFTER)?;
    headers::retry_after(value.to_str().ok()?, options.clock.now())
}

/// An answer whose body is not read yet.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) line: RequestLine,
    response: Response,
    idle: Duration,
    retry_after: Option<Duration>,
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// What is left of the requests that the registry allows, where it tells.
    fn rate_limit(&self) -> Option<RateLimit> {
        headers::rate_limit(
            self.header("ratelimit-limit")?,
            self.header("ratelimit-remaining")?,
        )
    }

    /// The URL that answered, after redirects.
    pub(crate) fn url(&self) -> &Url {
        self.response.url()
    }

    /// Whether it came from beyond this machine and its network, as far as can be told: behind a proxy it cannot.
    pub(crate) fn is_outside(&self) -> bool {
        let address = self.response.remote_addr();
        address.is_some_and(|address| !target::is_internal_address(address.ip()))
    }

    /// A header's value, where it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// What `Content-Length` says, also in answers to HEAD.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// The next piece of the body.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        match tokio::time::timeout(self.idle, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(ClientError::Cut {
                request: self.line.clone(),
                reason: chain(&error),
            }),
            Err(_) => Err(ClientError::Stalled {
                request: self.line.clone(),
                idle: self.idle,
            }),
        }
    }

    /// The whole body, at most `limit` bytes.
    pub(crate) async fn bytes(mut self, limit: u64) -> Result<Vec<u8>, ClientError> {
        let too_large = |line: &RequestLine| ClientError::TooLarge {
            request: line.clone(),
            limit,
        };
        if self.content_length().is_some_and(|length| length > limit) {
            return Err(too_large(&self.line));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(too_large(&self.line));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Makes the answer an error, reading what it says.
    pub(crate) async fn refused(mut self) -> ClientError {
        let (status, request, wait) = (self.status(), self.line.clone(), self.retry_after);
        let rate_limit = self.rate_limit();
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = self.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > REFUSAL_BYTES_MAX {
                break;
            }
        }
        ClientError::Refused {
            request,
            refusal: Refusal {
                rate_limit,
                ..Refusal::parse(status, &body, wait)
            },
        }
    }

    /// The answer if its status is one of `expected`, an error otherwise.
    pub(crate) async fn expect(self, expected: &[StatusCode]) -> Result<Answer, ClientError> {
        if expected.contains(&self.status()) {
            return Ok(self);
        }
        if self.status().is_success() {
            let reason = format!("unexpected status {}", self.status());
            return Err(ClientError::bad_answer(&self.line, reason));
        }
        Err(self.refused().await)
    }
}

/// Tells apart what the HTTP library reports.
fn failure(error: &reqwest::Error, line: &RequestLine, url: &Url) -> ClientError {
    let host = target::authority(url);
    let (mut refused, mut tls, mut breach) = (false, None, None);
    for cause in causes(error) {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            refused |= io.kind() == io::ErrorKind::ConnectionRefused;
        }
        if let Some(error) = cause.downcast_ref::<ClientError>() {
            return ClientError::Relayed {
                meaning: error.kind(),
                reason: error.to_string(),
            };
        }
        if cause.is::<names::Inside>() {
            return ClientError::Misdirected {
                request: line.clone(),
                target: redacted(url),
                reason: "its name leads from outside into this machine or its network",
            };
        }
        if let Some(error) = cause.downcast_ref::<rustls::Error>() {
            tls = Some(error.to_string());
        }
        if let Some(error) = cause.downcast_ref::<hyper::Error>()
            && error.is_parse()
        {
            breach = Some(error.to_string());
        }
    }
    if let Some(reason) = tls {
        return ClientError::Tls { host, reason };
    }
    if let Some(reason) = breach {
        return ClientError::bad_answer(line, reason);
    }
    if error.is_connect() {
        return ClientError::Unreachable {
            host,
            refused,
            reason: chain(error),
        };
    }
    ClientError::Cut {
        request: line.clone(),
        reason: chain(error),
    }
}

/// The innermost causes of an error in one line, without URLs.
fn chain(error: &reqwest::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    // The outermost names the URL.
    for cause in causes(error).skip(1) {
        let text = cause.to_string();
        // Wrappers often repeat what they wrap.
        if texts.last().is_none_or(|last| !last.contains(&text)) {
            texts.push(text);
        }
    }
    if error.is_timeout() && texts.is_empty() {
        return "it took too long".to_owned();
    }
    match texts.is_empty() {
        true => "it failed".to_owned(),
        false => printable(&texts.join(": ")),
    }
}
