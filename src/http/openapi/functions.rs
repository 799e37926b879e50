//! One typed operation for each function that declares its parameters, beside the operations of the stock document: named
//! arguments in, a typed result out, and otherwise what `POST /rpc/{region}/{module}/{function}` has. It always waits for
//! the result: with a second type of success, generated clients would return a union.

use heck::{ToSnakeCase, ToUpperCamelCase};
use serde_json::{Value, json};
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
/// The most bytes of them, with their schemas; what is beyond may take any JSON, or is left out.
const MAX_BYTES: usize = 4 << 20;

/// `document` with an operation for each of `functions` that declares its parameters; the first that come, where there are
/// too many.
pub(in crate::http) fn with_functions<'a>(
    document: &Document,
    functions: impl IntoIterator<Item = (FunctionName, &'a Declaration)>,
) -> Value {
    let declared = functions.into_iter().filter_map(|(name, declaration)| {
        let params = declaration.params.as_deref();
        let params = params.filter(|_| name.is_segments())?;
        Some((name, params, declaration))
    });
    let mut declared = declared.peekable();
    let document = json!(document);
    if declared.peek().is_none() {
        return document;
    }
    let mut typed = Typed::after(document);
    let (mut count, mut left_out) = (0, 0);
    for (name, params, declaration) in declared {
        if count == MAX_OPERATIONS || typed.bytes >= MAX_BYTES {
            left_out += 1;
            continue;
        }
        count += 1;
        typed.add_operation(&name, params, declaration);
    }
    let mut document = typed.document;
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
    document
}

/// A document to which typed operations are added.
struct Typed {
    document: Value,
    /// The operation that they are made after, with references to what they share.
    model: Value,
    operation_names: Names,
    schema_names: Names,
    /// The size of all that was made.
    bytes: usize,
}

impl Typed {
    fn after(mut document: Value) -> Self {
        let paths = document["paths"].as_object().into_iter().flatten();
        let operations = paths.flat_map(|(_, path)| path.as_object().into_iter().flatten());
        let ids = operations.filter_map(|(_, it)| it["operationId"].as_str());
        let schemas = document["components"]["schemas"].as_object();
        let schemas = schemas.into_iter().flatten().map(|(name, _)| name.as_str());
        let (operation_names, schema_names) = (Names::new(ids), Names::new(schemas));
        let mut model = document["paths"][MODEL]["post"].clone();
        if let Some(model) = model.as_object_mut() {
            model.remove("requestBody");
        }
        model["tags"] = json!(["functions"]);
        let components = &mut document["components"];
        let mut share = |kind: &str, name: &str, shared: &mut Value| {
            let name = name.to_upper_camel_case();
            let reference = refer(kind, &name);
            components[kind][name] = std::mem::replace(shared, reference);
        };
        if let Some(parameters) = model["parameters"].as_array_mut() {
            let name =
                |parameter: &Value| parameter["name"].as_str().unwrap_or_default().to_owned();
            parameters.retain(|it| !["module", "function", "prefer"].contains(&&*name(it)));
            parameters.sort_by_cached_key(|it| name(it).to_upper_camel_case());
            for parameter in parameters {
                share("parameters", &name(parameter), parameter);
            }
        }
        if let Some(responses) = model["responses"].as_object_mut() {
            responses.retain(|status, _| status == "200" || !status.starts_with('2'));
        }
        let headers = model["responses"]["200"]["headers"].as_object_mut();
        for (name, header) in headers.into_iter().flatten() {
            share("headers", name, header);
        }
        Self {
            document,
            model,
            operation_names,
            schema_names,
            bytes: 0,
        }
    }

    fn add_operation(&mut self, name: &FunctionName, params: &[Param], declared: &Declaration) {
        let id = self.operation_names.claim(&operation_id(name), "_");
        let prefix = id.to_upper_camel_case();
        let reply = self.reply(name, &prefix, declared.result.as_ref());
        let call = text(&format!("Call {name}"));
        let body = |schema: &str| json!({"application/json": {"schema": refer("schemas", schema)}});
        let mut operation = self.model.clone();
        operation["summary"] = declared.doc.as_deref().map_or(call, text).into();
        operation["description"] = text(&format!(
            "`{name}`, with the options and the problems of `POST /rpc/{{region}}`."
        ))
        .into();
        operation["operationId"] = id.into();
        operation["responses"]["200"]["content"] = body(&reply);
        if !params.is_empty() {
            let args = self.args(name, &prefix, params);
            operation["requestBody"] = json!({"required": true, "content": body(&args)});
        }
        self.bytes += operation.to_string().len();
        let path = format!("/rpc/{{region}}/{}", name.path());
        self.document["paths"][path] = json!({ "post": operation });
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
                // A function may declare more than a document has room for.
                let declared = param.schema.as_ref().filter(|_| self.bytes < MAX_BYTES);
                let simple = self.simplified(prefix, declared);
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
        for (name, object) in objects {
            self.document["components"]["schemas"][name] = object;
        }
        simple
    }

    fn add(&mut self, wanted: &str, schema: Value) -> String {
        let name = self.schema_names.claim(wanted, "");
        self.bytes += schema.to_string().len();
        self.document["components"]["schemas"][&name] = schema;
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
    use serde_json::Map;

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
