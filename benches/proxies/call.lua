-- The request that every way forwards; an answer that is no result ends the run's figures as an error.
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = '{"module":"String","function":"upcase","args":["fly"]}'
