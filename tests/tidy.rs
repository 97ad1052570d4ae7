//! The architecture and the house's rules, as tests: layers, cells, unsafe code, documentation, the
//! book and its listings, the README, the changelog, words that do not belong here.
//!
//! What is allowed is data at the head of a test. A change that fails here either breaks a rule or
//! changes it: then the data is what to change, and why is what to say.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[track_caller]
fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files under a folder with this ending, by their path from the root.
fn files(folder: &str, ending: &str) -> Vec<String> {
    fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        let Ok(entries) = fs::read_dir(folder) else {
            return;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            let hidden = path.file_name().unwrap().to_str().unwrap().starts_with('.');
            if path.is_dir() && !hidden && !path.ends_with("target") && !path.ends_with("out") {
                walk(&path, ending, found);
            } else if path.to_str().unwrap().ends_with(ending) {
                found.push(path);
            }
        }
    }

    let mut found = Vec::new();
    walk(&root().join(folder), ending, &mut found);
    let mut names: Vec<String> = found
        .iter()
        .map(|path| {
            path.strip_prefix(root())
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    names.sort();
    names
}

/// The lines that are code, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[track_caller]
fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

// ---- Source ------------------------------------------------------------------------------------

/// From the bottom to the top. A file uses only files of lower layers, so there is no circle.
/// `connection`, `core`, `net`, `signal`, `sync`, `task` and `testing` are one room each; a folder's `mod.rs` is called by the folder's name.
const LAYERS: [(&str, &[&str]); 14] = [
    (
        "values: know nothing",
        &[
            "address",
            "clock",
            "context",
            "doorbell",
            "error",
            "key",
            "random",
            "sys",
            "sys/addrinfo",
            "sys/epoll",
            "sys/fork",
            "sys/signal",
        ],
    ),
    (
        "organs: know values, and never one another",
        &[
            "ready",
            "record",
            "report",
            "resolve/lane",
            "selector",
            "timers",
        ],
    ),
    (
        "what stands on the seam of selectors",
        &["selector/source_id", "socket", "sys/poller"],
    ),
    (
        "the default selector, and the table",
        &["selector/polling", "selector/table"],
    ),
    ("the heart", &["core"]),
    (
        "callbacks: their handles, and where they sit",
        &["callback", "recurring"],
    ),
    ("hands", &["handle"]),
    (
        "nouns with their verbs",
        &[
            "promise", "resolve", "signal", "sync", "task", "time", "watch",
        ],
    ),
    ("verbs of many tasks", &["gather", "group", "wait"]),
    (
        "the owner, and the way in from outside",
        &["event_loop", "remote"],
    ),
    ("connections", &["connection"]),
    ("verbs of connections", &["net"]),
    ("doors", &["policy", "run", "testing"]),
    ("tests that need a whole loop", &["resolve/tests"]),
];

/// What a file uses although it is not below it, and why that is right.
const EXCEPTIONS: [(&str, &str, &str); 1] = [(
    "testing",
    "run",
    "a test ends what is left as a program does",
)];

/// `src/selector/table.rs` is `selector/table`, `src/task/body.rs` is `task`.
fn room(file: &str) -> String {
    let path = file.trim_start_matches("src/").trim_end_matches(".rs");
    let path = path.trim_end_matches("/mod");
    match path.split_once('/') {
        Some((
            folder @ ("connection" | "core" | "net" | "signal" | "sync" | "task" | "testing"),
            _,
        )) => folder.to_owned(),
        _ => path.to_owned(),
    }
}

/// What `lib.rs` shows of each module: `crate::Bell` is `doorbell`'s.
fn exports() -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    for statement in read("src/lib.rs").split(';') {
        let Some((_, path)) = statement.split_once("pub use self::") else {
            continue;
        };
        let (module, names) = path.split_once("::").unwrap();
        for name in names.split(|c: char| !c.is_alphanumeric() && c != '_') {
            exports.insert(name.to_owned(), module.to_owned());
        }
    }
    exports
}

/// The room that a path from the crate's root leads to.
fn target(path: &str, rooms: &BTreeSet<String>, exports: &BTreeMap<String, String>) -> String {
    let mut words = path.split("::").filter(|word| !word.is_empty());
    let first = words.next().unwrap_or_default();
    let two = words.next().map(|second| format!("{first}/{second}"));
    match two {
        Some(two) if rooms.contains(&two) => two,
        _ if rooms.contains(first) => first.to_owned(),
        _ => exports
            .get(first)
            .unwrap_or_else(|| panic!("crate::{path} leads nowhere"))
            .clone(),
    }
}

#[test]
fn a_file_uses_only_lower_layers() {
    let exports = exports();
    let sources = files("src", ".rs");
    let rooms: BTreeSet<String> = sources.iter().map(|file| room(file)).collect();
    let layer: BTreeMap<&str, usize> = LAYERS
        .iter()
        .enumerate()
        .flat_map(|(height, (_, rooms))| rooms.iter().map(move |room| (*room, height)))
        .collect();
    let known: BTreeSet<String> = layer.keys().map(ToString::to_string).collect();
    let without_root: BTreeSet<_> = rooms
        .iter()
        .filter(|room| *room != "lib")
        .cloned()
        .collect();
    assert_eq!(without_root, known, "the table of layers and the tree");

    let mut upward = Vec::new();
    let mut used = BTreeSet::new();
    for file in sources.iter().filter(|file| *file != "src/lib.rs") {
        let from = room(file);
        let text = read(file);
        for (line, code) in code(&text) {
            for (_, path) in code
                .match_indices("crate::")
                .map(|(at, _)| code.split_at(at + 7))
            {
                assert!(
                    !path.starts_with('{'),
                    "{file}:{line}: one `use` for each module"
                );
                let end = path.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
                let to = target(&path[..end.unwrap_or(path.len())], &rooms, &exports);
                let exception = EXCEPTIONS.iter().find(|e| (e.0, e.1) == (&*from, &*to));
                if let Some(exception) = exception {
                    used.insert(exception.2);
                } else if to != from && layer[&*to] >= layer[&*from] {
                    upward.push(format!("{file}:{line}: {from} uses {to}"));
                }
            }
        }
    }
    assert_none("uses that do not go down", &upward);
    let reasons: BTreeSet<_> = EXCEPTIONS.iter().map(|exception| exception.2).collect();
    assert_eq!(used, reasons, "exceptions that nobody needs any more");
}

/// An organ keeps its cells to itself, so that no borrow is alive in anybody else's code.
#[test]
fn no_refcell_is_open_to_the_crate() {
    let mut found = Vec::new();
    for file in files("src", ".rs") {
        for (line, code) in code(&read(&file)) {
            // Of a tuple's line only what is before its field counts.
            let plain = code
                .replace("pub(crate)", "pub")
                .replace("pub(super)", "pub");
            let before = plain.split("RefCell<").next().unwrap_or_default();
            let field = before.rsplit('(').next().unwrap_or_default();
            let open = plain.contains("RefCell<") && field.trim_start().starts_with("pub");
            if open || plain.contains("RefMut<") || plain.contains("cell::Ref<") {
                found.push(format!("{file}:{line}: {}", code.trim()));
            }
        }
    }
    assert_none("cells, or borrows of them, that others can reach", &found);
}

#[test]
fn unsafe_code_is_in_sys_alone() {
    let mut found = Vec::new();
    for file in &files("src", ".rs") {
        let allowed = file.starts_with("src/sys/");
        for (line, code) in code(&read(file)) {
            let has = [
                "unsafe {",
                "unsafe fn",
                "unsafe impl",
                "unsafe trait",
                "unsafe extern",
            ];
            let has = has.iter().any(|form| code.contains(form)) || code.contains("unsafe_code,");
            if has && !allowed {
                found.push(format!("{file}:{line}: {}", code.trim()));
            }
        }
    }
    assert_none("unsafe code outside of src/sys", &found);
    assert!(read("macros/src/lib.rs").contains("#![forbid(unsafe_code)]"));
}

/// What this is, what always holds, what it does not do: that takes more than a line.
#[test]
fn every_source_file_says_what_it_is() {
    let mut found = Vec::new();
    for file in files("src", ".rs")
        .iter()
        .chain(&files("macros/src", ".rs"))
    {
        let text = read(file);
        let lines = text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .count();
        if lines < 3 {
            found.push(format!("{file}: {lines} lines"));
        }
    }
    assert_none("files that do not begin with three lines of `//!`", &found);
}

/// Beyond 700 lines a file holds two ideas.
#[test]
fn no_source_file_grows_unnoticed() {
    let long: Vec<String> = files("src", ".rs")
        .into_iter()
        .filter(|file| read(file).lines().count() > 700)
        .collect();
    assert_none("files of more than 700 lines", &long);
}

#[test]
fn no_name_of_a_file_is_a_drawer_for_everything() {
    let drawers = [
        "util", "utils", "helper", "helpers", "misc", "common", "manager", "inner",
    ];
    let found: Vec<String> = files("src", ".rs")
        .into_iter()
        .filter(|file| {
            let path = Path::new(file);
            drawers.contains(&path.file_stem().unwrap().to_str().unwrap())
        })
        .collect();
    assert_none("names that say nothing", &found);
}

/// A wish is in the tracker, not in the source; and what is in the source is used.
#[test]
fn no_source_file_has_leftovers() {
    let mut found = Vec::new();
    for file in ["src", "tests", "examples", "benches"]
        .iter()
        .flat_map(|folder| files(folder, ".rs"))
    {
        if file == "tests/tidy.rs" {
            continue;
        }
        for (at, line) in read(&file).lines().enumerate() {
            let left = [
                "TODO",
                "FIXME",
                "XXX",
                "dbg!",
                "unimplemented!",
                "#[ignore",
                "#[allow(",
            ];
            if let Some(word) = left.iter().find(|word| line.contains(**word)) {
                found.push(format!("{file}:{}: {word}", at + 1));
            }
        }
    }
    assert_none("leftovers", &found);
}

// ---- Tests -------------------------------------------------------------------------------------

/// Time is moved, or the event is waited for.
#[test]
fn no_test_sleeps() {
    let mut found = Vec::new();
    for file in files("tests", ".rs").iter().chain(&files("src", ".rs")) {
        if file == "tests/tidy.rs" {
            continue;
        }
        for (line, code) in code(&read(file)) {
            if ["thread::sleep", "sleep_ms", "park_timeout"]
                .iter()
                .any(|s| code.contains(s))
            {
                found.push(format!("{file}:{line}: {}", code.trim()));
            }
        }
    }
    assert_none("sleeps", &found);
}

/// The tests of `tests`, by the module they are in.
fn tests() -> BTreeMap<String, BTreeSet<String>> {
    let mut tests: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files("tests", ".rs").iter().chain(&files("src", ".rs")) {
        let module = Path::new(file).file_stem().unwrap().to_str().unwrap();
        let text = read(file);
        let names = code(&text).filter_map(|(_, line)| {
            let name = line
                .trim_start()
                .trim_start_matches("async ")
                .strip_prefix("fn ")?;
            Some(name.split(['(', '<']).next()?.to_owned())
        });
        tests.entry(module.to_owned()).or_default().extend(names);
    }
    tests
}

/// A module that is not declared is not run.
#[test]
fn every_module_of_the_suite_is_in_it() {
    let main = read("tests/it/main.rs");
    let mut missing: Vec<String> = files("tests/it", ".rs")
        .into_iter()
        .filter(|file| {
            let name = Path::new(file).file_stem().unwrap().to_str().unwrap();
            name != "main" && !main.contains(&format!("mod {name};"))
        })
        .collect();
    missing.retain(|file| !file.ends_with("/mod.rs"));
    assert_none("modules that tests/it/main.rs does not name", &missing);
}

// ---- The book ----------------------------------------------------------------------------------

/// What stands between backticks on a page.
fn quoted(text: &str) -> Vec<String> {
    let prose: String = text
        .split("```")
        .step_by(2) // what stands between fences is a listing
        .collect();
    prose
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_page_of_the_book_is_in_its_summary_and_is_a_page() {
    let summary = read("book/src/SUMMARY.md");
    let mut wrong = Vec::new();
    let pages = files("book/src", ".md");
    for page in pages.iter().filter(|page| !page.ends_with("SUMMARY.md")) {
        let name = page.trim_start_matches("book/src/");
        if !summary.contains(&format!("({name})")) {
            wrong.push(format!("{page} is not in the summary"));
        }
        let lines = read(page).lines().count();
        if lines < 40 {
            wrong.push(format!("{page} has {lines} lines"));
        }
    }
    let linked = summary
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    for page in linked {
        if !pages.contains(&format!("book/src/{page}")) {
            wrong.push(format!("{page} is in the summary and nowhere else"));
        }
    }
    assert!(pages.len() > 5, "{pages:?}");
    assert_none("the book", &wrong);
}

#[test]
fn every_listing_of_the_book_is_an_example_s_by_anchor() {
    let mut wrong = Vec::new();
    let mut listings = 0;
    for page in files("book/src", ".md") {
        let text = read(&page);
        for include in text.split("{{#").skip(1) {
            listings += 1;
            let include = include.split("}}").next().unwrap();
            let Some(path) = include.strip_prefix("include ../../") else {
                wrong.push(format!(
                    "{page}: `{include}` is not an include of an example"
                ));
                continue;
            };
            let (file, anchor) = match path.split_once(':') {
                Some((file, anchor)) => (file, Some(anchor)),
                None => (path, None),
            };
            if !root().join(file).is_file() {
                wrong.push(format!("{page}: {file} does not exist"));
                continue;
            }
            let Some(anchor) = anchor else { continue };
            let source = read(file);
            let stands = |word: &str| {
                let mark = format!("// {word}: {anchor}");
                source.lines().filter(|line| line.trim() == mark).count() == 1
            };
            if !stands("ANCHOR") || !stands("ANCHOR_END") {
                wrong.push(format!("{page}: {file} has no anchor `{anchor}`"));
            }
        }
    }
    assert!(listings > 5);
    assert_none("listings", &wrong);
}

/// An anchor that no page includes is a leftover.
#[test]
fn every_anchor_is_included_somewhere() {
    let book: String = files("book/src", ".md").iter().map(read).collect();
    let mut unused = Vec::new();
    for file in files("examples", ".rs") {
        for line in read(&file).lines() {
            if let Some(anchor) = line.trim().strip_prefix("// ANCHOR: ") {
                let include = format!("{{{{#include ../../{file}:{anchor}}}}}");
                if !book.contains(&include) {
                    unused.push(format!("{file}: {anchor}"));
                }
            }
        }
    }
    assert_none("anchors that no page includes", &unused);
}

/// A page that says which test proves a sentence names one that exists.
#[test]
fn every_test_that_the_book_names_exists() {
    let tests = tests();
    let all: BTreeSet<&String> = tests.values().flatten().collect();
    let mut named = 0;
    let mut missing = Vec::new();
    let pages = files("book/src", ".md");
    for page in pages
        .iter()
        .map(String::as_str)
        .chain(["README.md", "CHANGELOG.md"])
    {
        for quote in quoted(&read(page)) {
            let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            let known = if let Some((module, name)) = quote.split_once("::") {
                let in_suite = root().join(format!("tests/it/{module}.rs")).is_file();
                if !in_suite || !name.chars().all(is_name) {
                    continue;
                }
                tests[module].contains(name)
            } else if ["c_", "fault_"]
                .iter()
                .any(|start| quote.starts_with(start))
                && quote.chars().all(is_name)
            {
                all.iter().any(|test| test.starts_with(&quote))
            } else {
                continue;
            };
            named += 1;
            if !known {
                missing.push(format!("{page}: {quote}"));
            }
        }
    }
    assert!(
        named > 10,
        "the page on the turn names a test for each sentence"
    );
    assert_none("tests that do not exist", &missing);
}

/// Whatever stands in the first paragraph of the law stands in the source as well.
#[test]
fn the_law_is_the_same_wherever_it_is_written() {
    fn steps(text: &str, comment: &str) -> Vec<String> {
        let plain = text
            .lines()
            .map(|line| line.trim_start().trim_start_matches(comment).trim());
        let from = plain.skip_while(|line| !line.starts_with("1. Timeout"));
        let law: Vec<&str> = from.take_while(|line| !line.is_empty()).collect();
        let law = law.join(" ");
        (1..=7)
            .map(|step| {
                let start = law.find(&format!("{step}. ")).unwrap_or_default();
                let end = law.find(&format!(" {}. ", step + 1)).unwrap_or(law.len());
                law[start..end].to_owned()
            })
            .collect()
    }

    let law = steps(&read("src/core/mod.rs"), "//!");
    assert_eq!(law[6], "7. If a stop was asked, leave.");
    assert_eq!(steps(&read("src/lib.rs"), "//!"), law);
    assert_eq!(steps(&read("book/src/the-turn.md"), ""), law);
}

// ---- README, examples, changelog ---------------------------------------------------------------

#[test]
fn the_readme_is_short_and_its_program_is_an_example() {
    let readme = read("README.md");
    let lines = readme.lines().count();
    assert!(lines <= 150, "{lines} lines");
    let (_, program) = readme.split_once("```rust\n").expect("a program");
    let (program, _) = program.split_once("```").unwrap();
    let code = program
        .lines()
        .filter(|line| !line.trim().is_empty())
        .count();
    assert!(code <= 27, "{code} lines of a program of about 25");
    let same = files("examples", ".rs")
        .into_iter()
        .find(|file| read(file) == program);
    let same = same.expect("the first program is an example, byte for byte");
    assert!(readme.contains(&same), "it says which one: {same}");
    // What is written in one place cannot drift.
    let manifest = read("Cargo.toml");
    let (_, least) = manifest.split_once("rust-version = \"").unwrap();
    let least = least.split('"').next().unwrap();
    assert!(
        !readme.contains(least),
        "the least Rust version is in Cargo.toml"
    );
}

#[test]
fn every_example_is_a_program_that_is_listed_and_says_what_it_is() {
    let pages: String = files("book/src", ".md").iter().map(read).collect();
    let pages = pages + &read("README.md");
    let mut wrong = Vec::new();
    let examples = files("examples", ".rs");
    for file in &examples {
        let name = Path::new(file).file_stem().unwrap().to_str().unwrap();
        let listed = [
            file.to_string(),
            format!("`{name}`"),
            format!("--example {name}"),
        ];
        if !listed.iter().any(|form| pages.contains(form.as_str())) {
            wrong.push(format!("{file} is listed nowhere"));
        }
        let text = read(file);
        if !text.starts_with("//! ") {
            wrong.push(format!("{file} does not say what it is"));
        }
        let stays = text.contains("//! Runs until stopped");
        let checks = ["assert", "io::Error::other("]
            .iter()
            .any(|check| text.contains(check));
        if !stays && !checks {
            wrong.push(format!("{file} ends without having asserted anything"));
        }
        let lines = text.lines().count();
        if lines > 120 {
            wrong.push(format!("{file} has {lines} lines"));
        }
    }
    for name in [
        "hello",
        "display_date",
        "watch_fd",
        "order",
        "mixed",
        "echo_server",
    ] {
        if !examples.contains(&format!("examples/{name}.rs")) {
            wrong.push(format!("there is no example {name}"));
        }
    }
    assert_none("examples", &wrong);
}

#[test]
fn the_changelog_s_newest_version_is_the_crate_s_and_its_dates_go_back() {
    let manifest = read("Cargo.toml");
    let (_, version) = manifest.split_once("\nversion = \"").unwrap();
    let version = version.split('"').next().unwrap();
    let changelog = read("CHANGELOG.md");
    let headings: Vec<&str> = changelog
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .collect();
    let (top, rest) = headings.split_first().expect("a heading");
    let mut released: Vec<&str> = rest.to_vec();
    if *top != "Unreleased" {
        assert!(
            top.starts_with(&format!("{version} (")),
            "{top} is on top of {version}"
        );
        released.insert(0, top);
    } else if let Some(newest) = released.first() {
        assert!(
            newest.starts_with(&format!("{version} (")),
            "{newest} is not {version}"
        );
    }
    let date = |heading: &str| {
        let (_, date) = heading.split_once(" (").expect("a date");
        date.trim_end_matches(')').to_owned()
    };
    let dates: Vec<String> = released.iter().map(|heading| date(heading)).collect();
    assert!(
        dates.is_sorted_by(|newer, older| newer >= older),
        "{dates:?}"
    );
    // A release is told in a paragraph before it is listed.
    for section in changelog
        .split("\n# ")
        .map(|section| section.trim_start_matches("# "))
    {
        let first = section.lines().skip(1).find(|line| !line.trim().is_empty());
        let first = first.expect("a section says something");
        assert!(
            !first.starts_with(['#', '*', '-']),
            "a paragraph comes first: {first}"
        );
    }
}

// ---- Words -------------------------------------------------------------------------------------

/// The project speaks of itself alone: not of the machine it was written on, nor of its tracker.
#[test]
fn no_file_speaks_of_a_machine_or_a_tracker() {
    // Split, so that this file does not find itself.
    let forbidden = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/tm", "p/co"),
        concat!("../sha", "red"),
        concat!("sha", "red/spec"),
        concat!("house", ".md"),
        concat!("conform", "ance.md"),
        concat!("faults", ".md"),
        concat!("artifac", "tory"),
        concat!("index.", "crates.io"),
        concat!("static.", "crates.io"),
        concat!("pypi", ".org"),
        concat!("git", "lab"),
    ];
    let mut found = Vec::new();
    let mut all: Vec<String> = [
        "src", "macros", "tests", "examples", "book", "scripts", "benches",
    ]
    .iter()
    .flat_map(|folder| files(folder, ""))
    .filter(|file| !file.ends_with("Cargo.lock") && !file.contains("/results/"))
    .collect();
    all.extend(["README.md", "CHANGELOG.md", "Cargo.toml", ".ci/run"].map(str::to_owned));
    assert!(all.len() > 60, "{all:?}");
    for file in all {
        let Ok(text) = fs::read_to_string(root().join(&file)) else {
            continue; // a picture, say
        };
        for (at, line) in text.lines().enumerate() {
            let lower = line.to_lowercase();
            let word = forbidden.iter().find(|word| lower.contains(**word));
            let number = ["issue ", "issue #", "issues "].iter().any(|start| {
                let after = lower.split(start).nth(1).unwrap_or_default();
                after.starts_with(|c: char| c.is_ascii_digit())
            });
            if number || word.is_some() {
                found.push(format!("{file}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    assert_none("words that do not belong here", &found);
}

/// Whoever builds this gets it from the one public registry, and benchmarks bring nothing into it.
#[test]
fn every_dependency_comes_from_the_public_registry() {
    let lock = read("Cargo.lock");
    let public = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
    let sources = lock.lines().filter(|line| line.starts_with("source = "));
    let other: Vec<String> = sources
        .filter(|line| *line != public)
        .map(str::to_owned)
        .collect();
    assert_none("other sources", &other);
    let names = lock
        .lines()
        .filter_map(|line| line.strip_prefix("name = \""));
    let peers: Vec<String> = names
        .map(|name| name.trim_end_matches('"').to_owned())
        .filter(|name| ["tokio", "monoio", "smol", "glommio", "calloop"].contains(&&**name))
        .collect();
    assert_none("peers in the library's own tree", &peers);
}
