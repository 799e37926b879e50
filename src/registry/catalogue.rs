//! The names of an instance's functions, and a hash by which peers see that they know them already.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::name::{FunctionName, Name};

/// A hash of a catalogue: equal for equal sets of names, on every machine and in every release.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub(crate) struct CatalogueHash(String);

/// The functions of one instance, by module.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(from = "Names", into = "Names")]
#[schema(as = FunctionCatalogue)]
pub(crate) struct Catalogue {
    /// A hash of the names: equal for equal sets of functions.
    #[schema(value_type = String, example = "5d41402abc4b2a76b9719d911017c592")]
    catalogue: CatalogueHash,
    /// The functions of each module.
    #[schema(value_type = BTreeMap<String, Vec<String>>, example = json!({"String": ["upcase"]}))]
    functions: BTreeMap<Name, BTreeSet<Name>>,
}

/// A catalogue on the wire.
#[derive(Deserialize, Serialize)]
struct Names {
    #[serde(default, skip_deserializing)]
    catalogue: String,
    functions: BTreeMap<Name, BTreeSet<Name>>,
}

impl Catalogue {
    /// The catalogue of `names`.
    pub(crate) fn new(names: impl IntoIterator<Item = FunctionName>) -> Self {
        let mut functions: BTreeMap<Name, BTreeSet<Name>> = BTreeMap::new();
        for FunctionName { module, function } in names {
            functions.entry(module).or_default().insert(function);
        }
        Self {
            catalogue: hash(&functions),
            functions,
        }
    }

    /// Its hash.
    pub(crate) fn hash(&self) -> &CatalogueHash {
        &self.catalogue
    }

    /// The names in it, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = FunctionName> {
        self.functions.iter().flat_map(|(module, functions)| {
            functions.iter().map(|function| FunctionName {
                module: module.clone(),
                function: function.clone(),
            })
        })
    }

    /// Whether the function is in it.
    pub(crate) fn has(&self, name: &FunctionName) -> bool {
        self.functions
            .get(&name.module)
            .is_some_and(|functions| functions.contains(&name.function))
    }
}

impl From<Names> for Catalogue {
    fn from(names: Names) -> Self {
        Self {
            catalogue: hash(&names.functions),
            functions: names.functions,
        }
    }
}

impl From<Catalogue> for Names {
    fn from(catalogue: Catalogue) -> Self {
        Self {
            catalogue: catalogue.catalogue.0,
            functions: catalogue.functions,
        }
    }
}

/// The first 16 bytes of SHA-256 over the sorted names; no name holds white space.
fn hash(functions: &BTreeMap<Name, BTreeSet<Name>>) -> CatalogueHash {
    let mut hasher = Sha256::new();
    for (module, functions) in functions {
        for function in functions {
            hasher.update(format!("{module} {function}\n"));
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
        Catalogue::new(names.iter().map(name))
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
    fn a_catalogue_survives_the_wire() {
        let told = catalogue(&[("Fly.RPC", "is_primary?"), ("Kernel", "+")]);
        let text = serde_json::to_string(&told).unwrap();
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
