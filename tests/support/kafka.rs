//! The real Apache Kafka, run by the scripts of a folder beside the crate.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use tokio::time::timeout;

use super::eventually;
use super::process::{self, Lines};

/// Includes the resolving of Kafka on a machine that has none yet.
const READY_WITHIN: Duration = Duration::from_secs(180);
const ENDS_WITHIN: Duration = Duration::from_secs(20);
const TOOL_WITHIN: Duration = Duration::from_secs(120);

/// The folder of the scripts: `REAL_KAFKA_TOOLS`. Nothing is guessed, as `cargo test` alone is to be quick everywhere.
///
/// `None` after printing why the suite is skipped; with `REAL_KAFKA_REQUIRED=1` that is a failure.
pub(crate) fn tools() -> Option<PathBuf> {
    let named = std::env::var_os("REAL_KAFKA_TOOLS").map(PathBuf::from);
    let folder = named.unwrap_or_default();
    let missing = if folder.as_os_str().is_empty() {
        Some("REAL_KAFKA_TOOLS names no folder of scripts that start a broker".to_owned())
    } else if !folder.join("serve-secure.sh").exists() {
        Some(format!(
            "{} has no serve-secure.sh (REAL_KAFKA_TOOLS)",
            folder.display()
        ))
    } else {
        let programs = ["java", "setpriv", "openssl"];
        let missing = programs.iter().find(|name| !process::is_installed(name));
        missing
            .map(|name| format!("`{name}` is not installed"))
            .or_else(|| {
                let nowhere_from = !process::is_installed("mvn") && !is_resolved();
                nowhere_from.then(|| "`mvn` is not installed and Kafka is not there yet".to_owned())
            })
    };
    let Some(missing) = missing else {
        return Some(folder);
    };
    let required = std::env::var_os("REAL_KAFKA_REQUIRED").is_some_and(|value| value == "1");
    assert!(!required, "REAL_KAFKA_REQUIRED=1, and {missing}");
    eprintln!("skipped: {missing}");
    None
}

fn is_resolved() -> bool {
    cache().exists()
}

/// Where the scripts keep Kafka and the certificates.
fn cache() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    cache.unwrap_or_else(home).join("real-kafka")
}

/// What the script's broker lacks: a listener whose certificate has expired, and OAUTHBEARER with unsigned tokens (Kafka's own default, for
/// tests) whose sessions end soon.
fn more_properties(port: u16) -> Vec<String> {
    let at = |name: &str, above: u16| format!("{name}://127.0.0.1:{}", port + above);
    let open = [
        at("PLAINTEXT", 0),
        at("SASL_PLAINTEXT", 2),
        at("SSL", 3),
        at("SASL_SSL", 4),
        at("MTLS", 5),
        at("EXPIRED", 6),
    ]
    .join(",");
    let expired = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/expired.pem");
    vec![
        format!("listeners={open},{}", at("CONTROLLER", 1)),
        format!("advertised.listeners={open}"),
        "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL,MTLS:SSL,EXPIRED:SSL".to_owned(),
        format!("listener.name.expired.ssl.keystore.location={expired}"),
        "listener.name.sasl_ssl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER".to_owned(),
        "listener.name.sasl_ssl.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"broker\";".to_owned(),
        "listener.name.sasl_ssl.oauthbearer.connections.max.reauth.ms=2000".to_owned(),
    ]
}

/// A listener with TLS.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Secured {
    Ssl,
    SaslSsl,
    /// It wants a client certificate.
    Mutual,
    /// Its certificate has expired.
    Expired,
}

/// A broker with all of the secure script's listeners and one more, killed with all its processes when dropped.
///
/// It keeps its data over [`kill`](Self::kill) and [`restart`](Self::restart).
pub(crate) struct Broker {
    tools: PathBuf,
    port: u16,
    /// Properties beside those of the script.
    properties: Vec<String>,
    data: PathBuf,
    script: Child,
    /// The process id of the broker itself.
    pid: String,
}

impl Broker {
    /// Starts one with empty data; its listeners are on `port` (plain) to `port + 6`.
    pub(crate) async fn start(tools: &Path, port: u16) -> Self {
        Self::start_with(tools, port, &[]).await
    }

    /// The same with more properties, each as `key=value`.
    pub(crate) async fn start_with(tools: &Path, port: u16, properties: &[&str]) -> Self {
        let properties: Vec<_> = properties.iter().map(ToString::to_string).collect();
        let data = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("real-kafka-{port}"));
        if data.exists() {
            fs::remove_dir_all(&data).expect("an earlier run's data is removed");
        }
        fs::create_dir_all(&data).expect("a folder for the data");
        let (script, pid) = serve(tools, port, &properties, &data).await;
        Self {
            tools: tools.to_owned(),
            port,
            properties,
            data,
            script,
            pid,
        }
    }

    /// Where clients without SASL connect.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where clients with SASL and without TLS connect.
    pub(crate) fn sasl_address(&self) -> String {
        format!("127.0.0.1:{}", self.port + 2)
    }

    /// Where clients with TLS connect.
    pub(crate) fn tls_address(&self, listener: Secured) -> String {
        let above = match listener {
            Secured::Ssl => 3,
            Secured::SaslSsl => 4,
            Secured::Mutual => 5,
            Secured::Expired => 6,
        };
        format!("127.0.0.1:{}", self.port + above)
    }

    /// A certificate that the secure script has made, see there.
    pub(crate) fn certificate(&self, name: &str) -> String {
        cache().join("tls").join(name).display().to_string()
    }

    /// The process id of the broker itself.
    pub(crate) fn pid(&self) -> &str {
        &self.pid
    }

    /// Whether it runs (a stopped one does).
    pub(crate) fn is_running(&mut self) -> bool {
        self.script
            .try_wait()
            .expect("it can be asked for")
            .is_none()
    }

    pub(crate) fn signal(&self, signal: &str) {
        assert!(process::signal(signal, &self.pid), "kill {signal}");
    }

    /// Stops the broker's process, which goes on when the guard is dropped.
    ///
    /// Comes back when it stands still: on a busy machine its last threads run a moment longer than the signal takes.
    pub(crate) async fn pause(&self) -> Paused {
        self.signal("-STOP");
        let paused = Paused {
            pid: self.pid.clone(),
        };
        eventually("the broker stands still", ENDS_WITHIN, async || {
            self.stands_still().then_some(())
        })
        .await;
        paused
    }

    /// Whether each of its threads is stopped (`proc_pid_stat(5)`: the state follows the name in brackets).
    fn stands_still(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).expect("its threads");
        threads.flatten().all(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
            state == Some(Some('T'))
        })
    }

    /// `kill -9`: nothing is flushed, nobody is told.
    pub(crate) async fn kill(&mut self) {
        self.signal("-KILL");
        eventually("the broker's script ends", ENDS_WITHIN, async || {
            (!self.is_running()).then_some(())
        })
        .await;
    }

    /// Starts it again on the data that it had.
    pub(crate) async fn restart(&mut self) {
        assert!(!self.is_running(), "only a killed broker is started again");
        (self.script, self.pid) = serve(&self.tools, self.port, &self.properties, &self.data).await;
    }

    /// Runs one of Kafka's own tools and gives back what it printed.
    pub(crate) async fn tool(&self, arguments: &[&str]) -> String {
        tool(&self.tools, arguments).await
    }

    /// Runs a Java program of one source file on Kafka's own client. It may end as it likes: some of them die on purpose.
    pub(crate) async fn java(&self, source: &Path, arguments: &[&str]) {
        let installed = output(&self.tools.join("install.sh"), &[]).await;
        let folder = installed.lines().last().expect("it prints a folder");
        let classes = format!("{folder}/libs/*");
        let source = source.display().to_string();
        let flags = ["-XX:TieredStopAtLevel=1", "-cp", &classes, &source];
        let all: Vec<_> = flags.iter().chain(arguments).copied().collect();
        output(Path::new("java"), &all).await;
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let group = format!("-{}", self.script.id());
        // The group is gone already when the broker was killed.
        if !process::signal("-KILL", &group) && self.is_running() {
            eprintln!("the broker's process group {group} could not be killed");
        }
        if let Err(error) = self.script.wait() {
            eprintln!("the broker's script could not be waited for: {error}");
        }
    }
}

/// A broker that is stopped until this is dropped.
#[must_use = "the broker goes on when it is dropped"]
pub(crate) struct Paused {
    pid: String,
}

impl Drop for Paused {
    fn drop(&mut self) {
        if !process::signal("-CONT", &self.pid) {
            eprintln!("the broker {} could not be continued", self.pid);
        }
    }
}

async fn serve(tools: &Path, port: u16, properties: &[String], data: &Path) -> (Child, String) {
    let log = data.join("serve.log");
    let errors = File::options().create(true).append(true).open(&log);
    let mut command = process::mortal(tools.join("serve-secure.sh"));
    command
        .arg(port.to_string())
        .args(more_properties(port))
        .args(properties)
        .env("KAFKA_DATA", data)
        .stdout(Stdio::piped())
        .stderr(errors.expect("a file for its log"))
        .process_group(0);
    let mut script = process::spawn(command);
    let lines = Lines::new();
    lines.gather(script.stdout.take().expect("its output is piped"));
    let ready = eventually("the broker is ready", READY_WITHIN, async || {
        let ended = script.try_wait().expect("it can be asked for");
        assert!(
            ended.is_none(),
            "the broker ended ({ended:?}): {}",
            fs::read_to_string(&log).unwrap_or_default()
        );
        lines.find(&["ready"])
    })
    .await;
    let mut words = ready.split_whitespace().skip_while(|word| *word != "pid");
    let pid = words.nth(1).expect("the line names the process");
    (script, pid.to_owned())
}

/// Runs one of Kafka's own tools and gives back what it printed.
pub(crate) async fn tool(tools: &Path, arguments: &[&str]) -> String {
    output(&tools.join("tool.sh"), arguments).await
}

async fn output(program: &Path, arguments: &[&str]) -> String {
    let output = tokio::process::Command::new(program)
        .args(arguments)
        .kill_on_drop(true)
        .output();
    let output = timeout(TOOL_WITHIN, output)
        .await
        .expect("the tool ends")
        .expect("the tool starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text} {errors}");
    text
}
