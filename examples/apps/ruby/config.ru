require "json"
require "net/http"

ADD_IN = lambda do |region, a, b| # in another region, through the instance beside this app
  headers = { "content-type" => "application/json", "authorization" => "Bearer #{ENV["FLY_RPC_TOKEN"]}" }
  uri = URI("#{ENV.fetch("FLY_RPC_URL")}/rpc/#{region}/Math/add")
  JSON.parse(Net::HTTP.post(uri, [a, b].to_json, headers).body)["result"]
end

FUNCTIONS = {
  "Math.add" => ->(a, b) { a + b },
  "Demo.fail" => ->(message) { raise ArgumentError, message },
  "Demo.sleep" => ->(ms) { sleep(ms / 1000.0) and nil },
  "Demo.add_in" => ADD_IN,
}

answer = ->(status, value) { [status, { "content-type" => "application/json" }, [value.to_json]] }

run(lambda do |env|
  next answer.(401, nil) unless env["HTTP_AUTHORIZATION"] == "Bearer #{ENV.fetch("RPC_APP_TOKEN")}"
  next answer.(200, { functions: FUNCTIONS.transform_values { {} } }) if env["REQUEST_METHOD"] == "GET"
  function = FUNCTIONS.fetch(env["PATH_INFO"].split("/").drop(2).join(".")) # /rpc/Math/add
  answer.(200, function.(*JSON.parse(env["rack.input"].read)["args"]))
rescue StandardError => error
  answer.(500, { kind: error.class.name, message: error.message })
end)
