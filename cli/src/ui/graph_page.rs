//! A build as one page for the browser: its graph, its timeline, the critical path, and what the cache saved.
//!
//! The page is one file that loads nothing, and is readable without its script, which only follows the pointer. [`layout`]
//! says where the steps of the graph stand.

mod layout;

use std::collections::BTreeSet;
use std::fmt::Write;

use builder::history::{BuildHistory, StepHistory, Verdict};

use super::{human, verdict};
use layout::Layout;

const STYLE: &str = include_str!("graph_page/style.css");
const SCRIPT: &str = include_str!("graph_page/script.js");

/// Longest name in a box of the graph, in characters.
const BOX_CHARS_MAX: usize = 30;

/// The whole page.
pub fn page(build: &BuildHistory) -> String {
    let path = critical_path(build, false);
    let on_path: BTreeSet<usize> = path.steps.iter().copied().collect();
    let title = escape(&format!("build {}", build.id));
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n"
    );
    header(&mut html, build, &path);
    graph(&mut html, build, &on_path);
    timeline(&mut html, build, &on_path);
    steps(&mut html, build, &on_path);
    add(
        &mut html,
        format_args!("<script>\n{SCRIPT}</script>\n</body>\n</html>\n"),
    );
    html
}

fn add(html: &mut String, text: std::fmt::Arguments<'_>) {
    html.write_fmt(text)
        .expect("a text takes all that is written");
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // Colours and cursor movements of a process's last words.
            c if c.is_control() && c != '\n' && c != '\t' => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// The chain of steps that took longest, each waiting for the one before.
struct CriticalPath {
    /// Numbers of its steps, first to last.
    steps: Vec<usize>,
    /// Microseconds.
    took: u64,
}

/// The longest chain of the steps that ran; with `uncached`, as if those whose result was known had run too.
fn critical_path(build: &BuildHistory, uncached: bool) -> CriticalPath {
    let mut best: Vec<(u64, Option<usize>)> = Vec::with_capacity(build.steps.len());
    for step in &build.steps {
        let own = match uncached {
            true => step.took.or(step.saved),
            false => step.took,
        };
        let before = step
            .inputs
            .iter()
            .filter_map(|&input| Some((best.get(input.checked_sub(1)?)?.0, input)))
            .max();
        let (longest, from) = before.map_or((0, None), |(took, input)| (took, Some(input)));
        best.push((longest + own.unwrap_or(0), from));
    }
    // Of steps that end at the same time the first: what follows it took nothing.
    let last = (1..=best.len())
        .rev()
        .max_by_key(|&number| best[number - 1].0);
    let took = last.map_or(0, |number| best[number - 1].0);
    let mut steps = Vec::new();
    let mut next = last.filter(|_| took > 0);
    while let Some(number) = next {
        // What took nothing is not what one waits for.
        if best[number - 1].0 > 0 {
            steps.push(number);
        }
        next = best[number - 1].1;
    }
    steps.reverse();
    CriticalPath { steps, took }
}

/// What decides the colour of a step.
fn class(step: &StepHistory) -> &'static str {
    match step.verdict {
        Verdict::Cached => "cached",
        Verdict::Unneeded => "unneeded",
        Verdict::Ran => "ran",
        Verdict::Failed => "failed",
        Verdict::Unfinished => "unfinished",
        Verdict::Waiting => "waiting",
        Verdict::Nothing => "nothing",
    }
}

fn header(html: &mut String, build: &BuildHistory, path: &CriticalPath) {
    let (ran, cached) = build.counts();
    let name = match build.tags.first() {
        Some(tag) => tag.as_str(),
        None => build.context.as_str(),
    };
    add(
        html,
        format_args!(
            "<header>\n<h1>{} <span class=\"status {}\">{}</span></h1>\n<p class=\"of\">build {} of {} in {}{} for {}</p>\n",
            escape(name),
            escape(&build.status),
            escape(&build.status),
            escape(&build.id),
            escape(&build.dockerfile),
            escape(&build.context),
            build
                .target
                .as_ref()
                .map_or(String::new(), |t| format!(", target {}", escape(t))),
            escape(&build.platform),
        ),
    );
    let without = critical_path(build, true).took;
    let saved = u64::try_from(build.saved().as_micros()).unwrap_or(u64::MAX);
    let facts = [
        (
            "took",
            human::micros(build.took),
            "from the first look at the Dockerfile to the last output",
        ),
        (
            "steps ran",
            ran.to_string(),
            "those whose result nobody had",
        ),
        (
            "steps cached",
            cached.to_string(),
            "those whose result was known",
        ),
        (
            "the cache saved",
            human::micros(saved),
            "what the cached steps took when they ran, added up",
        ),
        (
            "critical path",
            human::micros(path.took),
            "the longest chain of steps that wait for one another: with any number of processors, the build takes no less",
        ),
        (
            "without the cache",
            human::micros(without),
            "the critical path, had every step run again",
        ),
        (
            "warnings",
            build.warnings.len().to_string(),
            "about the Dockerfile",
        ),
    ];
    html.push_str("<dl class=\"facts\">\n");
    for (name, value, meaning) in facts {
        let id = name.replace(' ', "-");
        add(
            html,
            format_args!(
                "<div title=\"{meaning}\"><dt>{name}</dt><dd id=\"{id}\">{value}</dd></div>\n"
            ),
        );
    }
    html.push_str("</dl>\n");
    if let Some(error) = &build.error {
        add(
            html,
            format_args!("<pre class=\"error\">{}</pre>\n", escape(error)),
        );
    }
    for warning in build.warnings.iter().chain(&build.notes) {
        add(
            html,
            format_args!("<pre class=\"warning\">{}</pre>\n", escape(warning)),
        );
    }
    html.push_str("</header>\n");
}

/// The name of a step without its place, cut to fit its box.
fn short_name(step: &StepHistory) -> String {
    let name = match step
        .name
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
    {
        Some((_, name)) => name,
        None => &step.name,
    };
    let line = name.replace(['\n', '\t'], " ");
    if line.chars().count() <= BOX_CHARS_MAX {
        return line;
    }
    let start: String = line.chars().take(BOX_CHARS_MAX - 1).collect();
    format!("{start}…")
}

/// What is said of a step where the pointer rests.
fn tip(step: &StepHistory) -> String {
    let mut text = format!("#{} {}\n{}", step.number, step.name, verdict::verdict(step));
    for line in verdict::used(step)
        .into_iter()
        .chain(verdict::reasons(step))
    {
        text.push('\n');
        text.push_str(&line);
    }
    text
}

fn graph(html: &mut String, build: &BuildHistory, on_path: &BTreeSet<usize>) {
    if build.steps.is_empty() {
        return;
    }
    let layout = Layout::of(build);
    add(
        html,
        format_args!(
            "<section id=\"graph\">\n<h2>Graph <button id=\"fit\" type=\"button\" hidden>fit the width</button></h2>\n<p class=\"legend\"><span class=\"ran\">ran</span> <span class=\"cached\">cached</span> <span class=\"unneeded\">cached, not needed</span> <span class=\"failed\">failed</span> <span class=\"unfinished\">unfinished</span> <span class=\"waiting\">not reached</span> <span class=\"path\">critical path</span></p>\n<div class=\"scroll\" id=\"canvas\"><svg width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" role=\"img\" aria-label=\"graph of the build's steps\">\n",
            layout.width, layout.height
        ),
    );
    for lane in &layout.lanes {
        add(
            html,
            format_args!(
                "<text class=\"lane\" x=\"{}\" y=\"16\">{}</text>\n",
                lane.x,
                escape(&lane.name)
            ),
        );
    }
    for step in &build.steps {
        let to = layout.boxes[step.number - 1];
        for &input in &step.inputs {
            let Some(from) = input.checked_sub(1).and_then(|at| layout.boxes.get(at)) else {
                continue;
            };
            let both = on_path.contains(&step.number) && on_path.contains(&input);
            let (x1, y1) = (from.x + layout::BOX_WIDTH / 2, from.y + layout::BOX_HEIGHT);
            let (x2, y2) = (to.x + layout::BOX_WIDTH / 2, to.y);
            let bend = (y2 - y1).abs() / 2;
            add(
                html,
                format_args!(
                    "<path class=\"edge{}\" data-from=\"{input}\" data-to=\"{}\" d=\"M{x1} {y1}C{x1} {} {x2} {} {x2} {y2}\"/>\n",
                    if both { " path" } else { "" },
                    step.number,
                    y1 + bend,
                    y2 - bend,
                ),
            );
        }
    }
    for step in &build.steps {
        let place = layout.boxes[step.number - 1];
        let time = match step.verdict {
            Verdict::Ran | Verdict::Failed => step.took.map(human::micros),
            Verdict::Cached | Verdict::Unneeded => step
                .saved
                .map(|saved| format!("saved {}", human::micros(saved))),
            Verdict::Unfinished | Verdict::Waiting | Verdict::Nothing => None,
        };
        let inputs: Vec<String> = step.inputs.iter().map(usize::to_string).collect();
        add(
            html,
            format_args!(
                "<a class=\"step {}{}\" href=\"#step-{2}\" data-step=\"{2}\" data-inputs=\"{3}\"><title>{4}</title><rect x=\"{5}\" y=\"{6}\" width=\"{7}\" height=\"{8}\" rx=\"5\"/><text x=\"{9}\" y=\"{10}\">{11}</text><text class=\"time\" x=\"{9}\" y=\"{12}\">#{2} {13}</text></a>\n",
                class(step),
                if on_path.contains(&step.number) {
                    " path"
                } else {
                    ""
                },
                step.number,
                inputs.join(" "),
                escape(&tip(step)),
                place.x,
                place.y,
                layout::BOX_WIDTH,
                layout::BOX_HEIGHT,
                place.x + 10,
                place.y + 18,
                escape(&short_name(step)),
                place.y + 35,
                time.unwrap_or_else(|| verdict::verdict(step)),
            ),
        );
    }
    html.push_str("</svg></div>\n</section>\n");
}

fn timeline(html: &mut String, build: &BuildHistory, on_path: &BTreeSet<usize>) {
    let total = build.took.max(1) as f64;
    let mut ran: Vec<(&StepHistory, u64, u64)> = build
        .steps
        .iter()
        .filter_map(|step| {
            let started = step.started?;
            // One that did not end ran until the build did.
            let took = step.took.unwrap_or(build.took.saturating_sub(started));
            Some((step, started, took))
        })
        .collect();
    ran.sort_by_key(|(step, started, _)| (*started, step.number));
    html.push_str("<section id=\"timeline\">\n<h2>Timeline</h2>\n");
    if ran.is_empty() && build.before.is_empty() {
        html.push_str("<p>Nothing ran.</p>\n</section>\n");
        return;
    }
    html.push_str("<div class=\"rows\">\n");
    // Never so small that it cannot be seen, nor beyond the end.
    let place = |started: u64, took: u64| {
        let width = (took as f64 / total * 100.0).max(0.15);
        let left = (started as f64 / total * 100.0).min(100.0 - width);
        format!("left:{left:.2}%;width:{width:.2}%")
    };
    for before in &build.before {
        add(
            html,
            format_args!(
                "<div class=\"row\" title=\"{0}\"><span class=\"name\">{0}</span><span class=\"track\"><span class=\"bar before\" style=\"{1}\"></span></span><span class=\"took\">{2}</span></div>\n",
                escape(&before.name),
                place(before.started, before.took),
                human::micros(before.took),
            ),
        );
    }
    for (step, started, took) in ran {
        let bar = place(started, took);
        add(
            html,
            format_args!(
                "<a class=\"row\" href=\"#step-{0}\" title=\"{1}\"><span class=\"name\">#{0} {2}</span><span class=\"track\"><span class=\"bar {3}{4}\" style=\"{bar}\"></span></span><span class=\"took\">{5}</span></a>\n",
                step.number,
                escape(&tip(step)),
                escape(&short_name(step)),
                class(step),
                if on_path.contains(&step.number) {
                    " path"
                } else {
                    ""
                },
                human::micros(took),
            ),
        );
    }
    add(
        html,
        format_args!(
            "<div class=\"row axis\"><span class=\"name\"></span><span class=\"track\"><span>0</span><span>{}</span><span>{}</span></span><span class=\"took\"></span></div>\n</div>\n</section>\n",
            human::micros(build.took / 2),
            human::micros(build.took),
        ),
    );
}

fn steps(html: &mut String, build: &BuildHistory, on_path: &BTreeSet<usize>) {
    html.push_str("<section id=\"steps\">\n<h2>Steps <button id=\"brief\" type=\"button\" hidden>only what ran</button></h2>\n<div class=\"scroll\"><table>\n<thead><tr><th>#</th><th>step</th><th>verdict</th><th>saved</th><th>size</th><th>line</th></tr></thead>\n<tbody>\n");
    for step in &build.steps {
        let dash = || "–".to_owned();
        let mut why = String::new();
        let used = verdict::used(step);
        for line in used
            .iter()
            .chain(&verdict::reasons(step))
            .chain(&step.notes)
        {
            why.push_str(&format!("<div class=\"reason\">{}</div>", escape(line)));
        }
        if let Some(error) = &step.error {
            why.push_str(&format!("<pre class=\"error\">{}</pre>", escape(error)));
        }
        add(
            html,
            format_args!(
                "<tr id=\"step-{0}\" class=\"{1}{2}\"><td>{0}</td><td><code>{3}</code>{why}</td><td class=\"verdict\">{4}</td><td>{5}</td><td>{6}</td><td>{7}</td></tr>\n",
                step.number,
                class(step),
                if on_path.contains(&step.number) {
                    " path"
                } else {
                    ""
                },
                escape(&step.name),
                verdict::verdict(step),
                step.saved.map_or_else(dash, human::micros),
                step.bytes.map_or_else(dash, human::size),
                if step.line > 0 {
                    step.line.to_string()
                } else {
                    dash()
                },
            ),
        );
    }
    html.push_str("</tbody>\n</table></div>\n</section>\n");
}

#[cfg(test)]
mod tests;
