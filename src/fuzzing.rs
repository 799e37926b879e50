//! What `fuzz/` calls: the readers of everything that strangers send, each with what must hold of any input. Compiled for
//! fuzzing and, with the seeds and with inputs of proptest, for unit tests alone.

use std::time::Duration;

use crate::{
    access::Client,
    call::{Call, Timeouts},
    cluster,
    declaration::Declaration,
    protocol::{self, Challenge, Exec},
    region::{Target, Targets},
    token::{PresentedToken, Proof, Token},
};

const TIMEOUTS: Timeouts = Timeouts {
    default: Duration::from_secs(5),
    max: Duration::from_secs(60),
};

/// The body of `POST /rpc/{region}`: args that are taken are one JSON array or object, at most 256 long, on one line once
/// sent, and an array once they are put in order.
pub fn body(body: &[u8]) {
    let Ok(call) = Call::from_json(body, TIMEOUTS) else {
        return;
    };
    let params = ["a", "b"].map(|name| (name, serde_json::json!({})));
    let declared = Declaration::new().params(params);
    for params in [None, declared.params.as_deref()] {
        let Ok(args) = call.args.in_order(params) else {
            continue;
        };
        let args: Vec<&serde_json::value::RawValue> = serde_json::from_str(args.raw().get())
            .unwrap_or_else(|error| panic!("args in order are no array: {error}"));
        assert!(args.len() <= 256);
    }
    assert!((Duration::from_millis(1)..=TIMEOUTS.max).contains(&call.timeout));
    let (region, id) = ("syd".parse(), "fuzz".parse());
    let (Ok(region), Ok(id)) = (region, id) else {
        unreachable!("both are good names");
    };
    let mut sent = b"{\"timeout_ms\":1,".to_vec();
    sent.extend(&Exec::text(&region, &call, &id)[1..]);
    assert!(!sent.contains(&b'\n'));
    let received = Exec::from_json(&sent, TIMEOUTS);
    let received =
        received.unwrap_or_else(|problem| panic!("a peer refuses what we took: {problem}"));
    assert_eq!(received.call.name, call.name);
}

/// The lines of `POST /internal/exec`, both ways: the calls of a caller, and the answers of a peer.
pub fn lines(bytes: &[u8]) {
    for line in protocol::fuzzing::split(bytes) {
        let (id, exec) = Exec::from_line(&line, TIMEOUTS);
        if let Ok(exec) = exec {
            assert!(exec.call.timeout >= Duration::from_millis(1), "{id:?}");
        }
    }
    protocol::fuzzing::answers(bytes);
}

/// A region, and a list of them.
pub fn region(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(Target::Region(region)) = text.parse() {
        assert_eq!(region.as_str(), text);
        assert!(text.len() <= 32 && !text.contains(['/', '%', '.', ',', '\r', '\n']));
    }
    if let Ok(targets) = text.parse::<Targets>() {
        assert_eq!(targets.to_string().parse(), Ok(targets.clone()));
        assert!((1..=3).contains(&targets.items().len()));
    }
}

/// An answer of DNS, to the table of peers.
pub fn dns(bytes: &[u8]) {
    cluster::fuzzing::dns_answer(bytes);
}

/// Everything that has to do with tokens, in headers and in settings.
pub fn tokens(bytes: &[u8]) {
    let presented = PresentedToken::from_authorization(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(token) = text.parse::<Token>() {
        assert!(!format!("{token:?}").contains(text));
        let own = PresentedToken::from_authorization(token.bearer().as_bytes());
        assert_eq!(own.and_then(|own| own.position([&token])), Some(0));
        assert_eq!(
            presented.and_then(|presented| presented.position([&token])),
            None
        );
    }
    if let Ok(client) = text.parse::<Client>() {
        assert!(text.starts_with(client.name.as_str()));
    }
    if let Ok(proof) = text.parse::<Proof>() {
        assert!(proof.to_string().eq_ignore_ascii_case(text));
    }
    let reached = ([127, 0, 0, 1], 1).into();
    if let Some(challenge) = Challenge::received(text, reached) {
        assert_eq!(challenge.nonce(), text);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    #[test]
    fn seeds() {
        type Target = fn(&[u8]);
        let targets = [
            ("body", super::body as Target),
            ("dns", super::dns),
            ("lines", super::lines),
            ("region", super::region),
            ("tokens", super::tokens),
        ];
        for (name, target) in targets {
            let seeds = format!("{}/fuzz/seeds/{name}", env!("CARGO_MANIFEST_DIR"));
            for seed in fs::read_dir(seeds).unwrap() {
                target(&fs::read(seed.unwrap().path()).unwrap());
            }
        }
    }

    fn config() -> ProptestConfig {
        ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        }
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn all_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            super::body(&bytes);
            super::lines(&bytes);
            super::region(&bytes);
            super::tokens(&bytes);
            super::dns(&bytes);
        }

        #[test]
        fn near_calls(members in proptest::collection::vec(
            r#""(module|function|region|instance)":"[ -~]{1,5}"|"args":(\[[0-9\n ]{0,4}\]|\{("[abc]":[0-9]\n?,){0,2}"[ab]":[0-9]\})|"(timeout_ms|id)":[0-9]{1,4}|\n"#,
            0..7,
        )) {
            let text = format!("{{\"module\":\"a\",\"function\":\"b\",{}}}", members.join(","));
            super::body(text.as_bytes());
            super::lines(text.as_bytes());
        }

        #[test]
        fn near_tokens(text in "(Bearer |shop:)?[a-f0-9]{32,64}(:regions=[a-z|]{1,4}|:functions=[A-Z.*|]{1,4})?") {
            super::tokens(text.as_bytes());
            super::region(text.as_bytes());
        }
    }
}
