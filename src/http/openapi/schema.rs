//! The JSON Schemas that functions declare, in the part of the language that generators of clients take: no unions, no
//! tuples, no references to other documents. They come from strangers: what is not a schema, is too large, or refers to what
//! is not in it, becomes the schema of any JSON.

use std::collections::{BTreeMap, BTreeSet};

use heck::ToUpperCamelCase;
use serde_json::{Map, Value, json};

/// The largest schema, in bytes.
const MAX_BYTES: usize = 16 << 10;
/// The deepest schema; what is below is any JSON.
const MAX_DEPTH: usize = 16;
/// The most schemas that are read for one, counted at each place that refers to them.
const MAX_SCHEMAS: usize = 2_000;
/// The longest text for people, in bytes.
const MAX_TEXT: usize = 1 << 10;

/// Where the definitions of a schema stand.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];
/// Where those of a document stand.
pub(super) const COMPONENTS: &str = "#/components/schemas/";

/// The members of a schema, or of the objects in a document.
type JsonObject = Map<String, Value>;

/// `schema` for a document, and the objects that it defines and refers to, under names that begin with `prefix`.
pub(super) fn simplified(
    schema: Option<&Value>,
    prefix: &str,
    names: &mut Names,
) -> (Value, JsonObject) {
    let any = || (json!({}), JsonObject::new());
    let Some(schema) = schema.filter(|schema| schema.to_string().len() <= MAX_BYTES) else {
        return any();
    };
    let mut reader = SchemaReader {
        definitions: definitions(schema),
        prefix,
        names,
        objects: BTreeMap::new(),
        unread: Vec::new(),
        left: MAX_SCHEMAS,
    };
    // What refers to a definition may repeat it.
    let fits = |(simple, objects): &(Value, JsonObject)| {
        simple.to_string().len() <= MAX_BYTES
            && objects.values().all(|it| it.to_string().len() <= MAX_BYTES)
    };
    reader.read(schema).filter(fits).unwrap_or_else(any)
}

/// `text` for people, which generators write into comments of any language.
pub(super) fn text(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_TEXT);
    let line = text[..end].replace(char::is_control, " ");
    let line = line.replace("\"\"\"", "'''").replace("*/", "* /");
    line.trim().trim_end_matches('\\').to_owned()
}

/// Whether generators can make a member, or a value of an enumeration, of each name, and no two become one.
pub(super) fn are_plain<'a>(names: impl IntoIterator<Item = &'a str>) -> bool {
    let mut seen = BTreeSet::new();
    names.into_iter().all(|name| {
        let plain = squashed(name);
        !name.starts_with('$') && !plain.is_empty() && seen.insert(plain)
    })
}

/// The names of operations or schemas that are taken, as [`squashed`] leaves them: what generators make of two names must
/// differ too, without case and without the characters that an identifier cannot have.
#[derive(Debug, Default)]
pub(super) struct Names {
    taken: BTreeSet<String>,
    /// The number that was given last to those that wanted a name: without it, each would try all numbers before its own.
    last: BTreeMap<String, u32>,
}

impl Names {
    /// Those of `taken`.
    pub(super) fn new<'a>(taken: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            taken: taken.into_iter().map(squashed).collect(),
            last: BTreeMap::new(),
        }
    }

    /// Takes `wanted`, or the first of `wanted` with 2, 3, … behind `separator` that is not taken.
    pub(super) fn claim(&mut self, wanted: &str, separator: &str) -> String {
        let plain = squashed(wanted);
        if self.taken.insert(plain.clone()) {
            return wanted.to_owned();
        }
        let last = self.last.entry(plain).or_insert(1);
        loop {
            *last += 1;
            let name = format!("{wanted}{separator}{last}");
            if self.taken.insert(squashed(&name)) {
                return name;
            }
        }
    }
}

/// What is left of a name in every language: its letters and digits, without case.
fn squashed(name: &str) -> String {
    let plain = name.chars().filter(|character| character.is_alphanumeric());
    plain.flat_map(char::to_lowercase).collect()
}

/// The definitions of a schema, by what refers to them.
fn definitions(schema: &Value) -> BTreeMap<String, &Value> {
    let mut found = BTreeMap::new();
    for place in DEFINITIONS {
        let definitions = schema.get(place).and_then(Value::as_object);
        for (name, schema) in definitions.into_iter().flatten() {
            found.insert(format!("#/{place}/{name}"), schema);
        }
    }
    found
}

/// Reads one schema. Its methods return `None` for what is not a schema.
struct SchemaReader<'a> {
    definitions: BTreeMap<String, &'a Value>,
    prefix: &'a str,
    names: &'a mut Names,
    /// The definitions of objects that something refers to, and their names among the components.
    objects: BTreeMap<String, String>,
    /// Those of them that are not read yet.
    unread: Vec<String>,
    /// How many schemas may still be read.
    left: usize,
}

impl SchemaReader<'_> {
    /// The schema, and the objects that it refers to.
    fn read(&mut self, schema: &Value) -> Option<(Value, JsonObject)> {
        let simple = self.schema(schema, 0)?;
        let mut objects = JsonObject::new();
        while let Some(place) = self.unread.pop() {
            let definition = *self.definitions.get(&place)?;
            let object = self.schema(definition, 1)?;
            objects.insert(self.objects.get(&place)?.clone(), object);
        }
        Some((simple, objects))
    }

    fn schema(&mut self, schema: &Value, depth: usize) -> Option<Value> {
        self.left = self.left.checked_sub(1)?;
        if schema.is_boolean() || depth > MAX_DEPTH {
            return Some(json!({}));
        }
        let schema = schema.as_object()?;
        if let Some(reference) = optional(schema, "$ref", Value::as_str)? {
            return self.definition(reference, depth);
        }
        let mut simple = match self.union(schema, depth)? {
            Some(only) => only,
            None => self.typed(schema, depth)?.into(),
        };
        let description = optional(schema, "description", Value::as_str)?;
        if let (Some(description), Some(members)) = (description, simple.as_object_mut())
            && !members.contains_key("$ref")
        {
            members.insert("description".to_owned(), text(description).into());
        }
        Some(simple)
    }

    /// What stands for a definition: a reference where it is an object, which may refer to itself; else the definition.
    fn definition(&mut self, reference: &str, depth: usize) -> Option<Value> {
        let definition = *self.definitions.get(reference)?;
        if !definition.get("properties").is_some_and(Value::is_object) {
            return self.schema(definition, depth + 1);
        }
        let name = match self.objects.get(reference) {
            Some(name) => name.clone(),
            None => {
                let own = reference.rsplit('/').next().unwrap_or_default();
                let wanted = format!("{}{}", self.prefix, own.to_upper_camel_case());
                let name = self.names.claim(&wanted, "");
                self.objects.insert(reference.to_owned(), name.clone());
                self.unread.push(reference.to_owned());
                name
            }
        };
        Some(json!({ "$ref": format!("{COMPONENTS}{name}") }))
    }

    /// The one schema that a union comes down to, which may be null too; any JSON where there are more.
    fn union(&mut self, schema: &JsonObject, depth: usize) -> Option<Option<Value>> {
        for word in ["anyOf", "oneOf", "allOf"] {
            let Some(variants) = optional(schema, word, Value::as_array)? else {
                continue;
            };
            let is_null = |variant: &&Value| variant.get("type") == Some(&json!("null"));
            let (nulls, others): (Vec<&Value>, Vec<_>) = variants.iter().partition(is_null);
            let mut others = others
                .into_iter()
                .map(|variant| self.schema(variant, depth + 1))
                .collect::<Option<Vec<_>>>()?;
            let only = others.pop().filter(|_| others.is_empty());
            return Some(Some(match (only, nulls.is_empty()) {
                (Some(only), true) => only,
                (Some(only), false) => or_null(only),
                (None, _) => json!({}),
            }));
        }
        Some(None)
    }

    fn typed(&mut self, schema: &JsonObject, depth: usize) -> Option<JsonObject> {
        let mut simple = JsonObject::new();
        let Some((kind, is_nullable)) = kind(schema)? else {
            return Some(simple);
        };
        match kind {
            "string" => {
                let bounds = ["minLength", "maxLength"];
                keep(&mut simple, schema, bounds, Value::is_u64)?;
                let choices = choices(schema)?.filter(|_| !is_nullable);
                simple.extend(choices.map(|choices| ("enum".to_owned(), choices.into())));
            }
            "integer" => keep(&mut simple, schema, ["minimum", "maximum"], Value::is_i64)?,
            "number" => {
                let bounds = ["minimum", "maximum"];
                keep(&mut simple, schema, bounds, Value::is_number)?;
            }
            "array" => {
                keep(&mut simple, schema, ["minItems", "maxItems"], Value::is_u64)?;
                // What is only for some items is not for all.
                let items = match (schema.get("prefixItems"), schema.get("items")) {
                    (None, Some(items)) => self.schema(items, depth + 1)?,
                    _ => json!({}),
                };
                simple.insert("items".to_owned(), items);
            }
            "object" => self.object(&mut simple, schema, depth)?,
            _ => {}
        }
        let format = optional(schema, "format", Value::as_str)?;
        if let Some(format) = format.filter(|format| formats(kind).contains(format)) {
            simple.insert("format".to_owned(), format.into());
        }
        let kinds = match is_nullable {
            true => json!([kind, "null"]),
            false => kind.into(),
        };
        simple.insert("type".to_owned(), kinds);
        Some(simple)
    }

    fn object(&mut self, simple: &mut JsonObject, schema: &JsonObject, depth: usize) -> Option<()> {
        let declared = optional(schema, "properties", Value::as_object)?;
        let mut properties = JsonObject::new();
        for (name, schema) in declared.into_iter().flatten() {
            properties.insert(name.clone(), self.schema(schema, depth + 1)?);
        }
        let required = optional(schema, "required", Value::as_array)?;
        let mut names = BTreeSet::new();
        for name in required.into_iter().flatten() {
            names.insert(name.as_str()?);
        }
        match schema.get("additionalProperties") {
            None | Some(Value::Bool(true)) => {}
            Some(Value::Bool(false)) => {
                simple.insert("additionalProperties".to_owned(), false.into());
            }
            Some(others) => {
                let others = self.schema(others, depth + 1)?;
                simple.insert("additionalProperties".to_owned(), others);
            }
        }
        if !are_plain(properties.keys().map(String::as_str)) {
            simple.remove("additionalProperties");
            return Some(());
        }
        names.retain(|name| properties.contains_key(*name));
        if !names.is_empty() {
            simple.insert("required".to_owned(), json!(names));
        }
        if !properties.is_empty() {
            simple.insert("properties".to_owned(), properties.into());
        }
        Some(())
    }
}

/// What `read` makes of a member, if it is there; the outer `None` where the member is not what `read` expects.
fn optional<'a, T>(
    schema: &'a JsonObject,
    name: &str,
    read: impl Fn(&'a Value) -> Option<T>,
) -> Option<Option<T>> {
    match schema.get(name) {
        None => Some(None),
        Some(value) => read(value).map(Some),
    }
}

/// Copies numbers, as far as they fit; with anything else than a number, `schema` is not a schema.
fn keep(
    simple: &mut JsonObject,
    schema: &JsonObject,
    words: [&str; 2],
    fits: impl Fn(&Value) -> bool,
) -> Option<()> {
    for word in words {
        if let Some(number) = schema.get(word) {
            number.as_number()?;
            if fits(number) {
                simple.insert(word.to_owned(), number.clone());
            }
        }
    }
    Some(())
}

/// The one type that values may have, and whether they may be null too; the inner `None` is any type.
fn kind(schema: &JsonObject) -> Option<Option<(&'static str, bool)>> {
    const KINDS: [&str; 7] = [
        "string", "integer", "number", "boolean", "array", "object", "null",
    ];
    let known = |kind: &Value| KINDS.into_iter().find(|known| kind == known);
    let kinds = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().map(known).collect::<Option<Vec<_>>>()?,
        Some(kind) => vec![known(kind)?],
        None if schema.contains_key("properties") => vec!["object"],
        None if schema.contains_key("items") => vec!["array"],
        None if choices(schema)?.is_some() => vec!["string"],
        None => Vec::new(),
    };
    let mut others = kinds.iter().filter(|kind| **kind != "null");
    Some(match (others.next(), others.next()) {
        (Some(only), None) => Some((*only, kinds.contains(&"null"))),
        _ => None,
    })
}

/// The texts that a schema allows, where it lists some, and nothing else, that generators can give names to.
fn choices(schema: &JsonObject) -> Option<Option<Vec<String>>> {
    let listed = optional(schema, "enum", Value::as_array)?;
    let only = schema.get("const").map(std::slice::from_ref);
    let Some(values) = listed.map(Vec::as_slice).or(only) else {
        return Some(None);
    };
    let texts: Option<Vec<&str>> = values.iter().map(Value::as_str).collect();
    let texts = texts.filter(|texts| !texts.is_empty() && are_plain(texts.iter().copied()));
    Some(texts.map(|texts| texts.into_iter().map(str::to_owned).collect()))
}

/// The formats of a type for which generators have types, or which they leave alone.
fn formats(kind: &str) -> &'static [&'static str] {
    match kind {
        "string" => &["date", "date-time", "uuid", "email", "uri"],
        "integer" => &["int32", "int64"],
        "number" => &["float", "double"],
        _ => &[],
    }
}

/// `schema`, whose values may be null too; any JSON where that takes a union.
fn or_null(mut schema: Value) -> Value {
    match schema["type"].as_str() {
        Some(kind) if schema.get("enum").is_none() => {
            schema["type"] = json!([kind, "null"]);
            schema
        }
        _ => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What becomes of a schema, and the components that it needs.
    fn simple(schema: &Value) -> (Value, JsonObject) {
        simplified(Some(schema), "NotesCreate", &mut Names::default())
    }

    #[test]
    fn what_generators_take_stays() {
        for schema in [
            json!({}),
            json!({"type": "string", "description": "A title", "minLength": 1, "format": "uuid"}),
            json!({"type": "string", "enum": ["open", "done"]}),
            json!({"type": ["integer", "null"], "minimum": -1, "maximum": 9, "format": "int64"}),
            json!({"type": "array", "items": {"type": "number"}, "maxItems": 3}),
            json!({
                "type": "object", "properties": {"a": {"type": "boolean"}, "b": {}}, "required": ["a"],
                "additionalProperties": false,
            }),
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
        ] {
            assert_eq!(simple(&schema), (schema, JsonObject::new()));
        }
    }

    #[test]
    fn what_they_do_not_take_becomes_wider() {
        // Each schema, and what becomes of it.
        for case in [
            json!([true, {}]),
            json!([{"type": ["string", "integer"]}, {}]),
            json!([{"type": "null"}, {}]),
            json!([{"anyOf": [{"type": "string"}, {"type": "null"}]}, {"type": ["string", "null"]}]),
            json!([{"allOf": [{"type": "string"}], "description": "x"}, {"type": "string", "description": "x"}]),
            json!([{"oneOf": [{"type": "string"}, {"type": "integer"}]}, {}]),
            json!([{"type": "array"}, {"type": "array", "items": {}}]),
            json!([
                {"type": "array", "prefixItems": [{"type": "string"}], "items": false},
                {"type": "array", "items": {}},
            ]),
            json!([{"const": "a"}, {"type": "string", "enum": ["a"]}]),
            json!([{"enum": [1, "a", null]}, {}]),
            json!([{"enum": ["a-b", "a_b"], "type": "string"}, {"type": "string"}]),
            json!([
                {"type": "string", "enum": ["", "a"], "pattern": "(", "title": "T", "default": 1},
                {"type": "string"},
            ]),
            json!([{"type": "integer", "minimum": 0.5, "exclusiveMaximum": 3}, {"type": "integer"}]),
            json!([{"properties": {"a-b": {}, "a_b": {}}}, {"type": "object"}]),
            json!([{"properties": {"$ref": {}}, "required": ["$ref"]}, {"type": "object"}]),
            json!([{"type": "object", "required": ["gone"]}, {"type": "object"}]),
        ] {
            let (schema, wider) = (&case[0], case[1].clone());
            assert_eq!(simple(schema), (wider, JsonObject::new()), "{schema}");
        }
    }

    #[test]
    fn what_is_no_schema_is_any_json() {
        let mut deep = json!({"type": "string", "description": "below all that is read"});
        for _ in 0..100 {
            deep = json!({"type": "array", "items": deep});
        }
        let (deep, _) = simple(&deep);
        assert!(!deep.to_string().contains("below"), "{deep}");
        for schema in [
            json!(1),
            json!("string"),
            json!({"type": "strin"}),
            json!({"type": 1}),
            json!({"type": [1]}),
            json!({"description": {}}),
            json!({"properties": []}),
            json!({"properties": {"a": 1}}),
            json!({"type": "object", "required": [1]}),
            json!({"type": "object", "additionalProperties": 1}),
            json!({"items": "string"}),
            json!({"anyOf": {}}),
            json!({"enum": "a"}),
            json!({"type": "integer", "minimum": "1"}),
            json!({"type": "string", "format": 1}),
            json!({"$ref": 1}),
            json!({"$ref": "#"}),
            json!({"$ref": "#/components/schemas/Problem"}),
            json!({"$ref": "https://example.com/schema"}),
            json!({"items": {"$ref": "#/$defs/Gone"}, "$defs": {"A": {}}}),
            json!({"type": "string", "description": "x".repeat(MAX_BYTES)}),
        ] {
            assert_eq!(simple(&schema), (json!({}), JsonObject::new()), "{schema}");
        }
    }

    #[test]
    fn objects_that_are_defined_become_components_and_all_else_stands_in_place() {
        let schema = json!({
            "type": "array", "items": {"$ref": "#/$defs/note"},
            "$defs": {
                "note": {"properties": {
                    "kind": {"$ref": "#/$defs/kind"}, "replies": {"type": "array", "items": {"$ref": "#/$defs/note"}},
                }},
                "kind": {"enum": ["a", "b"]},
                "unused": {"properties": {"a": {}}},
            },
        });
        let (simple, components) = simple(&schema);
        let note = json!({"$ref": "#/components/schemas/NotesCreateNote"});
        assert_eq!(simple, json!({"type": "array", "items": note}));
        let expected = json!({"NotesCreateNote": {"type": "object", "properties": {
            "kind": {"type": "string", "enum": ["a", "b"]}, "replies": {"type": "array", "items": note},
        }}});
        assert_eq!(Value::from(components), expected);
    }

    #[test]
    fn a_definition_that_unfolds_without_end_is_any_json() {
        let itself = json!({"$ref": "#/$defs/a"});
        let schema = json!({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": vec![itself; 10]}}});
        assert_eq!(simple(&schema), (json!({}), JsonObject::new()));
    }

    #[test]
    fn no_text_ends_the_comment_that_it_is_written_in() {
        assert_eq!(text(" a\n\"\"\" b */ c\\"), "a ''' b * / c");
        assert_eq!(text(&"é".repeat(MAX_TEXT)).len(), MAX_TEXT);
    }

    /// Any JSON of words that mean something in schemas.
    fn near_schemas() -> impl Strategy<Value = Value> {
        let word = "type|properties|items|\\$ref|\\$defs|anyOf|enum|required|a|string|object|array|null|#/\\$defs/a|format|const";
        let leaf = prop_oneof![
            word.prop_map(Value::from),
            any::<i8>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            Just(json!({"$ref": "#/$defs/a"})),
        ];
        leaf.prop_recursive(5, 40, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(word, inner, 0..4)
                    .prop_map(|members| members.into_iter().collect::<JsonObject>().into()),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever comes in, what comes out is in the simple part of the language, and every reference leads somewhere.
        #[test]
        fn what_comes_out_is_simple(schema in near_schemas()) {
            let (simple, components) = simple(&schema);
            for schema in components.values().chain([&simple]) {
                assert_simple(schema, &components);
            }
        }
    }

    fn assert_simple(schema: &Value, components: &JsonObject) {
        const WORDS: [&str; 13] = [
            "type",
            "enum",
            "items",
            "properties",
            "required",
            "additionalProperties",
            "description",
            "format",
            "minimum",
            "maximum",
            "minLength",
            "maxLength",
            "$ref",
        ];
        let members = schema.as_object().unwrap();
        for (word, value) in members {
            match word.as_str() {
                "items" => assert_simple(value, components),
                "additionalProperties" if value.is_object() => assert_simple(value, components),
                "properties" => value
                    .as_object()
                    .unwrap()
                    .values()
                    .for_each(|it| assert_simple(it, components)),
                "$ref" => {
                    assert!(components.contains_key(&value.as_str().unwrap()[COMPONENTS.len()..]))
                }
                _ => assert!(WORDS.contains(&word.as_str()), "{schema}"),
            }
        }
    }
}
