//! The table, the file of all slices, and the plot.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::load::Slice;

/// The medians of one measurement.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) case: String,
    pub(crate) database: &'static str,
    pub(crate) in_flight: usize,
    pub(crate) calls_per_s: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) cpu: f64,
    pub(crate) errors: u64,
    first_error: Option<String>,
    /// By reference.
    pub(crate) ratios: Vec<(&'static str, Ratios)>,
}

/// A candidate beside a reference: medians of the rounds, each against the mean of the references around it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ratios {
    /// More is better.
    pub(crate) calls: f64,
    /// First and third quartile of the same.
    pub(crate) quartiles: (f64, f64),
    /// Less is better.
    pub(crate) p50: f64,
    /// Less is better.
    pub(crate) p99: f64,
    /// Less is better.
    pub(crate) cpu: f64,
}

fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    quantile(values.collect(), 0.5)
}

impl Line {
    pub(crate) fn new(
        case: &str,
        database: &'static str,
        in_flight: usize,
        slices: Vec<Slice>,
        references: Vec<(&'static str, Vec<Slice>)>,
    ) -> Self {
        let ratios = references.iter().map(|(name, around)| (*name, Ratios::of(&slices, around))).collect();
        let all = || slices.iter().chain(references.iter().flat_map(|(_, around)| around));
        Self {
            case: case.to_owned(),
            database,
            in_flight,
            calls_per_s: median(slices.iter().map(|slice| slice.calls_per_s)),
            p50: median(slices.iter().map(|slice| slice.p50)),
            p99: median(slices.iter().map(|slice| slice.p99)),
            cpu: median(slices.iter().map(|slice| slice.cpu)),
            errors: all().map(|slice| slice.errors).sum(),
            first_error: all().find_map(|slice| slice.first_error.clone()),
            ratios,
        }
    }
}

impl Ratios {
    fn of(slices: &[Slice], around: &[Slice]) -> Self {
        let ratios = |of: fn(&Slice) -> f64| -> Vec<f64> {
            let pairs = slices.iter().zip(around.windows(2));
            pairs.map(|(slice, pair)| of(slice) / ((of(&pair[0]) + of(&pair[1])) / 2.0)).collect()
        };
        let calls = ratios(|slice| slice.calls_per_s);
        Self {
            quartiles: (quantile(calls.clone(), 0.25), quantile(calls.clone(), 0.75)),
            calls: quantile(calls, 0.5),
            p50: quantile(ratios(|slice| slice.p50), 0.5),
            p99: quantile(ratios(|slice| slice.p99), 0.5),
            cpu: quantile(ratios(|slice| slice.cpu), 0.5),
        }
    }
}

/// A single number.
#[derive(Debug)]
pub(crate) struct Figure {
    database: &'static str,
    what: String,
    value: f64,
    unit: String,
}

impl Figure {
    pub(crate) fn new(database: &'static str, what: &str, value: f64, unit: &str) -> Self {
        Self { database, what: what.to_owned(), value, unit: unit.to_owned() }
    }
}

/// All that a run has found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    slices: String,
    pub(crate) lines: Vec<Line>,
    figures: Vec<Figure>,
}

impl Report {
    /// Notes one slice for the file.
    pub(crate) fn slice(
        &mut self,
        case: &str,
        database: &str,
        in_flight: usize,
        round: usize,
        target: &str,
        slice: &Slice,
    ) {
        let Slice { calls, errors, calls_per_s, p50, p99, cpu, .. } = slice;
        let _ = writeln!(
            self.slices,
            "{case},{database},{in_flight},{round},{target},{calls},{errors},{calls_per_s:.0},{p50:.1},{p99:.1},{cpu:.2}"
        );
    }

    /// Prints a line of the table at once, so that a long run shows where it is.
    #[expect(clippy::print_stdout, reason = "a benchmark speaks to whoever ran it")]
    pub(crate) fn line(&mut self, line: Line) {
        if self.lines.is_empty() {
            println!(
                "| {:<16} | {:<8} | {:>6} | {:>8} | {:>8} | {:>8} | {:>6} | {:<6} | {:>6} | {:>9} | {:>5} | {:>5} | {:>5} |",
                "case",
                "database",
                "flight",
                "calls/s",
                "p50 µs",
                "p99 µs",
                "cpu µs",
                "beside",
                "calls",
                "quartiles",
                "p50",
                "p99",
                "cpu"
            );
            println!("| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |");
        }
        for (name, ratios) in &line.ratios {
            println!(
                "| {:<16} | {:<8} | {:>6} | {:>8.0} | {:>8.0} | {:>8.0} | {:>6.1} | {:<6} | {:>6.3} | {:.2}–{:.2} | {:>5.2} | {:>5.2} | {:>5.2} |",
                line.case,
                line.database,
                line.in_flight,
                line.calls_per_s,
                line.p50,
                line.p99,
                line.cpu,
                name,
                ratios.calls,
                ratios.quartiles.0,
                ratios.quartiles.1,
                ratios.p50,
                ratios.p99,
                ratios.cpu
            );
        }
        if let Some(error) = &line.first_error {
            println!("  {} errors, the first: {error}", line.errors);
        }
        self.lines.push(line);
    }

    #[expect(clippy::print_stdout, reason = "a benchmark speaks to whoever ran it")]
    pub(crate) fn figure(&mut self, figure: Figure) {
        let Figure { database, what, value, unit } = &figure;
        println!("{database}: {what}: {value:.2} {unit}");
        self.figures.push(figure);
    }

    /// Writes the slices, the figures and the plot below `target/bench`; fails if a call went wrong.
    pub(crate) fn finish(&self, plot: Option<&Path>) -> anyhow::Result<()> {
        let folder: PathBuf = std::env::current_exe()?.ancestors().nth(3).unwrap_or(Path::new("target")).join("bench");
        std::fs::create_dir_all(&folder)?;
        let head = "case,database,in_flight,round,target,calls,errors,calls_per_s,p50_us,p99_us,cpu_us_per_call\n";
        std::fs::write(folder.join("verify.csv"), [head, &self.slices].concat())?;
        let figures = self.figures.iter().fold("database,what,value,unit\n".to_owned(), |mut text, one| {
            let _ = writeln!(text, "{},\"{}\",{:.3},\"{}\"", one.database, one.what, one.value, one.unit);
            text
        });
        std::fs::write(folder.join("verify-figures.csv"), figures)?;
        let plot = plot.map_or_else(|| folder.join("verify.svg"), Path::to_path_buf);
        if let Some(folder) = plot.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(plot, crate::plot::draw(&self.lines))?;
        let errors: u64 = self.lines.iter().map(|line| line.errors).sum();
        anyhow::ensure!(errors == 0, "{errors} calls were not answered as they should be");
        Ok(())
    }
}
