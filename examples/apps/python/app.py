import json, os, time, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

def fail(message):
    raise ValueError(message)

def call(region, name, *args):  # a function in another region, through the instance beside this app
    module, function = name.rsplit(".", 1)
    headers = {"content-type": "application/json", "authorization": f"Bearer {os.environ.get('FLY_RPC_TOKEN')}"}
    body = json.dumps({"module": module, "function": function, "args": args}).encode()
    request = urllib.request.Request(f"{os.environ['FLY_RPC_URL']}/rpc/{region}", body, headers)
    return json.load(urllib.request.urlopen(request))["result"]

FUNCTIONS = {"Math.add": lambda a, b: a + b, "Demo.fail": fail, "Demo.sleep": lambda ms: time.sleep(ms / 1000),
             "Demo.add_in": lambda region, a, b: call(region, "Math.add", a, b)}

class App(BaseHTTPRequestHandler):
    def do_GET(self, run=lambda: (200, {"functions": {name: {} for name in FUNCTIONS}})):
        allowed = self.headers["authorization"] == f"Bearer {os.environ['RPC_APP_TOKEN']}"
        status, value = run() if allowed else (401, None)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def do_POST(self):  # /rpc/Math/add
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        def run():
            try: return 200, FUNCTIONS[".".join(self.path.split("/")[2:])](*body["args"])
            except Exception as error: return 500, {"kind": type(error).__name__, "message": str(error)}
        self.do_GET(run)

ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), App).serve_forever()
