//! A generation that follows another.

use kafka_llm_processor::drift::{DriftConfig, Event, Line};

use crate::stream::{Kinship, Model, Stream, alarms, line};

const KINSHIP: Kinship = Kinship { burst: 10.0 };

/// What the change from one model to another brings to light, when the second does what `then` says.
fn changed(seed: u64, before: u32, then: &Model) -> Vec<Event> {
    let config = DriftConfig::default();
    let mut stream = Stream::new(seed, KINSHIP);
    let mut line = line(&config);
    for _ in 0..before {
        line.note(&stream.following(&Model::default()));
    }
    stream.set_model("m2");
    let mut events = Vec::new();
    for _ in 0..1_000 {
        events.extend(line.note(&stream.following(then)));
    }
    events
}

#[test]
fn a_new_generation_is_an_event_that_tells_what_differs() {
    let shorter = Model {
        length: 0.5,
        ..Model::default()
    };
    let events = changed(1, 4_000, &shorter);
    let [
        Event::Began { generation, before },
        Event::Compared {
            from,
            to,
            documents,
            findings,
        },
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!((generation.model.as_str(), to.model.as_str()), ("m2", "m2"));
    assert!(
        before
            .as_ref()
            .is_some_and(|(old, complete)| old == from && *complete)
    );
    // The windows that an alarm takes, and what the one was failed in.
    assert!((500..=510).contains(documents), "{documents}");
    let signals: Vec<_> = findings.iter().map(|it| it.signal.as_str()).collect();
    assert_eq!(signals, ["answer_characters", "completion_tokens"]);
    assert!(findings[0].detail.starts_with("median "), "{findings:?}");
}

#[test]
fn a_new_generation_that_answers_as_before_differs_in_nothing() {
    for seed in 0..10 {
        let events = changed(seed, 4_000, &Model::default());
        let [Event::Began { .. }, Event::Compared { findings, .. }] = &events[..] else {
            panic!("{events:?}");
        };
        assert!(findings.is_empty(), "{findings:?}");
    }
}

#[test]
fn what_had_no_complete_reference_is_not_compared_with() {
    let events = changed(1, 3_900, &Model::default());
    let [
        Event::Began {
            before: Some((_, false)),
            ..
        },
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
}

/// Two servers of different versions behind one topic: each has its own reference, and neither is a change of the other.
#[test]
fn generations_that_take_turns_are_kept_apart() {
    let config = DriftConfig::default();
    let mut stream = Stream::new(5, KINSHIP);
    let mut line = line(&config);
    let longer = Model {
        length: 2.0,
        ..Model::default()
    };
    let mut events = Vec::new();
    for number in 0..20_000 {
        let is_second = number % 3 == 0;
        stream.set_model(if is_second { "m2" } else { "m1" });
        let model = if is_second { longer } else { Model::default() };
        events.extend(line.note(&stream.following(&model)));
    }
    let count = |wanted: fn(&Event) -> bool| events.iter().filter(|event| wanted(event)).count();
    assert_eq!(count(|event| matches!(event, Event::Began { .. })), 2);
    assert_eq!(count(|event| matches!(event, Event::Watching { .. })), 2);
    assert_eq!(alarms(&events), Vec::<String>::new());
}

/// What each of so many servers, which answer in turns, brings to light.
fn in_turns(line: &mut Line, stream: &mut Stream, servers: u32, documents: u32) -> Vec<Event> {
    let mut events = Vec::new();
    for number in 0..documents {
        stream.set_model(&format!("m{}", number % servers));
        events.extend(line.note(&stream.following(&Model::default())));
    }
    events
}

/// Those that began, those whose reference is complete, and those that are left out.
fn told(events: &[Event]) -> [usize; 3] {
    let count = |wanted: fn(&Event) -> bool| events.iter().filter(|event| wanted(event)).count();
    [
        count(|event| matches!(event, Event::Began { .. })),
        count(|event| matches!(event, Event::Watching { .. })),
        count(|event| matches!(event, Event::LeftOut { .. })),
    ]
}

#[test]
fn five_generations_in_turns_have_a_reference_each() {
    let mut stream = Stream::new(6, KINSHIP);
    let mut line = line(&DriftConfig::default());
    let events = in_turns(&mut line, &mut stream, 5, 40_000);
    assert_eq!(told(&events), [5, 5, 0]);
    assert_eq!(alarms(&events), Vec::<String>::new());
}

/// One more, in turns, must not take the place of one that has a reference, or collects it: it has none itself until another is silent.
#[test]
fn of_more_than_can_be_watched_the_first_are_and_the_others_are_told_of_once() {
    let mut stream = Stream::new(7, KINSHIP);
    let mut line = line(&DriftConfig::default());
    let events = in_turns(&mut line, &mut stream, 10, 60_000);
    assert_eq!(told(&events), [8, 8, 1]);
    assert_eq!(alarms(&events), Vec::<String>::new());
    let Some(Event::LeftOut { generation, .. }) =
        events.iter().find(|it| matches!(it, Event::LeftOut { .. }))
    else {
        panic!("{events:?}");
    };
    assert_eq!(generation.model, "m8");

    // What is given up behind its answers is none of the others'.
    let failing = Model {
        failures: 1.0,
        ..Model::default()
    };
    let documents = |line: &Line| line.current().map(|(_, documents)| documents);
    let before = documents(&line);
    assert!(line.note(&stream.following(&failing)).is_empty());
    assert_eq!(documents(&line), before);

    // Three still answer; the others are silent in the end.
    let events = in_turns(&mut line, &mut stream, 3, 3_900);
    assert_eq!(told(&events), [0, 0, 0]);
    stream.set_model("m9");
    let mut events = Vec::new();
    for _ in 0..5_000 {
        events.extend(line.note(&stream.following(&Model::default())));
    }
    assert_eq!(told(&events)[0], 1, "{events:?}");
}

/// A server whose answers never say the same of it costs neither memory nor a line for each.
#[test]
fn a_generation_with_each_answer_is_bounded() {
    let config = DriftConfig::default();
    let mut stream = Stream::new(8, KINSHIP);
    let mut line = line(&config);
    let documents = 5 * config.reference_documents;
    let events = in_turns(&mut line, &mut stream, u32::MAX, documents);
    let [began, watching, left_out] = told(&events);
    assert_eq!(watching, 0);
    assert!((40..=48).contains(&began), "{began}");
    assert!((1..=began).contains(&left_out), "{left_out}");
}

/// A disturbance shorter than four windows touches fewer than the five that an alarm takes.
#[test]
fn a_short_disturbance_is_no_drift_and_a_long_one_passes() {
    let config = DriftConfig::default();
    let noted = |disturbed: u32| {
        let mut stream = Stream::new(9, KINSHIP);
        let mut line = line(&config);
        let mut events = Vec::new();
        let broken = Model {
            failures: 0.9,
            refusals: 0.5,
            ..Model::default()
        };
        for (documents, model) in [
            (config.reference_documents + 250, Model::default()),
            (disturbed, broken),
            (5_000, Model::default()),
        ] {
            for _ in 0..documents {
                events.extend(line.note(&stream.following(&model)));
            }
        }
        let back = events
            .iter()
            .filter(|event| matches!(event, Event::Back(_)));
        (alarms(&events).len(), back.count())
    };
    assert_eq!(noted(300), (0, 0));
    let (shifted, back) = noted(1_000);
    assert!(shifted > 0 && shifted == back, "{shifted} and {back}");
}
