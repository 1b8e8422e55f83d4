//! A headless Chromium, driven as WebDriver has it: by plain HTTP to `chromedriver`.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};

use crate::client::Client;

/// How long a condition is waited for: a loaded machine takes its time.
const PATIENCE: Duration = Duration::from_secs(180);

/// How long one script waits, in milliseconds; shorter than an answer is waited for.
const SCRIPT_MS: u64 = 20_000;

/// A browser with a window.
pub(crate) struct Browser {
    driver: Child,
    addr: SocketAddr,
    session: String,
    /// Its profile; new and empty.
    _profile: tempfile::TempDir,
}

impl Browser {
    pub(crate) fn start() -> Browser {
        let profile = tempfile::tempdir().unwrap();
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("HOME", profile.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is installed");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            let line = line.unwrap();
            let (_, port) = line.split_once("started successfully on port ")?;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        let addr = SocketAddr::from(([127, 0, 0, 1], port.expect("it tells its port")));
        // What else it says is nobody's to read, but it must be able to say it.
        std::thread::spawn(move || lines.for_each(drop));
        let mut browser = Browser {
            driver,
            addr,
            session: String::new(),
            _profile: profile,
        };
        let folder = browser._profile.path().join("profile");
        let options = json!({"args": [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,900", "--hide-scrollbars",
            format!("--user-data-dir={}", folder.display()),
        ]});
        let wanted = json!({"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"}, "timeouts": {"script": SCRIPT_MS * 2, "pageLoad": 120_000}}}});
        let made = browser.ask("POST", "/session", &wanted);
        browser.session = made["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    /// One command to the driver: the answer's status, and what it says.
    fn try_ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = match method {
            "POST" => body.to_string(),
            _ => String::new(),
        };
        let headers = [("Content-Type", "application/json")];
        let mut client = Client::patient(self.addr, PATIENCE);
        let reply = client.send(method, path, &headers, body.as_bytes());
        (reply.status, reply.json()["value"].clone())
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, told) = self.try_ask(method, path, body);
        assert_eq!(status, 200, "{path} {body}: {told}");
        told
    }

    /// Sends commands to the element that an expression gives; again if the page puts another in its place meanwhile.
    #[track_caller]
    fn act(&self, find: &str, commands: &[(&str, Value)]) {
        let began = Instant::now();
        loop {
            self.wait(find);
            let element = self.run(&format!("return {find} ?? null;"));
            let id = element.as_object().and_then(|one| one.values().next());
            let Some(id) = id.and_then(Value::as_str) else {
                continue;
            };
            let refused = commands.iter().find_map(|(command, body)| {
                let path = format!("/session/{}/element/{id}/{command}", self.session);
                let (status, told) = self.try_ask("POST", &path, body);
                (status != 200).then_some(told)
            });
            let Some(told) = refused else { return };
            let passing = ["stale element", "not interactable", "click intercepted"];
            let error = told["error"].as_str().unwrap_or_default();
            let passes = passing.iter().any(|word| error.contains(word));
            assert!(passes && began.elapsed() < PATIENCE, "{find}: {told}");
        }
    }

    #[track_caller]
    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        self.ask(method, &format!("/session/{}{path}", self.session), body)
    }

    #[track_caller]
    pub(crate) fn open(&self, url: &str) {
        self.command("POST", "/url", &json!({"url": url}));
    }

    pub(crate) fn reload(&self) {
        self.command("POST", "/refresh", &json!({}));
    }

    /// What a script returns.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> Value {
        self.command(
            "POST",
            "/execute/sync",
            &json!({"script": script, "args": []}),
        )
    }

    /// Waits until an expression is true of the page.
    #[track_caller]
    pub(crate) fn wait(&self, condition: &str) {
        let script = format!(
            "const done = arguments[arguments.length - 1]; const end = Date.now() + {SCRIPT_MS};
             (function look() {{
               let is = false; try {{ is = Boolean({condition}); }} catch {{}}
               if (is || Date.now() > end) done(is); else setTimeout(look, 20);
             }})();"
        );
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let told = self.command(
                "POST",
                "/execute/async",
                &json!({"script": script, "args": []}),
            );
            if told == true {
                return;
            }
        }
        let page = self.run("return location.href + '\\n' + document.body.innerText;");
        panic!("never `{condition}`: {}", page.as_str().unwrap_or_default());
    }

    /// Waits until the page shows a text.
    #[track_caller]
    pub(crate) fn sees(&self, text: &str) {
        self.wait(&format!(
            "document.body.innerText.includes({})",
            json!(text)
        ));
    }

    /// What the page shows.
    pub(crate) fn text(&self) -> String {
        self.run("return document.body.innerText;")
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Waits for an element with a role's name or text, and gives a click to it as a mouse does.
    #[track_caller]
    pub(crate) fn click(&self, selector: &str, text: &str) {
        let find = format!(
            "[...document.querySelectorAll({})].find((one) => (one.getAttribute('aria-label') ?? one.textContent).trim() === {} && !one.disabled)",
            json!(selector),
            json!(text)
        );
        self.act(&find, &[("click", json!({}))]);
    }

    /// Waits for the element of a selector, and gives a click to it as a mouse does.
    #[track_caller]
    pub(crate) fn press(&self, selector: &str) {
        let find = format!("document.querySelector({})", json!(selector));
        self.act(&find, &[("click", json!({}))]);
    }

    /// Types into the element of a selector, in place of what is there.
    #[track_caller]
    pub(crate) fn type_into(&self, selector: &str, text: &str) {
        let find = format!("document.querySelector({})", json!(selector));
        let typed = json!({"text": text});
        self.act(&find, &[("clear", json!({})), ("value", typed)]);
    }

    /// A command of Chromium's own protocol.
    fn chromium(&self, command: &str, parameters: &Value) {
        self.command(
            "POST",
            "/goog/cdp/execute",
            &json!({"cmd": command, "params": parameters}),
        );
    }

    /// As a device of this width shows it.
    pub(crate) fn width(&self, width: u32) {
        let mobile = width < 600;
        let size = json!({"width": width, "height": if mobile { 780 } else { 900 }, "deviceScaleFactor": 1, "mobile": mobile});
        self.chromium("Emulation.setDeviceMetricsOverride", &size);
    }

    /// As somebody has it who prefers `light` or `dark`.
    pub(crate) fn colours(&self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.chromium("Emulation.setEmulatedMedia", &features);
    }

    /// A picture of all of the page, in `$LONGSHORE_SCREENSHOTS` if that is a folder.
    pub(crate) fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("LONGSHORE_SCREENSHOTS") else {
            return;
        };
        let parameters =
            json!({"cmd": "Page.captureScreenshot", "params": {"captureBeyondViewport": true}});
        let taken = self.command("POST", "/goog/cdp/execute", &parameters);
        let png = base64::engine::general_purpose::STANDARD.decode(taken["data"].as_str().unwrap());
        std::fs::write(
            std::path::Path::new(&folder).join(format!("{name}.png")),
            png.unwrap(),
        )
        .unwrap();
    }

    /// What the console was told that is a mistake of the page: not the answers of the registry.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let told = self.command("POST", "/se/log", &json!({"type": "browser"}));
        let told = told.as_array().unwrap().iter();
        let severe = told.filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING");
        let message = severe.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned());
        message
            .filter(|text| !text.contains("Failed to load resource: the server responded"))
            .collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            // It ends the browser; the driver alone would leave it.
            let path = format!("/session/{}", self.session);
            if let Some(mut client) = Client::try_new(self.addr) {
                let _ = client.try_send("DELETE", &path, &[], b"");
            }
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
