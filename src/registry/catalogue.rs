//! The names of an instance's functions, and a hash by which peers see that they know them already.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::{
    declaration::Declaration,
    json,
    name::{FunctionName, Name},
};

/// A hash of a catalogue: equal for equal sets of names, on every machine and in every release.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub(crate) struct CatalogueHash(String);

/// The functions of one instance, by module, and what each declares.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Received")]
pub(crate) struct Catalogue {
    hash: CatalogueHash,
    functions: BTreeMap<Name, BTreeMap<Name, Declaration>>,
}

/// A catalogue as it is sent.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Catalogue)]
pub(crate) struct CatalogueDocument {
    /// A hash of the rest: equal for equal sets of functions that declare the same.
    #[schema(value_type = String, example = "5d41402abc4b2a76b9719d911017c592")]
    pub catalogue: CatalogueHash,
    /// The functions of each module.
    #[schema(value_type = BTreeMap<String, Vec<String>>, example = json!({"String": ["upcase"]}))]
    pub functions: BTreeMap<Name, BTreeSet<Name>>,
    /// What functions declare, by `Module.function`; those that declare nothing are not in it.
    #[schema(example = json!({"Notes.create": {"timeout_ms": 2000}}))]
    pub details: BTreeMap<String, Declaration>,
}

/// The same as it comes in: the hash is made anew, and what does not belong to a function is left out.
#[derive(Deserialize)]
struct Received {
    functions: BTreeMap<Name, BTreeSet<Name>>,
    #[serde(default)]
    details: BTreeMap<String, Declaration>,
}

impl Catalogue {
    /// The catalogue of functions with what each declares.
    pub(crate) fn new(declared: impl IntoIterator<Item = (FunctionName, Declaration)>) -> Self {
        let mut functions: BTreeMap<Name, BTreeMap<Name, Declaration>> = BTreeMap::new();
        for (FunctionName { module, function }, declaration) in declared {
            let module = functions.entry(module).or_default();
            module.entry(function).or_insert(declaration);
        }
        Self {
            hash: hash(&functions),
            functions,
        }
    }

    /// Its hash.
    pub(crate) fn hash(&self) -> &CatalogueHash {
        &self.hash
    }

    /// The functions and what each declares, sorted by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (FunctionName, &Declaration)> {
        self.functions.iter().flat_map(|(module, functions)| {
            functions.iter().map(|(function, declaration)| {
                let (module, function) = (module.clone(), function.clone());
                (FunctionName { module, function }, declaration)
            })
        })
    }

    /// How many functions are in it.
    pub(crate) fn len(&self) -> usize {
        self.functions.values().map(BTreeMap::len).sum()
    }

    /// The names in it, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = FunctionName> {
        self.iter().map(|(name, _)| name)
    }

    /// What the function declares, if it is in it.
    pub(crate) fn get(&self, name: &FunctionName) -> Option<&Declaration> {
        self.functions.get(&name.module)?.get(&name.function)
    }

    /// Whether the function is in it.
    pub(crate) fn has(&self, name: &FunctionName) -> bool {
        self.get(name).is_some()
    }
}

impl From<Received> for Catalogue {
    fn from(received: Received) -> Self {
        let Received {
            functions,
            mut details,
        } = received;
        let names = functions.into_iter().flat_map(|(module, functions)| {
            let name = move |function| FunctionName {
                module: module.clone(),
                function,
            };
            functions.into_iter().map(name)
        });
        Self::new(names.map(|name| {
            let declaration = details.remove(&name.to_string());
            (name, declaration.unwrap_or_default())
        }))
    }
}

impl From<&Catalogue> for CatalogueDocument {
    fn from(catalogue: &Catalogue) -> Self {
        let declares = |declaration: &Declaration| !declaration.is_empty();
        let declared = catalogue.iter().filter(|(_, it)| declares(it));
        let names = catalogue.functions.iter();
        Self {
            catalogue: catalogue.hash.clone(),
            functions: names
                .map(|(module, functions)| (module.clone(), functions.keys().cloned().collect()))
                .collect(),
            details: declared
                .map(|(name, declaration)| (name.to_string(), declaration.clone()))
                .collect(),
        }
    }
}

/// The first 16 bytes of SHA-256 over the sorted names, each with what it declares; no name holds white space.
fn hash(functions: &BTreeMap<Name, BTreeMap<Name, Declaration>>) -> CatalogueHash {
    let mut hasher = Sha256::new();
    for (module, functions) in functions {
        for (function, declaration) in functions {
            hasher.update(format!("{module} {function}"));
            if !declaration.is_empty() {
                hasher.update(" ");
                hasher.update(json::to_vec(declaration));
            }
            hasher.update("\n");
        }
    }
    CatalogueHash(
        hasher.finalize()[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(names: &[(&str, &str)]) -> Catalogue {
        let name = |(module, function): &(&str, &str)| FunctionName {
            module: module.parse().unwrap(),
            function: function.parse().unwrap(),
        };
        Catalogue::new(
            names
                .iter()
                .map(|pair| (name(pair), Declaration::default())),
        )
    }

    #[test]
    fn the_hash_depends_on_the_names_alone() {
        let one = catalogue(&[("A", "f"), ("A", "g"), ("B", "f")]);
        assert_eq!(
            one.hash(),
            catalogue(&[("B", "f"), ("A", "g"), ("A", "f"), ("A", "f")]).hash()
        );
        assert_ne!(
            one.hash(),
            catalogue(&[("A", "f"), ("A", "g"), ("B.f", "f")]).hash()
        );
        assert_eq!(
            catalogue(&[]).hash(),
            &CatalogueHash("e3b0c44298fc1c149afbf4c8996fb924".to_owned())
        );
    }

    #[test]
    fn what_is_declared_is_part_of_the_hash_and_survives_the_wire() {
        let name = || FunctionName {
            module: "Math".parse().unwrap(),
            function: "add".parse().unwrap(),
        };
        let declaration = Declaration {
            idempotent: Some(true),
            ..Declaration::default()
        };
        let sent = Catalogue::new([(name(), declaration.clone())]);
        assert_ne!(sent.hash(), catalogue(&[("Math", "add")]).hash());
        let text = serde_json::to_string(&CatalogueDocument::from(&sent)).unwrap();
        assert!(text.ends_with(
            r#""functions":{"Math":["add"]},"details":{"Math.add":{"idempotent":true}}}"#
        ));
        let received: Catalogue = serde_json::from_str(&text).unwrap();
        assert_eq!(received.hash(), sent.hash());
        assert_eq!(received.get(&name()), Some(&declaration));
    }

    #[test]
    fn a_catalogue_survives_the_wire() {
        let told = catalogue(&[("Fly.RPC", "is_primary?"), ("Kernel", "+")]);
        let text = serde_json::to_string(&CatalogueDocument::from(&told)).unwrap();
        let heard: Catalogue = serde_json::from_str(&text).unwrap();
        assert_eq!(heard.hash(), told.hash());
        assert!(heard.has(&FunctionName {
            module: "Kernel".parse().unwrap(),
            function: "+".parse().unwrap()
        }));
        assert!(
            text.contains(r#""functions":{"Fly.RPC":["is_primary?"],"Kernel":["+"]}"#),
            "{text}"
        );
    }
}
