//! Charts as SVG 1.1, for a page that works without anything else.

use std::fmt::Write;

use crate::document::{Axis, Bar, Chart, Line, Spread};
use crate::show::show;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 260.0;
/// Of charts of lines, where only numbers stand on the left.
const LEFT_OF_LINES: f64 = 80.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 46.0;
const ROW: f64 = 30.0;
const LINES_HEIGHT: f64 = 260.0;
/// Told apart by colour-blind people too (Okabe and Ito).
const COLOURS: [&str; 8] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999",
];

/// Draws a chart.
pub fn chart(chart: &Chart) -> String {
    match chart {
        Chart::Lines { title, x, y, lines } => draw_lines(title, x, y, lines),
        Chart::Bars { title, x, bars } => draw_bars(title, x, bars),
        Chart::Spread { title, x, rows } => draw_spread(title, x, rows),
    }
}

/// Text as XML has it.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A drawing that grows. Writing to a string cannot fail, so results are dropped.
struct Drawing {
    body: String,
    height: f64,
}

/// From values to places.
struct Scale {
    most: f64,
    step: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// From 0 to at least `most`, between two places.
    fn new(most: f64, from: f64, to: f64) -> Self {
        let most = if most.is_finite() && most > 0.0 {
            most
        } else {
            1.0
        };
        // Six steps or fewer, each 1, 2 or 5 times a power of ten.
        let rough = most / 6.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * power)
            .find(|step| *step >= rough)
            .unwrap_or(10.0 * power);
        Self {
            most: (most / step).ceil() * step,
            step,
            from,
            to,
        }
    }

    fn place(&self, value: f64) -> f64 {
        self.from + (self.to - self.from) * value.max(0.0) / self.most
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        (0..=12_u32)
            .map(|index| f64::from(index) * self.step)
            .take_while(|tick| *tick <= self.most * 1.000_001)
    }
}

impl Drawing {
    fn new(title: &str, height: f64) -> Self {
        let mut drawing = Self {
            body: String::new(),
            height,
        };
        drawing.text(10.0, 20.0, "start", "title", title);
        drawing
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
        let text = escape(text);
        let _ = writeln!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{text}</text>"
        );
    }

    fn stroke(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(
            self.body,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" class=\"{class}\"/>"
        );
    }

    /// A rectangle that says `what` when it is pointed at.
    fn rectangle(&mut self, x: f64, y: f64, width: f64, height: f64, colour: &str, what: &str) {
        let what = escape(what);
        let _ = writeln!(
            self.body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
             fill=\"{colour}\"><title>{what}</title></rect>"
        );
    }

    /// The horizontal axis with its grid.
    fn x_axis(&mut self, scale: &Scale, axis: &Axis) {
        let floor = self.height - BOTTOM;
        for tick in scale.ticks() {
            let x = scale.place(tick);
            self.stroke((x, TOP), (x, floor), "grid");
            self.text(x, floor + 16.0, "middle", "tick", &show(tick));
        }
        let middle = (scale.from + scale.to) / 2.0;
        self.text(middle, floor + 36.0, "middle", "axis", &label(axis));
    }

    fn finish(self) -> String {
        let height = self.height;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             role=\"img\">\n{}</svg>\n",
            self.body
        )
    }
}

fn label(axis: &Axis) -> String {
    if axis.unit.is_empty() {
        axis.title.clone()
    } else {
        format!("{} ({})", axis.title, axis.unit)
    }
}

fn colour(index: usize) -> &'static str {
    COLOURS
        .get(index % COLOURS.len())
        .copied()
        .unwrap_or("#999999")
}

fn greatest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, f64::max)
}

fn draw_lines(title: &str, x: &Axis, y: &Axis, lines: &[Line]) -> String {
    let mut drawing = Drawing::new(title, LINES_HEIGHT);
    let floor = LINES_HEIGHT - BOTTOM;
    let points = || lines.iter().flat_map(|line| &line.points);
    let across = Scale::new(
        greatest(points().map(|point| point.0)),
        LEFT_OF_LINES,
        WIDTH - RIGHT,
    );
    let up = Scale::new(greatest(points().map(|point| point.1)), floor, TOP);
    drawing.x_axis(&across, x);
    for tick in up.ticks() {
        let height = up.place(tick);
        drawing.stroke((LEFT_OF_LINES, height), (WIDTH - RIGHT, height), "grid");
        drawing.text(
            LEFT_OF_LINES - 6.0,
            height + 4.0,
            "end",
            "tick",
            &show(tick),
        );
    }
    drawing.text(WIDTH - RIGHT, 20.0, "end", "axis", &label(y));
    for (index, line) in lines.iter().enumerate() {
        let places: Vec<String> = line
            .points
            .iter()
            .map(|(a, b)| format!("{:.1},{:.1}", across.place(*a), up.place(*b)))
            .collect();
        let _ = writeln!(
            drawing.body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\">\
             <title>{}</title></polyline>",
            places.join(" "),
            colour(index),
            escape(&line.name)
        );
    }
    drawing.finish()
}

/// The height of a chart of so many rows, with `more` below.
fn rows_height(rows: usize, more: f64) -> f64 {
    let rows = u32::try_from(rows).unwrap_or(u32::MAX);
    TOP + ROW * f64::from(rows) + BOTTOM + more
}

fn draw_bars(title: &str, x: &Axis, bars: &[Bar]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in bars.iter().flat_map(|bar| &bar.pieces) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let legend = 20.0 * f64::from(u32::try_from(names.len().div_ceil(4)).unwrap_or(1));
    let mut drawing = Drawing::new(title, rows_height(bars.len(), 0.0));
    let sum = |bar: &Bar| bar.pieces.iter().map(|(_, value)| value).sum::<f64>();
    let scale = Scale::new(greatest(bars.iter().map(sum)), LEFT, WIDTH - RIGHT);
    drawing.x_axis(&scale, x);
    let mut top = TOP;
    for bar in bars {
        drawing.text(LEFT - 8.0, top + 19.0, "end", "name", &bar.name);
        let mut begun = 0.0;
        for (name, value) in &bar.pieces {
            let index = names.iter().position(|known| known == name).unwrap_or(0);
            let (from, to) = (scale.place(begun), scale.place(begun + value));
            let what = format!("{name}: {} {}", show(*value), x.unit);
            drawing.rectangle(from, top + 4.0, to - from, ROW - 8.0, colour(index), &what);
            begun += value;
        }
        top += ROW;
    }
    let below = drawing.height;
    for (index, name) in names.iter().enumerate() {
        let column = f64::from(u32::try_from(index % 4).unwrap_or(0));
        let row = f64::from(u32::try_from(index / 4).unwrap_or(0));
        let (x, y) = (LEFT + column * 145.0, below + row * 20.0);
        drawing.rectangle(x, y, 12.0, 12.0, colour(index), name);
        drawing.text(x + 18.0, y + 11.0, "start", "tick", name);
    }
    drawing.height += legend + 6.0;
    drawing.finish()
}

fn draw_spread(title: &str, x: &Axis, rows: &[Spread]) -> String {
    let mut drawing = Drawing::new(title, rows_height(rows.len(), 0.0));
    let most = greatest(rows.iter().map(|row| row.summary.max));
    let scale = Scale::new(most, LEFT, WIDTH - RIGHT - 50.0);
    drawing.x_axis(&scale, x);
    let mut top = TOP;
    for (index, row) in rows.iter().enumerate() {
        let s = &row.summary;
        let middle = top + ROW / 2.0;
        let at = |value| scale.place(value);
        drawing.text(LEFT - 8.0, middle + 4.0, "end", "name", &row.name);
        drawing.stroke((at(s.min), middle), (at(s.max), middle), "whisker");
        for end in [s.min, s.max] {
            drawing.stroke((at(end), middle - 5.0), (at(end), middle + 5.0), "whisker");
        }
        let what = format!("{} to {} {}, n = {}", show(s.p25), show(s.p75), x.unit, s.n);
        let width = (at(s.p75) - at(s.p25)).max(1.0);
        drawing.rectangle(
            at(s.p25),
            top + 6.0,
            width,
            ROW - 12.0,
            colour(index),
            &what,
        );
        drawing.stroke(
            (at(s.median), top + 4.0),
            (at(s.median), top + ROW - 4.0),
            "median",
        );
        drawing.text(
            at(s.max) + 8.0,
            middle + 4.0,
            "start",
            "tick",
            &show(s.median),
        );
        top += ROW;
    }
    drawing.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::tests::document;
    use crate::summary::Summary;

    #[test]
    fn a_scale_has_round_steps_and_holds_everything() {
        for most in [0.003, 0.9, 1.0, 7.0, 12.0, 99.0, 101.0, 54_321.0] {
            let scale = Scale::new(most, 0.0, 100.0);
            let ticks: Vec<f64> = scale.ticks().collect();
            assert!((3..=8).contains(&ticks.len()), "{most}: {ticks:?}");
            assert!(scale.place(most) <= 100.0 + 1e-9);
            assert!(*ticks.last().unwrap() >= most * 0.999_999);
        }
        assert!(Scale::new(f64::NAN, 0.0, 1.0).place(1.0).is_finite());
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("<a & \"b\">"), "&lt;a &amp; &quot;b&quot;&gt;");
    }

    #[test]
    fn every_kind_is_drawn_with_its_units_and_names() {
        let mut charts = document(Vec::new()).findings.charts;
        charts.push(Chart::Spread {
            title: "Starts".to_owned(),
            x: Axis::new("time", "ms"),
            rows: vec![Spread {
                name: "cold".to_owned(),
                summary: Summary::of(&[1.0, 2.0, 9.0]).unwrap(),
            }],
        });
        let drawn: Vec<String> = charts.iter().map(chart).collect();
        let said = [
            ["Growth", "lost (MB)", "alive"],
            ["Parts", "memory (MB)", "guest"],
            ["Starts", "time (ms)", "cold"],
        ];
        for (svg, parts) in drawn.iter().zip(said) {
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
            assert!(!svg.contains("NaN") && !svg.contains("inf"));
            for part in parts {
                assert!(svg.contains(part), "`{part}` is missing in\n{svg}");
            }
        }
    }

    #[test]
    fn charts_of_nothing_are_drawn() {
        let empty = [
            Chart::Lines {
                title: String::new(),
                x: Axis::new("", ""),
                y: Axis::new("", ""),
                lines: Vec::new(),
            },
            Chart::Bars {
                title: String::new(),
                x: Axis::new("", ""),
                bars: Vec::new(),
            },
            Chart::Spread {
                title: String::new(),
                x: Axis::new("", ""),
                rows: Vec::new(),
            },
        ];
        assert!(empty.iter().map(chart).all(|svg| !svg.contains("NaN")));
    }
}
