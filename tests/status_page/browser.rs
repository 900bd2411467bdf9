//! A real Chromium without a window, driven over its DevTools pipe: JSON messages that end with a zero byte, in at descriptor 3 and out at 4.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::{Instant, sleep, timeout};

use crate::support::process;

/// Where the browser is looked for.
const NAMES: [&str; 4] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
];
/// With it, a browser that is missing fails the test.
const REQUIRED: &str = "CHROMIUM_REQUIRED";
/// The longest that one step may take; the first start on a busy machine takes seconds.
const DEADLINE: Duration = Duration::from_secs(60);

/// A browser with one page, which end when this is dropped.
pub struct Browser {
    child: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    next: u64,
    session: Option<String>,
    /// What the page did not catch, and what the browser says against it.
    complaints: Vec<String>,
    _profile: TempDir,
}

impl Browser {
    /// Starts one; `None`, which is said, where none is installed.
    pub async fn start() -> Option<Self> {
        let found = NAMES.into_iter().find(|name| process::is_installed(name));
        let Some(program) = found else {
            assert!(
                std::env::var_os(REQUIRED).is_none(),
                "{REQUIRED} is set, and there is none of {NAMES:?}"
            );
            eprintln!(
                "SKIPPED: no Chromium ({}) is installed; with {REQUIRED}=1 this fails",
                NAMES.join(", ")
            );
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        let mut command = process::mortal("sh");
        command
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 < /dev/null > /dev/null"])
            .arg(program)
            .args([
                "--headless=new",
                "--remote-debugging-pipe",
                // Root, as in containers, has no sandbox of its own.
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--hide-scrollbars",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = process::spawn(command);
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, messages) = channel(1024);
        std::thread::spawn(move || {
            for message in BufReader::new(output).split(0) {
                let Ok(message) = message else { return };
                if sender
                    .blocking_send(serde_json::from_slice(&message).unwrap())
                    .is_err()
                {
                    return;
                }
            }
        });
        let mut browser = Self {
            child,
            input,
            messages,
            next: 0,
            session: None,
            complaints: Vec::new(),
            _profile: profile,
        };
        browser.attach().await;
        Some(browser)
    }

    async fn attach(&mut self) {
        let page = self
            .call("Target.createTarget", json!({"url": "about:blank"}))
            .await;
        let target = json!({"targetId": page["targetId"], "flatten": true});
        let session = self.call("Target.attachToTarget", target).await;
        self.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            self.call(domain, json!({})).await;
        }
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.input
            .write_all(message.to_string().as_bytes())
            .unwrap();
        self.input.write_all(&[0]).unwrap();
        self.input.flush().unwrap();
        timeout(DEADLINE, async {
            loop {
                let mut message = self.messages.recv().await.expect("the browser runs");
                if message["id"] == id {
                    assert_eq!(message.get("error"), None, "{method}: {message}");
                    return message["result"].take();
                }
                self.hear(&message);
            }
        })
        .await
        .unwrap_or_else(|_| panic!("no answer to {method}"))
    }

    fn hear(&mut self, message: &Value) {
        let params = &message["params"];
        let is_complaint = match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Log.entryAdded") => params["entry"]["level"] == "error",
            Some("Runtime.consoleAPICalled") => params["type"] == "error",
            _ => false,
        };
        if is_complaint {
            self.complaints.push(params.to_string());
        }
    }

    /// As wide as that, on a phone or at a desk.
    pub async fn resize(&mut self, width: u32, height: u32, is_phone: bool) {
        let scale = if is_phone { 2 } else { 1 };
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": scale, "mobile": is_phone});
        self.call("Emulation.setDeviceMetricsOverride", metrics)
            .await;
    }

    /// `light` or `dark`.
    pub async fn prefer(&mut self, scheme: &str) {
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", media).await;
    }

    pub async fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({"url": url})).await;
    }

    /// The value of an expression in the page.
    pub async fn value(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true});
        let mut answer = self.call("Runtime.evaluate", params).await;
        assert_eq!(answer.get("exceptionDetails"), None, "{expression}");
        answer["result"]["value"].take()
    }

    /// What can be read in an element.
    pub async fn text(&mut self, selector: &str) -> String {
        let selector = Value::from(selector);
        let expression = format!("document.querySelector({selector})?.innerText ?? ''");
        self.value(&expression).await.as_str().unwrap().to_owned()
    }

    /// Waits until the expression is true.
    pub async fn until(&mut self, expression: &str) {
        let deadline = Instant::now() + DEADLINE;
        while self.value(expression).await != true {
            if Instant::now() >= deadline {
                let seen = self.text("body").await;
                panic!("never came to be: {expression}; the page says:\n{seen}");
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until an element shows these words.
    pub async fn until_text(&mut self, selector: &str, words: &str) {
        let (selector, words) = (Value::from(selector), Value::from(words));
        self.until(&format!(
            "(document.querySelector({selector})?.innerText ?? '').includes({words})"
        ))
        .await;
    }

    /// What the page and the browser have complained of since the last time.
    pub async fn complaints(&mut self) -> Vec<String> {
        let said = self.text("#errors").await;
        self.complaints.extend((!said.is_empty()).then_some(said));
        std::mem::take(&mut self.complaints)
    }

    /// A picture of the page, as a PNG.
    pub async fn picture(&mut self) -> Vec<u8> {
        let picture = self
            .call("Page.captureScreenshot", json!({"format": "png"}))
            .await;
        STANDARD.decode(picture["data"].as_str().unwrap()).unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("the browser could not be ended: {error}");
        }
    }
}
