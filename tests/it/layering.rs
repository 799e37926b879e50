//! The architecture's rules, held against the source: who may use whom, and what stands nowhere.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The layers, each of which uses only those before it; names on one line use each other.
const LAYERS: &[&[&str]] = &[
    &["name"],
    &["region"],
    &["token"],
    &["access"],
    &["deadline"],
    &["memory"],
    &["problem"],
    &["json"],
    &["declaration"],
    &["trace"],
    &["gate"],
    &["call", "reply"],
    &["config"],
    &["replay"],
    &["lifecycle"],
    &["client"],
    &["app"],
    &["protocol"],
    &["feed"],
    &["metrics"],
    &["local"],
    &["registry"],
    &["cluster"],
    &["link"],
    &["dispatch"],
    &["http"],
    &["fuzzing", "internals"],
    &["server"],
    &["rpc"],
    &["instance"],
    &["telemetry"],
    &["cli"],
];

struct Source {
    module: String,
    path: PathBuf,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let relative = path.strip_prefix(&root).unwrap().to_owned();
            let first = relative.iter().next().unwrap().to_str().unwrap();
            let module = first.trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).unwrap();
            found.push(Source {
                module,
                path: relative,
                text,
            });
        }
    }
    found
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The modules that a text names behind `crate::`, also inside braces.
fn used(text: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => used.extend(first_names(list)),
            None => used.extend(name_at(rest)),
        }
    }
    used
}

/// The first name of each part of a braced list.
fn first_names(list: &str) -> Vec<String> {
    let (mut depth, mut names, mut part) = (0, Vec::new(), String::new());
    for character in list.chars() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.extend(name_at(std::mem::take(&mut part).trim())),
            character => part.push(character),
        }
    }
    names.extend(name_at(part.trim()));
    names
}

fn name_at(text: &str) -> Option<String> {
    let name: String = text
        .chars()
        .take_while(|character| character.is_alphanumeric() || *character == '_')
        .collect();
    (!name.is_empty()).then_some(name)
}

#[test]
fn a_file_uses_only_the_layers_before_its_own() {
    let mut count = 0;
    for Source { module, path, text } in sources() {
        let Some(own) = layer(&module) else {
            assert!(
                ["lib", "main"].contains(&module.as_str()),
                "{} is in no layer",
                path.display()
            );
            continue;
        };
        for name in used(&text) {
            count += 1;
            // The public API at the crate's root stands for the modules behind it; only the command line uses it.
            let is_api = name.starts_with(char::is_uppercase) || name == "openapi_json";
            if is_api {
                assert_eq!(
                    module,
                    "cli",
                    "{} uses the crate's root: {name}",
                    path.display()
                );
                continue;
            }
            let used = layer(&name)
                .unwrap_or_else(|| panic!("{} uses {name}, which is in no layer", path.display()));
            assert!(
                used <= own,
                "{} uses {name}, which stands after {module}",
                path.display()
            );
        }
    }
    // Else this would have read nothing.
    assert!(count > 400, "{count}");
}

#[test]
fn each_library_stays_in_its_place() {
    let rules: [(&str, &[&str]); 6] = [
        ("axum::", &["http", "server", "instance", "cli"]),
        (
            "reqwest::",
            &["client", "link", "cluster", "instance", "telemetry", "cli"],
        ),
        ("hyper::client", &["app", "link", "replay", "cli"]),
        ("env::var", &["config"]),
        ("flate2::", &["http"]),
        ("rustls", &["cli"]),
    ];
    for Source { module, path, text } in sources() {
        for (library, places) in rules {
            let is_named = code(&text).any(|line| line.contains(library));
            assert!(
                !is_named || places.contains(&module.as_str()),
                "{} names {library}",
                path.display()
            );
        }
    }
}

#[test]
fn what_must_not_be_is_nowhere() {
    let banned = [
        ".unwrap()",
        "Arc<Mutex<",
        "unbounded_channel",
        "unsafe {",
        "todo!",
        "dbg!",
        // flate2 compresses what is served; nothing decompresses what others sent, so there is no bomb of it.
        "Decoder",
        "flate2::read",
        "flate2::bufread",
    ];
    for Source { path, text, .. } in sources() {
        if path.ends_with("tests.rs") {
            continue;
        }
        for line in code(&text) {
            let found = banned.iter().find(|banned| line.contains(**banned));
            assert!(
                found.is_none(),
                "{} has {}: {line}",
                path.display(),
                found.unwrap()
            );
        }
    }
}

#[test]
fn every_file_says_what_it_owns() {
    for Source { path, text, .. } in sources() {
        let header = text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .count();
        let limit = if path.ends_with("lib.rs") || path.ends_with("table.rs") {
            60
        } else {
            8
        };
        assert!(
            (1..=limit).contains(&header),
            "{} has {header} lines of header",
            path.display()
        );
    }
}

/// The lines of a file that are code: no comments, and nothing from its tests on.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().take_while(|line| *line != "mod tests {");
    lines.filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn what_must_not_be_compiled_in_is_not_in_the_lock_file() {
    let lock = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap();
    for (banned, reason) in [
        ("h2", "HTTP/1.1 only"),
        ("openssl", "TLS is spoken by the command line, with rustls"),
        ("aws-lc-sys", "one library of ciphers, ring"),
        ("async-compression", "no decompression, so no bomb of it"),
    ] {
        assert!(
            !lock.contains(&format!("name = \"{banned}\"\n")),
            "{banned}: {reason}"
        );
    }
}
