//! The documentation against the program: no setting is missing from its page.

use std::{fs, path::Path};

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs/src")
        .join(name);
    fs::read_to_string(path).unwrap()
}

#[test]
fn every_setting_is_on_the_configuration_page() {
    let page = page("configuration.md");
    for setting in fly_rpc::SETTINGS {
        assert!(
            page.contains(&format!("`{}`", setting.variable)),
            "{} is not in docs/src/configuration.md",
            setting.variable
        );
    }
}
