"""A client that openapi-python-client generated: a call, a problem, the regions, the functions of an app.

FLY_RPC_URL names the instance to ask; FLY_RPC_TOKEN is a client's token, where the instance wants one. NOTES_URL names an
instance beside the app.
"""

import os

from fly_rpc_client import AuthenticatedClient
from fly_rpc_client.api.cluster import list_regions
from fly_rpc_client.api.functions import notes_count, notes_create
from fly_rpc_client.api.rpc import call_function
from fly_rpc_client.models import (
    CallRequest,
    Cluster,
    NotesCountReply,
    NotesCreateArgs,
    NotesCreateReply,
    Problem,
    Reply,
)

url = os.environ["FLY_RPC_URL"]
# An instance that wants no token ignores it.
client = AuthenticatedClient(url, os.environ.get("FLY_RPC_TOKEN", "none"))

upcase = CallRequest(module="String", function="upcase", args=["fly"])
reply = call_function.sync("syd", client=client, body=upcase)
assert isinstance(reply, Reply), reply
print(f"result {reply.result} from {reply.meta.region}")

problem = call_function.sync("mars", client=client, body=upcase)
assert isinstance(problem, Problem), problem
print(f"problem {problem.code} executed {problem.executed}")

raised = CallRequest(module="Kernel", function="raise", args=["boom"])
failed = call_function.sync("syd", client=client, body=raised)
assert isinstance(failed, Problem) and failed.error, failed
print(f"error {failed.error.kind}: {failed.error.message} executed {failed.executed}")

cluster = list_regions.sync(client=client)
assert isinstance(cluster, Cluster), cluster
print("regions", *(region.region for region in cluster.regions))

notes = AuthenticatedClient(os.environ["NOTES_URL"], "none")
created = notes_create.sync(region="syd", client=notes, body=NotesCreateArgs(title="Milk", tags=["dairy", "cold"]))
assert isinstance(created, NotesCreateReply), created
counted = notes_count.sync(region="iad", client=notes)
assert isinstance(counted, NotesCountReply), counted
note = created.result
print(f"note {note.number} {note.title} from {created.meta.region}, {counted.result} in {counted.meta.region}")

untitled = notes_create.sync(region="syd", client=notes, body=NotesCreateArgs(title="", tags=[]))
assert isinstance(untitled, Problem) and untitled.error, untitled
print(f"error {untitled.error.kind}: {untitled.error.message} executed {untitled.executed}")
