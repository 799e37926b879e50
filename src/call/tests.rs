//! Which JSON is a call, and the problems of the rest.

use serde::Serialize;

use super::*;

const TIMEOUTS: Timeouts = Timeouts {
    default: Duration::from_secs(5),
    max: Duration::from_secs(60),
};

fn refusal(body: &str) -> (Code, String) {
    let problem = Call::from_json(body.as_bytes(), TIMEOUTS).unwrap_err();
    (problem.code, problem.detail)
}

#[test]
fn a_call_needs_only_its_function() {
    let call = Call::from_json(
        br#"{"module":"Fly.RPC","function":"is_primary?"}"#,
        TIMEOUTS,
    )
    .unwrap();
    assert_eq!(call.name.to_string(), "Fly.RPC.is_primary?");
    assert_eq!(
        (call.args.raw().get(), call.timeout, call.idempotent),
        ("[]", TIMEOUTS.default, false)
    );
    assert!(call.instance.is_none());
}

#[test]
fn args_keep_every_digit() {
    let body = br#"{"module":"m","function":"f","args":[18446744073709551617, 1.10, 1e400, {"a":1,"a":2}]}"#;
    let call = Call::from_json(body, TIMEOUTS).unwrap();
    assert_eq!(
        call.args.raw().get(),
        r#"[18446744073709551617, 1.10, 1e400, {"a":1,"a":2}]"#
    );
}

#[test]
fn each_member_is_refused_by_name() {
    let with = |member: &str| refusal(&format!(r#"{{"module":"m","function":"f",{member}}}"#)).1;
    assert_eq!(
        refusal(r#"{"function":"f"}"#).1,
        r#"member "module" is missing"#
    );
    assert_eq!(
        refusal(r#"{"module":"m"}"#).1,
        r#"member "function" is missing"#
    );
    let name = "must be 1 to 128 printable ASCII characters without space";
    assert_eq!(
        refusal(r#"{"module":"a b","function":"f"}"#).1,
        format!(r#"member "module" {name}"#)
    );
    assert_eq!(
        refusal(r#"{"module":"m","function":1}"#).1,
        format!(r#"member "function" {name}"#)
    );
    for args in ["null", "1", "\"a\""] {
        assert_eq!(
            with(&format!(r#""args":{args}"#)),
            r#"member "args" must be an array, or an object by the names of parameters, of at most 256 arguments"#
        );
    }
    for whole in ["5000", "5000.0", "5e3"] {
        let body = format!(r#"{{"module":"m","function":"f","timeout_ms":{whole}}}"#);
        let call = Call::from_json(body.as_bytes(), TIMEOUTS).unwrap();
        assert_eq!(call.timeout, Duration::from_secs(5));
    }
    for timeout in ["0", "-1", "60001", "1.5", "\"5s\"", "null", "1e12", "1e400"] {
        let detail = with(&format!(r#""timeout_ms":{timeout}"#));
        assert_eq!(
            detail,
            r#"member "timeout_ms" must be an integer from 1 to 60000"#
        );
    }
    assert_eq!(
        with(r#""idempotent":1"#),
        r#"member "idempotent" must be true or false"#
    );
    assert_eq!(
        with(r#""instance":"""#),
        r#"member "instance" must be 1 to 128 characters of [A-Za-z0-9._-]"#
    );
    assert_eq!(with(r#""timeout":1"#), r#"unknown member "timeout""#);
    assert_eq!(with(r#""module":"m""#), r#"member "module" is given twice"#);
}

#[test]
fn at_most_256_args() {
    let body = |n: usize| {
        format!(
            r#"{{"module":"m","function":"f","args":[{}]}}"#,
            vec!["0"; n].join(",")
        )
    };
    let by_name = |n: usize| {
        let members: Vec<_> = (0..n).map(|number| format!(r#""a{number}":0"#)).collect();
        format!(
            r#"{{"module":"m","function":"f","args":{{{}}}}}"#,
            members.join(",")
        )
    };
    for text in [body(256), by_name(256)] {
        Call::from_json(text.as_bytes(), TIMEOUTS).unwrap();
    }
    for text in [body(257), by_name(257)] {
        assert_eq!(refusal(&text).0, Code::InvalidRequest);
    }
}

/// What a function that declares `params` gets of `args`.
fn ordered(args: &str, params: Option<&[&str]>) -> Result<String, String> {
    let declared = params.map(|names| {
        let params = names.iter().map(|name| (*name, serde_json::json!({})));
        Declaration::new().params(params)
    });
    let args = Args::from_raw(RawValue::from_string(args.to_owned()).unwrap()).unwrap();
    let ordered = args.in_order(declared.as_ref().and_then(|it| it.params.as_deref()))?;
    Ok(ordered.raw().get().to_owned())
}

#[test]
fn names_are_put_in_order_and_no_digit_changes() {
    let ab: Option<&[&str]> = Some(&["a", "b"]);
    let good = |args: &str, params| ordered(args, params).unwrap();
    assert_eq!(
        good(r#"{"b" : [1.10, "}"], "a":1e400}"#, ab),
        r#"[1e400,[1.10, "}"]]"#
    );
    assert_eq!(good(r#"{"\u0062":2,"a":{"b":1}}"#, ab), r#"[{"b":1},2]"#);
    assert_eq!(good("{ }", Some(&[])), "[]");
    assert_eq!(good("[1, 2]", ab), "[1, 2]");
    assert_eq!(good("[1, 2]", None), "[1, 2]");
}

#[test]
fn a_name_or_a_number_that_does_not_fit_is_told() {
    let ab: Option<&[&str]> = Some(&["a", "b"]);
    let bad = |args: &str, params| ordered(args, params).unwrap_err();
    assert_eq!(
        bad(r#"{"a":1,"c":2}"#, ab),
        r#"argument "c" is unknown; expected a, b"#
    );
    assert_eq!(bad(r#"{"b":1}"#, ab), r#"argument "a" is missing"#);
    assert_eq!(
        bad(r#"{"a":1,"b":2,"\u0061":3}"#, ab),
        r#"argument "a" is given twice"#
    );
    assert_eq!(
        bad(r#"{"a":1}"#, Some(&[])),
        r#"argument "a" is unknown; expected none"#
    );
    assert_eq!(
        bad("{}", None),
        "takes its arguments in an array: it declares no names of parameters"
    );
    assert_eq!(bad("[1]", ab), "expected 2 arguments (a, b), got 1");
    assert_eq!(bad("[1]", Some(&[])), "expected 0 arguments (none), got 1");
}

#[test]
fn values_become_args() {
    #[derive(Serialize)]
    struct Account {
        id: u8,
    }
    let args = |args: Result<Args, Problem>| args.unwrap().raw().get().to_owned();
    assert_eq!(args(Args::from_values(&(1, "two"))), r#"[1,"two"]"#);
    assert_eq!(args(Args::from_values(&())), "[]");
    assert_eq!(args(Args::from_values(&"fly")), r#"["fly"]"#);
    assert_eq!(args(Args::from_values(&Account { id: 1 })), r#"[{"id":1}]"#);
    assert_eq!(args(Args::from_members(&Account { id: 1 })), r#"{"id":1}"#);
    assert_eq!(
        Args::from_members(&[1]).unwrap_err().detail,
        "arguments by name must be a struct or a map"
    );
}
