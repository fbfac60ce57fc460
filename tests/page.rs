//! The page of stored runs: rebuilt from their folders alone, complete or not.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::support::{Folder, small_trace, suite_toml};

/// A run in `out`: two cases, two stages in one plan, experts that move.
fn run(folder: &Folder) {
    small_trace(folder);
    let plan = "plans.smartmoe = \"pp2 dp4 tp1 ep4 edp1 mb2 every2\"\n";
    folder.write("suite.toml", &(suite_toml(&[(16, "capacity 1.2"), (8, "no-drop")]) + plan));
    folder.succeed("run suite.toml --trace trace.parquet --out out");
}

fn data(page: &str) -> Value {
    let from = page.split("id=\"data\">").nth(1).unwrap();
    serde_json::from_str(from.split("</script>").next().unwrap()).unwrap()
}

#[test]
fn a_page_is_rebuilt_byte_by_byte_from_the_folder_alone() {
    let folder = Folder::new();
    run(&folder);
    let written = folder.bytes("out/report.html");
    fs::remove_file(folder.join("out/report.html")).unwrap();
    fs::remove_file(folder.join("out/summary.csv")).unwrap();
    fs::remove_file(folder.join("trace.parquet")).unwrap();
    fs::remove_file(folder.join("suite.toml")).unwrap();
    fs::rename(folder.join("out"), folder.join("elsewhere")).unwrap();
    folder.succeed("report elsewhere");
    assert!(folder.bytes("elsewhere/report.html") == written);
    folder.succeed("report ./elsewhere/ --out own.html");
    assert!(folder.bytes("own.html") == written);
    // With timelines for Perfetto, every rank is watched; the page shows the same ranks.
    run(&folder);
    folder.succeed("run suite.toml --trace trace.parquet --out all --timeline");
    assert!(folder.bytes("all/details.json") == folder.bytes("out/details.json"));
}

#[test]
fn a_page_holds_what_its_views_show() {
    let folder = Folder::new();
    run(&folder);
    let data = data(&folder.text("out/report.html"));
    let run = &data["runs"][0];
    assert_eq!(run["cases"].as_array().unwrap().len(), 2);
    let rows = run["rows"].as_array().unwrap();
    let smartmoe = rows.iter().find(|row| row["case"] == 1 && row["system"] == 2).unwrap();
    assert_eq!(smartmoe["phases"].as_array().unwrap().len(), 2, "two stages");
    assert_eq!(smartmoe["memory"].as_array().unwrap().len(), 8);
    assert_eq!(smartmoe["steps"].as_array().unwrap().len(), 12);
    assert_eq!(smartmoe["traffic"]["megabytes"].as_array().unwrap().len(), 8);
    let ranks: Vec<u64> =
        smartmoe["timelines"][0]["ranks"].as_array().unwrap().iter().map(|of| of["rank"].as_u64().unwrap()).collect();
    assert_eq!(ranks, [0, 2, 4, 6]);
    // As many moves by layer as in all.
    let sum = |value: &Value| value.as_array().unwrap().iter().map(|count| count.as_u64().unwrap()).sum::<u64>();
    let by_layer: u64 = smartmoe["layers"]["experts"].as_array().unwrap().iter().map(sum).sum();
    let in_all: u64 = smartmoe["moves"].as_array().unwrap().iter().map(|moved| moved[1].as_u64().unwrap()).sum();
    assert!(by_layer == in_all && in_all > 0, "{by_layer} {in_all}");
    assert!(rows.iter().any(|row| row["layers"].is_null()), "nothing of who moves nothing");
    // Four digits of each.
    let number = |value: &Value| value.as_f64().unwrap();
    let most = smartmoe["memory"].as_array().unwrap().iter().map(number).fold(0.0, f64::max);
    assert!((most / number(&smartmoe["peak"]) - 1.0).abs() < 1e-2);
    let sum: f64 = smartmoe["phases"][0].as_array().unwrap().iter().map(number).sum();
    let mean = smartmoe["steps"].as_array().unwrap()[1..].iter().map(number).sum::<f64>() / 11.0;
    assert!((sum / mean - 1.0).abs() < 1e-2, "{sum} {mean}");
    for case in run["cases"].as_array().unwrap() {
        assert_eq!(case["imbalance"]["from"].as_array().unwrap().len(), 12);
    }
}

#[test]
fn what_a_folder_lacks_is_said() {
    let folder = Folder::new();
    run(&folder);
    fs::remove_file(folder.join("out/details.json")).unwrap();
    let mut stated: Value = serde_json::from_str(&folder.text("out/run.json")).unwrap();
    stated.as_object_mut().unwrap().remove("suite");
    folder.write("out/run.json", &stated.to_string());
    let ran = folder.moebench("report out");
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let page = folder.text("out/report.html");
    for words in [
        "no details.json: memory of each rank, routing over time, traffic and timelines are left out, and times near the limit \
         of memory are not marked as extrapolated",
        "run.json, of an older version, does not state the suite: speedups over expert-only and a warm-up of 0 iterations are \
         assumed",
    ] {
        assert!(page.contains(words) && ran.stderr.contains(words), "{}", ran.stderr);
    }
    // Of a suite that is known, what it says today.
    stated["inputs"]["suite"] = "smoke".into();
    folder.write("out/run.json", &stated.to_string());
    folder.succeed("report out");
    assert!(
        folder.text("out/report.html").contains("a warm-up of 10 iterations are as the suite of that name has them")
    );
    folder.write("out/details.json", "{\"version\":9,\"runs\":[]}");
    folder.refuse("report out", &["out/details.json", "version 9", "version 1"]);
}

#[test]
fn a_folder_without_a_run_is_refused() {
    let folder = Folder::new();
    folder.refuse("report nowhere", &["nowhere/run.json", "moebench run"]);
    run(&folder);
    fs::remove_file(folder.join("out/iterations.parquet")).unwrap();
    folder.refuse("report out", &["out/iterations.parquet", "the run has not ended"]);
    folder.refuse("report out --out own.html", &["has not ended"]);
    folder.write("out/iterations.parquet", "");
    folder.write("out/cases/one.iterations.parquet", "");
    folder.refuse("report out", &["out/cases", "the run has not ended"]);
    fs::remove_dir_all(folder.join("out/cases")).unwrap();
    assert!(!folder.join("own.html").exists());
    fs::write(folder.join("out/iterations.parquet"), "no Parquet").unwrap();
    folder.refuse("report out", &["out/iterations.parquet", "not readable as Parquet"]);
}

/// A page in a frame of that width, which no window is too narrow for; `--dump-dom`: the document around it after all scripts
/// ran, and what the console says.
fn browse(folder: &Folder, page: &str, width: usize, theme: &str) -> (String, Vec<String>) {
    let framed = page.replace('&', "&amp;").replace('"', "&quot;");
    // What the frame holds at the end stands in the document, too.
    let told = "document.getElementById('told').textContent = frames[0].document.title + ', ' + \
                frames[0].document.querySelectorAll('figure.panel').length + ' panels'";
    folder.write(
        "frame.html",
        &format!(
            "<!DOCTYPE html><body><iframe width={width} height=900 style=\"border:0\" srcdoc=\"{framed}\"></iframe>\
             <p id=told></p><script>setTimeout(() => {{ {told} }}, 6000)</script></body>"
        ),
    );
    let program = std::env::var("MOEBENCH_CHROMIUM").unwrap_or_else(|_| "chromium".to_owned());
    let scheme = if theme == "dark" { 0 } else { 1 };
    let output = Command::new(&program)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=10000"])
        .args([
            format!("--window-size={},900", width.max(600)),
            format!("--blink-settings=preferredColorScheme={scheme}"),
        ])
        .args(["--dump-dom", &format!("file://{}", folder.join("frame.html").display())])
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let console = text(&output.stderr).lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    (text(&output.stdout), console)
}

/// At the width of a telephone and of a desk, dark and light.
#[test]
#[ignore = "needs Chromium, as `chromium` or in MOEBENCH_CHROMIUM"]
fn chromium_shows_every_view_and_keys_reach_it() {
    let folder = Folder::new();
    run(&folder);
    let page = folder.text("out/report.html");
    // The page's policy allows its own script alone.
    let policy = page.find("<meta http-equiv").unwrap();
    let open = format!("{}{}", &page[..policy], &page[policy + page[policy..].find('\n').unwrap()..]);
    for (width, theme) in [(400, "light"), (400, "dark"), (1280, "light"), (1280, "dark")] {
        let (document, console) = browse(&folder, &page, width, theme);
        assert_eq!(console, [""; 0], "{width} {theme}");
        assert!(document.contains("moebench: test, 2 panels"), "{width} {theme}: {document}");
        let wanted = format!("const WANTED = {{ width: {width}, theme: \"{theme}\" }};");
        let script = format!("<script>{wanted}{}</script></body>", include_str!("browser.js"));
        let (document, console) = browse(&folder, &open.replace("</body>", &script), width, theme);
        assert_eq!(console, [""; 0], "{width} {theme}");
        let checks = document.split("<pre id=\"checks\">").nth(1).expect("the checks ran");
        let checks = checks.split("</pre>").next().unwrap();
        assert!(checks.lines().count() > 20 && !checks.contains("FAILED"), "{width} {theme}:\n{checks}");
    }
    let foreign = page.replace("</body>", "<script>document.title = 'taken over'</script></body>");
    let (document, console) = browse(&folder, &foreign, 1280, "light");
    assert!(document.contains("moebench: test, 2 panels") && console.len() == 1, "{console:?}");
}
