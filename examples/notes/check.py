"""What .ci/notes runs against the example: who wrote reads its own write, or does not.

check.py FOLDER SYD FRA: the folder of the databases, and the URLs of the instances in syd and fra."""

import http.client
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

folder, urls = sys.argv[1], dict(zip(["syd", "fra"], sys.argv[2:4]))
CALLERS, DELAY = 16, 0.1
local = threading.local()


def call(via, regions, function, args, after=None):
    """The answer of the instance in `via`: status, document, token."""
    key = f"connection_{via}"
    connection = getattr(local, key, None)
    if connection is None:
        connection = http.client.HTTPConnection(urlsplit(urls[via]).netloc, timeout=30)
        setattr(local, key, connection)
    headers = {"content-type": "application/json", **({"rpc-after": after} if after else {})}
    connection.request("POST", f"/rpc/{regions}/Notes/{function}", json.dumps(args), headers)
    answer = connection.getresponse()
    document = json.loads(answer.read())
    return answer.status, document, answer.getheader("rpc-consistency")


def pair(region, with_token):
    """Writes in the primary region through `region`, and reads there at once; what came of it."""
    text = f"{region} {random.random()}"
    status, wrote, token = call(region, "primary", "create", [text])
    if status != 200:
        return f"not written: {wrote['code']}, executed {wrote['executed']}"
    if not with_token:
        time.sleep(random.random() * 2 * DELAY)
    asked = f"{region},primary" if with_token else region
    status, read, seen = call(region, asked, "read", [wrote["result"]], token if with_token else None)
    if status != 200:
        return f"not read: {read['code']}"
    if read["result"] != text:
        return "missed"
    if with_token:
        # Whoever has seen it, sees it in every region from then on.
        other = "fra" if region == "syd" else "syd"
        status, again, _ = call(other, f"{other},primary", "read", [wrote["result"]], seen)
        if status != 200 or again["result"] != text:
            return f"missed in {other}: {again}"
    return "seen here" if read["meta"]["region"] == region else "seen in the primary region"


def pairs(title, count, with_token, meanwhile=lambda: None):
    """So many pairs from each region."""
    started = time.monotonic()
    with ThreadPoolExecutor(CALLERS) as pool:
        work = [pool.submit(pair, region, with_token) for _ in range(count) for region in urls]
        meanwhile()
        ends = Counter(end.result() for end in work)
    print(f"{title}: {2 * count} pairs in {time.monotonic() - started:.1f} s: {dict(ends)}", flush=True)
    return ends


def database(*words):
    script = Path(__file__).with_name("database")
    subprocess.run([script, words[0], folder, *words[1:]], check=True, timeout=60)


def delay(region, span):
    database("delay", region, span)


def trouble():
    """A copy dies and comes back, and then is far behind; another is far behind from the start."""
    delay("fra", "60s")
    time.sleep(1)
    database("kill", "syd")
    time.sleep(3)
    database("start", "syd")
    delay("syd", "60s")
    time.sleep(3)
    for region in urls:
        delay(region, "100ms")


def refused():
    """An argument or a token that cannot be right is the caller's error, in a copy and in the primary."""
    for regions in ["syd", "primary"]:
        for function, args, after in [("read", ["one"], None), ("read", [{}], None), ("read", [1], "new"), ("list", [], "new")]:
            _, problem, _ = call("syd", regions, function, args, after)
            assert (problem.get("code"), problem.get("executed")) == ("invalid_arguments", "no"), (function, args, after, problem)
    for text in [1, "a\0b"]:
        _, problem, _ = call("syd", "primary", "create", [text])
        assert (problem.get("code"), problem.get("executed")) == ("invalid_arguments", "no"), (text, problem)


refused()
for region in urls:
    delay(region, f"{round(DELAY * 1000)}ms")
without = pairs("without tokens", 500, False)
assert without["missed"] > 100, "copies are not behind: this shows nothing"
with_tokens = pairs("with tokens", 1000, True)
assert set(with_tokens) <= {"seen here", "seen in the primary region"}, with_tokens
assert with_tokens["seen here"] > 1900, with_tokens
troubled = pairs("with tokens, copies killed, restarted and far behind", 600, True, trouble)
assert set(troubled) == {"seen here", "seen in the primary region"}, troubled
