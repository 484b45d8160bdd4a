//! The plot: what each step takes against all keys and against the stale ones.

use std::fmt::Write as _;

use crate::measure::Outcome;
use crate::report::name;

const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 300.0;
const MARGIN: f64 = 60.0;
const STEPS: [(&str, &str); 4] =
    [("plan", "#4c72b0"), ("stream and project", "#dd8452"), ("dispatch of D15", "#55a868"), ("deletion", "#c44e52")];

/// A number of a run.
type Of = fn(&Outcome) -> u64;

/// The runs whose other number is that of most runs, as points of (number, seconds) for each step.
fn points(outcomes: &[&Outcome], by: Of, other: Of, step: &str) -> Vec<(f64, f64)> {
    let mut counts = std::collections::BTreeMap::<u64, usize>::new();
    for outcome in outcomes {
        *counts.entry(other(outcome)).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|(value, _)| value);
    let chosen = outcomes.iter().filter(|outcome| Some(other(outcome)) == most);
    let mut points: Vec<_> = chosen.map(|outcome| (by(outcome) as f64, outcome.seconds(step))).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

/// A row of two panels for each database.
pub(crate) fn draw(outcomes: &[Outcome]) -> String {
    let mut kinds: Vec<_> = outcomes.iter().map(|outcome| outcome.kind).collect();
    kinds.dedup();
    let (width, height) = (2.0 * WIDTH, HEIGHT * kinds.len() as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let (keys, stale): (Of, Of) = (|one| one.size.keys, |one| one.size.stale);
    for (row, kind) in kinds.into_iter().enumerate() {
        let of: Vec<_> = outcomes.iter().filter(|outcome| outcome.kind == kind).collect();
        for (column, (what, by, other)) in
            [("keys, as many stale", keys, stale), ("stale keys, as many keys", stale, keys)].into_iter().enumerate()
        {
            let at = (column as f64 * WIDTH, row as f64 * HEIGHT);
            let lines: Vec<_> = STEPS.iter().map(|(step, _)| points(&of, by, other, step)).collect();
            panel(&mut svg, at, &format!("{}: seconds by {what}", name(kind)), &lines);
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, (left, top): (f64, f64), title: &str, lines: &[Vec<(f64, f64)>]) {
    let all = || lines.iter().flatten();
    let most_x = all().map(|point| point.0).fold(1.0, f64::max);
    let most_y = all().map(|point| point.1).fold(0.1, f64::max);
    let x = |value: f64| left + MARGIN + (WIDTH - 1.5 * MARGIN) * value / most_x;
    let y = |value: f64| top + HEIGHT - MARGIN + (2.0 * MARGIN - HEIGHT) * value / most_y;
    let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" font-size=\"13\">{title}</text>", left + MARGIN, top + 20.0);
    for share in [0.0, 0.5, 1.0] {
        let (at_x, at_y) = (x(most_x * share), y(most_y * share));
        let _ = writeln!(
            svg,
            "<line x1=\"{}\" x2=\"{}\" y1=\"{at_y:.1}\" y2=\"{at_y:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{:.1}</text>\
             <text x=\"{at_x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.0}</text>",
            x(0.0),
            x(most_x),
            x(0.0) - 6.0,
            at_y + 4.0,
            most_y * share,
            y(0.0) + 16.0,
            most_x * share
        );
    }
    for ((points, (step, colour)), row) in lines.iter().zip(STEPS).zip(0_u8..) {
        let path: Vec<_> = points.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for point in points {
            let _ =
                writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", x(point.0), y(point.1));
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{step}</text>",
            x(0.0) + 8.0,
            top + 40.0 + 14.0 * f64::from(row)
        );
    }
}
