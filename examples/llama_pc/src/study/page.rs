//! docs/study.md: the answer first, then the tables, in sentences that follow from the numbers.

use std::fmt::Write;

use super::arms::{ITERATIONS, Optimizer, SCALED_AS, Treatment};
use super::findings::{ArmResult, Findings, Stability};
use super::plan;
use super::queue;
use super::record::{Header, Record};
use super::statistics::{Paired, SPIKE, Summary, Verdict};
use crate::terminal::format::{duration, grouped};

/// `0.10M parameters`.
pub fn size_title(header: &Header, size: usize) -> String {
    format!("{} parameters", plan::size_label(header.sizes[size].parameters))
}

/// The whole page; `pictures` is the folder of the pictures, relative to it, and `command` what the page is made again with.
pub fn page(findings: &Findings<'_>, pictures: &str, command: &str) -> String {
    let parts = [
        head(findings, command),
        answer(findings),
        picture(pictures, "differences", "Paired differences of the validation loss, with their intervals"),
        losses(findings, pictures),
        stability(findings, pictures),
        conditions(findings, pictures),
        iterations(findings, pictures),
        merged(findings),
        rates(findings, pictures),
        method(findings),
        the_plan(findings),
    ];
    parts.concat()
}

fn picture(folder: &str, name: &str, title: &str) -> String {
    format!("![{title}]({folder}/{name}.svg)\n\n")
}

fn head(findings: &Findings<'_>, command: &str) -> String {
    let header = &findings.kept.header;
    let caution = match header.scale.as_str() {
        "small" => "",
        _ => "**This only tries the machinery: its runs are far too short to say anything about PC layers.**\n\n",
    };
    format!(
        "# Do PC layers help?\n\n{caution}{} runs of two small Llamas, {} and {}, {} tokens each, on {}. Written by `cargo llama_pc study \
         --scale {}`; `{command}` makes this page and its pictures again from the kept metrics.\n\n",
        grouped(findings.kept.records.len() as u64),
        size_title(header, 0),
        size_title(header, 1),
        grouped(header.tokens()),
        machine(header),
        header.scale,
    )
}

fn machine(header: &Header) -> String {
    let super::record::Machine { adapter, driver, kernels, cores } = &header.machine;
    format!("{adapter} ({driver}, `{kernels}` kernels, {cores} cores)")
}

fn answer(findings: &Findings<'_>) -> String {
    let seeds = findings.kept.header.design.seeds;
    let mut text = format!(
        "## The answer\n\nThe validation loss after the same tokens, each arm at its own best learning rate, {seeds} seeds. An interval is the 95 % one of \
         the paired difference (same seed, same initial weights, same batches); where it holds 0, the difference is below the noise.\n\n"
    );
    text += "| | plain | with PC | difference | tokens to plain's loss | seconds to it |\n|---|---:|---:|---|---:|---:|\n";
    for size in 0..findings.kept.header.sizes.len() {
        for optimizer in Optimizer::ALL {
            let compared = findings.compared(size, optimizer);
            let [plain, _, pc] = &compared[..] else { continue };
            let _ = writeln!(
                text,
                "| {}, {}, level {} | {} | {} | {} | {} | {} |",
                size_title(&findings.kept.header, size),
                optimizer.title(),
                findings.choices.levels[&optimizer],
                spread(plain.loss),
                spread(pc.loss),
                difference(pc.difference),
                percent(pc.tokens),
                percent(pc.seconds()),
            );
        }
    }
    text.push('\n');
    for size in 0..findings.kept.header.sizes.len() {
        for optimizer in Optimizer::ALL {
            text += &sentence(findings, size, optimizer);
        }
    }
    text + "\nThe level is the best of four at the first size, by these same losses, which favors PC there; at the second size it was fixed \
            before. Of twenty comparisons without any effect, one has an interval without 0.\n\n"
}

/// What the numbers of a size and an optimizer say.
fn sentence(findings: &Findings<'_>, size: usize, optimizer: Optimizer) -> String {
    let compared = findings.compared(size, optimizer);
    let [_, scaled, pc] = &compared[..] else { return String::new() };
    let place = format!("{}, {}", size_title(&findings.kept.header, size), optimizer.title());
    let says = match pc.difference.map(|difference| difference.verdict()) {
        Some(Verdict::Better) => "PC layers end at a lower loss than plain ones",
        Some(Verdict::Worse) => "PC layers end at a higher loss than plain ones",
        Some(Verdict::BelowNoise) => "PC layers make no difference that these seeds can show",
        None => "a run diverged, so there is no comparison",
    };
    let control = match (scaled.difference.map(|difference| difference.verdict()), pc.difference, scaled.difference) {
        (Some(Verdict::Better), Some(pc), Some(scaled)) if pc.verdict() == Verdict::Better => format!(
            "; larger initial weights alone, without PC layers, give {:.0} % of that difference",
            100.0 * scaled.mean / pc.mean
        ),
        (Some(Verdict::Better), ..) => "; larger initial weights alone, without PC layers, do lower the loss".to_owned(),
        (Some(Verdict::Worse), ..) => "; larger initial weights alone, without PC layers, raise the loss".to_owned(),
        (Some(Verdict::BelowNoise), ..) => "; larger initial weights alone make no difference above the noise".to_owned(),
        (None, ..) => String::new(),
    };
    let beyond = pc.difference_from(scaled).map_or(String::new(), |paired| {
        format!(" From larger initial weights alone, PC layers differ by {}.", difference(Some(paired)))
    });
    format!("- **{place}**: {says}{control}.{beyond} A step takes {:.2} times as long.\n", pc.step)
}

/// `3.412 ± 0.004`.
fn spread(summary: Option<Summary>) -> String {
    summary.map_or("diverged".to_owned(), |Summary { mean, std }| format!("{mean:.4} ± {std:.4}"))
}

/// `-0.012 (-0.020 to -0.004): better`.
fn difference(paired: Option<Paired>) -> String {
    let Some(paired) = paired else { return "–".to_owned() };
    let Paired { mean, low, high } = paired;
    let verdict = match paired.verdict() {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::BelowNoise => "below the noise",
    };
    format!("{mean:+.4} ({low:+.4} to {high:+.4}): {verdict}")
}

fn percent(share: Option<f64>) -> String {
    share.map_or("not all get there".to_owned(), |share| format!("{:.0} %", 100.0 * share))
}

fn losses(findings: &Findings<'_>, pictures: &str) -> String {
    let mut text = "## Validation loss at equal tokens\n\nMean ± standard deviation over the seeds. PC and scaled arms are compared with plain, \
                    QK norm with plain, QK norm and PC with QK norm. Tokens and seconds are those at which the curve first comes down to the final loss \
                    of the plain run of the same seed, as a share of its; in the middle of a run the learning rate is still high, so that 90 % of the \
                    tokens is less than a tenth saved by a run that is planned shorter.\n\n"
        .to_owned();
    for size in 0..findings.kept.header.sizes.len() {
        let _ = writeln!(text, "**{}**\n", size_title(&findings.kept.header, size));
        text += "| | best rate | loss | difference | tokens | seconds | time of a step |\n|---|---:|---:|---|---:|---:|---:|\n";
        for result in findings.arms.iter().filter(|result| result.size == size) {
            text += &loss_row(result);
        }
        text.push('\n');
    }
    text + &picture(pictures, "loss", "Validation loss over the tokens, mean over seeds")
}

fn loss_row(result: &ArmResult<'_>) -> String {
    let edge = if result.best.is_inside { "" } else { " (edge of the grid)" };
    let is_plain = result.arm.treatment == Treatment::Plain;
    let share = |share| if is_plain { "100 %".to_owned() } else { percent(share) };
    format!(
        "| {}, {} | {:.2e}{edge} | {} | {} | {} | {} | {:.2} |\n",
        result.arm.optimizer.title(),
        result.arm.title(),
        result.best.lr.value(),
        spread(result.loss),
        difference(result.difference),
        share(result.tokens),
        share(result.seconds()),
        result.step,
    )
}

fn stability(findings: &Findings<'_>, pictures: &str) -> String {
    let (window, deviations) = SPIKE;
    let mut text = format!(
        "## Stability\n\nThe first size at its best rate, and at two and four times of it, all seeds. A spike is a step whose loss lies more than {deviations} \
         standard deviations above the mean of the {window} before; the peak is the largest gradient norm over the median, after the first tenth of the \
         steps, of the worst seed.\n\n| | rate | diverged | loss | spikes per run | gradient peak |\n|---|---:|---:|---:|---:|---:|\n"
    );
    for optimizer in Optimizer::ALL {
        for arm in queue::stressed(optimizer, findings.choices.levels[&optimizer]) {
            for at in findings.stability(arm) {
                let _ = writeln!(
                    text,
                    "| {}, {} | {}× | {} of {} | {} | {:.1} | {} |",
                    optimizer.title(),
                    arm.title(),
                    1 << at.power,
                    at.diverged,
                    at.records.len(),
                    spread(at.loss),
                    at.spikes,
                    at.peak.map_or("–".to_owned(), |peak| format!("{peak:.1}×")),
                );
            }
        }
    }
    text + "\n"
        + &better_rates(findings)
        + &picture(pictures, "stability", "Gradient norms at one, two and four times the best rate")
}

/// Where one of these learning rates has a lower mean loss than the one that seed 1 chose: what the comparison would be with it.
fn better_rates(findings: &Findings<'_>) -> String {
    let mut text = String::new();
    for optimizer in Optimizer::ALL {
        for arm in queue::stressed(optimizer, findings.choices.levels[&optimizer]) {
            let found = findings.stability(arm);
            let mean = |at: &Stability<'_>| at.loss.map_or(f64::INFINITY, |loss| loss.mean);
            let Some(best) = found.iter().min_by(|a, b| mean(a).total_cmp(&mean(b))).filter(|best| best.power > 0) else {
                continue;
            };
            let _ = writeln!(
                text,
                "**{}, {}** has a lower mean loss at {} times the rate that seed 1 chose: {:.4} where that has {:.4}.\n",
                optimizer.title(),
                arm.title(),
                1 << best.power,
                mean(best),
                mean(&found[0]),
            );
        }
    }
    text
}

fn conditions(findings: &Findings<'_>, pictures: &str) -> String {
    let mut text = "## Condition numbers and γ\n\nGMCN is the geometric mean of the modified condition numbers, σ₁ over the mean of the smallest tenth of the \
                    singular values, of the weights that the model computes with: of all matrices of the blocks, of o and the FFN, which have PC \
                    layers where there are any, and of q, k and v, which have none. At the end, means over the seeds.\n\n| | all | o, FFN with PC | \
                    q, k, v beside PC | γ |\n|---|---:|---:|---:|---|\n"
        .to_owned();
    let shown = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.1}"));
    for result in &findings.arms {
        let last = |record: &Record| record.gmcn.last().map(|(_, gmcn)| *gmcn);
        let pc = result.at_end(|record| last(record)?.pc);
        let plain = if pc.is_some() { result.at_end(|record| last(record)?.plain) } else { None };
        let _ = writeln!(
            text,
            "| {}, {}, {} | {} | {} | {} | {} |",
            size_title(&findings.kept.header, result.size),
            result.arm.optimizer.title(),
            result.arm.title(),
            shown(result.at_end(|record| Some(last(record)?.all))),
            shown(pc),
            shown(plain),
            gamma(result),
        );
    }
    text += "\n";
    if findings.kept.records.values().any(|record| record.spectrum.is_some()) {
        text += "The singular values that the first seed ends with, in ascending order, as shares of the largest:\n\n";
        text += &picture(pictures, "spectra", "Singular values at the end of training");
    }
    text += &picture(pictures, "condition", "GMCN over the steps");
    text + &picture(pictures, "gamma", "γ over the steps")
}

/// `0.91 to 1.40`: over the matrices and the seeds, at the end.
fn gamma(result: &ArmResult<'_>) -> String {
    let last = result.records.iter().flat_map(|record| record.gamma.values().filter_map(|values| values.last().copied()));
    let (low, high) = last.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high { "–".to_owned() } else { format!("{low:.2} to {high:.2}") }
}

fn iterations(findings: &Findings<'_>, pictures: &str) -> String {
    let arm = queue::iterated();
    let mut text = format!(
        "## Power iterations\n\n{}, {}, first size: how far the streaming estimate of σ₁ falls short, relative to σ₁, over all measurements of the \
         training, and what it does to the loss. Differences are from {ITERATIONS} iterations.\n\n| iterations per step | mean error | largest error | \
         loss | difference |\n|---:|---:|---:|---:|---|\n",
        arm.optimizer.title(),
        arm.title(),
    );
    for at in findings.iterations() {
        let (mean, largest) = at.error().map_or(("–".into(), "–".into()), |(mean, largest)| (share(mean), share(largest)));
        let _ =
            writeln!(text, "| {} | {mean} | {largest} | {} | {} |", at.iterations, spread(at.loss), difference(at.difference));
    }
    text + "\n" + &picture(pictures, "power-iterations", "Error of the estimate of the largest singular value")
}

fn share(value: f64) -> String {
    format!("{:.2} %", 100.0 * value)
}

fn merged(findings: &Findings<'_>) -> String {
    let mut text = "## Merged and unmerged\n\nA run's checkpoint, whose effective weights are computed on loading, and its export, an ordinary Llama: loss \
                    on the same sequences, and the seconds to load and to evaluate, first seed.\n\n| | unmerged | merged | difference | seconds unmerged | \
                    seconds merged |\n|---|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for result in &findings.arms {
        let Some(found) = result.records.first().and_then(|record| record.merged) else { continue };
        let _ = writeln!(
            text,
            "| {}, {}, {} | {:.6} | {:.6} | {:+.1e} | {:.2} | {:.2} |",
            size_title(&findings.kept.header, result.size),
            result.arm.optimizer.title(),
            result.arm.title(),
            found.unmerged.loss,
            found.merged.loss,
            found.merged.loss - found.unmerged.loss,
            found.unmerged.seconds,
            found.merged.seconds,
        );
    }
    text + "\n"
}

fn rates(findings: &Findings<'_>, pictures: &str) -> String {
    let mut text = "## Learning rates\n\nFactors of √2, until the best lies inside; seed 1. The runs of the stability tests are among them.\n\n".to_owned();
    text += &picture(pictures, "rates", "Final validation loss over the learning rate");
    text += "| | final losses |\n|---|---|\n";
    for result in &findings.arms {
        let grid = findings.grid(result.size, result.arm).into_iter().map(|(lr, loss)| {
            let loss = if loss.is_finite() { format!("{loss:.4}") } else { "diverged".to_owned() };
            let entry = format!("{:.2e}: {loss}", lr.value());
            if lr == result.best.lr { format!("**{entry}**") } else { entry }
        });
        let grid = grid.collect::<Vec<_>>().join(", ");
        let size = size_title(&findings.kept.header, result.size);
        let _ = writeln!(text, "| {size}, {}, {} | {grid} |", result.arm.optimizer.title(), result.arm.title());
    }
    text + "\n"
}

fn method(findings: &Findings<'_>) -> String {
    let header = &findings.kept.header;
    let mut text = "## How it was done\n\n".to_owned();
    for (at, facts) in header.sizes.iter().enumerate() {
        let super::scale::Size { dim, layers, heads, intermediate_size } = facts.size;
        let scales = facts.init_scale.iter().map(|(target, factor)| format!("{target} {factor}")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(
            text,
            "- {}: dim {dim}, {layers} blocks, {heads} heads, intermediate size {intermediate_size}, tied table of {} tokens; {:.1} tokens per \
             parameter. The scaled arm multiplies its initial weights by what PC layers of level {SCALED_AS} do to their RMS: {scales}.",
            size_title(header, at),
            header.data.vocab,
            header.tokens() as f64 / facts.parameters as f64,
        );
    }
    let bytes = header.data.bytes_per_token.map_or(String::new(), |bytes| format!(", {bytes:.2} bytes each"));
    let _ = writeln!(
        text,
        "- Data: `{}`, {} training tokens{bytes}, checksum {:08x}. Every run sees {} tokens in {} steps of {}; warm-up for a twentieth of them, cosine to \
         a tenth, gradients clipped at 1, weight decay 0.1, power iterations {ITERATIONS}. PC layers on o and the FFN.",
        header.data.folder,
        grouped(header.data.tokens),
        header.data.checksum,
        grouped(header.tokens()),
        grouped(header.steps),
        grouped(header.tokens_per_step),
    );
    text += "- Every arm has its learning rate tuned with seed 1; the other seeds run at that rate only. Seed 1 counts among them, for every arm alike.\n\
             - The time of a step was measured with the arms taking turns, before the runs; seconds are tokens times that ratio, so that \
             the hour of a run has no part in it. PC layers cost the same for a batch of any size: with the large batches of real runs their \
             share of a step is smaller than here.\n\n";
    text
}

fn the_plan(findings: &Findings<'_>) -> String {
    let header = &findings.kept.header;
    let tokens = header.tokens_per_step as f64;
    let speeds = findings.kept.records.values().flat_map(|record| &record.tokens_per_second);
    let seconds: f64 = speeds.map(|speed| tokens / f64::from((*speed).max(1))).sum();
    format!(
        "## The plan, written before the runs\n\n{}\nThere were {} runs. The sum of their training times, {} at a time, is {}.\n",
        plan::table(&header.plan, header.jobs),
        grouped(findings.kept.records.len() as u64),
        header.jobs,
        duration(seconds),
    )
}

#[cfg(test)]
mod tests {
    use super::super::arms::{Arm, Spec};
    use super::super::record::tests::kept;
    use super::*;

    #[test]
    fn the_page_says_what_the_numbers_say() {
        let kept = kept();
        let findings = Findings::new(&kept).expect("a finished study");
        let page = page(&findings, "study", "cargo llama_pc study --from x");
        for part in [
            "PC layers end at a lower loss than plain ones",
            "| 0.10M parameters, AdamW, level 3 | ",
            "larger initial weights alone make no difference above the noise",
            "): better | ",
            "A step takes 1.10 times as long.",
            " From larger initial weights alone, PC layers differ by -0.",
            "](study/differences.svg)",
            "| 10 | 1.00 % | 3.00 % | ",
            "cargo llama_pc study --from x",
            "## The plan, written before the runs",
            "| Muon, PC level 3 | 4× | 0 of 3 |",
        ] {
            assert!(page.contains(part), "no {part:?} in {page}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }

    #[test]
    fn a_better_rate_than_the_chosen_one_is_named() {
        let mut kept = kept();
        assert_eq!(better_rates(&Findings::new(&kept).expect("a finished study")), "");
        let arm = Arm::plain(Optimizer::Muon);
        let lr = Findings::new(&kept).expect("a finished study").choices.best[&(0, arm)].lr.times_two_to(1);
        // Of the other seeds, by which no learning rate is chosen.
        for seed in 2..=kept.header.design.seeds {
            let record = kept.records.get_mut(&Spec::new(0, arm, lr, seed)).expect("a run");
            record.validation.last_mut().expect("a validation").1 = 0.5;
        }
        let text = better_rates(&Findings::new(&kept).expect("a finished study"));
        assert!(text.starts_with("**Muon, plain** has a lower mean loss at 2 times the rate that seed 1 chose: "), "{text}");
    }

    #[test]
    fn differences_are_signed_and_judged() {
        let paired = |low, high| Some(Paired { mean: (low + high) / 2.0, low, high });
        assert_eq!(difference(paired(-0.02, -0.01)), "-0.0150 (-0.0200 to -0.0100): better");
        assert_eq!(difference(paired(0.01, 0.02)), "+0.0150 (+0.0100 to +0.0200): worse");
        assert!(difference(paired(-0.01, 0.02)).ends_with("below the noise"));
        assert_eq!(
            (difference(None), percent(None), percent(Some(0.876))),
            ("–".into(), "not all get there".into(), "88 %".into())
        );
    }
}
