"""The document (stdin) as progenitor reads it (stdout).

It reads OpenAPI 3.0 only: of 3.1 the document has types that are a list with "null", and `propertyNames`. And it takes
only application/json for JSON, so that problems are told as that. It takes one type of success only: 202, which answers a
call that prefers respond-async, is left out, and the ranges of errors stand for `default`, which it counts among them.
"""

import json
import sys

NEWER = {"propertyNames"}
MEDIA_TYPES = {"application/problem+json": "application/json"}
ERRORS = ("4XX", "5XX")


def of_one_success(responses):
    responses.pop("202", None)
    default = responses.pop("default", None)
    return responses if default is None else responses | dict.fromkeys(ERRORS, default)


def older(value):
    if isinstance(value, list):
        return [older(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {MEDIA_TYPES.get(name, name): older(member) for name, member in value.items() if name not in NEWER}
    if isinstance(value.get("type"), list):
        (value["type"],) = (kind for kind in value["type"] if kind != "null")
        value["nullable"] = True
    return value


document = older(json.load(sys.stdin))
for path in document["paths"].values():
    for operation in path.values():
        if "responses" in operation:
            operation["responses"] = of_one_success(operation["responses"])
json.dump(document | {"openapi": "3.0.3"}, sys.stdout, indent=2)
