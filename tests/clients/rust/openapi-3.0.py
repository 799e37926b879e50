"""The document (stdin) as progenitor reads it (stdout).

It reads OpenAPI 3.0 only: of 3.1 the document has types that are a list with "null", and `propertyNames`. And it takes
only application/json for JSON, so that problems are told as that. It counts `default` among the successes too, and takes
one type of success only, so that the ranges of errors stand for it.
"""

import json
import sys

NEWER = {"propertyNames"}
MEDIA_TYPES = {"application/problem+json": "application/json"}
ERRORS = ("4XX", "5XX")


def of_errors(responses):
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
            operation["responses"] = of_errors(operation["responses"])
json.dump(document | {"openapi": "3.0.3"}, sys.stdout, indent=2)
