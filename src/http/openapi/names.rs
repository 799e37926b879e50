//! The names of operations and schemas in a document: those that generators make of them must differ too, in any case and
//! without the characters that an identifier cannot have.

use std::collections::BTreeSet;

use heck::ToSnakeCase;

use crate::name::FunctionName;

/// The names that are taken, as [`squashed`] leaves them.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeSet<String>);

impl Names {
    /// Those of `taken`.
    pub(super) fn new<'a>(taken: impl IntoIterator<Item = &'a str>) -> Self {
        Self(taken.into_iter().map(squashed).collect())
    }

    /// Takes `wanted`, or the first of `wanted` with 2, 3, … behind `separator` that is not taken.
    pub(super) fn claim(&mut self, wanted: &str, separator: &str) -> String {
        let numbered = (2_u32..).map(|number| format!("{wanted}{separator}{number}"));
        let mut all = std::iter::once(wanted.to_owned()).chain(numbered);
        all.find(|name| self.0.insert(squashed(name)))
            .unwrap_or_default()
    }
}

/// What of a name is left in every language: its letters and digits, without case.
pub(super) fn squashed(name: &str) -> String {
    let plain = name.chars().filter(|character| character.is_alphanumeric());
    plain.flat_map(char::to_lowercase).collect()
}

/// The operation that a function's name asks for: `notes_create` of `Notes.create`, `kernel_x2b` of `Kernel.+`.
pub(super) fn operation(name: &FunctionName) -> String {
    let FunctionName { module, function } = name;
    let operation = format!("{}_{}", word(module.as_str()), word(function.as_str()));
    match operation.starts_with(|first: char| first.is_ascii_digit()) {
        true => format!("fn_{operation}"),
        false => operation,
    }
}

fn word(name: &str) -> String {
    let word = name.to_snake_case();
    if !word.is_empty() {
        return word;
    }
    name.bytes().map(|byte| format!("x{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_identifiers() {
        let operation =
            |module: &str, function: &str| operation(&FunctionName::new(module, function).unwrap());
        assert_eq!(operation("Notes", "create"), "notes_create");
        assert_eq!(operation("Fly.RPC", "is_primary?"), "fly_rpc_is_primary");
        assert_eq!(operation("MyNotes", "createAll"), "my_notes_create_all");
        assert_eq!(operation("Kernel", "+"), "kernel_x2b");
        assert_eq!(operation("2", "f"), "fn_2_f");
        assert_eq!(operation("a\"\"\"", "*/"), "a_x2ax2f");
    }

    #[test]
    fn a_name_is_given_once_whatever_a_language_makes_of_it() {
        let mut names = Names::new(["callFunction"]);
        let claimed = [
            "notes_create",
            "NotesCreate",
            "call_function",
            "notescreate2",
        ]
        .map(|name| names.claim(name, "_"));
        assert_eq!(
            claimed,
            [
                "notes_create",
                "NotesCreate_2",
                "call_function_2",
                "notescreate2_2"
            ]
        );
    }
}
