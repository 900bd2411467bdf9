//! A real vLLM, run by the scripts of a folder beside the crate, and what its own endpoints tell.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::eventually;
use super::process;

/// Includes the installing on a machine that has none yet; an installed one takes about a minute.
const READY_WITHIN: Duration = Duration::from_secs(600);
/// A drain, which the tests make shorter than this, and the end of all its processes.
const ENDS_WITHIN: Duration = Duration::from_secs(90);
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// The folder of the scripts: `REAL_VLLM_TOOLS`. Nothing is guessed, as `cargo test` alone is to be quick everywhere.
///
/// `None` after printing why the test is skipped; with `REAL_VLLM_REQUIRED=1` that is a failure.
pub(crate) fn tools() -> Option<PathBuf> {
    let named = std::env::var_os("REAL_VLLM_TOOLS").map(PathBuf::from);
    let folder = named.unwrap_or_default();
    let missing = if folder.as_os_str().is_empty() {
        Some("REAL_VLLM_TOOLS names no folder of scripts that start a vLLM".to_owned())
    } else if !folder.join("serve.sh").exists() {
        Some(format!(
            "{} has no serve.sh (REAL_VLLM_TOOLS)",
            folder.display()
        ))
    } else {
        let programs = ["python3", "setpriv"];
        let missing = programs.iter().find(|name| !process::is_installed(name));
        missing.map(|name| format!("`{name}` is not installed"))
    };
    let Some(missing) = missing else {
        return Some(folder);
    };
    skipped(&missing);
    None
}

/// Says why a test does nothing; with `REAL_VLLM_REQUIRED=1` that is a failure.
pub(crate) fn skipped(why: &str) {
    let required = std::env::var_os("REAL_VLLM_REQUIRED").is_some_and(|value| value == "1");
    assert!(!required, "REAL_VLLM_REQUIRED=1, and {why}");
    eprintln!("skipped: {why}");
}

/// What a vLLM is asked beside the documents, wherever it runs.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    client: reqwest::Client,
    url: String,
    key: Option<String>,
}

impl Api {
    pub(crate) fn new(url: &str, key: Option<&str>) -> Self {
        // The client is built with TLS, so that it wants a provider even for plain HTTP. A second installation is refused, harmlessly.
        drop(rustls_graviola::default_provider().install_default());
        let client = reqwest::Client::builder()
            .timeout(ANSWER_WITHIN)
            .pool_max_idle_per_host(0)
            .build()
            .expect("an HTTP client");
        Self {
            client,
            url: url.trim_end_matches('/').trim_end_matches("/v1").to_owned(),
            key: key.map(str::to_owned),
        }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Status and body; `None` when nobody answers.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        self.send(self.client.get(format!("{}{path}", self.url)))
            .await
    }

    /// Status and body; `None` when nobody answers.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Option<(u16, String)> {
        let request = self.client.post(format!("{}{path}", self.url)).json(body);
        self.send(request).await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Option<(u16, String)> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = request.send().await.ok()?;
        let status = response.status().as_u16();
        Some((status, response.text().await.ok()?))
    }

    /// What `path` answers with 200, read as JSON.
    pub(crate) async fn value(&self, path: &str) -> Value {
        let (status, text) = self.get(path).await.expect("it answers");
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Name and context, in tokens, of the first model that is served.
    pub(crate) async fn model(&self) -> (String, u64) {
        let models = self.value("/v1/models").await;
        let model = &models["data"][0];
        let name = model["id"].as_str().expect("a name").to_owned();
        (name, model["max_model_len"].as_u64().expect("a length"))
    }

    /// The tokens of a chat of one user message, as the server itself counts them.
    pub(crate) async fn tokens(&self, model: &str, text: &str) -> u64 {
        let body = json!({"model": model, "messages": [{"role": "user", "content": text}]});
        let answer = self.post("/tokenize", &body).await;
        let (status, answer) = answer.expect("it answers");
        assert_eq!(status, 200, "{answer}");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        answer["count"].as_u64().expect("a count")
    }

    /// The sum of a family's values over its labels; 0 when there is none.
    pub(crate) async fn metric(&self, family: &str) -> f64 {
        let (_, page) = self.get("/metrics").await.expect("it answers");
        page.lines()
            .filter_map(|line| {
                let rest = line.strip_prefix(family)?;
                let of_it = rest.starts_with(['{', ' ']);
                let value = rest.rsplit(' ').next().filter(|_| of_it)?;
                Some(value.parse::<f64>().expect("a number"))
            })
            .sum()
    }
}

/// A vLLM with its tiny model, killed with all its processes when dropped. The port stays its own over [`restart`](Self::restart).
pub(crate) struct Server {
    tools: PathBuf,
    port: u16,
    flags: Vec<String>,
    variables: Vec<(String, String)>,
    child: Child,
    warden: Warden,
    log: PathBuf,
    api: Api,
}

/// Ends a process group when the test process ends, however that comes to be: the engine outlives the process that started it, so that the
/// death signal of that one is not enough.
struct Warden {
    child: Child,
    /// Closed by the kernel when nothing of the test process is left.
    life: Option<ChildStdin>,
}

impl Warden {
    fn of(group: u32) -> Self {
        let mut child = Command::new("sh")
            .args(["-c", "read -r _; kill -s KILL -- \"-$1\"", "warden"])
            .arg(group.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("a shell starts");
        let life = child.stdin.take();
        Self { child, life }
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        drop(self.life.take());
        if let Err(error) = self.child.wait() {
            eprintln!("the warden could not be waited for: {error}");
        }
    }
}

impl Server {
    /// Starts one on this port, with more flags of `vllm serve` and variables, and waits until it is ready.
    pub(crate) async fn start(
        tools: &Path,
        port: u16,
        key: Option<&str>,
        flags: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("real-vllm-{port}.log"));
        let mut flags: Vec<_> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        if let Some(key) = key {
            flags.extend(["--api-key".to_owned(), key.to_owned()]);
        }
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let api = Api::new(&format!("http://127.0.0.1:{port}"), key);
        assert!(
            api.get("/health").await.is_none(),
            "port {port} is taken by another server"
        );
        drop(fs::remove_file(&log));
        let child = launch(tools, port, &flags, &variables, &log);
        let mut server = Self {
            tools: tools.to_owned(),
            port,
            flags,
            variables,
            warden: Warden::of(child.id()),
            child,
            log,
            api,
        };
        server.ready().await;
        server
    }

    pub(crate) fn api(&self) -> &Api {
        &self.api
    }

    async fn ready(&mut self) {
        let api = self.api.clone();
        eventually("the vLLM is ready", READY_WITHIN, async || {
            assert!(
                self.is_running(),
                "the vLLM ended; its log is {}",
                self.log.display()
            );
            let health = api.get("/health").await;
            health.filter(|(status, _)| *status == 200)
        })
        .await;
    }

    /// Whether the process that listens runs.
    pub(crate) fn is_running(&mut self) -> bool {
        let ended = self.child.try_wait().expect("it can be asked for");
        ended.is_none()
    }

    /// `kill -9` of the process that computes; the one that listens finds out by itself.
    pub(crate) fn kill_engine(&self) {
        let engine = self.engine().expect("an engine runs");
        assert!(process::signal("-KILL", &engine), "kill -KILL {engine}");
    }

    /// Asks the server to stop.
    pub(crate) fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(process::signal("-TERM", &pid), "kill -TERM {pid}");
    }

    /// Waits until the process that listens has ended.
    pub(crate) async fn ended(&mut self) {
        eventually("the vLLM ends", ENDS_WITHIN, async || {
            (!self.is_running()).then_some(())
        })
        .await;
    }

    /// Starts it again, with the flags that it had, and waits until it is ready.
    pub(crate) async fn restart(&mut self) {
        assert!(!self.is_running(), "only an ended one is started again");
        self.sweep();
        self.child = launch(
            &self.tools,
            self.port,
            &self.flags,
            &self.variables,
            &self.log,
        );
        self.warden = Warden::of(self.child.id());
        self.ready().await;
    }

    /// Ends what is left of its processes.
    fn sweep(&self) {
        // The group is gone already when the server has cleaned up behind itself.
        process::signal("-KILL", &format!("-{}", self.child.id()));
    }

    /// The process id of the engine.
    fn engine(&self) -> Option<String> {
        let group = self.child.id().to_string();
        let processes = fs::read_dir("/proc").expect("processes");
        processes.filter_map(Result::ok).find_map(|entry| {
            let path = entry.path();
            let name = entry.file_name().into_string().ok()?;
            // The name, in parentheses, may hold anything; state, parent and group follow it.
            let stat = fs::read_to_string(path.join("stat")).ok()?;
            let of = stat.rsplit_once(')')?.1.split_whitespace().nth(2)?;
            let line = fs::read_to_string(path.join("cmdline")).ok()?;
            (of == group && line.contains("EngineCore")).then_some(name)
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.sweep();
        if let Err(error) = self.child.wait() {
            eprintln!("the vLLM could not be waited for: {error}");
        }
        if std::thread::panicking() {
            eprintln!("the vLLM's log is {}", self.log.display());
        }
    }
}

fn launch(
    tools: &Path,
    port: u16,
    flags: &[String],
    variables: &[(String, String)],
    log: &Path,
) -> Child {
    let log = File::options().create(true).append(true).open(log);
    let log = log.expect("a file for its log");
    let mut command = process::mortal(tools.join("serve.sh"));
    command
        .arg(port.to_string())
        .args(flags)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .process_group(0);
    process::spawn(command)
}
