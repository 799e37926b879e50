//! The list of an app's functions, as the app gives it: read tolerantly, within bounds. What is wrong with one function
//! leaves out that function, and is said in words.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map, Value, json};

use crate::{
    declaration::Declaration,
    gate::Gate,
    name::{FunctionName, Name},
};

/// The most functions of one app.
const MAX_FUNCTIONS: usize = 1000;
/// The most remarks on one list.
const MAX_REMARKS: usize = 20;

/// The functions of an app, with what each declares.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) functions: BTreeMap<FunctionName, Declaration>,
    /// What bounds the calls of each function that declares a concurrency.
    pub(super) gates: BTreeMap<FunctionName, Arc<Gate>>,
    /// What was left out or ignored, a line each.
    pub(crate) remarks: Vec<String>,
}

impl Listing {
    /// The list in `body`.
    ///
    /// # Errors
    /// Why it is no list, in words.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let list: Map<String, Value> = serde_json::from_slice(body)
            .map_err(|error| format!("the list is no JSON object: {error}"))?;
        let Some(Value::Object(entries)) = list.get("functions") else {
            return Err(
                "the list has no object \"functions\"; answer {\"functions\":{\"Math.add\":{}}}"
                    .to_owned(),
            );
        };
        if entries.len() > MAX_FUNCTIONS {
            let count = entries.len();
            return Err(format!(
                "the list has {count} functions, more than {MAX_FUNCTIONS}"
            ));
        }
        let mut found = Self::default();
        for member in list.keys().filter(|member| *member != "functions") {
            found.remark(format!("the list has an unknown member {member:?}"));
        }
        for (name, declared) in entries {
            match function_name(name).and_then(|name| Ok((name, found.declaration(declared)?))) {
                Ok((name, declaration)) => {
                    found.functions.insert(name, declaration);
                }
                Err(wrong) => found.remark(format!("{name:?} is left out: {wrong}")),
            }
        }
        Ok(found)
    }

    fn declaration(&mut self, declared: &Value) -> Result<Declaration, String> {
        let Value::Object(members) = declared else {
            return Err("what it declares is no object; write {} for nothing".to_owned());
        };
        let is_known = |member: &&String| Declaration::MEMBERS.contains(&member.as_str());
        for member in members.keys().filter(|member| !is_known(member)) {
            self.remark(format!("a function has an unknown member {member:?}"));
        }
        let read = |declared| serde_json::from_value::<Declaration>(declared);
        // Each by itself, because the error does not say which it is about.
        for (member, value) in members {
            read(json!({member: value})).map_err(|error| format!("{member}: {error}"))?;
        }
        let declaration = read(declared.clone()).map_err(|error| error.to_string())?;
        declaration.check()?;
        Ok(declaration)
    }

    fn remark(&mut self, remark: String) {
        if self.remarks.len() < MAX_REMARKS && !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }

    /// The same list with gates as it declares them. One of the `former` list whose limit stays keeps the calls in it.
    pub(super) fn with_gates_of(mut self, former: &Self) -> Self {
        let limits = self.functions.iter();
        let limits = limits.filter_map(|(name, declared)| Some((name, declared.concurrency?)));
        let gates = limits.map(|(name, limit)| {
            let kept = former.gates.get(name).filter(|gate| gate.limit() == limit);
            let gate = kept.map_or_else(|| Arc::new(Gate::new(limit)), Arc::clone);
            (name.clone(), gate)
        });
        self.gates = gates.collect();
        self
    }
}

/// A name, split at its last dot. One whose module would lead out of the folder of functions is invalid: servers resolve
/// `..` also when it is percent-encoded.
fn function_name(text: &str) -> Result<FunctionName, String> {
    let Some((module, function)) = text.rsplit_once('.') else {
        return Err("a name has a module, as in Math.add".to_owned());
    };
    let is_dots = |segment: &str| matches!(segment, "." | "..");
    if module.split(['/', '\\']).any(is_dots) {
        return Err("its module has a path segment of dots".to_owned());
    }
    let name = |text: &str| -> Result<Name, String> {
        text.parse()
            .map_err(|_| format!("{text:?} is not {}", Name::RULE))
    };
    Ok(FunctionName {
        module: name(module)?,
        function: name(function)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_at_the_last_dot_and_what_is_wrong_is_left_out() {
        let listing = Listing::parse(
            br#"{"functions":{"Fly.RPC.now":{},"Math.add":{"timeout_ms":2000,"idempotent":true,"concurrency":8,
                "params":[{"name":"a"},{"name":"b","schema":{"type":"integer"}}]},
                "plain":{},"...x":{},"a/../b.x":{},"A. b":{},"A.zero":{"timeout_ms":0},"A.none":null,"A.odd":{"shape":1},
                "A.pair":{"params":[{"name":"a"},{"name":"a"}]},"A.text":{"doc":"it","timeout_ms":"2s"},
                "A.blank":{"params":[{"name":""}]}},
                "version":2}"#,
        )
        .unwrap();
        let names: Vec<_> = listing.functions.keys().collect();
        assert_eq!(
            names.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["A.odd", "Fly.RPC.now", "Math.add"]
        );
        let name = names[1];
        assert_eq!(
            (name.module.as_str(), name.function.as_str()),
            ("Fly.RPC", "now")
        );
        assert_eq!(
            listing.remarks,
            [
                "the list has an unknown member \"version\"",
                "\"...x\" is left out: its module has a path segment of dots",
                "\"A. b\" is left out: \" b\" is not 1 to 128 printable ASCII characters without space",
                "\"A.blank\" is left out: a parameter's name must have 1 to 128 bytes",
                "\"A.none\" is left out: what it declares is no object; write {} for nothing",
                "a function has an unknown member \"shape\"",
                "\"A.pair\" is left out: the parameter \"a\" is declared twice",
                "\"A.text\" is left out: timeout_ms: invalid type: string \"2s\", expected u64",
                "\"A.zero\" is left out: timeout_ms must be an integer from 1 to 86400000",
                "\"a/../b.x\" is left out: its module has a path segment of dots",
                "\"plain\" is left out: a name has a module, as in Math.add",
            ]
        );
    }
}
