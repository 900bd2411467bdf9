use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::*;
use crate::llm::{PromptConfig, Usage};

/// How long the server takes for a call, on the paused clock.
const CALL_TIME: Duration = Duration::from_secs(1);

/// A server in memory, with a tokenizer of its own: runs of up to five letters, and every other character that is no space.
struct Server {
    context: u64,
    tells: Tells,
    tokenizes: bool,
    width: usize,
    /// What the tokenizer counts is multiplied by this, in percent, where prompts are refused and not where they are counted.
    refuses_at: u64,
    /// What the model writes to a prompt.
    writes: fn(&str, Step) -> String,
    /// Whether the server keeps answers to their bound and tells usage.
    keeps_bounds: bool,
    fails: Option<Step>,
    running: AtomicUsize,
    most_running: AtomicUsize,
    counted: AtomicUsize,
    refused: AtomicUsize,
    answered: Mutex<Vec<Call>>,
}

/// When a server says how large its context is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tells {
    Always,
    /// Only when it is asked once more.
    Asked,
    Never,
}

#[derive(Debug, Clone)]
struct Call {
    step: Step,
    prompt: String,
    prompt_tokens: u64,
    answer_tokens_max: u32,
    answer_tokens: u64,
}

/// Counts a call down when it ends or is dropped.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn token_count(text: &str) -> u64 {
    let mut tokens = 0;
    let mut letters = 0;
    for character in text.chars() {
        if character.is_alphabetic() {
            if letters % 5 == 0 {
                tokens += 1;
            }
            letters += 1;
        } else {
            letters = 0;
            tokens += u64::from(character != ' ');
        }
    }
    tokens
}

/// The beginning of a text, as long as the tokens allow.
fn bounded(text: &str, tokens: u64) -> String {
    let mut kept = text.to_owned();
    while token_count(&kept) > tokens {
        let end = kept.len() * 9 / 10;
        let end = (0..=end)
            .rev()
            .find(|end| kept.is_char_boundary(*end))
            .unwrap();
        kept.truncate(end);
    }
    kept
}

fn count_messages(messages: &[Message]) -> u64 {
    messages
        .iter()
        .map(|message| 4 + token_count(&message.content))
        .sum()
}

fn facts(_prompt: &str, step: Step) -> String {
    match step {
        Step::Answer => "Revenue rose to 12.5 million.".to_owned(),
        Step::Map { part, .. } => {
            format!(
                "Part {part}: {}",
                "revenue rose to 12.5 million. ".repeat(20)
            )
        }
        Step::Reduce { level, part, .. } => {
            format!(
                "Level {level}, {part}: {}",
                "revenue rose to 12.5 million. ".repeat(30)
            )
        }
    }
}

impl Server {
    fn new(context: u64) -> Self {
        Self {
            context,
            tells: Tells::Always,
            tokenizes: true,
            width: 8,
            refuses_at: 100,
            writes: facts,
            keeps_bounds: true,
            fails: None,
            running: AtomicUsize::new(0),
            most_running: AtomicUsize::new(0),
            counted: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            answered: Mutex::default(),
        }
    }

    fn calls(&self) -> Vec<Call> {
        self.answered.lock().unwrap().clone()
    }

    fn calls_of(&self, wanted: fn(Step) -> bool) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| wanted(call.step));
        calls
    }

    /// What the answered map calls have read, in the order of their parts. Calls of one part end in the order of its halves.
    fn read_by_map(&self) -> String {
        let mut calls = self.calls_of(|step| matches!(step, Step::Map { .. }));
        calls.sort_by_key(|call| match call.step {
            Step::Map { part, .. } => part,
            _ => 0,
        });
        calls
            .iter()
            .map(|call| call.prompt.split_once("\u{1}").unwrap().1)
            .collect()
    }

    fn last_prompt(&self) -> String {
        self.calls().last().unwrap().prompt.clone()
    }
}

#[async_trait]
impl Ask for Server {
    async fn ask(
        &self,
        messages: Vec<Message>,
        answer_tokens: u32,
        step: Step,
    ) -> Result<Completion, AskError> {
        let running = self.running.fetch_add(1, Ordering::Relaxed) + 1;
        let _running = Running(&self.running);
        self.most_running.fetch_max(running, Ordering::Relaxed);
        sleep(CALL_TIME).await;
        if self.fails == Some(step) {
            return Err(AskError::Failed(give_up(
                DeadLetterReason::RequestRejected,
                "it is refused".to_owned(),
            )));
        }
        let prompt_tokens = count_messages(&messages);
        if prompt_tokens * self.refuses_at / 100 >= self.context {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(AskError::TooLong(GiveUp {
                reason: DeadLetterReason::ContextLengthExceeded,
                detail: format!("{prompt_tokens} tokens are too many"),
                attempts: 1,
                http_status: Some(400),
                request_id: Some("r".to_owned()),
                answer: None,
            }));
        }
        let prompt = messages.last().unwrap().content.clone();
        let written = (self.writes)(&prompt, step);
        let text = if self.keeps_bounds {
            bounded(&written, u64::from(answer_tokens))
        } else {
            written.clone()
        };
        let completion_tokens = if self.keeps_bounds {
            token_count(&text)
        } else {
            0
        };
        self.answered.lock().unwrap().push(Call {
            step,
            prompt,
            prompt_tokens,
            answer_tokens_max: answer_tokens,
            answer_tokens: completion_tokens,
        });
        Ok(Completion {
            data: None,
            long: None,
            cached: false,
            finish_reason: if text == written { "stop" } else { "length" }.to_owned(),
            text,
            model: "m".to_owned(),
            system_fingerprint: None,
            endpoint: String::new(),
            usage: Usage {
                prompt_tokens,
                completion_tokens,
                total_tokens: prompt_tokens + completion_tokens,
                calls: 1,
            },
            attempts: 1,
            request_id: "r".to_owned(),
            llm_time: CALL_TIME,
        })
    }

    async fn count(&self, messages: &[Message]) -> Option<u64> {
        self.counted.fetch_add(1, Ordering::Relaxed);
        self.tokenizes.then(|| count_messages(messages))
    }

    async fn context(&self, surely: bool) -> Option<u64> {
        let tells = self.tells == Tells::Always || (surely && self.tells == Tells::Asked);
        tells.then_some(self.context)
    }

    fn width(&self) -> usize {
        self.width
    }
}

/// A filing of about `characters` characters: items, paragraphs, tables.
fn filing(characters: usize) -> String {
    let mut text = String::with_capacity(characters + 400);
    let mut number = 0;
    while text.len() < characters {
        number += 1;
        if number % 60 == 1 {
            text += &format!("\nItem {number}. Management's Discussion\n\n");
        }
        if number % 9 == 0 {
            for row in 0..6 {
                text += &format!("Segment {row}   $ {number},{row}12   (3.{row} %)\n");
            }
            text += "\n";
        }
        text += &format!(
            "Net sales of unit {number} rose to $ {number}.5 million in fiscal 2024. The increase was driven by volume, pricing and the \
             acquisition of Example Inc. in the second quarter; freight and energy costs were lower than in the prior year.\n\n"
        );
    }
    text
}

/// Instructions of usual length; the content stands behind a character that no document has.
fn prompt() -> Prompt {
    let instructions =
        "Read the text below and note every figure with its unit and period. ".repeat(6);
    Prompt::new(&PromptConfig {
        user: Some(format!("{instructions}{{{{ company }}}}\u{1}{{{{ content }}}}")),
        map: Some(format!(
            "{instructions}{{{{ part }}}} of {{{{ parts }}}}, {{{{ words }}}} words\u{1}{{{{ content }}}}"
        )),
        reduce: Some(format!("{instructions}\u{1}{{{{ content }}}}")),
        ..PromptConfig::default()
    }, None)
    .unwrap()
}

async fn answered(
    server: &Server,
    content: &str,
    config: &LongDocumentsConfig,
) -> Result<LongAnswer, CompleteError> {
    let estimate = TokenEstimate::default();
    answered_with(server, &prompt(), content, config, &estimate).await
}

async fn answered_with(
    server: &Server,
    prompt: &Prompt,
    content: &str,
    config: &LongDocumentsConfig,
    estimate: &TokenEstimate,
) -> Result<LongAnswer, CompleteError> {
    let scope = prompt.scope(&json!({"company": "Example Inc."}));
    let document = Document {
        prompt,
        scope: &scope,
        content,
    };
    answer(server, &document, 512, estimate, config).await
}

fn with_policy(policy: LongPolicy) -> LongDocumentsConfig {
    LongDocumentsConfig {
        policy,
        ..LongDocumentsConfig::default()
    }
}

fn detail(error: CompleteError, reason: DeadLetterReason) -> String {
    let CompleteError::DeadLetter(give_up) = error else {
        panic!("{error}");
    };
    assert_eq!(give_up.reason, reason, "{}", give_up.detail);
    give_up.detail
}

/// What holds for every document that was read in parts: each character once and in order, every prompt with room for its answer, one
/// answer, and a summary and usage that add up.
fn check_map_reduce(server: &Server, content: &str, answer: &LongAnswer) -> (usize, u32) {
    assert!(server.read_by_map() == content, "the parts are the text");
    let calls = server.calls();
    let answers = server.calls_of(|step| step == Step::Answer);
    assert_eq!(answers.len(), 1);
    let Some(LongSummary::MapReduce {
        parts,
        levels,
        calls: told,
        ..
    }) = answer.summary
    else {
        panic!("{:?}", answer.summary);
    };
    assert_eq!(usize::try_from(told).unwrap(), calls.len());
    assert_eq!(answer.completion.usage.calls, told);
    let refused = u32::try_from(server.refused.load(Ordering::Relaxed)).unwrap();
    assert_eq!(answer.completion.attempts, told + refused);
    let prompt_tokens: u64 = calls.iter().map(|call| call.prompt_tokens).sum();
    let answer_tokens: u64 = calls.iter().map(|call| call.answer_tokens).sum();
    assert_eq!(answer.completion.usage.prompt_tokens, prompt_tokens);
    assert_eq!(answer.completion.usage.completion_tokens, answer_tokens);
    assert_eq!(
        answer.completion.usage.total_tokens,
        prompt_tokens + answer_tokens
    );
    assert_eq!(server.running.load(Ordering::Relaxed), 0);
    (parts, levels)
}

fn leaves_room(server: &Server) {
    for call in server.calls() {
        assert!(
            call.prompt_tokens + u64::from(call.answer_tokens_max) <= server.context,
            "{:?}: {} and {}",
            call.step,
            call.prompt_tokens,
            call.answer_tokens_max
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_filing_of_300_pages_goes_through_a_model_of_2048_tokens() {
    let content = filing(1_500_000);
    let server = Server::new(2_048);
    let began = Instant::now();
    let answer = answered(&server, &content, &LongDocumentsConfig::default())
        .await
        .unwrap();
    let (parts, levels) = check_map_reduce(&server, &content, &answer);
    leaves_room(&server);
    assert_eq!(answer.completion.text, "Revenue rose to 12.5 million.");
    assert_eq!(server.refused.load(Ordering::Relaxed), 0);
    assert!(levels >= 2, "{levels}");
    // Parts are well filled: their text is most of what the prompts had room for.
    let text_tokens = token_count(&content);
    let room = (2_048 - 256 - 130) * u64::try_from(parts).unwrap();
    assert!(
        text_tokens * 100 / room > 60,
        "{parts} parts for {text_tokens} tokens"
    );
    // As many calls at once as the server takes, all the time but for the ends of the levels.
    assert_eq!(server.most_running.load(Ordering::Relaxed), 8);
    let waves = parts.div_ceil(8) + (parts / 4).div_ceil(8) + 8;
    assert!(began.elapsed() <= CALL_TIME * u32::try_from(waves).unwrap());
}

#[tokio::test(start_paused = true)]
async fn without_a_tokenizer_the_estimate_plans() {
    let content = filing(200_000);
    let mut server = Server::new(2_048);
    server.tokenizes = false;
    let answer = answered(&server, &content, &LongDocumentsConfig::default())
        .await
        .unwrap();
    check_map_reduce(&server, &content, &answer);
    assert_eq!(server.refused.load(Ordering::Relaxed), 0);
    // Asked once and then no more.
    assert_eq!(server.counted.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn parts_that_the_server_refuses_as_too_long_are_split_and_asked_again() {
    let content = filing(100_000);
    for tokenizes in [true, false] {
        let mut server = Server::new(2_048);
        server.tokenizes = tokenizes;
        server.refuses_at = 220;
        let answer = answered(&server, &content, &LongDocumentsConfig::default())
            .await
            .unwrap();
        check_map_reduce(&server, &content, &answer);
        assert!(server.refused.load(Ordering::Relaxed) > 0);
    }
}

/// The text after the samples is far denser than they are: parts are over the budget by the server's count before any call.
#[tokio::test(start_paused = true)]
async fn parts_that_count_too_long_are_split_before_they_are_asked() {
    let quarter = filing(20_000);
    let content = format!("{quarter}{}{quarter}{quarter}{quarter}", "§".repeat(8_000));
    let server = Server::new(2_048);
    let answer = answered(&server, &content, &LongDocumentsConfig::default())
        .await
        .unwrap();
    check_map_reduce(&server, &content, &answer);
    leaves_room(&server);
    assert_eq!(server.refused.load(Ordering::Relaxed), 0);
}

/// The model answers a merge with all that it was given, and does not keep to its bound.
#[tokio::test(start_paused = true)]
async fn notes_that_do_not_shrink_are_cut_with_a_marker() {
    let content = filing(150_000);
    let mut server = Server::new(2_048);
    server.keeps_bounds = false;
    server.writes = |prompt, step| match step {
        Step::Answer => "Done.".to_owned(),
        _ => prompt.to_owned(),
    };
    let answer = answered(&server, &content, &LongDocumentsConfig::default())
        .await
        .unwrap();
    check_map_reduce(&server, &content, &answer);
    let Some(LongSummary::MapReduce { notes_cut, .. }) = answer.summary else {
        panic!();
    };
    assert!(notes_cut > 0);
    assert!(server.last_prompt().contains("characters left out …]"));
}

/// The template of merging is so long that no two notes go into one prompt: nothing merges, and yet it ends.
#[tokio::test(start_paused = true)]
async fn notes_that_cannot_be_merged_are_cut_until_they_can() {
    let content = filing(60_000);
    let server = Server::new(2_048);
    let prompt = Prompt::new(
        &PromptConfig {
            user: Some("\u{1}{{ content }}".to_owned()),
            map: Some("\u{1}{{ content }}".to_owned()),
            reduce: Some("merge ".repeat(1_000) + "\u{1}{{ content }}"),
            ..PromptConfig::default()
        },
        None,
    )
    .unwrap();
    let config = LongDocumentsConfig {
        map_tokens: Some(512),
        ..LongDocumentsConfig::default()
    };
    let mut server = server;
    server.writes = |prompt, step| match step {
        Step::Answer => "Done.".to_owned(),
        _ => prompt.split_once('\u{1}').unwrap().1.to_owned(),
    };
    let estimate = TokenEstimate::default();
    let answer = answered_with(&server, &prompt, &content, &config, &estimate)
        .await
        .unwrap();
    check_map_reduce(&server, &content, &answer);
    let Some(LongSummary::MapReduce {
        notes_cut, levels, ..
    }) = answer.summary
    else {
        panic!();
    };
    assert!(notes_cut > 0 && levels < 40, "{notes_cut} {levels}");
}

#[tokio::test(start_paused = true)]
async fn notes_that_end_at_their_bound_are_used() {
    let content = filing(30_000);
    let mut server = Server::new(2_048);
    server.writes = |_prompt, step| match step {
        Step::Answer => "Done.".to_owned(),
        Step::Map { part, .. } => format!("part{part} ") + &"sales rose ".repeat(500),
        Step::Reduce { .. } => "sales rose ".repeat(500),
    };
    let answer = answered(&server, &content, &LongDocumentsConfig::default())
        .await
        .unwrap();
    check_map_reduce(&server, &content, &answer);
    assert_eq!(answer.completion.finish_reason, "stop");
}

#[tokio::test(start_paused = true)]
async fn notes_reach_the_answer_in_the_documents_order() {
    let content = filing(20_000);
    let mut server = Server::new(2_048);
    server.writes = |_prompt, step| match step {
        Step::Map { part, .. } => format!("<{part}>"),
        _ => "Done.".to_owned(),
    };
    let answer = answered(&server, &content, &LongDocumentsConfig::default())
        .await
        .unwrap();
    let (parts, levels) = check_map_reduce(&server, &content, &answer);
    assert_eq!(levels, 0);
    let notes: Vec<String> = (1..=parts).map(|part| format!("<{part}>")).collect();
    let prompt = server.last_prompt();
    assert!(prompt.ends_with(&notes.join("\n\n")), "{prompt}");
    assert!(
        prompt.contains("Example Inc.") && prompt.contains("Notes taken from the whole document")
    );
}

#[tokio::test(start_paused = true)]
async fn a_part_that_fails_fails_the_document_and_ends_the_rest() {
    let content = filing(300_000);
    let probe = Server::new(2_048);
    let answer = answered(&probe, &content, &LongDocumentsConfig::default())
        .await
        .unwrap();
    let (parts, _) = check_map_reduce(&probe, &content, &answer);
    let mut server = Server::new(2_048);
    server.fails = Some(Step::Map { part: 11, parts });
    let error = answered(&server, &content, &LongDocumentsConfig::default())
        .await
        .unwrap_err();
    let detail = detail(error, DeadLetterReason::RequestRejected);
    assert_eq!(detail, format!("part 11 of {parts}: it is refused"));
    assert_eq!(server.running.load(Ordering::Relaxed), 0);
    let answered = server.calls().len();
    sleep(CALL_TIME * 10).await;
    assert_eq!(server.calls().len(), answered);
    assert!(answered < 24, "{answered} of {parts}");
}

#[tokio::test(start_paused = true)]
async fn dropping_a_document_leaves_nothing_running() {
    let content = filing(300_000);
    let server = Server::new(2_048);
    let config = LongDocumentsConfig::default();
    {
        let answering = answered(&server, &content, &config);
        let cut = tokio::time::timeout(CALL_TIME * 5 / 2, answering).await;
        assert!(cut.is_err());
    }
    assert_eq!(server.most_running.load(Ordering::Relaxed), 8);
    assert_eq!(server.running.load(Ordering::Relaxed), 0);
    let answered = server.calls().len();
    sleep(CALL_TIME * 10).await;
    assert_eq!(server.calls().len(), answered);
}

#[tokio::test(start_paused = true)]
async fn a_document_that_needs_too_many_calls_is_given_up_before_the_first() {
    let content = filing(300_000);
    let config = LongDocumentsConfig {
        calls_max: 20,
        ..LongDocumentsConfig::default()
    };
    let server = Server::new(2_048);
    let error = answered(&server, &content, &config).await.unwrap_err();
    let detail = detail(error, DeadLetterReason::ContextLengthExceeded);
    assert!(detail.contains("long_documents.calls_max = 20"), "{detail}");
    assert!(server.calls().is_empty());
    // What is needed by the plan is what is allowed: with that bound the document goes through.
    let needed: u32 = detail
        .split_once("up to ")
        .and_then(|(_, rest)| rest.split(' ').next())
        .unwrap()
        .parse()
        .unwrap();
    let config = LongDocumentsConfig {
        calls_max: needed,
        ..config
    };
    let answer = answered(&server, &content, &config).await.unwrap();
    assert!(answer.completion.usage.calls <= needed);
}

#[tokio::test(start_paused = true)]
async fn a_document_that_fits_is_one_call_without_a_count() {
    let server = Server::new(2_048);
    let answer = answered(&server, "Revenue rose.", &LongDocumentsConfig::default())
        .await
        .unwrap();
    assert_eq!(answer.summary, None);
    assert_eq!(server.calls().len(), 1);
    assert_eq!(server.counted.load(Ordering::Relaxed), 0);
}

/// The longest text that fits beside the answer is read whole, one token more is not: near the limit the server counts.
#[tokio::test(start_paused = true)]
async fn near_the_limit_the_server_counts() {
    let estimate = TokenEstimate::default();
    let fixed = {
        let prompt = prompt();
        let scope = prompt.scope(&json!({"company": "Example Inc."}));
        count_messages(&prompt.render_with(Question::Answer, &scope, "").unwrap())
    };
    let room = usize::try_from(2_048 - 512 - fixed).unwrap();
    for (words, whole) in [(room, true), (room + 1, false)] {
        let server = Server::new(2_048);
        let content = "word ".repeat(words);
        let config = LongDocumentsConfig::default();
        let answer = answered_with(&server, &prompt(), &content, &config, &estimate)
            .await
            .unwrap();
        assert_eq!(answer.summary.is_none(), whole, "{words}");
        assert!(server.counted.load(Ordering::Relaxed) > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_what_was_thought_to_fit_is_treated_as_too_long() {
    let content = filing(4_000);
    let mut server = Server::new(2_048);
    server.refuses_at = 200;
    let answer = answered(&server, &content, &LongDocumentsConfig::default())
        .await
        .unwrap();
    check_map_reduce(&server, &content, &answer);
}

#[tokio::test(start_paused = true)]
async fn a_shortened_document_says_so_in_prompt_and_result() {
    let content = filing(100_000);
    for (tokenizes, refuses_at) in [(true, 100), (false, 100), (true, 150), (false, 150)] {
        for keep in [TruncateKeep::Head, TruncateKeep::Tail, TruncateKeep::Ends] {
            let mut server = Server::new(2_048);
            server.tokenizes = tokenizes;
            server.refuses_at = refuses_at;
            let config = LongDocumentsConfig {
                truncate_keep: keep,
                ..with_policy(LongPolicy::Truncate)
            };
            let answer = answered(&server, &content, &config).await.unwrap();
            let Some(LongSummary::Truncate {
                keep: kept,
                left_out_characters,
            }) = answer.summary
            else {
                panic!("{:?}", answer.summary);
            };
            assert_eq!(kept, keep);
            let prompt = server.last_prompt();
            let marker = format!("[… {left_out_characters} characters left out …]");
            let (head, tail) = prompt
                .split_once('\u{1}')
                .unwrap()
                .1
                .split_once(&marker)
                .unwrap();
            assert_eq!(head.is_empty(), keep == TruncateKeep::Tail);
            assert_eq!(tail.is_empty(), keep == TruncateKeep::Head);
            assert_eq!(server.calls().len(), 1);
            leaves_room(&server);
            if tokenizes && refuses_at == 100 {
                let used = server.calls()[0].prompt_tokens;
                assert!(used > (2_048 - 512) * 8 / 10, "{keep:?}: {used}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn with_dead_letter_only_what_was_counted_or_refused_is_given_up() {
    let content = filing(100_000);
    for (tokenizes, refused) in [(true, 0), (false, 1)] {
        let mut server = Server::new(2_048);
        server.tokenizes = tokenizes;
        let error = answered(&server, &content, &with_policy(LongPolicy::DeadLetter))
            .await
            .unwrap_err();
        let CompleteError::DeadLetter(given_up) = error else {
            panic!("{error}");
        };
        assert_eq!(given_up.reason, DeadLetterReason::ContextLengthExceeded);
        let detail = &given_up.detail;
        assert!(
            detail.contains("2048") && detail.contains("long_documents.policy"),
            "{detail}"
        );
        assert_eq!(server.refused.load(Ordering::Relaxed), refused);
        // What the server was asked and said is not lost with its refusal.
        let was_refused = refused > 0;
        assert_eq!(usize::try_from(given_up.attempts), Ok(refused));
        assert_eq!(given_up.http_status, was_refused.then_some(400));
        assert_eq!(given_up.request_id.is_some(), was_refused);
        assert_eq!(detail.contains("are too many"), was_refused);
        assert!(server.calls().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_context_is_asked_for_when_a_prompt_is_refused() {
    let content = filing(20_000);
    let config = LongDocumentsConfig::default();
    let mut server = Server::new(2_048);
    server.tells = Tells::Never;
    let error = answered(&server, &content, &config).await.unwrap_err();
    let detail = detail(error, DeadLetterReason::ContextLengthExceeded);
    assert!(detail.contains("long_documents.context_tokens"), "{detail}");
    let mut server = Server::new(2_048);
    server.tells = Tells::Asked;
    let answer = answered(&server, &content, &config).await.unwrap();
    assert!(matches!(
        answer.summary,
        Some(LongSummary::MapReduce { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn a_template_that_fills_the_context_is_named_before_any_call() {
    let estimate = TokenEstimate::default();
    let content = filing(20_000);
    let long = "read ".repeat(3_000) + "{{ content }}";
    for (key, policy) in [
        ("prompt.map", LongPolicy::MapReduce),
        ("prompt.reduce", LongPolicy::MapReduce),
        ("prompt.user", LongPolicy::MapReduce),
        ("prompt.user", LongPolicy::Truncate),
    ] {
        let template = |name: &str| (name == key).then(|| long.clone());
        let prompt = Prompt::new(
            &PromptConfig {
                user: template("prompt.user"),
                map: template("prompt.map"),
                reduce: template("prompt.reduce"),
                ..PromptConfig::default()
            },
            None,
        )
        .unwrap();
        let server = Server::new(2_048);
        let error = answered_with(&server, &prompt, &content, &with_policy(policy), &estimate)
            .await
            .unwrap_err();
        let detail = detail(error, DeadLetterReason::ContextLengthExceeded);
        assert!(detail.contains(key), "{key}: {detail}");
        assert!(server.calls().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_template_that_misses_a_field_is_a_failed_prompt() {
    let prompt = Prompt::new(
        &PromptConfig {
            map: Some("{{ ticker }} {{ content }}".to_owned()),
            ..PromptConfig::default()
        },
        None,
    )
    .unwrap();
    let server = Server::new(2_048);
    let config = LongDocumentsConfig::default();
    let estimate = TokenEstimate::default();
    let error = answered_with(&server, &prompt, &filing(20_000), &config, &estimate)
        .await
        .unwrap_err();
    let detail = detail(error, DeadLetterReason::PromptFailed);
    assert!(detail.contains("`ticker`"), "{detail}");
}

/// The work can be moved between threads, as the pipeline's tasks are.
#[test]
fn answering_is_send() {
    fn is_send<T: Send>(_value: &T) {}
    let server = Server::new(2_048);
    let config = LongDocumentsConfig::default();
    is_send(&answered(&server, "text", &config));
}
