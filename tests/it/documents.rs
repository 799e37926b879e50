//! The documentation and the image against the program: the pages that list settings and codes list what there is.

use std::{fs, path::PathBuf};

use fly_rpc::{Code, SETTINGS, Setting};

/// What stands around the part of a page that is generated.
const BEGIN: &str = "<!-- generated: cargo test --test it documents -->\n";
const END: &str = "<!-- end -->\n";

fn path(page: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "docs/src", page]
        .iter()
        .collect()
}

fn read(page: &str) -> String {
    fs::read_to_string(path(page)).unwrap()
}

#[test]
fn the_configuration_page_has_the_settings_of_the_program() {
    let page = read("configuration.md");
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let generated = format!("{before}{BEGIN}{}{END}{after}", settings());
    if page != generated {
        fs::write(path("configuration.md"), generated).unwrap();
        panic!("docs/src/configuration.md was out of date and is now written anew: commit it");
    }
}

fn settings() -> String {
    let rows = SETTINGS.iter().map(row);
    [
        "| variable | flag | default | meaning |\n",
        "|---|---|---|---|\n",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain(rows)
    .collect()
}

fn row(setting: &Setting) -> String {
    let flag = match setting.flag {
        "" => "none".to_owned(),
        flag => format!("`--{flag}`"),
    };
    let default = match setting.default {
        "none" => "none".to_owned(),
        words if words.contains(' ') => cell(words),
        value => format!("`{value}`"),
    };
    let (variable, value) = (setting.variable, cell(setting.value));
    let help = cell(setting.help);
    format!("| `{variable}` `{value}` | {flag} | {default} | {help} |\n")
}

/// The text of a cell of a table, in which nothing is markup.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('*', "\\*")
}

#[test]
fn every_code_has_its_section_on_the_errors_page() {
    let page = read("errors.md");
    let codes = Code::ALL.iter().map(|code| code.as_str());
    for code in Code::ALL {
        let executed = code.executed().iter().map(|executed| executed.as_str());
        let executed = executed.collect::<Vec<_>>().join(" or ");
        let (status, title) = (code.status(), code.title());
        let start = format!("\n### `{code}`\n\nStatus {status}, executed: {executed}. {title}.\n");
        assert!(
            page.contains(&start),
            "docs/src/errors.md has no section that starts with{start}"
        );
    }
    let sections = page
        .lines()
        .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'));
    let mut sections: Vec<_> = sections.collect();
    let mut codes: Vec<_> = codes.collect();
    sections.sort_unstable();
    codes.sort_unstable();
    assert_eq!(sections, codes);
}

#[test]
fn the_rust_of_every_page_is_compiled() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let library = fs::read_to_string(root.join("src/lib.rs")).unwrap();
    let folders = [root.clone(), root.join("docs/src")];
    let files = folders
        .iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|file| file.unwrap().path());
    for file in files.filter(|file| file.extension().is_some_and(|it| it == "md")) {
        let page = fs::read_to_string(&file).unwrap();
        let name = file.strip_prefix(&root).unwrap().display();
        let included = format!("include_str!(\"../{name}\")");
        assert!(
            !page.contains("```rust") || library.contains(&included),
            "src/lib.rs does not compile the Rust of {name}"
        );
    }
}

#[test]
fn the_image_has_every_feature_of_an_instance() {
    let read = |file: &str| {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file);
        fs::read_to_string(path).unwrap()
    };
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let default = manifest["features"]["default"].as_array().unwrap();
    let default = default.iter().map(|feature| feature.as_str().unwrap());
    // Not those of commands: `dev`, and the others that ask an instance.
    let features: Vec<_> = default
        .filter(|it| !["dev", "https"].contains(it))
        .collect();
    let features = features.join(",");
    let dockerfile = read("Dockerfile");
    let built = dockerfile.split("--features ").skip(1);
    let built = built.map(|rest| rest.split(' ').next().unwrap());
    assert_eq!(built.collect::<Vec<_>>(), [features.as_str(); 2]);
}
