//! The cost of a placement over the number of hosts, as a picture.

use std::fmt::Write;

use crate::measure::ln;
use crate::scale::Point;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 360.0;
const RIGHT: f64 = 690.0;
const TOP: f64 = 60.0;

/// Mean and 99th percentile as measured, and what log(hosts) from the first mean on
/// would be.
pub(crate) fn cost_by_hosts(points: &[Point]) -> String {
    let (first, last) = (&points[0], points.last().unwrap());
    let top = points
        .iter()
        .map(|point| f64::from(point.churn.p99))
        .fold(0.0, f64::max)
        * 1.1;
    let x = |hosts: usize| {
        LEFT + (RIGHT - LEFT) * (ln(hosts) - ln(first.hosts)) / (ln(last.hosts) - ln(first.hosts))
    };
    let y = |nanos: f64| BOTTOM - (BOTTOM - TOP) * nanos / top;
    let mut svg = String::new();
    let mut line = |text: String| writeln!(svg, "{text}").unwrap();
    line(format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">"#
    ));
    line(format!(
        r#"<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>"#
    ));
    line(format!(
        r#"<text x="{LEFT}" y="28" font-size="16">A placement (reserve + commit) at 70 % full, by hosts</text>"#
    ));
    for tick in 0..=5 {
        let nanos = top * f64::from(tick) / 5.0;
        let at = y(nanos);
        line(format!(
            r##"<line x1="{LEFT}" x2="{RIGHT}" y1="{at:.1}" y2="{at:.1}" stroke="#ddd"/><text x="{:.1}" y="{:.1}" text-anchor="end">{:.1} µs</text>"##,
            LEFT - 6.0,
            at + 4.0,
            nanos / 1000.0
        ));
    }
    for point in points {
        line(format!(
            r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            x(point.hosts),
            BOTTOM + 18.0,
            point.hosts
        ));
    }
    line(format!(
        r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">hosts (logarithmic)</text>"#,
        f64::midpoint(LEFT, RIGHT),
        BOTTOM + 40.0
    ));
    let mut curve = |name: &str, color: &str, dash: &str, of: &dyn Fn(&Point) -> f64, row: f64| {
        let at: Vec<String> = points
            .iter()
            .map(|point| format!("{:.1},{:.1}", x(point.hosts), y(of(point))))
            .collect();
        line(format!(
            r#"<polyline points="{}" fill="none" stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"/>"#,
            at.join(" ")
        ));
        line(format!(
            r#"<text x="{:.1}" y="{:.1}" fill="{color}">{name}</text>"#,
            LEFT + 12.0,
            TOP + row * 16.0
        ));
    };
    let growth = |point: &Point| first.churn.mean * ln(point.hosts) / ln(first.hosts);
    curve(
        "99th percentile",
        "#c0392b",
        "",
        &|point| f64::from(point.churn.p99),
        0.0,
    );
    curve("mean", "#1f6fb2", "", &|point| point.churn.mean, 1.0);
    curve(
        "mean at the left, growing as log(hosts)",
        "#777",
        "6 4",
        &growth,
        2.0,
    );
    line("</svg>".into());
    svg
}
