//! A turn with the server, and a job over it: the sandbox's broker in this process, documents, and the processor's own binary.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use kafka_llm_processor::records::dead_letter::DeadLetter;
use kafka_llm_processor::records::headers;
use kafka_llm_processor::records::result::{ResultRecord, ResultStatus};
use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig};
use kafka_llm_processor::types::{DeadLetterReason, Record};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::sleep;

use crate::support::processor::Processor;
use crate::support::vllm::{Api, Server, tools};
use crate::support::{eventually, metrics};

/// Where our own server listens; `REAL_VLLM_PORT` names another.
const PORT: u16 = 18_100;
/// The key of our own server.
pub(crate) const KEY: &str = "the-right-key";
/// Requests, waiting and running, beyond which our own server refuses.
pub(crate) const QUEUED_MAX: usize = 24;
/// How long our own server lets requests finish after SIGTERM, in seconds.
const SHUTDOWN_SECONDS: &str = "20";

/// Calls in flight of an ordinary job: below [`QUEUED_MAX`].
pub(crate) const CONCURRENCY: usize = 16;
/// Tokens of each answer: the model is random and never ends by itself.
pub(crate) const ANSWER_TOKENS: u64 = 96;
pub(crate) const PARTITIONS: usize = 3;

/// The promise to operators.
pub(crate) const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// The longest that anything which takes seconds may take: a debug build, and a model without a GPU, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(120);
/// How often topics are looked at.
const LOOK: Duration = Duration::from_millis(20);

const INPUT: &str = "documents";
const RESULTS: &str = "results";
const DEAD: &str = "dead";

static SERVER: Mutex<Option<Server>> = Mutex::const_new(None);

/// A test's turn with a server: one after the other, as the processor and the model share the machine.
pub(crate) struct Turn {
    server: MutexGuard<'static, Option<Server>>,
    pub(crate) api: Api,
    pub(crate) model: String,
    /// Tokens of prompt and answer together.
    pub(crate) context: u64,
    key: Option<String>,
}

impl Turn {
    /// With the server that `VLLM_TEST_URL` names (and `VLLM_TEST_KEY` opens), or with our own. `None` when the tests are skipped.
    pub(crate) async fn take() -> Option<Self> {
        let Ok(url) = std::env::var("VLLM_TEST_URL") else {
            return Self::take_own().await;
        };
        let server = SERVER.lock().await;
        let key = std::env::var("VLLM_TEST_KEY").ok();
        Some(Self::with(server, Api::new(&url, key.as_deref()), key).await)
    }

    /// With our own server, which may be stopped and set up at will.
    pub(crate) async fn take_own() -> Option<Self> {
        let tools = tools()?;
        let mut server = SERVER.lock().await;
        match &mut *server {
            Some(server) => {
                // A test that stopped it has failed before it started it again.
                if !server.is_running() {
                    server.restart().await;
                }
            }
            None => *server = Some(started(&tools, port()).await),
        }
        let api = server.as_ref().expect("it was started").api().clone();
        Some(Self::with(server, api, Some(KEY.to_owned())).await)
    }

    async fn with(
        server: MutexGuard<'static, Option<Server>>,
        api: Api,
        key: Option<String>,
    ) -> Self {
        let (model, context) = api.model().await;
        Self {
            server,
            api,
            model,
            context,
            key,
        }
    }

    /// A second server of our own, on the port behind the first one's, for as long as it is kept.
    pub(crate) async fn second(&self) -> Server {
        let tools = tools().expect("a turn with our own server");
        started(&tools, port() + 1).await
    }

    /// Our own server.
    pub(crate) fn server(&mut self) -> &mut Server {
        self.server.as_mut().expect("a turn with our own server")
    }

    /// Waits until the server works on so many requests at once.
    pub(crate) async fn running(&self, requests: usize) {
        let requests = f64::from(u32::try_from(requests).expect("a count"));
        let what = format!("{requests} requests run");
        eventually(&what, SOON, async || {
            let running = self.api.metric("vllm:num_requests_running").await;
            (running >= requests).then_some(())
        })
        .await;
    }

    /// Posts to one of the server's own switches.
    pub(crate) async fn told(&self, path: &str, body: &serde_json::Value) {
        let (status, text) = self.api.post(path, body).await.expect("it answers");
        assert_eq!(status, 200, "{path}: {text}");
    }

    /// A text of these words, again and again, whose chat has exactly so many tokens; `None` when the tokenizer steps over that number.
    pub(crate) async fn text_of(&self, words: &str, tokens: u64) -> Option<String> {
        let words = |count: u64| words.repeat(usize::try_from(count).expect("a count"));
        // Each word has a token at least, so the most words that fit are fewer than the tokens.
        let (mut fits, mut exceeds) = (0, tokens);
        while exceeds - fits > 1 {
            let middle = u64::midpoint(fits, exceeds);
            if self.api.tokens(&self.model, &words(middle)).await <= tokens {
                fits = middle;
            } else {
                exceeds = middle;
            }
        }
        let mut text = words(fits);
        loop {
            let count = self.api.tokens(&self.model, &text).await;
            if count >= tokens {
                return (count == tokens).then_some(text);
            }
            text.push('#');
        }
    }
}

/// Starts a server with the flags of our own.
async fn started(tools: &Path, port: u16) -> Server {
    let queued_max = QUEUED_MAX.to_string();
    let flags = [
        "--shutdown-timeout",
        SHUTDOWN_SECONDS,
        "--max-num-queued-reqs",
        &queued_max,
        // Where a schema allows white space, a random model writes nothing else.
        "--structured-outputs-config",
        r#"{"backend":"xgrammar","disable_any_whitespace":true}"#,
    ];
    let variables = [("VLLM_SERVER_DEV_MODE", "1")];
    Server::start(tools, port, Some(KEY), &flags, &variables).await
}

fn port() -> u16 {
    let named = std::env::var("REAL_VLLM_PORT").ok();
    named.map_or(PORT, |port| port.parse().expect("REAL_VLLM_PORT is a port"))
}

/// One processor's work.
pub(crate) struct Job {
    broker: Broker,
    arguments: Vec<String>,
    /// The texts of the documents, by their number.
    texts: Vec<String>,
    answer_tokens: u64,
    _keys: tempfile::TempDir,
    key_file: std::path::PathBuf,
}

impl Job {
    /// A job that asks about the text alone, so that the server's own count of the prompt's tokens is known.
    pub(crate) async fn new(turn: &Turn) -> Self {
        let broker = Broker::start(BrokerConfig::default()).await;
        let broker = broker.expect("the sandbox's broker");
        let partitions = i32::try_from(PARTITIONS).expect("a count");
        broker
            .create_topic(INPUT, partitions, &[])
            .expect("created");
        let keys = tempfile::tempdir().expect("a folder");
        let key_file = keys.path().join("key");
        let settings = [
            format!("--set=kafka.brokers={}", broker.bootstrap()),
            "--group-id=real-vllm".to_owned(),
            format!("--input-topic={INPUT}"),
            format!("--output-topic={RESULTS}"),
            format!("--set=dead_letters.topic={DEAD}"),
            format!("--set=llm.url={}", turn.api.url()),
            format!("--set=llm.model={}", turn.model),
            format!("--set=llm.max_tokens={ANSWER_TOKENS}"),
            format!("--set=llm.concurrency={CONCURRENCY}"),
            "--set=prompt.user={{ content }}".to_owned(),
            "--set=admin.listen=127.0.0.1:0".to_owned(),
            "--set=log.file=off".to_owned(),
        ];
        let mut job = Self {
            broker,
            arguments: settings.to_vec(),
            texts: Vec::new(),
            answer_tokens: ANSWER_TOKENS,
            _keys: keys,
            key_file,
        };
        if let Some(key) = &turn.key {
            job.write_key(key);
            let path = job.key_file.display().to_string();
            job.set("llm.api_key_file", &path);
        }
        job
    }

    /// Sets one more key; the last of equal keys counts.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.arguments.push(format!("--set={key}={value}"));
    }

    /// Asks for so many tokens of each answer.
    pub(crate) fn answer_tokens(&mut self, tokens: u64) {
        self.answer_tokens = tokens;
        self.set("llm.max_tokens", &tokens.to_string());
    }

    /// Writes the key that the processor reads.
    pub(crate) fn write_key(&self, key: &str) {
        std::fs::write(&self.key_file, key).expect("written");
    }

    /// Puts documents into the topic, spread over its partitions.
    pub(crate) fn write(&mut self, texts: impl IntoIterator<Item = String>) {
        for text in texts {
            let number = self.texts.len();
            let value = serde_json::json!({"id": name(number), "content": text}).to_string();
            let record = Record {
                key: Some(Bytes::from(format!("key-{}", number % 7))),
                value: Some(Bytes::from(value)),
                headers: Vec::new(),
                timestamp_ms: 1_700_000_000_000,
            };
            let partition = i32::try_from(number % PARTITIONS).expect("a partition");
            self.broker
                .append(INPUT, partition, vec![record])
                .expect("appended");
            self.texts.push(text);
        }
    }

    /// Runs the processor.
    pub(crate) fn start(&self) -> Processor {
        Processor::start(&self.arguments, &[])
    }

    /// Every result, by the number of its document.
    pub(crate) fn results(&self) -> BTreeMap<usize, Vec<ResultRecord>> {
        let mut results: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for record in self.records(RESULTS) {
            let result = ResultRecord::parse(record.value.as_ref().expect("a value"));
            let result = result.expect("a result");
            let source = headers::source(&record).expect("it names its source");
            assert_eq!(result.source.position(), source);
            let place = (source.topic_partition.partition, source.offset.value());
            let number = number(place);
            assert_eq!(result.document_id, name(number), "of the right document");
            results.entry(number).or_default().push(result);
        }
        results
    }

    /// Every dead letter, by the number of its document.
    pub(crate) fn dead_letters(&self) -> BTreeMap<usize, Vec<DeadLetter>> {
        let mut letters: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for record in self.records(DEAD) {
            let letter = DeadLetter::read(&record).expect("a dead letter");
            let place = (
                letter.source.topic_partition.partition,
                letter.source.offset.value(),
            );
            letters.entry(number(place)).or_default().push(letter);
        }
        letters
    }

    fn records(&self, topic: &str) -> Vec<Record> {
        if self.broker.partitions(topic).is_none() {
            // The processor has not created it yet.
            return Vec::new();
        }
        let records = self.broker.records_committed(topic).into_iter();
        records.map(|(_, _, record)| record).collect()
    }

    /// Waits until so many documents have an outcome.
    pub(crate) async fn outcomes(&self, documents: usize) {
        self.outcomes_within(documents, SOON).await;
    }

    /// As [`outcomes`](Self::outcomes), for work that takes longer.
    pub(crate) async fn outcomes_within(&self, documents: usize, within: Duration) {
        let what = format!("{documents} documents have an outcome");
        eventually(&what, within, async || {
            let found = self.results().len() + self.dead_letters().len();
            if found >= documents {
                return Some(());
            }
            sleep(LOOK).await;
            None
        })
        .await;
    }

    /// Ends the processor, and fails unless each document has one result, whole and of its own text.
    pub(crate) async fn assert_all_answered(&self, turn: &Turn, processor: Processor) {
        self.outcomes(self.texts.len()).await;
        processor.drain(SOON).await;
        assert_eq!(described(&self.dead_letters()), "", "nothing is given up");
        self.assert_answered(turn, 0..self.texts.len()).await;
        assert_eq!(self.results().len(), self.texts.len(), "nothing invented");
    }

    /// Fails unless each of these documents has one result, whole and of its own text.
    pub(crate) async fn assert_answered(
        &self,
        turn: &Turn,
        documents: impl IntoIterator<Item = usize>,
    ) {
        let results = self.results();
        for number in documents {
            let [result] = &results.get(&number).map_or(&[][..], Vec::as_slice) else {
                panic!("{} has {:?}", name(number), results.get(&number));
            };
            let tokens = turn.api.tokens(&turn.model, &self.texts[number]).await;
            assert_eq!(result.usage.prompt_tokens, tokens, "{result:?}");
            match result.finish_reason.as_str() {
                "stop" => {
                    assert_eq!(result.status, ResultStatus::Ok);
                    assert!(result.usage.completion_tokens <= self.answer_tokens);
                }
                "length" => {
                    assert_eq!(result.status, ResultStatus::Truncated);
                    assert_eq!(
                        result.usage.completion_tokens, self.answer_tokens,
                        "{result:?}"
                    );
                }
                other => panic!("{} ended with {other}", name(number)),
            }
        }
    }

    /// Fails unless each of these documents has one dead letter, of this reason, and no result.
    pub(crate) fn assert_given_up(
        &self,
        documents: impl IntoIterator<Item = usize>,
        reason: DeadLetterReason,
    ) {
        let (letters, results) = (self.dead_letters(), self.results());
        for number in documents {
            let [letter] = &letters.get(&number).map_or(&[][..], Vec::as_slice) else {
                panic!("{} has {:?}", name(number), letters.get(&number));
            };
            assert_eq!(letter.reason, reason, "{letter:?}");
            assert!(!results.contains_key(&number), "{letter:?} and a result");
        }
    }
}

/// The name of a document.
fn name(number: usize) -> String {
    format!("document-{number}")
}

/// The number of the document at a place.
fn number((partition, offset): (i32, i64)) -> usize {
    let partition = usize::try_from(partition).expect("a partition");
    usize::try_from(offset).expect("an offset") * PARTITIONS + partition
}

/// Dead letters, a line each.
pub(crate) fn described(letters: &BTreeMap<usize, Vec<DeadLetter>>) -> String {
    let mut lines = String::new();
    for (number, letter) in letters
        .iter()
        .flat_map(|(number, letters)| letters.iter().map(move |letter| (number, letter)))
    {
        writeln!(
            lines,
            "{}: {} after {} attempts: {}",
            name(*number),
            letter.reason,
            letter.attempts,
            letter.detail
        )
        .expect("text");
    }
    lines
}

/// Documents of several lengths: from a few words to some hundred tokens, each with its number in front.
pub(crate) fn texts(count: usize) -> impl Iterator<Item = String> {
    let sentence = "Revenue rose 12 % to 4.3 billion in the third quarter, and margins held. ";
    (0..count).map(move |number| {
        let length = 20 + number * 37 % 900;
        let body: String = sentence.chars().cycle().take(length).collect();
        format!("Report {number}. {body}")
    })
}

/// The processor's count of calls or retries with this label; 0 when there is none.
pub(crate) async fn counted(processor: &Processor, sample: &str) -> u64 {
    let line = processor.line(&["admin server listens"], SOON).await;
    metrics::sample(&metrics::admin_address(&line), sample)
}
