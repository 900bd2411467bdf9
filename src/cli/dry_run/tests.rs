use super::*;

#[test]
fn reading_begins_where_it_is_told() {
    assert_eq!("earliest".parse(), Ok(From::Earliest));
    assert_eq!("commit".parse(), Ok(From::Commit));
    assert_eq!("17".parse(), Ok(From::Offset(Offset::new(17))));
    for wrong in ["latest", "-1", ""] {
        assert!(wrong.parse::<From>().unwrap_err().contains("`commit`"));
    }
}

#[test]
fn a_call_takes_some_time() {
    assert_eq!(seconds("0.25"), Ok(0.25));
    for wrong in ["0", "-1", "soon", "NaN"] {
        assert!(seconds(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_defaults_are_those_of_the_command_line() {
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: DryRunArgs,
    }

    let parsed = Line::try_parse_from(["dry-run"]).unwrap().args;
    assert_eq!(
        format!("{parsed:?}"),
        format!("{:?}", DryRunArgs::default())
    );
    for wrong in [
        &["--ask", "3", "--seconds-per-call", "2"][..],
        &["--ask", "3", "--offline"],
        &["--count", "0"],
    ] {
        let line = ["dry-run"].iter().chain(wrong);
        assert!(Line::try_parse_from(line).is_err(), "{wrong:?}");
    }
}
