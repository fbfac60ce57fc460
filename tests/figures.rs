//! The figures of stored runs: drawn again to the byte, legible at their printed size, and in every format.

use std::path::Path;

use chart::{TextBox, Width};
use runs::figures::{self, PaperFigure};
use runs::stored::StoredRun;

use crate::support::{Folder, check_rising, latex_compiles, latex_paper, small_trace};

const RUN: &str = "run smoke --trace trace.parquet --iterations 12 --set warmup=2 --out out";

#[test]
fn figures_are_drawn_again_to_the_byte_from_the_folder_alone() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.succeed(RUN);
    let files = || folder.files().into_iter().filter(|name| name.starts_with("out/figures/")).collect::<Vec<_>>();
    let names = files();
    let before: Vec<Vec<u8>> = names.iter().map(|name| folder.bytes(name)).collect();
    std::fs::remove_dir_all(folder.join("out/figures")).unwrap();
    let shown = folder.succeed("plot out");
    assert!(shown.contains("out/figures/end_to_end.pdf") && shown.contains("out/figures/phases.svg"), "{shown}");
    assert_eq!(files(), names);
    for (name, before) in names.iter().zip(before) {
        assert!(folder.bytes(name) == before, "{name} is another");
    }
    for out in ["a", "b"] {
        folder.succeed(&format!("plot out --columns 1 --format svg,pdf,png,tikz --out {out}"));
    }
    let drawn = folder.same_files("a/", "b/");
    assert_eq!(drawn.len(), 3 * 7, "{drawn:?}");
}

#[test]
fn one_figure_is_asked_for_by_name() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.succeed(RUN);
    folder.refuse("plot out --figure end-to-end", &["--figure end-to-end", "end_to_end, performance_model, phases"]);
    folder.refuse("plot nowhere", &["nowhere/run.json"]);
    folder.succeed("plot out --figure phases --columns 1 --format png --out paper");
    let files: Vec<String> = folder.files().into_iter().filter(|name| name.starts_with("paper/")).collect();
    assert_eq!(files, ["paper/phases-column.png", "paper/phases.caption.txt", "paper/phases.csv"]);
    // 3.33 in at 300 to the inch.
    let png = folder.bytes("paper/phases-column.png");
    assert_eq!(u32::from_be_bytes(png[16..20].try_into().unwrap()), 1000);
    let svg = folder.text("out/figures/phases.svg");
    let title = folder.text("out/figures/phases.caption.txt").split(';').next().unwrap().to_owned();
    assert!(svg.contains("role=\"img\">") && svg.contains(&format!("<title>{title}")), "{svg}");
    let data = folder.text("paper/phases.csv");
    assert!(
        data.starts_with("panel,group,bar,part,value\n") && data.contains("inky,\"8 GPUs, no drop\",SmartMoE,experts,")
    );
    let caption = folder.text("out/figures/end_to_end.caption.txt");
    let snippet = folder.text("out/figures/end_to_end.figure.tex");
    assert!(snippet.contains("\\begin{figure*}") && snippet.contains("\\includegraphics{end_to_end.pdf}"), "{snippet}");
    assert!(snippet.contains(caption.split(';').next().unwrap()), "{snippet}");
}

/// Points that two texts may share: rounding, and the blank that a font leaves around a glyph.
const TOUCH: f64 = 0.3;

fn overlap(a: &TextBox, b: &TextBox) -> bool {
    let shared = |(a, b): (f64, f64), (c, d): (f64, f64)| b.min(d) - a.max(c);
    shared((a.left, a.right), (b.left, b.right)) > TOUCH && shared((a.top, a.bottom), (b.top, b.bottom)) > TOUCH
}

/// Every text of a figure is at least 7 pt high, on the page, and clear of every other.
fn check(suite: &str, figure: &PaperFigure, width: Width) {
    let drawn = figure.chart.draw(width).unwrap();
    let what = format!("{suite}, {} at {width:?}", figure.name);
    let (right, bottom) = drawn.size();
    // A figure of all of `balance` is for the screen: its dozens of cases go to paper by `--case`.
    assert!(suite == "balance" || bottom <= 9.0 * 72.0, "{what}: {bottom} points do not fit on a page");
    let texts = drawn.texts();
    for (at, text) in texts.iter().enumerate() {
        assert!((7.0..=8.0).contains(&text.size), "{what}: {text:?}");
        let inside = text.left >= -TOUCH && text.right <= right + TOUCH && text.top >= -TOUCH && text.bottom <= bottom;
        assert!(inside, "{what}: leaves the page: {text:?}");
        for other in &texts[..at] {
            assert!(!overlap(text, other), "{what}: {text:?} and {other:?}");
        }
    }
}

fn check_all(suite: &str, folder: &Path) {
    for figure in figures::all(&StoredRun::open(folder).unwrap()) {
        for width in [Width::Column, Width::Page] {
            check(suite, &figure, width);
        }
    }
}

#[test]
fn no_text_is_small_or_over_another_in_any_figure() {
    let folder = Folder::new();
    for suite in ["smoke", "paper-gpt", "modern", "balance"] {
        folder.succeed(&format!("run {suite} --iterations 4 --set warmup=1 --out {suite}"));
        check_all(suite, &folder.join(suite));
        crate::tables::check_markdown(suite, &StoredRun::open(&folder.join(suite)).unwrap());
    }
}

const MAP: &str = "\
name = \"small-map\"
description = \"Two batches, networks and routings\"
systems = [\"expert-only\", \"smartmoe\"]
baseline = \"expert-only\"
iterations = 4
warmup = 1
figure = \"map\"
[[cases]]
model = \"gpt-tiny\"
cluster = \"inky\"
gpus = 16
gate = \"no-drop\"
global_batch = [64, 128]
network = [0.5, 1.0]
routing = [{ max_over_mean = 1.0, half_life = 50.0 }, { max_over_mean = 2.0, half_life = 50.0 }]
";

/// Batches are on no axis of a map: each has a panel, in the figures and on the page.
#[test]
fn a_map_of_a_suite_has_a_panel_for_each_batch() {
    let folder = Folder::new();
    folder.write("map.toml", MAP);
    folder.succeed("run map.toml --out out");
    check_all("small-map", &folder.join("out"));
    let count = |name: &str, start: &str| folder.text(name).lines().filter(|line| line.starts_with(start)).count();
    for batch in ["batch64,", "batch128,"] {
        assert_eq!(count("out/figures/map.csv", batch), 4, "{}", folder.text("out/figures/map.csv"));
        assert_eq!(count("out/figures/skew.csv", batch), 4, "{}", folder.text("out/figures/skew.csv"));
    }
    let caption = folder.text("out/figures/skew.caption.txt");
    assert!(caption.contains("(gpt-tiny, inky, 16 GPUs, no drop);"), "{caption}");
    assert!(folder.text("out/figures/skew.svg").contains("(half-life 50)<"));
    // No case that is left is on the network as it is.
    folder.succeed("plot out --case net0.5 --out half");
    assert!(folder.join("half/map.svg").exists() && !folder.join("half/skew.svg").exists());
    let page = folder.text("out/report.html");
    assert!(page.contains("alt=\"figure map of small-map\"") && page.contains("alt=\"figure skew of small-map\""));
}

/// Cases in any order are lines from left to right.
#[test]
fn lines_go_one_way() {
    let folder = Folder::new();
    let (one, two) = ("{ max_over_mean = 1.0, half_life = 50.0 }", "{ max_over_mean = 2.0, half_life = 50.0 }");
    let turned = MAP.replace(&format!("{one}, {two}"), &format!("{two}, {one}"));
    assert_ne!(turned, MAP);
    folder.write("map.toml", &turned);
    folder.succeed("run map.toml --out out");
    check_rising(&folder.text("out/figures/skew.csv"));
}

/// The picture of a TikZ document.
fn picture(document: &str) -> &str {
    let (begin, end) = ("\\begin{tikzpicture}", "\\end{tikzpicture}");
    &document[document.find(begin).unwrap()..document.find(end).unwrap() + end.len()]
}

#[test]
#[ignore = "needs pdflatex with TikZ"]
fn latex_takes_what_is_written_for_it() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.succeed(RUN);
    folder.succeed("plot out --columns 1 --format pdf,tikz --out .");
    for figure in ["end_to_end", "performance_model", "phases"] {
        // In the encoding that the picture's document asks for, and in LaTeX's own.
        let drawn = folder.text(&format!("{figure}-column.tex"));
        folder.write(
            "tikz.tex",
            &latex_paper("\\usepackage[T1]{fontenc}\\usepackage{tikz}", &format!("\\noindent {}", picture(&drawn))),
        );
        assert!(latex_compiles(&folder, "tikz.tex"), "no pdflatex");
        folder.write(
            "paper.tex",
            &latex_paper("\\usepackage{graphicx}", &format!("\\input{{{figure}-column.figure.tex}}")),
        );
        assert!(latex_compiles(&folder, "paper.tex"));
    }
}
