//! The plot: calls per second of each case as a share of the echo's, and what becomes of it as the keys grow.

use std::fmt::Write as _;

use crate::report::Line;

const WIDTH: f64 = 900.0;
const PANEL: f64 = 260.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
const COLOURS: [&str; 8] = ["#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c"];
/// The goal for a hit.
const GOAL: f64 = 0.9;

/// Groups of bars, one a case; one bar a number of calls in flight, or a size.
struct Panel<'a> {
    title: &'a str,
    /// Name, and the bars by their label.
    groups: Vec<(String, Vec<(String, f64)>)>,
}

/// The plot of a run as SVG.
pub(crate) fn draw(lines: &[Line]) -> String {
    let mut cases = Panel { title: "Calls per second ÷ bare tonic echo, by calls in flight", groups: Vec::new() };
    let mut sizes = Panel { title: "A hit ÷ bare tonic echo, by number of keys, 64 in flight", groups: Vec::new() };
    for line in lines {
        let Some((_, ratios)) = line.ratios.iter().find(|(name, _)| *name == "echo") else { continue };
        let (panel, group, bar) = match line.case.strip_prefix("hit of ") {
            Some(size) => (&mut sizes, line.database.to_owned(), size.to_owned()),
            None => (&mut cases, format!("{}, {}", line.case, line.database), line.in_flight.to_string()),
        };
        match panel.groups.last_mut() {
            Some((name, bars)) if *name == group => bars.push((bar, ratios.calls)),
            _ => panel.groups.push((group, vec![(bar, ratios.calls)])),
        }
    }
    let panels: Vec<_> = [cases, sizes].into_iter().filter(|panel| !panel.groups.is_empty()).collect();
    let height = (PANEL + 2.0 * TOP) * panels.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (place, panel) in panels.iter().enumerate() {
        panel.draw(&mut svg, place as f64 * (PANEL + 2.0 * TOP) + TOP);
    }
    svg.push_str("</svg>\n");
    svg
}

impl Panel<'_> {
    fn draw(&self, svg: &mut String, top: f64) {
        let most = self.groups.iter().flat_map(|(_, bars)| bars).map(|(_, value)| *value).fold(1.0, f64::max) * 1.1;
        let y = |value: f64| top + PANEL * (1.0 - value / most);
        let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\" font-size=\"14\">{}</text>", top - 14.0, self.title);
        for tick in (0..).map(|tick| f64::from(tick) * 0.2).take_while(|tick| *tick <= most) {
            line(svg, y(tick), "#dddddd", "");
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{tick:.1}</text>",
                LEFT - 6.0,
                y(tick) + 4.0
            );
        }
        line(svg, y(GOAL), "#c44e52", "stroke-dasharray=\"4 3\"");
        let group_width = (WIDTH - LEFT - 10.0) / self.groups.len() as f64;
        for (number, (name, bars)) in self.groups.iter().enumerate() {
            let left = LEFT + number as f64 * group_width;
            let bar_width = (group_width * 0.85 / bars.len() as f64).min(40.0);
            for (place, (label, value)) in bars.iter().enumerate() {
                let x = left + 4.0 + place as f64 * bar_width;
                let middle = x + bar_width / 2.0 - 1.0;
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>\
                     <text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"9\">{value:.2}</text>\
                     <text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"8\">{label}</text>",
                    y(*value),
                    bar_width - 2.0,
                    top + PANEL - y(*value),
                    COLOURS[number % COLOURS.len()],
                    y(*value) - 3.0,
                    top + PANEL + 10.0
                );
            }
            for (row, part) in name.split(", ").enumerate() {
                let y = top + PANEL + 24.0 + 11.0 * row as f64;
                let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{y:.1}\" font-size=\"9\">{part}</text>", left + 4.0);
            }
        }
    }
}

fn line(svg: &mut String, y: f64, colour: &str, extra: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" {extra}/>",
        WIDTH - 10.0
    );
}
