//! Lines over time as one self-contained SVG: nothing to install, and it reads the same in a browser and on a repository's page.

use std::fmt::Write as _;

/// Of one panel, in pixels.
const WIDTH: f64 = 960.0;
/// See [`WIDTH`].
const HEIGHT: f64 = 320.0;
/// Left, top, right and bottom of the axes.
const FRAME: (f64, f64, f64, f64) = (52.0, 52.0, 730.0, 270.0);
/// Marks on an axis, at most.
const MARKS_MAX: f64 = 8.0;

/// One line.
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    /// Any CSS colour.
    pub(crate) colour: &'a str,
    pub(crate) dashed: bool,
    /// Seconds and value, in the order of time.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Lines over seconds, all on one axis that starts at 0.
pub(crate) struct Panel<'a> {
    pub(crate) title: String,
    /// Of the values.
    pub(crate) unit: &'a str,
    pub(crate) lines: Vec<Line<'a>>,
    /// Seconds, and what happened then.
    pub(crate) events: Vec<(f64, &'a str)>,
}

/// A picture of panels, one below the other. It has a background of its own, so that it can be read on a dark page too.
pub(crate) fn svg(panels: &[Panel<'_>]) -> String {
    let count = u32::try_from(panels.len()).unwrap_or(u32::MAX);
    let height = HEIGHT * f64::from(count);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (panel, row) in panels.iter().zip(0_u32..) {
        let down = HEIGHT * f64::from(row);
        write(
            &mut out,
            format_args!("<g transform=\"translate(0 {down})\">\n"),
        );
        draw(&mut out, panel);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

fn draw(out: &mut String, panel: &Panel<'_>) {
    let points = || panel.lines.iter().flat_map(|line| &line.points);
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max).max(1.0);
    let seconds = most(&mut points().map(|point| point.0));
    let step = mark_step(most(&mut points().map(|point| point.1)));
    let top_value = (most(&mut points().map(|point| point.1)) / step).ceil() * step;
    let (left, top, right, bottom) = FRAME;
    let x = |second: f64| left + (right - left) * second / seconds;
    let y = |value: f64| bottom - (bottom - top) * value / top_value;

    text(out, (left, 24.0), "start", &panel.title);
    text(out, (left, top - 6.0), "start", panel.unit);
    text(out, (right, bottom + 34.0), "end", "seconds");
    for value in marks(step, top_value) {
        rule(out, (left, y(value)), (right, y(value)), "#dddddd");
        let label = value.to_string();
        text(out, (left - 6.0, y(value) + 4.0), "end", &label);
    }
    for second in marks(mark_step(seconds), seconds) {
        rule(
            out,
            (x(second), bottom),
            (x(second), bottom + 4.0),
            "#333333",
        );
        let label = second.to_string();
        text(out, (x(second), bottom + 18.0), "middle", &label);
    }
    for (second, what) in &panel.events {
        rule(out, (x(*second), top), (x(*second), bottom), "#999999");
        text(out, (x(*second), top - 6.0), "middle", what);
    }
    for (line, row) in panel.lines.iter().zip(0_u32..) {
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
            out,
            format_args!("<polyline points=\"{}\" {stroke}/>\n", path.join(" ")),
        );
        let at = top + 10.0 + 20.0 * f64::from(row);
        let (from, to) = (right + 12.0, right + 36.0);
        write(
            out,
            format_args!("<polyline points=\"{from},{at} {to},{at}\" {stroke}/>\n"),
        );
        text(out, (to + 6.0, at + 4.0), "start", line.name);
    }
    rule(out, (left, bottom), (right, bottom), "#333333");
    rule(out, (left, top), (left, bottom), "#333333");
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
    out.write_fmt(what).unwrap_or_default();
}
