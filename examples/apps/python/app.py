import json, os, time, urllib.error, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Problem(Exception): """The document that says why a call of another region failed."""

def add(a: float, b: float): return a + b
def fail(message: str): raise ValueError(message)
def sleep(ms: float): time.sleep(ms / 1000)
def add_in(region: str, a: float, b: float):  # in another region, through the instance beside this app
    headers = {"content-type": "application/json", "authorization": f"Bearer {os.environ.get('FLY_RPC_TOKEN')}"}
    url = f"{os.environ['FLY_RPC_URL']}/rpc/{region}/Math/add"
    request = urllib.request.Request(url, json.dumps([a, b]).encode(), headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy says
    try: return json.load(direct.open(request))["result"]
    except urllib.error.HTTPError as error: raise Problem(json.load(error))

FUNCTIONS = {"Math.add": add, "Demo.fail": fail, "Demo.sleep": sleep, "Demo.add_in": add_in}
DECLARED = {"Math.add": {"idempotent": True}, "Demo.fail": {}, "Demo.sleep": {"timeout_ms": 10_000}, "Demo.add_in": {}}
for name, declared in DECLARED.items():
    types = FUNCTIONS[name].__annotations__.items()
    declared["params"] = [{"name": name, "schema": {"type": {float: "number", str: "string"}[type]}} for name, type in types]

class App(BaseHTTPRequestHandler):
    def log_message(self, *_): pass  # the list is asked for once a second

    def do_GET(self, run=lambda: {"functions": DECLARED}):
        is_allowed = self.headers["authorization"] == f"Bearer {os.environ['RPC_APP_TOKEN']}"
        try: status, value = (200, run()) if is_allowed else (401, None)
        except Problem as error:
            problem = error.args[0]
            status, value = 500, {"kind": problem["code"], "message": problem["detail"], "data": problem}
        except Exception as error: status, value = 500, {"kind": type(error).__name__, "message": str(error)}
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def do_POST(self):  # /rpc/Math/add
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.do_GET(lambda: FUNCTIONS[".".join(self.path.split("/")[2:])](*body["args"]))

ThreadingHTTPServer.request_queue_size = 128  # not 5: 64 calls may come at once
ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), App).serve_forever()
