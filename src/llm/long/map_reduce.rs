//! A document read in parts: notes of each, merged level by level until they fit one prompt, and answered from.
//!
//! 1. Every character of the document is in exactly one map call that was answered, and parts stand in the document's order throughout.
//! 2. The calls that a document needs are known before the first, and more than `calls_max` are never begun.
//! 3. Each level takes at least a quarter away from the notes: where merging does not, they are cut, with a marker and a warning.
//! 4. Dropping the work drops its calls: they are polled by it, and by no task of their own.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use super::meter::Meter;
use super::split::{head_end, split};
use super::tokens::{Scale, cost, cost_of};
use super::truncate::truncate;
use super::{
    Ask, AskError, Document, Load, LongAnswer, LongDocumentsConfig, LongSummary, ROOM_TOKENS_MIN,
    Room, Step, TruncateKeep, too_long,
};
use crate::llm::prompt::Place;
use crate::llm::{CompleteError, Completion, Message, Question, Usage};

/// What introduces the notes where the document would stand.
const NOTES_INTRODUCTION: &str = "(Notes taken from the whole document, part by part and in its order, as it is too long to be read at once.)\n\n";
/// What stands between two notes.
const NOTES_SEPARATOR: &str = "\n\n";
/// What it and a first word that is no longer the prompt's first may add, in tokens.
const SEPARATOR_TOKENS: u64 = 3;
/// Texts that a document's tokens are measured by: enough to meet its tables as well as its prose.
const SAMPLES: usize = 4;
/// What the densest of them is exceeded by, at the most that is planned for, in percent. A part beyond it is split again.
const SAMPLED_MARGIN: u64 = 3;
/// Levels of merging at most. Each takes a quarter away, so 64 of them bring a hundred million tokens down to one.
const LEVELS_MAX: u32 = 64;
/// Answers may be this much longer than asked for, in percent of it, before they are cut: by so much an estimate may be off.
const NOTE_SLACK: u64 = 150;
/// Words that a token stands for at least, in percent: what notes are asked to keep to, so that few end at their last token.
const WORDS_PERCENT: u64 = 60;

/// Notes of one part or of several that follow each other.
#[derive(Debug)]
struct Note {
    text: String,
    /// Tokens as part of a prompt, the separator aside.
    tokens: u64,
}

/// What the calls have come to.
#[derive(Debug, Default)]
struct Tally {
    usage: Usage,
    attempts: u32,
    notes_cut: u32,
}

/// Tokens that the document's text, or notes, may have in each kind of prompt.
#[derive(Debug, Clone, Copy)]
struct Budgets {
    map: u64,
    reduce: u64,
    last: u64,
}

struct Job<'a, A: ?Sized> {
    meter: &'a Meter<'a, A>,
    document: &'a Document<'a>,
    room: Room,
    note_tokens: u32,
    calls_max: u32,
    calls: AtomicU32,
    tally: Mutex<Tally>,
}

/// Answers a document that is too long for one prompt.
///
/// # Errors
/// The first call that failed for good, or why the document cannot be done.
pub(super) async fn run<A: Ask + ?Sized>(
    meter: &Meter<'_, A>,
    document: &Document<'_>,
    room: Room,
    config: &LongDocumentsConfig,
) -> Result<LongAnswer, CompleteError> {
    let job = Job::new(meter, document, room, config);
    let (scale, budgets) = job.plan().await?;
    let pieces = split(document.content, scale.units(budgets.map), cost);
    // Before they are counted, which costs the server something too.
    job.check_calls(pieces.len(), budgets)?;
    let pieces = job.pieces(pieces).await?;
    let needed = job.check_calls(pieces.len(), budgets)?;
    tracing::debug!(
        parts = pieces.len(),
        calls_max = needed,
        "a document longer than the context is read part by part"
    );
    let notes = job.take_notes(&pieces, scale).await?;
    let (completion, levels) = job.answer_from(notes, scale, budgets).await?;
    Ok(job.finish(completion, pieces.len(), levels))
}

/// What it would take at the most to answer a document that is too long for one prompt.
///
/// # Errors
/// Why the document cannot be done.
pub(super) async fn forecast<A: Ask + ?Sized>(
    meter: &Meter<'_, A>,
    document: &Document<'_>,
    room: Room,
    config: &LongDocumentsConfig,
) -> Result<Load, CompleteError> {
    let job = Job::new(meter, document, room, config);
    let (scale, budgets) = job.plan().await?;
    let parts = split(document.content, scale.units(budgets.map), cost).len();
    job.check_calls(parts, budgets)?;
    let document_tokens = scale.tokens(cost_of(document.content));
    Ok(job.load(parts, document_tokens, budgets))
}

impl<'a, A: Ask + ?Sized> Job<'a, A> {
    fn new(
        meter: &'a Meter<'a, A>,
        document: &'a Document<'a>,
        room: Room,
        config: &LongDocumentsConfig,
    ) -> Self {
        Self {
            meter,
            document,
            room,
            note_tokens: config.note_tokens(room.context, room.answer),
            calls_max: config.calls_max,
            calls: AtomicU32::new(0),
            tally: Mutex::default(),
        }
    }
}

impl<A: Ask + ?Sized> Job<'_, A> {
    fn finish(&self, mut completion: Completion, parts: usize, levels: u32) -> LongAnswer {
        let tally = std::mem::take(&mut *self.tally.lock().unwrap_or_else(PoisonError::into_inner));
        completion.usage = tally.usage;
        completion.attempts = tally.attempts;
        LongAnswer {
            completion,
            summary: Some(LongSummary::MapReduce {
                parts,
                levels,
                calls: tally.usage.calls,
                notes_cut: tally.notes_cut,
            }),
        }
    }

    /// How the document's tokens are counted, and what room each kind of prompt leaves for it.
    async fn plan(&self) -> Result<(Scale, Budgets), CompleteError> {
        let note_prompt = self.room.prompt(self.note_tokens);
        // The longest place that there can be, so that no part's number makes its prompt longer than planned.
        let widest = usize::try_from(self.calls_max).unwrap_or(usize::MAX);
        let notes = Question::Notes(self.place(widest, widest));
        let merge = Question::Merge(self.place(widest, widest));
        let overhead = self
            .meter
            .tokens_of(&self.document.render(notes, "")?)
            .await;
        let map = self.room_in("prompt.map", note_prompt, overhead)?;
        let scale = self.measure(notes, overhead, map).await?;
        let overhead = self
            .meter
            .tokens_of(&self.document.render(merge, "")?)
            .await;
        let reduce = self.room_in("prompt.reduce", note_prompt, overhead)?;
        let empty = self.document.render(Question::Answer, NOTES_INTRODUCTION)?;
        let overhead = self.meter.tokens_of(&empty).await;
        let last = self.room_in("prompt.user", self.room.prompt(self.room.answer), overhead)?;
        Ok((scale, Budgets { map, reduce, last }))
    }

    /// What a prompt of `overhead` tokens leaves of `prompt_tokens`.
    fn room_in(&self, key: &str, prompt_tokens: u64, overhead: u64) -> Result<u64, CompleteError> {
        let left = prompt_tokens.saturating_sub(overhead + SEPARATOR_TOKENS);
        if left >= ROOM_TOKENS_MIN {
            return Ok(left);
        }
        Err(too_long(format!(
            "the model's context of {} tokens leaves {left} for the document beside {key}, which takes {overhead} without it, and an \
             answer of {}",
            self.room.context,
            self.room.context - prompt_tokens.min(self.room.context)
        )))
    }

    /// Has samples of the document counted, and goes by the densest; by the estimate when the server does not count.
    async fn measure(
        &self,
        question: Question,
        overhead: u64,
        budget: u64,
    ) -> Result<Scale, CompleteError> {
        let content = self.document.content;
        let estimated = self.meter.estimated();
        let mut densest: Option<Scale> = None;
        for sample in 0..SAMPLES {
            let start = content.len() / SAMPLES * sample;
            let from = (0..=start)
                .rev()
                .find_map(|start| content.get(start..))
                .unwrap_or(content);
            let text = from
                .get(..head_end(from, false, estimated.units(budget), cost))
                .unwrap_or(from);
            let messages = self.document.render(question, text)?;
            let Some(counted) = self.meter.count(&messages).await else {
                return Ok(estimated);
            };
            let seen = Scale::measured(cost_of(text), counted.saturating_sub(overhead));
            densest = Some(densest.map_or(seen, |scale| scale.max(seen)));
        }
        Ok(densest.map_or(estimated, |scale| scale.with_margin(SAMPLED_MARGIN)))
    }

    /// The document's parts. With a server that counts, each was counted and fits.
    async fn pieces<'p>(&self, pieces: Vec<&'p str>) -> Result<Vec<&'p str>, CompleteError> {
        let parts = pieces.len();
        let counted = pieces.into_iter().map(|piece| self.fitting(piece, parts));
        let fitting = in_order(self.meter.width(), counted.collect()).await?;
        Ok(fitting.into_iter().flatten().collect())
    }

    /// A piece, or what it had to be split into to fit as the server counts.
    async fn fitting<'p>(
        &self,
        piece: &'p str,
        parts: usize,
    ) -> Result<Vec<&'p str>, CompleteError> {
        let limit = self.room.prompt(self.note_tokens);
        let question = Question::Notes(self.place(parts, parts));
        let mut open = vec![piece];
        let mut fitting = Vec::with_capacity(1);
        while let Some(piece) = open.pop() {
            let messages = self.document.render(question, piece)?;
            let counted = self.meter.count(&messages).await;
            match halves(piece) {
                Some(halves) if counted.is_some_and(|counted| counted > limit) => {
                    open.extend(halves.into_iter().rev());
                }
                _ => fitting.push(piece),
            }
        }
        Ok(fitting)
    }

    /// The most calls that `parts` can take, when that is no more than may be made.
    fn check_calls(&self, parts: usize, budgets: Budgets) -> Result<u64, CompleteError> {
        let needed = self.load(parts, 0, budgets).calls;
        if needed <= u64::from(self.calls_max) {
            return Ok(needed);
        }
        Err(too_long(format!(
            "{parts} parts need up to {needed} calls of a model with a context of {} tokens, more than long_documents.calls_max = {}",
            self.room.context, self.calls_max
        )))
    }

    /// The most that `parts` of a document of so many tokens can take when every note is as long as it may be and no call is refused.
    fn load(&self, parts: usize, document_tokens: u64, budgets: Budgets) -> Load {
        let note_tokens = u64::from(self.note_tokens);
        let note = note_tokens + SEPARATOR_TOKENS;
        let group = (budgets.reduce / note).max(2);
        let mut notes = u64::try_from(parts).unwrap_or(u64::MAX);
        let mut load = Load::default();
        // What of a prompt its content may not have is the rest of it.
        let (prompt, last) = (
            self.room.prompt(self.note_tokens),
            self.room.prompt(self.room.answer),
        );
        load.add(notes, document_tokens, prompt - budgets.map, note_tokens);
        while notes > 1 && notes.saturating_mul(note) > budgets.last {
            let content = notes.saturating_mul(note);
            notes = notes.div_ceil(group);
            load.add(notes, content, prompt - budgets.reduce, note_tokens);
        }
        let (content, answer) = (notes.saturating_mul(note), self.room.answer);
        load.add(1, content, last - budgets.last, answer.into());
        load
    }

    async fn take_notes(&self, pieces: &[&str], scale: Scale) -> Result<Vec<Note>, CompleteError> {
        let parts = pieces.len();
        let calls = (1..)
            .zip(pieces)
            .map(|(part, piece)| self.notes_of(piece, part, parts, scale))
            .collect();
        let notes = in_order(self.meter.width(), calls).await?;
        Ok(notes.into_iter().flatten().collect())
    }

    /// Notes of one part; several when the server refused it as too long and it was split.
    async fn notes_of(
        &self,
        piece: &str,
        part: usize,
        parts: usize,
        scale: Scale,
    ) -> Result<Vec<Note>, CompleteError> {
        let mut open = vec![piece];
        let mut notes = Vec::with_capacity(1);
        while let Some(piece) = open.pop() {
            let question = Question::Notes(self.place(part, parts));
            let messages = self.document.render(question, piece)?;
            match self
                .call(messages, self.note_tokens, Step::Map { part, parts })
                .await
            {
                Ok(completion) => notes.push(self.note(completion, scale)),
                Err(AskError::Failed(error)) => return Err(in_part(error, part, parts)),
                Err(AskError::TooLong(_)) => match halves(piece) {
                    Some(halves) => open.extend(halves.into_iter().rev()),
                    None => {
                        return Err(too_long(format!(
                            "part {part} of {parts}: the server refuses a single character as too long for its context, said to be {} \
                             tokens",
                            self.room.context
                        )));
                    }
                },
            }
        }
        Ok(notes)
    }

    /// Merges the notes until they fit, and answers from them. Also tells the levels that it took.
    async fn answer_from(
        &self,
        mut notes: Vec<Note>,
        scale: Scale,
        budgets: Budgets,
    ) -> Result<(Completion, u32), CompleteError> {
        let mut budget = budgets.last;
        for level in 0..=LEVELS_MAX {
            let before = total(&notes);
            if before <= budget {
                if let Some(completion) = self.last(&notes).await? {
                    return Ok((completion, level));
                }
                // Longer than thought.
                budget = before * 3 / 4;
            }
            if level == LEVELS_MAX {
                break;
            }
            notes = self.merge_level(notes, level + 1, scale, budgets).await?;
            let most = before * 3 / 4;
            let after = total(&notes);
            if after > budget && after > most {
                tracing::warn!(
                    merge_level = level + 1,
                    notes = notes.len(),
                    tokens = after,
                    tokens_before = before,
                    "merging does not make the notes of a long document shorter: they are cut"
                );
                for note in &mut notes {
                    let share =
                        u128::from(note.tokens) * u128::from(most) / u128::from(after.max(1));
                    self.cut(note, u64::try_from(share).unwrap_or(note.tokens));
                }
            }
        }
        Err(too_long(format!(
            "its notes did not come to fit the model's context of {} tokens in {LEVELS_MAX} levels of merging",
            self.room.context
        )))
    }

    /// The last call; `None` when a count or the server says that the notes do not fit it.
    async fn last(&self, notes: &[Note]) -> Result<Option<Completion>, CompleteError> {
        let content = NOTES_INTRODUCTION.to_owned() + &joined(notes);
        let messages = self.document.render(Question::Answer, &content)?;
        let limit = self.room.prompt(self.room.answer);
        if self
            .meter
            .count(&messages)
            .await
            .is_some_and(|counted| counted > limit)
        {
            return Ok(None);
        }
        match self.call(messages, self.room.answer, Step::Answer).await {
            Ok(completion) => Ok(Some(completion)),
            Err(AskError::TooLong(_)) => Ok(None),
            Err(AskError::Failed(error)) => Err(error),
        }
    }

    async fn merge_level(
        &self,
        notes: Vec<Note>,
        level: u32,
        scale: Scale,
        budgets: Budgets,
    ) -> Result<Vec<Note>, CompleteError> {
        let groups = packed(notes, budgets.reduce);
        let parts = groups.len();
        let calls = (1..)
            .zip(groups)
            .map(|(part, group)| self.merge(group, Step::Reduce { level, part, parts }, scale))
            .collect();
        let merged = in_order(self.meter.width(), calls).await?;
        Ok(merged.into_iter().flatten().collect())
    }

    /// Merges one group; a single note is left as it is. A group that the server refuses as too long is merged in halves.
    async fn merge(
        &self,
        group: Vec<Note>,
        step: Step,
        scale: Scale,
    ) -> Result<Vec<Note>, CompleteError> {
        let place = match step {
            Step::Reduce { part, parts, .. } => self.place(part, parts),
            Step::Answer | Step::Map { .. } => self.place(1, 1),
        };
        let mut open = vec![group];
        let mut merged = Vec::with_capacity(1);
        while let Some(mut group) = open.pop() {
            if group.len() < 2 {
                merged.extend(group);
                continue;
            }
            let messages = self
                .document
                .render(Question::Merge(place), &joined(&group))?;
            match self.call(messages, self.note_tokens, step).await {
                Ok(completion) => merged.push(self.note(completion, scale)),
                Err(AskError::Failed(error)) => return Err(error),
                Err(AskError::TooLong(_)) => {
                    let second = group.split_off(group.len() / 2);
                    open.extend([second, group]);
                }
            }
        }
        Ok(merged)
    }

    /// One call, counted before it is made and added up after.
    async fn call(
        &self,
        messages: Vec<Message>,
        answer_tokens: u32,
        step: Step,
    ) -> Result<Completion, AskError> {
        if self.calls.fetch_add(1, Ordering::Relaxed) >= self.calls_max {
            // Only refused calls lead here: what the plan needs was checked.
            return Err(AskError::Failed(too_long(format!(
                "the server refused so many parts as too long that long_documents.calls_max = {} is reached",
                self.calls_max
            ))));
        }
        let answered = self.meter.ask(messages, answer_tokens, step).await;
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(AskError::TooLong(refused)) = &answered {
            tally.attempts += refused.attempts;
        }
        let completion = answered?;
        let usage = completion.usage;
        tally.usage.prompt_tokens += usage.prompt_tokens;
        tally.usage.completion_tokens += usage.completion_tokens;
        tally.usage.total_tokens += usage.total_tokens;
        tally.usage.calls += usage.calls;
        tally.attempts += completion.attempts;
        Ok(completion)
    }

    /// The note that an answer is. Its tokens are what the server says that it wrote, or less: a reasoning model's are not all text.
    fn note(&self, completion: Completion, scale: Scale) -> Note {
        let text = completion.text.trim().to_owned();
        let estimated = scale.tokens(cost_of(&text));
        let tokens = match completion.usage.completion_tokens {
            0 => estimated,
            told => estimated.min(told),
        };
        let mut note = Note { text, tokens };
        let most = u64::from(self.note_tokens);
        if note.tokens > most * NOTE_SLACK / 100 {
            self.cut(&mut note, most);
        }
        note
    }

    /// Cuts a note to `tokens`, by what its own text costs.
    fn cut(&self, note: &mut Note, tokens: u64) {
        let scale = Scale::measured(cost_of(&note.text), note.tokens);
        let cut = truncate(&note.text, TruncateKeep::Head, scale.units(tokens), cost);
        if cut.left_out > 0 {
            note.tokens = scale.tokens(cost_of(&cut.text));
            note.text = cut.text;
            self.tally
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .notes_cut += 1;
        }
    }

    fn place(&self, part: usize, parts: usize) -> Place {
        Place {
            part,
            parts,
            words: (u64::from(self.note_tokens) * WORDS_PERCENT / 100).max(1),
        }
    }
}

/// Runs the calls, `width` at a time, and gives what they come to in their order. The first that fails ends the others.
async fn in_order<F, T>(width: usize, calls: Vec<F>) -> Result<Vec<T>, CompleteError>
where
    F: Future<Output = Result<T, CompleteError>>,
{
    let mut done = Vec::with_capacity(calls.len());
    let mut waiting = calls.into_iter().enumerate();
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < width
            && let Some((index, call)) = waiting.next()
        {
            running.push(numbered(index, call));
        }
        match running.next().await {
            Some((index, result)) => done.push((index, result?)),
            None => break,
        }
    }
    done.sort_unstable_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, value)| value).collect())
}

async fn numbered<F: Future>(index: usize, call: F) -> (usize, F::Output) {
    (index, call.await)
}

/// A piece in about two; `None` when it is a single character.
fn halves(piece: &str) -> Option<Vec<&str>> {
    // A little more than half, so that a boundary near the middle gives two and not three.
    let budget = cost_of(piece) * 11 / 20;
    let halves = split(piece, budget, cost);
    (halves.len() > 1).then_some(halves)
}

/// Notes in groups of at most `budget`, in order. A note that is longer has a group of its own.
fn packed(notes: Vec<Note>, budget: u64) -> Vec<Vec<Note>> {
    let mut groups: Vec<Vec<Note>> = Vec::new();
    let mut filled = 0_u64;
    for note in notes {
        let tokens = note.tokens + SEPARATOR_TOKENS;
        match groups.last_mut() {
            Some(group) if filled + tokens <= budget => {
                filled += tokens;
                group.push(note);
            }
            _ => {
                filled = tokens;
                groups.push(vec![note]);
            }
        }
    }
    groups
}

fn total(notes: &[Note]) -> u64 {
    notes
        .iter()
        .map(|note| note.tokens + SEPARATOR_TOKENS)
        .sum()
}

fn joined(notes: &[Note]) -> String {
    let texts: Vec<&str> = notes.iter().map(|note| note.text.as_str()).collect();
    texts.join(NOTES_SEPARATOR)
}

/// Tells which part was at fault.
fn in_part(error: CompleteError, part: usize, parts: usize) -> CompleteError {
    match error {
        CompleteError::DeadLetter(mut give_up) => {
            give_up.detail = format!("part {part} of {parts}: {}", give_up.detail);
            CompleteError::DeadLetter(give_up)
        }
        CompleteError::Abandoned => CompleteError::Abandoned,
    }
}
