//! What the fuzz targets call: the readers of everything that strangers send, each with what must hold of any input. A
//! module of the crate, for fuzzing and, with the seeds and with inputs of proptest, for its unit tests alone.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use bytes::Bytes;
use hickory_resolver::proto::op::Message;
use tokio::time::Instant;

use crate::{
    access::Client,
    call::{Call, Timeouts},
    cluster::{self, MAX_WITHOUT_PEER, Peer, ProbeAnswer, Table, TableEvent},
    declaration::Declaration,
    memory::Budget,
    name::BootId,
    problem::Problem,
    protocol::{
        Challenge, Exec,
        lines::{self, Frame, Lines},
    },
    region::{Target, Targets},
    reply::{Meta, Report},
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
    let line = Exec::line(&region, &call, &id);
    let mut sent = Vec::new();
    lines::begin_call(&mut sent, 1, 1, 1, &line);
    sent.extend_from_slice(line.args());
    assert!(!sent.contains(&b'\n'));
    sent.push(b'}');
    let received = Exec::from_json(&sent, TIMEOUTS);
    let received =
        received.unwrap_or_else(|problem| panic!("a peer refuses what we took: {problem}"));
    assert_eq!(received.call.name, call.name);
}

/// The lines of `POST /internal/exec`, both ways: the calls of a caller, and the answers of a peer.
pub fn lines(bytes: &[u8]) {
    for line in split(bytes) {
        let (id, exec) = Exec::from_line(&line, TIMEOUTS);
        if let Ok(exec) = exec {
            assert!(exec.call.timeout >= Duration::from_millis(1), "{id:?}");
        }
        answer(&line);
    }
}

/// The longest line.
const MAX_LINE: usize = 1 << 10;

/// A line of a peer's answer; what is an answer stays one when we write it ourselves.
fn answer(line: &[u8]) {
    let Frame::Answer(id, result) = lines::read_answer(line) else {
        return;
    };
    let Ok(request_id) = "fuzz".parse() else {
        unreachable!("this is a good name");
    };
    let sent = match &result {
        Ok(result) => Ok(result.clone()),
        Err(problem) => Err(Problem::clone(problem)),
    };
    let mut written = Vec::new();
    let meta = Meta::untried(None, Duration::ZERO, request_id);
    lines::write_answer(&mut written, Some(id), Report::new(sent, meta));
    assert_eq!(
        written.iter().position(|byte| *byte == b'\n'),
        Some(written.len() - 1)
    );
    match (lines::read_answer(&written), result) {
        (Frame::Answer(again, Ok(received)), Ok(result)) => {
            assert_eq!(
                (again, received.json.get().len()),
                (id, result.json.get().len())
            );
        }
        (Frame::Answer(again, Err(received)), Err(sent)) => {
            assert_eq!(
                (again, received.code, received.executed),
                (id, sent.code, sent.executed)
            );
            assert!(received.detail.len() <= 256 && sent.detail.starts_with(&received.detail));
        }
        other => panic!("{other:?}"),
    }
}

/// The lines in `bytes`, which are the same however the bytes come in.
fn split(bytes: &[u8]) -> Vec<Bytes> {
    let found = split_in_pieces(bytes, bytes.len().max(1));
    assert_eq!(split_in_pieces(bytes, 1), found);
    assert_eq!(split_in_pieces(bytes, 7), found);
    found
}

fn split_in_pieces(bytes: &[u8], size: usize) -> Vec<Bytes> {
    let (mut lines, mut found) = (Lines::new(MAX_LINE, &Budget::new(0)), Vec::new());
    for piece in bytes.chunks(size) {
        lines.push(piece);
        loop {
            match lines.next() {
                Ok(Some(line)) => found.push(line),
                Ok(None) => break,
                Err(_) => return found,
            }
        }
    }
    found
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
        assert!((1..=3).contains(&targets.items.len()));
    }
}

const PORT: u16 = 8080;

/// An answer of DNS to a table with one peer: the peer stays, every other usable address is probed once, and no other is.
pub fn dns(bytes: &[u8]) {
    let Ok(message) = Message::from_vec(bytes) else {
        return;
    };
    let mut addresses: BTreeSet<SocketAddr> = cluster::addresses(&message, PORT)
        .chain(cluster::services(&message).0)
        .collect();
    addresses.retain(cluster::is_usable);
    let peer = SocketAddr::from(([127, 0, 0, 1], PORT));
    let now = Instant::now();
    let mut table = table_with(peer, now);
    let mut probed = |complete| {
        let addresses = addresses.clone();
        let resolved = TableEvent::Resolved {
            addresses,
            complete,
        };
        let probed = table.apply(resolved, now).probe;
        assert!(table.is_peer(peer));
        probed
    };
    let new = addresses.iter().copied().filter(|it| *it != peer);
    let new: Vec<_> = new.take(MAX_WITHOUT_PEER).collect();
    assert_eq!(probed(false), new);
    let missing = (!addresses.contains(&peer)).then_some(peer);
    assert_eq!(probed(true), Vec::from_iter(missing));
    for address in new {
        let ip = address.ip();
        assert!(ip == ip.to_canonical() && !ip.is_unspecified() && !ip.is_multicast());
        assert!(address.port() != 0 && !table.is_peer(address));
    }
}

fn table_with(address: SocketAddr, now: Instant) -> Table {
    let (Ok(me), Ok(instance), Ok(region)) = ("me".parse(), "peer".parse(), "syd".parse()) else {
        unreachable!("these names are valid");
    };
    let mut table = Table::new(me, BootId::random());
    let resolved = TableEvent::Resolved {
        addresses: [address].into(),
        complete: true,
    };
    let answer = ProbeAnswer {
        peer: Peer::new(address, region, instance),
        draining: false,
        rtt: Duration::ZERO,
    };
    table.apply(resolved, now);
    table.apply(TableEvent::Probed(address, Ok(answer)), now);
    table
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
        assert_eq!(challenge.nonce, text);
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
