//! The routes that are only read, each as its whole body.

use serde_json::{Value, json};

use crate::support::{
    asking::two_regions,
    cluster::Cluster,
    process::{Environment, Process},
};

#[tokio::test]
async fn regions_show_every_instance_and_how_discovery_fares() {
    let cluster = two_regions().set("FLY_IMAGE_REF", "v7").start().await;
    let answer = cluster.instance("syd-1").get("/regions").await;
    let catalogue = cluster.instance("syd-1").get("/functions").await.body["catalogue"].clone();
    let peer = &answer.body["regions"][0]["instances"][0];
    let discovery = &answer.body["discovery"];
    let (rtt_ms, last_seen_ms) = (peer["rtt_ms"].clone(), peer["last_seen_ms"].clone());
    let (last_success_ms, rounds) = (
        discovery["last_success_ms"].clone(),
        discovery["rounds"].clone(),
    );
    assert!(
        [&rtt_ms, &last_seen_ms, &last_success_ms, &rounds]
            .into_iter()
            .all(Value::is_number),
        "{answer:?}"
    );
    let expected = json!({
        "local": "syd",
        "primary": "iad",
        "is_primary": false,
        "regions": [
            {"region": "iad", "instances": [{
                "instance": "iad-1", "address": cluster.instance("iad-1").address, "state": "ready",
                "local": false, "release": "v7", "rtt_ms": rtt_ms, "last_seen_ms": last_seen_ms,
                "functions": 15, "catalogue": catalogue,
            }]},
            {"region": "syd", "instances": [{
                "instance": "syd-1", "address": cluster.instance("syd-1").address, "state": "ready",
                "local": true, "release": "v7", "rtt_ms": null, "last_seen_ms": null,
                "functions": 15, "catalogue": catalogue,
            }]},
        ],
        "discovery": {
            "source": "cluster.test", "last_success_ms": last_success_ms, "stale": false, "last_error": null,
            "warnings": [], "rounds": rounds,
        },
    });
    assert_eq!(answer.body, expected);
}

#[tokio::test]
async fn one_region_is_one_of_them() {
    let cluster = two_regions().start().await;
    let iad = cluster.instance("iad-1");
    let syd = iad.get("/regions/syd").await;
    assert_eq!(
        (
            syd.status,
            &syd.body["region"],
            &syd.body["instances"][0]["instance"]
        ),
        (200, &json!("syd"), &json!("syd-1"))
    );
    let of_primary = iad.get("/regions/primary").await;
    assert_eq!(
        (of_primary.status, &of_primary.body["region"]),
        (200, &json!("iad"))
    );
    assert_eq!(
        iad.get("/regions/mars").await.problem(),
        (404, "region_unknown", "no")
    );
    assert_eq!(
        iad.get("/regions/IAD").await.problem(),
        (400, "invalid_region", "no")
    );
}

#[tokio::test]
async fn the_catalogue_lists_every_built_in_function() {
    let local = Process::start(&Environment::from([(
        "RPC_LISTEN",
        "127.0.0.1:0".to_owned(),
    )]))
    .await;
    let answer = local.get("/functions").await;
    let hash = answer.body["catalogue"].clone();
    assert_eq!(hash.as_str().map(str::len), Some(32));
    let mut expected = json!({"catalogue": hash, "details": {}, "functions": {
        "Fly.RPC": ["is_primary?", "my_region", "primary_region"],
        "Kernel": ["*", "+", "-", "raise"],
        "Process": ["sleep"],
        "String": ["capitalize", "downcase", "length", "reverse", "split", "trim", "upcase"],
    }});
    assert_eq!(local.get("/internal/functions").await.body, expected);
    expected["app"] = json!(null);
    assert_eq!(answer.body, expected);
}

#[tokio::test]
async fn every_built_in_function_does_what_its_name_says() {
    let local = Process::start(&Environment::from([(
        "RPC_LISTEN",
        "127.0.0.1:0".to_owned(),
    )]))
    .await;
    let cases = [
        ("String.upcase", json!(["fly"]), json!("FLY")),
        ("String.downcase", json!(["FLY"]), json!("fly")),
        ("String.capitalize", json!(["fLY"]), json!("Fly")),
        ("String.capitalize", json!(["éA"]), json!("Éa")),
        ("String.capitalize", json!(["ß"]), json!("SS")),
        ("String.capitalize", json!([""]), json!("")),
        ("String.reverse", json!(["fly"]), json!("ylf")),
        ("String.length", json!(["flié"]), json!(4)),
        ("String.trim", json!([" fly \n"]), json!("fly")),
        ("String.split", json!([" to  fly "]), json!(["to", "fly"])),
        ("String.split", json!(["a,b", ","]), json!(["a", "b"])),
        ("Kernel.+", json!([1, 2]), json!(3)),
        ("Kernel.-", json!([1, 2.5]), json!(-1.5)),
        ("Kernel.*", json!([6, 7]), json!(42)),
        ("Process.sleep", json!([1]), json!("ok")),
        ("Fly.RPC.my_region", json!([]), json!("local")),
        ("Fly.RPC.primary_region", json!([]), json!("local")),
        ("Fly.RPC.is_primary?", json!([]), json!(true)),
    ];
    for (function, args, result) in cases {
        assert_eq!(
            local.call("local", function, args).await.result(),
            &result,
            "{function}"
        );
    }
    // As floats they would be the same.
    let beyond = json!([9_223_372_036_854_775_809_u64, 9_223_372_036_854_775_808_u64]);
    let beyond = local.call("local", "Kernel.-", beyond).await;
    assert_eq!(beyond.problem(), (422, "invalid_arguments", "no"));
    let overflow = local.call("local", "Kernel.+", json!([i64::MAX, 1])).await;
    assert_eq!(
        overflow.body["error"],
        json!({"kind": "ArithmeticError", "message": "the result is beyond 64 bits", "data": null})
    );
    let split = local
        .call("local", "String.split", json!(["a", "b", "c"]))
        .await;
    assert_eq!(
        split.detail(),
        "String.split: takes a text, and optionally a pattern"
    );
}

#[tokio::test]
async fn health_and_introduction_name_who_answers() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .set("FLY_APP_NAME", "shop")
        .set("FLY_IMAGE_REF", "v7")
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let status = |status: &str| json!({"status": status, "instance": "iad-1", "region": "iad"});
    assert_eq!(iad.get("/healthz").await.body, status("live"));
    assert_eq!(iad.get("/readyz").await.body, status("ready"));
    let hash = iad.get("/functions").await.body["catalogue"].clone();
    let got = iad.get("/internal/region").await.body;
    let boot = got["boot"].clone();
    assert_eq!(boot.as_str().map(str::len), Some(32), "{got}");
    let introduction = json!({
        "region": "iad", "instance": "iad-1", "boot": boot, "app": "shop", "release": "v7", "primary": "iad",
        "state": "ready", "protocol": 1, "catalogue": hash,
    });
    assert_eq!(got, introduction);
}

#[tokio::test]
async fn exec_runs_a_call_here_or_not_at_all() {
    let cluster = two_regions().start().await;
    let syd = cluster.instance("syd-1");
    let call = |more: &str| format!(r#"{{"module":"Fly.RPC","function":"my_region"{more}}}"#);
    let ran = syd
        .post(
            "/internal/exec",
            &call(r#","region":"syd","from_a_later_release":1"#),
        )
        .await;
    assert_eq!((ran.result(), ran.instance()), (&json!("syd"), "syd-1"));
    let moved = syd
        .post("/internal/exec", &call(r#","region":"iad""#))
        .await;
    assert_eq!(moved.problem(), (421, "wrong_region", "no"));
    assert_eq!(moved.detail(), "this is instance syd-1 of region \"syd\"");
    let other = syd
        .post(
            "/internal/exec",
            &call(r#","region":"syd","instance":"syd-9""#),
        )
        .await;
    assert_eq!(other.problem(), (421, "wrong_region", "no"));
    let nowhere = syd.post("/internal/exec", &call("")).await;
    assert_eq!(
        (nowhere.problem().1, nowhere.detail()),
        ("invalid_request", "member \"region\" is missing")
    );
}
