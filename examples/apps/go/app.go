package main

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"time"
)

type function func(args []any) any

func (function) MarshalJSON() ([]byte, error) { return []byte("{}"), nil } // what it declares in the list

var functions = map[string]function{
	"Math.add":    func(args []any) any { return args[0].(float64) + args[1].(float64) },
	"Demo.fail":   func(args []any) any { panic(args[0]) },
	"Demo.sleep":  func(args []any) any { time.Sleep(time.Duration(args[0].(float64)) * time.Millisecond); return nil },
	"Demo.add_in": func(args []any) any { return addIn(args[0].(string), args[1:]) },
}

func addIn(region string, args []any) any { // in another region, through the instance beside this app
	body, _ := json.Marshal(args)
	request, _ := http.NewRequest("POST", os.Getenv("FLY_RPC_URL")+"/rpc/"+region+"/Math/add", strings.NewReader(string(body)))
	request.Header = http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + os.Getenv("FLY_RPC_TOKEN")}}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		panic(err.Error())
	}
	defer response.Body.Close()
	var answer struct{ Result any }
	json.NewDecoder(response.Body).Decode(&answer)
	return answer.Result
}

func serve(response http.ResponseWriter, request *http.Request) {
	status, value := 401, any(nil)
	defer func() {
		if failure := recover(); failure != nil {
			status, value = 500, map[string]any{"kind": "panic", "message": failure}
		}
		response.Header().Set("content-type", "application/json")
		response.WriteHeader(status)
		json.NewEncoder(response).Encode(value)
	}()
	var body struct{ Args []any }
	json.NewDecoder(request.Body).Decode(&body)
	if request.Header.Get("authorization") == "Bearer "+os.Getenv("RPC_APP_TOKEN") {
		status, value = 200, map[string]any{"functions": functions}
		if request.Method == "POST" { // /rpc/Math/add
			value = functions[strings.ReplaceAll(request.URL.Path[len("/rpc/"):], "/", ".")](body.Args)
		}
	}
}

func main() { panic(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), http.HandlerFunc(serve))) }
