//! The functions of an instance as it lists them, and a hash by which peers see that they know the list already.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::HEXLOWER;
use foldhash::fast::RandomState;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    declaration::Declaration,
    json,
    name::{FunctionName, Name},
};

/// A hash of a catalogue: equal for equal functions that declare the same, on every machine and in every release.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub(crate) struct CatalogueHash(String);

#[derive(Clone, Debug, Deserialize)]
#[serde(from = "CatalogueDocument")]
pub(crate) struct Catalogue {
    hash: CatalogueHash,
    /// Sorted by name.
    functions: IndexMap<FunctionName, Declaration, RandomState>,
}

/// A catalogue as it travels.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct CatalogueDocument {
    /// A hash of the rest. Whoever receives it makes it anew, and compares this one with the introduction alone.
    #[serde(default)]
    pub catalogue: CatalogueHash,
    pub functions: BTreeMap<Name, BTreeSet<Name>>,
    /// What functions declare, by `Module.function`; those that declare nothing are not in it.
    #[serde(default)]
    pub details: BTreeMap<String, Declaration>,
}

impl Catalogue {
    /// The catalogue of functions with what each declares; of two with one name, the first counts.
    pub(crate) fn new(declared: impl IntoIterator<Item = (FunctionName, Declaration)>) -> Self {
        let mut functions = IndexMap::default();
        for (name, declaration) in declared {
            functions.entry(name).or_insert(declaration);
        }
        functions.sort_unstable_keys();
        Self {
            hash: hash(&functions),
            functions,
        }
    }

    pub(crate) fn hash(&self) -> &CatalogueHash {
        &self.hash
    }

    /// The functions and what each declares, sorted by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&FunctionName, &Declaration)> {
        self.functions.iter()
    }

    /// The catalogue of the functions that `is_meant` names.
    pub(crate) fn only(&self, is_meant: impl Fn(&FunctionName) -> bool) -> Self {
        let meant = self.iter().filter(|(name, _)| is_meant(name));
        Self::new(meant.map(|(name, declared)| (name.clone(), declared.clone())))
    }

    pub(crate) fn len(&self) -> usize {
        self.functions.len()
    }

    pub(crate) fn get(&self, name: &FunctionName) -> Option<&Declaration> {
        self.functions.get(name)
    }

    pub(crate) fn has(&self, name: &FunctionName) -> bool {
        self.functions.contains_key(name)
    }
}

impl From<CatalogueDocument> for Catalogue {
    fn from(document: CatalogueDocument) -> Self {
        let mut details = document.details;
        let names = document.functions.into_iter().flat_map(|(module, names)| {
            names.into_iter().map(move |function| FunctionName {
                module: module.clone(),
                function,
            })
        });
        Self::new(names.map(|name| {
            let declaration = details.remove(&name.to_string());
            (name, declaration.unwrap_or_default())
        }))
    }
}

impl From<&Catalogue> for CatalogueDocument {
    fn from(catalogue: &Catalogue) -> Self {
        let mut document = Self {
            catalogue: catalogue.hash.clone(),
            functions: BTreeMap::new(),
            details: BTreeMap::new(),
        };
        for (name, declaration) in &catalogue.functions {
            let module = document.functions.entry(name.module.clone()).or_default();
            module.insert(name.function.clone());
            if !declaration.is_empty() {
                let declared = declaration.clone();
                document.details.insert(name.to_string(), declared);
            }
        }
        document
    }
}

/// The first 16 bytes of SHA-256 over the sorted names, each with what it declares; no name holds white space.
fn hash(functions: &IndexMap<FunctionName, Declaration, RandomState>) -> CatalogueHash {
    let mut hasher = Sha256::new();
    for (FunctionName { module, function }, declaration) in functions {
        hasher.update(format!("{module} {function}"));
        // Without what is not declared: a member that a later release adds changes no hash of a function that has none.
        if !declaration.is_empty() {
            hasher.update(" ");
            hasher.update(json::to_vec(declaration));
        }
        hasher.update("\n");
    }
    let bytes = hasher.finalize();
    CatalogueHash(HEXLOWER.encode(&bytes[..16]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(module: &str, function: &str) -> FunctionName {
        FunctionName::new(module, function).unwrap()
    }

    fn catalogue(names: &[(&str, &str)]) -> Catalogue {
        let names = names
            .iter()
            .map(|(module, function)| name(module, function));
        Catalogue::new(names.map(|name| (name, Declaration::new())))
    }

    #[test]
    fn the_hash_depends_on_the_names_alone() {
        let one = catalogue(&[("A", "f"), ("A", "g"), ("B", "f")]);
        let same = catalogue(&[("B", "f"), ("A", "g"), ("A", "f"), ("A", "f")]);
        let other = catalogue(&[("A", "f"), ("A", "g"), ("B.f", "f")]);
        assert_eq!(one.hash(), same.hash());
        assert_ne!(one.hash(), other.hash());
        let CatalogueHash(empty) = catalogue(&[]).hash;
        assert_eq!(empty, "e3b0c44298fc1c149afbf4c8996fb924");
    }

    #[test]
    fn a_catalogue_survives_the_wire_and_what_is_declared_is_part_of_the_hash() {
        let plain = catalogue(&[("Fly.RPC", "is_primary?"), ("Kernel", "+")]);
        let sent = Catalogue::new([
            (name("Fly.RPC", "is_primary?"), Declaration::new()),
            (name("Kernel", "+"), Declaration::new().idempotent(true)),
        ]);
        assert_ne!(sent.hash(), plain.hash());
        let text = serde_json::to_string(&CatalogueDocument::from(&sent)).unwrap();
        let rest = r#","functions":{"Fly.RPC":["is_primary?"],"Kernel":["+"]},"details":{"Kernel.+":{"idempotent":true}}}"#;
        assert!(text.ends_with(rest), "{text}");
        let received: Catalogue = serde_json::from_str(&text).unwrap();
        assert_eq!(received.hash(), sent.hash());
        assert!(received.iter().eq(sent.iter()));
    }
}
