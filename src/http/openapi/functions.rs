//! One typed operation for each function that declares its parameters, beside the operations of the stock document: named
//! arguments in, a typed result out, and otherwise what `POST /rpc/{region}/{module}/{function}` has. It always waits for
//! the result: with a second type of success, generated clients would return a union.

use heck::{ToSnakeCase, ToUpperCamelCase};
use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi as Document;

use super::schema::{COMPONENTS, Names, are_plain, simplified, text};
use crate::{
    declaration::{Declaration, Param},
    name::FunctionName,
};

/// The operation that the typed ones are made after.
const MODEL: &str = "/rpc/{region}/{module}/{function}";
/// The most operations of functions in a document.
const MAX_OPERATIONS: usize = 1_000;
/// The most bytes of them, with their schemas.
const MAX_BYTES: usize = 4 << 20;

/// `document` with an operation for each of `functions` that declares its parameters; the first that come, where there are
/// too many.
pub(in crate::http) fn with_functions<'a>(
    document: &Document,
    functions: impl IntoIterator<Item = (FunctionName, &'a Declaration)>,
) -> Value {
    let mut document = serde_json::to_value(document)
        .unwrap_or_else(|error| unreachable!("an OpenAPI document has a JSON form: {error}"));
    let mut typed = Typed::after(&document);
    let (mut count, mut left_out) = (0, 0);
    for (name, declaration) in functions {
        let Some(params) = declaration.params.as_deref().filter(|_| name.is_segments()) else {
            continue;
        };
        if count == MAX_OPERATIONS || typed.bytes >= MAX_BYTES {
            left_out += 1;
            continue;
        }
        count += 1;
        let operation = typed.operation(&name, params, declaration);
        typed.bytes += operation.to_string().len();
        let path = format!("/rpc/{{region}}/{}", name.path());
        document["paths"][path] = json!({ "post": operation });
    }
    if count == 0 {
        return document;
    }
    if left_out > 0 {
        let description = document["info"]["description"].as_str().unwrap_or_default();
        let more = format!(
            "{description}\n\n{left_out} functions have no operation of their own here: a document has at most \
             {MAX_OPERATIONS} of them, and {MAX_BYTES} bytes."
        );
        document["info"]["description"] = more.into();
    }
    let tag =
        json!({"name": "functions", "description": "Functions that declare their parameters"});
    if let Some(tags) = document["tags"].as_array_mut() {
        tags.push(tag);
    }
    for (kind, shared) in [
        ("parameters", typed.parameters),
        ("headers", typed.headers),
        ("schemas", typed.schemas),
    ] {
        let known = document["components"][kind].take();
        let mut all = known.as_object().cloned().unwrap_or_default();
        all.extend(shared);
        document["components"][kind] = all.into();
    }
    document
}

/// What typed operations are made of.
struct Typed {
    /// What they share and refer to.
    parameters: Map<String, Value>,
    headers: Map<String, Value>,
    /// The headers of a result, by name.
    reply_headers: Map<String, Value>,
    problems: Map<String, Value>,
    security: Value,
    /// The schemas of their bodies.
    schemas: Map<String, Value>,
    operation_names: Names,
    schema_names: Names,
    /// The size of all that was made.
    bytes: usize,
}

impl Typed {
    fn after(document: &Value) -> Self {
        let model = &document["paths"][MODEL]["post"];
        let name = |parameter: &Value| parameter["name"].as_str().unwrap_or_default().to_owned();
        let parameters = model["parameters"].as_array().into_iter().flatten();
        let shared = parameters
            .map(|parameter| (name(parameter), parameter))
            .filter(|(name, _)| !matches!(name.as_str(), "module" | "function" | "prefer"))
            .map(|(name, parameter)| (name.to_upper_camel_case(), parameter.clone()));
        let mut responses = model["responses"].as_object().cloned().unwrap_or_default();
        let reply = responses.remove("200").unwrap_or_default();
        responses.retain(|status, _| !status.starts_with('2'));
        let headers = reply["headers"].as_object().cloned().unwrap_or_default();
        let paths = document["paths"].as_object().into_iter().flatten();
        let operations = paths.flat_map(|(_, path)| path.as_object().into_iter().flatten());
        let schemas = document["components"]["schemas"].as_object();
        Self {
            parameters: shared.collect(),
            reply_headers: headers
                .keys()
                .map(|name| (name.clone(), refer("headers", &name.to_upper_camel_case())))
                .collect(),
            headers: headers
                .into_iter()
                .map(|(name, header)| (name.to_upper_camel_case(), header))
                .collect(),
            problems: responses,
            security: model["security"].clone(),
            schemas: Map::new(),
            operation_names: Names::new(
                operations.filter_map(|(_, it)| it["operationId"].as_str()),
            ),
            schema_names: Names::new(schemas.into_iter().flatten().map(|(name, _)| name.as_str())),
            bytes: 0,
        }
    }

    fn operation(
        &mut self,
        name: &FunctionName,
        params: &[Param],
        declared: &Declaration,
    ) -> Value {
        let id = self.operation_names.claim(&operation_id(name), "_");
        let prefix = id.to_upper_camel_case();
        let reply = self.reply(name, &prefix, declared.result.as_ref());
        let call = text(&format!("Call {name}"));
        let mut responses = self.problems.clone();
        responses.insert(
            "200".to_owned(),
            json!({
                "description": "The function's result",
                "headers": self.reply_headers,
                "content": {"application/json": {"schema": refer("schemas", &reply)}},
            }),
        );
        let mut operation = json!({
            "tags": ["functions"],
            "summary": declared.doc.as_deref().map_or(call, text),
            "description": text(&format!("`{name}`, with the options and the problems of `POST /rpc/{{region}}`.")),
            "operationId": id,
            "parameters": self.parameters.keys().map(|name| refer("parameters", name)).collect::<Vec<_>>(),
            "responses": responses,
            "security": self.security,
        });
        if !params.is_empty() {
            let args = self.args(name, &prefix, params);
            operation["requestBody"] = json!({
                "required": true,
                "content": {"application/json": {"schema": refer("schemas", &args)}},
            });
        }
        operation
    }

    /// The schema of a function's arguments by their names.
    fn args(&mut self, name: &FunctionName, prefix: &str, params: &[Param]) -> String {
        let mut schema = json!({
            "type": "object",
            "description": text(&format!("The arguments of `{name}`.")),
        });
        let names: Vec<_> = params.iter().map(|param| param.name.as_str()).collect();
        // Otherwise any object is taken, and the function says what is wrong with it.
        if are_plain(names.iter().copied()) {
            for param in params {
                let simple = self.simplified(prefix, param.schema.as_ref());
                schema["properties"][&param.name] = simple;
            }
            schema["required"] = json!(names);
            schema["additionalProperties"] = false.into();
        }
        self.add(&format!("{prefix}Args"), schema)
    }

    /// The schema of the answer to a call of a function.
    fn reply(&mut self, name: &FunctionName, prefix: &str, result: Option<&Value>) -> String {
        let result = self.simplified(prefix, result);
        let schema = json!({
            "type": "object",
            "description": text(&format!("What came of a call of `{name}`.")),
            "properties": {"result": result, "meta": {"$ref": format!("{COMPONENTS}Meta")}},
            "required": ["result", "meta"],
        });
        self.add(&format!("{prefix}Reply"), schema)
    }

    fn simplified(&mut self, prefix: &str, schema: Option<&Value>) -> Value {
        let (simple, objects) = simplified(schema, prefix, &mut self.schema_names);
        let sizes = objects.values().map(|object| object.to_string().len());
        self.bytes += sizes.sum::<usize>();
        self.schemas.extend(objects);
        simple
    }

    fn add(&mut self, wanted: &str, schema: Value) -> String {
        let name = self.schema_names.claim(wanted, "");
        self.bytes += schema.to_string().len();
        self.schemas.insert(name.clone(), schema);
        name
    }
}

fn refer(kind: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{kind}/{name}") })
}

/// The id of an operation, as long as no other has it: `notes_create` of `Notes.create`, `kernel_x2b` of `Kernel.+`.
fn operation_id(name: &FunctionName) -> String {
    let FunctionName { module, function } = name;
    let id = format!("{}_{}", word(module.as_str()), word(function.as_str()));
    match id.starts_with(|first: char| first.is_ascii_digit()) {
        true => format!("fn_{id}"),
        false => id,
    }
}

/// A part of an id: in snake case, or the bytes of a name without a letter or digit.
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
    use crate::http::{openapi_json, openapi_with};

    /// What becomes of a document with this many functions, each with `schema` for its only parameter.
    fn document(count: usize, schema: &Value) -> Value {
        let declared = Declaration::new().params([("note", schema.clone())]);
        let name = |number: usize| FunctionName::new("Notes", &format!("f{number}")).unwrap();
        openapi_with((0..count).map(|number| (name(number), &declared)))
    }

    /// How many functions have an operation, and how many are said to have none.
    fn operations(document: &Value) -> (usize, usize) {
        let paths = document["paths"].as_object().unwrap().keys();
        let there = paths.filter(|path| path.contains("/Notes/")).count();
        let description = document["info"]["description"].as_str().unwrap();
        let last = description.lines().last().unwrap();
        let missing = last.split(' ').next().unwrap().parse();
        (there, missing.unwrap_or_default())
    }

    #[test]
    fn a_document_is_bounded_and_says_what_is_left_out() {
        let small = json!({"type": "string"});
        assert_eq!(operations(&document(1_000, &small)), (1_000, 0));
        assert_eq!(operations(&document(1_003, &small)), (1_000, 3));
        let members = (0..400).map(|number| (format!("member{number}"), small.clone()));
        let large = json!({"type": "object", "properties": members.collect::<Map<_, _>>()});
        let document = document(500, &large);
        let (there, missing) = operations(&document);
        assert!(
            there > 100 && missing > 100 && there + missing == 500,
            "{there} {missing}"
        );
        let length = document.to_string().len();
        assert!((MAX_BYTES..2 * MAX_BYTES).contains(&length), "{length}");
    }

    #[test]
    fn a_name_that_is_no_segment_of_a_path_has_no_operation() {
        let declared = Declaration::new().params::<String>([]);
        let names = [("..", "f"), ("M", "."), ("a/..", "f")]
            .map(|(module, function)| FunctionName::new(module, function).unwrap());
        let stock: Value = serde_json::from_str(&openapi_json()).unwrap();
        let document = openapi_with(names.map(|name| (name, &declared)));
        let before = stock["paths"].as_object().unwrap();
        let after = document["paths"].as_object().unwrap().keys();
        let new: Vec<_> = after.filter(|path| !before.contains_key(*path)).collect();
        assert_eq!(new, ["/rpc/{region}/a%2F../f"]);
    }
}
