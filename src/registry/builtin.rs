//! Functions that every instance has, named as in Elixir: enough to try each part of the service with curl.

use std::time::Duration;

use super::Registry;
use crate::{config::Identity, problem::FunctionError};

/// `registry` with the modules `String`, `Kernel` and `Process`.
pub(super) fn add(registry: Registry) -> Registry {
    registry
        .function("String", "upcase", |(text,): (String,)| async move {
            Ok(text.to_uppercase())
        })
        .function("String", "downcase", |(text,): (String,)| async move {
            Ok(text.to_lowercase())
        })
        .function("String", "capitalize", |(text,): (String,)| async move {
            Ok(capitalize(&text))
        })
        .function("String", "reverse", |(text,): (String,)| async move {
            Ok(text.chars().rev().collect::<String>())
        })
        .function("String", "length", |(text,): (String,)| async move {
            Ok(text.chars().count())
        })
        .function("String", "trim", |(text,): (String,)| async move {
            Ok(text.trim().to_owned())
        })
        .function("String", "split", |text: SplitArgs| async move {
            Ok(text.split())
        })
        .function("Kernel", "+", |(a, b): (Number, Number)| async move {
            a.apply(b, i64::checked_add, |a, b| a + b)
        })
        .function("Kernel", "-", |(a, b): (Number, Number)| async move {
            a.apply(b, i64::checked_sub, |a, b| a - b)
        })
        .function("Kernel", "*", |(a, b): (Number, Number)| async move {
            a.apply(b, i64::checked_mul, |a, b| a * b)
        })
        .function("Kernel", "raise", |(message,): (String,)| async move {
            Err::<(), _>(FunctionError::new("RuntimeError", message))
        })
        .function("Process", "sleep", |(milliseconds,): (u64,)| async move {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            Ok("ok")
        })
}

/// `registry` with the functions of `Fly.RPC` that describe the instance.
pub(super) fn add_identity(registry: Registry, identity: &Identity) -> Registry {
    let (region, primary) = (identity.region.clone(), identity.primary.clone());
    let is_primary = region == primary;
    registry
        .function("Fly.RPC", "my_region", move |(): ()| {
            std::future::ready(Ok(region.clone()))
        })
        .function("Fly.RPC", "primary_region", move |(): ()| {
            std::future::ready(Ok(primary.clone()))
        })
        .function("Fly.RPC", "is_primary?", move |(): ()| {
            std::future::ready(Ok(is_primary))
        })
}

/// `String.split/1` on white space, or `String.split/2` on a pattern.
#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "takes a text, and optionally a pattern")]
enum SplitArgs {
    Whitespace(String),
    Pattern((String, String)),
}

impl SplitArgs {
    fn split(&self) -> Vec<String> {
        match self {
            Self::Whitespace(text) => text.split_whitespace().map(str::to_owned).collect(),
            Self::Pattern((text, pattern)) => text.split(pattern).map(str::to_owned).collect(),
        }
    }
}

fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars.flat_map(char::to_lowercase)).collect()
}

/// An integer as long as it can be one, else a float.
#[derive(Clone, Copy, serde::Deserialize, serde::Serialize)]
#[serde(untagged)]
enum Number {
    Integer(i64),
    Float(f64),
}

impl Number {
    fn apply(
        self,
        other: Self,
        integers: fn(i64, i64) -> Option<i64>,
        floats: fn(f64, f64) -> f64,
    ) -> Result<Self, FunctionError> {
        if let (Self::Integer(a), Self::Integer(b)) = (self, other) {
            let sum = integers(a, b);
            return sum
                .map(Self::Integer)
                .ok_or_else(|| arithmetic("the result is beyond 64 bits"));
        }
        let result = floats(self.as_float(), other.as_float());
        if result.is_finite() {
            Ok(Self::Float(result))
        } else {
            Err(arithmetic("the result is beyond a float"))
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "mixed arithmetic is in floats, as in Elixir"
    )]
    fn as_float(self) -> f64 {
        match self {
            Self::Integer(integer) => integer as f64,
            Self::Float(float) => float,
        }
    }
}

fn arithmetic(message: &str) -> FunctionError {
    FunctionError::new("ArithmeticError", message)
}
