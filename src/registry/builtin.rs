//! Functions that every instance has, named as in Elixir: enough to try each part of the service with curl.

use std::{
    future::{Ready, ready},
    time::Duration,
};

use serde_json::value::RawValue;

use super::Registry;
use crate::{config::Identity, problem::FunctionError};

/// What a function comes to that does not wait.
type Done<R> = Ready<Result<R, FunctionError>>;

pub(super) fn functions() -> Registry {
    Registry::new()
        .function("String", "upcase", of_text(str::to_uppercase))
        .function("String", "downcase", of_text(str::to_lowercase))
        .function("String", "capitalize", of_text(capitalize))
        .function("String", "reverse", of_text(reverse))
        .function("String", "length", of_text(|text| text.chars().count()))
        .function("String", "trim", of_text(|text| text.trim().to_owned()))
        .function("String", "split", |text: SplitArgs| ready(Ok(text.split())))
        .function("Kernel", "+", of_numbers(i64::checked_add, |a, b| a + b))
        .function("Kernel", "-", of_numbers(i64::checked_sub, |a, b| a - b))
        .function("Kernel", "*", of_numbers(i64::checked_mul, |a, b| a * b))
        .function("Kernel", "raise", |(message,): (String,)| {
            ready(Err::<(), _>(FunctionError::new("RuntimeError", message)))
        })
        .function("Process", "sleep", |(milliseconds,): (u64,)| async move {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            Ok("ok")
        })
}

fn of_text<R>(run: fn(&str) -> R) -> impl Fn((String,)) -> Done<R> {
    move |(text,)| ready(Ok(run(&text)))
}

fn of_numbers(
    integers: fn(i64, i64) -> Option<i64>,
    floats: fn(f64, f64) -> f64,
) -> impl Fn((Number, Number)) -> Done<Number> {
    move |(a, b)| ready(a.apply(b, integers, floats))
}

pub(super) fn identity(identity: &Identity) -> Registry {
    let (region, primary) = (&identity.region, &identity.primary);
    Registry::new()
        .function("Fly.RPC", "my_region", always(region.clone()))
        .function("Fly.RPC", "primary_region", always(primary.clone()))
        .function("Fly.RPC", "is_primary?", always(region == primary))
}

fn always<R: Clone>(value: R) -> impl Fn(()) -> Done<R> {
    move |()| ready(Ok(value.clone()))
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

fn reverse(text: &str) -> String {
    text.chars().rev().collect()
}

fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars.flat_map(char::to_lowercase)).collect()
}

/// A number that is written as an integer is one, any other a float.
#[derive(Clone, Copy, serde::Deserialize, serde::Serialize)]
#[serde(try_from = "Box<RawValue>", untagged)]
enum Number {
    Integer(i64),
    Float(f64),
}

impl TryFrom<Box<RawValue>> for Number {
    type Error = &'static str;

    fn try_from(json: Box<RawValue>) -> Result<Self, Self::Error> {
        let text = json.get();
        // An integer beyond 64 bits would lose digits as a float.
        let number = match text.contains(['.', 'e', 'E']) {
            true => serde_json::from_str(text).map(Self::Float).ok(),
            false => text.parse().map(Self::Integer).ok(),
        };
        number.ok_or("expected a number; an integer is from -2^63 to 2^63 - 1")
    }
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
