//! Lines over time as one self-contained SVG: nothing to install, and it reads the same in a browser and on a repository's page.

use std::fmt::Write as _;

/// Of the whole picture, in pixels.
const WIDTH: f64 = 900.0;
/// See [`WIDTH`].
const HEIGHT: f64 = 360.0;
/// Left, top, right and bottom of the axes.
const FRAME: (f64, f64, f64, f64) = (70.0, 44.0, 730.0, 310.0);
/// Marks on an axis, at most.
const MARKS_MAX: f64 = 8.0;

/// One line.
pub struct Line<'a> {
    pub name: &'a str,
    /// Any CSS colour.
    pub colour: &'a str,
    pub dashed: bool,
    /// Seconds and value, in the order of time.
    pub points: Vec<(f64, f64)>,
}

/// A picture of `lines` over seconds, all on one axis that starts at 0; `events` are seconds with what happened then.
pub fn svg(title: &str, unit: &str, lines: &[Line<'_>], events: &[(f64, &str)]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max).max(1.0);
    let seconds = most(&mut points().map(|point| point.0));
    let step = mark_step(most(&mut points().map(|point| point.1)));
    let top_value = (most(&mut points().map(|point| point.1)) / step).ceil() * step;
    let (left, top, right, bottom) = FRAME;
    let x = |second: f64| left + (right - left) * second / seconds;
    let y = |value: f64| bottom - (bottom - top) * value / top_value;

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    text(&mut out, (left, 24.0), "start", title);
    text(&mut out, (left, top - 6.0), "end", unit);
    text(&mut out, (right, bottom + 34.0), "end", "seconds");
    for value in marks(step, top_value) {
        rule(&mut out, (left, y(value)), (right, y(value)), "#dddddd");
        let label = value.to_string();
        text(&mut out, (left - 6.0, y(value) + 4.0), "end", &label);
    }
    for second in marks(mark_step(seconds), seconds) {
        rule(
            &mut out,
            (x(second), bottom),
            (x(second), bottom + 4.0),
            "#333333",
        );
        let label = second.to_string();
        text(&mut out, (x(second), bottom + 18.0), "middle", &label);
    }
    for (second, what) in events {
        rule(&mut out, (x(*second), top), (x(*second), bottom), "#999999");
        text(&mut out, (x(*second) + 4.0, top + 12.0), "start", what);
    }
    for (line, row) in lines.iter().zip(0_u32..) {
        let dash = if line.dashed {
            " stroke-dasharray=\"5 4\""
        } else {
            ""
        };
        let stroke = format!(
            "fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\"{dash}",
            line.colour
        );
        let path: Vec<String> = line
            .points
            .iter()
            .map(|(second, value)| format!("{:.1},{:.1}", x(*second), y(*value)))
            .collect();
        write(
            &mut out,
            format_args!("<polyline points=\"{}\" {stroke}/>\n", path.join(" ")),
        );
        let at = top + 10.0 + 20.0 * f64::from(row);
        let (from, to) = (right + 12.0, right + 36.0);
        write(
            &mut out,
            format_args!("<polyline points=\"{from},{at} {to},{at}\" {stroke}/>\n"),
        );
        text(&mut out, (to + 6.0, at + 4.0), "start", line.name);
    }
    rule(&mut out, (left, bottom), (right, bottom), "#333333");
    rule(&mut out, (left, top), (left, bottom), "#333333");
    out.push_str("</svg>\n");
    out
}

/// 1, 2 or 5 times a power of ten, so that no more than [`MARKS_MAX`] marks reach `most`.
fn mark_step(most: f64) -> f64 {
    let power = 10.0_f64.powf((most / MARKS_MAX).log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| most / step <= MARKS_MAX)
        .unwrap_or(most)
}

fn marks(step: f64, end: f64) -> impl Iterator<Item = f64> {
    (0_u32..)
        .map(move |number| f64::from(number) * step)
        .take_while(move |mark| *mark <= end)
}

fn rule(out: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    write(
        out,
        format_args!(
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>\n",
            from.0, from.1, to.0, to.1
        ),
    );
}

fn text(out: &mut String, at: (f64, f64), anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    write(
        out,
        format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{text}</text>\n",
            at.0, at.1
        ),
    );
}

fn write(out: &mut String, what: std::fmt::Arguments<'_>) {
    // A string takes whatever is written to it.
    drop(out.write_fmt(what));
}
