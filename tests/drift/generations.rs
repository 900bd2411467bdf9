//! A generation that follows another.

use kafka_llm_processor::drift::{DriftConfig, Event};

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
