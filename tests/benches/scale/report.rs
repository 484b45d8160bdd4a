//! The table, the file, and the plot.

use std::fmt::Write as _;
use std::path::Path;

use service_kit::testing::Kind;

use crate::measure::Outcome;

pub(crate) fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Sqlite => "SQLite",
        Kind::Postgres => "PostgreSQL",
    }
}

/// Prints what a run came to.
#[expect(clippy::print_stdout, reason = "a benchmark speaks to whoever ran it")]
pub(crate) fn print(outcome: &Outcome) {
    println!("\n{}, {} keys, {} of them stale\n", name(outcome.kind), outcome.size.keys, outcome.size.stale);
    println!("| step | count | seconds | per second | bound, s | bound ÷ step |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for step in &outcome.steps {
        let (bound, ratio) = match step.bound {
            Some(bound) => (format!("{bound:.2}"), format!("{:.2}", bound / step.seconds)),
            None => (String::new(), String::new()),
        };
        let rate = step.count as f64 / step.seconds;
        println!(
            "| {} | {} {} | {:.2} | {rate:.0} | {bound} | {ratio} |",
            step.name, step.count, step.of, step.seconds
        );
    }
    println!("\nlongest transaction of the deletion: {} ms", outcome.longest_batch_ms);
    if let Some((_, alone)) = outcome.beside.first() {
        println!("\n| verification beside | calls/s | of idle | p50, µs | p99, µs | of idle |");
        println!("| --- | ---: | ---: | ---: | ---: | ---: |");
        for (step, calls) in &outcome.beside {
            let (rate, p99) = (calls.per_s / alone.per_s, calls.p99 / alone.p99);
            println!("| {step} | {:.0} | {rate:.2} | {:.0} | {:.0} | {p99:.2} |", calls.per_s, calls.p50, calls.p99);
        }
        println!();
    }
    for (process, idle, peak) in &outcome.memory {
        println!("{process}: {idle:.0} MiB idle, {peak:.0} MiB at most");
    }
}

/// Writes all steps of all runs as a file of comma-separated values, and the plot where the runs are of several sizes.
pub(crate) fn write(outcomes: &[Outcome], plot: Option<&Path>) -> anyhow::Result<()> {
    let folder = std::env::current_exe()?.ancestors().nth(3).unwrap_or(Path::new("target")).join("bench");
    std::fs::create_dir_all(&folder)?;
    let mut csv = "database,keys,stale,step,count,seconds,bound_seconds\n".to_owned();
    for outcome in outcomes {
        for step in &outcome.steps {
            let bound = step.bound.map_or(String::new(), |bound| format!("{bound:.3}"));
            let size = outcome.size;
            let _ = writeln!(
                csv,
                "{},{},{},{},{},{:.3},{bound}",
                name(outcome.kind),
                size.keys,
                size.stale,
                step.name,
                step.count,
                step.seconds
            );
        }
    }
    std::fs::write(folder.join("scale.csv"), csv)?;
    if outcomes.len() > 1 {
        let plot = plot.map_or_else(|| folder.join("scale.svg"), Path::to_path_buf);
        std::fs::write(plot, crate::plot::draw(outcomes))?;
    }
    Ok(())
}
