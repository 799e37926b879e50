package main

import "encoding/json"
import "fmt"
import "net/http"
import "os"
import "strings"
import "time"

const list = `{"functions": {"Demo.fail": {"params": [{"name": "message", "schema": {"type": "string"}}]},
	"Demo.sleep": {"params": [{"name": "ms", "schema": {"type": "number"}}], "timeout_ms": 10000}, "Math.add": {"params":
	[{"name": "a", "schema": {"type": "number"}}, {"name": "b", "schema": {"type": "number"}}], "idempotent": true}, "Demo.add_in":
	{"params": [{"name": "region", "schema": {"type": "string"}}, {"name": "a"}, {"name": "b"}], "idempotent": true}}}`

var routes = map[string]func(args []any) (status int, value any){
	"/rpc":             func(args []any) (int, any) { return 200, json.RawMessage(list) },
	"/rpc/Math/add":    func(args []any) (int, any) { return 200, args[0].(float64) + args[1].(float64) },
	"/rpc/Demo/fail":   func(args []any) (int, any) { return 409, map[string]any{"kind": "Refusal", "message": args[0]} },
	"/rpc/Demo/sleep":  func(args []any) (int, any) { time.Sleep(time.Duration(args[0].(float64) * 1e6)); return 200, nil },
	"/rpc/Demo/add_in": addIn,
}

func addIn(args []any) (int, any) { // in another region, through the instance beside this app
	body, _ := json.Marshal(args[1:])
	request, _ := http.NewRequest("POST", os.Getenv("FLY_RPC_URL")+"/rpc/"+args[0].(string)+"/Math/add", strings.NewReader(string(body)))
	request.Header = http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + os.Getenv("FLY_RPC_TOKEN")}}
	response, err := http.DefaultClient.Do(request)
	var answer map[string]any
	if err == nil {
		defer response.Body.Close()
		err = json.NewDecoder(response.Body).Decode(&answer)
	}
	if err != nil {
		return 500, map[string]any{"kind": "error", "message": err.Error()}
	}
	if response.StatusCode != 200 { // the answer is the problem
		return 500, map[string]any{"kind": answer["code"], "message": answer["detail"], "data": answer}
	}
	return 200, answer["result"]
}

func recovered(run func([]any) (int, any), args []any) (status int, value any) { // a panic, such as on a wrong type, is an error
	defer func() {
		if why := recover(); why != nil {
			status, value = 500, map[string]any{"kind": fmt.Sprintf("%T", why), "message": fmt.Sprint(why)}
		}
	}()
	return run(args)
}

func serve(response http.ResponseWriter, request *http.Request) {
	run, isKnown := routes[request.URL.Path]
	if !isKnown || request.Header.Get("authorization") != "Bearer "+os.Getenv("RPC_APP_TOKEN") {
		run = func(args []any) (int, any) { return 401, nil }
	}
	var body struct{ Args []any }
	json.NewDecoder(request.Body).Decode(&body)
	status, value := recovered(run, body.Args)
	response.Header().Set("content-type", "application/json")
	response.WriteHeader(status)
	json.NewEncoder(response).Encode(value)
}

func main() { panic(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), http.HandlerFunc(serve))) }
