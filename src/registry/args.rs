//! From a call's JSON array to the type that a function takes, with errors that name the argument and repeat no value.

use serde::{
    Deserializer,
    de::{DeserializeOwned, DeserializeSeed, Error, SeqAccess, Visitor, value::Error as Misfit},
};
use serde_json::value::RawValue;

use crate::{call::Args, problem::counted};

/// The arguments as an `A`, or what does not fit.
pub(super) fn parse<A: DeserializeOwned>(args: &Args) -> Result<A, String> {
    let items: Vec<&RawValue> =
        serde_json::from_str(args.raw().get()).map_err(|error| error.to_string())?;
    A::deserialize(Arguments(&items)).map_err(|misfit| misfit.to_string())
}

fn arity(expected: usize, given: usize) -> Misfit {
    let takes = counted(expected, "argument");
    Misfit::custom(format!("takes {takes}, {given} given"))
}

/// How serde begins an error that repeats a value.
const VALUES: [&str; 2] = ["invalid ", "unknown variant "];

/// The error of argument `number`, without the value and the position that `serde_json` adds.
fn of_argument(number: usize, error: &serde_json::Error) -> Misfit {
    let message = error.to_string();
    let message = message
        .rsplit_once(" at line ")
        .map_or(message.as_str(), |(message, _)| message);
    Misfit::custom(match message.rsplit_once(", expected ") {
        Some((found, expected)) if VALUES.iter().any(|start| found.starts_with(start)) => {
            format!("argument {number}: expected {expected}")
        }
        _ => format!("argument {number}: {message}"),
    })
}

/// The whole array as a deserializer: tuples take it apart, all else takes its only item. Which of the two it is shows only
/// in the method by which a type asks for itself.
struct Arguments<'a, 'de>(&'a [&'de RawValue]);

impl<'de> Arguments<'_, 'de> {
    fn only<V>(
        self,
        visitor: V,
        deserialize: impl FnOnce(&'de RawValue, V) -> Result<V::Value, serde_json::Error>,
    ) -> Result<V::Value, Misfit>
    where
        V: Visitor<'de>,
    {
        match self.0 {
            [item] => deserialize(item, visitor).map_err(|error| of_argument(1, &error)),
            items => Err(arity(1, items.len())),
        }
    }

    fn each<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let items = self.0.iter();
        visitor.visit_seq(Items { items, number: 0 })
    }
}

/// The types that take the only argument, and are read from it by the method of the same name.
macro_rules! only {
    ($($method:ident $(($($name:ident: $type:ty),*))?)*) => {
        $(fn $method<V: Visitor<'de>>(self, $($($name: $type,)*)? visitor: V) -> Result<V::Value, Misfit> {
            self.only(visitor, |item, visitor| item.$method($($($name,)*)? visitor))
        })*
    };
}

impl<'de> Deserializer<'de> for Arguments<'_, 'de> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        // An untagged enum reads its forms through here: the array itself is what it takes where there is not one item.
        match self.0 {
            [_] => self.only(visitor, |item, visitor| item.deserialize_any(visitor)),
            _ => self.each(visitor),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.0.len() {
            0 => visitor.visit_unit(),
            given => Err(arity(0, given)),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        expected: usize,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match self.0.len() {
            given if given == expected => self.each(visitor),
            given => Err(arity(expected, given)),
        }
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        expected: usize,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        self.deserialize_tuple(expected, visitor)
    }

    only! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_i128 deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_u128 deserialize_f32 deserialize_f64 deserialize_char deserialize_str
        deserialize_string deserialize_bytes deserialize_byte_buf deserialize_option deserialize_seq
        deserialize_map deserialize_identifier deserialize_ignored_any
        deserialize_newtype_struct(name: &'static str)
        deserialize_struct(name: &'static str, fields: &'static [&'static str])
        deserialize_enum(name: &'static str, variants: &'static [&'static str])
    }
}

struct Items<'a, 'de> {
    items: std::slice::Iter<'a, &'de RawValue>,
    number: usize,
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Misfit> {
        let Some(item) = self.items.next() else {
            return Ok(None);
        };
        self.number += 1;
        let value = seed.deserialize(*item);
        value
            .map(Some)
            .map_err(|error| of_argument(self.number, &error))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    fn parsed<A: DeserializeOwned>(args: &str) -> Result<A, String> {
        let raw = RawValue::from_string(args.to_owned()).unwrap();
        parse(&Args::from_raw(raw).unwrap())
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Account {
        id: u8,
    }

    #[test]
    fn types_take_their_arguments() {
        assert_eq!(parsed::<()>("[]"), Ok(()));
        assert_eq!(
            parsed::<(i64, String)>(r#"[1,"a"]"#),
            Ok((1, "a".to_owned()))
        );
        assert_eq!(parsed::<Account>(r#"[{"id":1}]"#), Ok(Account { id: 1 }));
        assert_eq!(
            parsed::<(Account,)>(r#"[{"id":1}]"#),
            Ok((Account { id: 1 },))
        );
        assert_eq!(parsed::<String>(r#"["fly"]"#), Ok("fly".to_owned()));
        assert_eq!(parsed::<f64>("[2]"), Ok(2.0));
        assert_eq!(parsed::<Vec<i64>>("[[1,2]]"), Ok(vec![1, 2]));
        assert_eq!(parsed::<Option<u8>>("[null]"), Ok(None));
        assert_eq!(parsed::<Box<RawValue>>("[1.10]").unwrap().get(), "1.10");
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Colour {
        Red,
        Blue,
    }

    fn misfit<A: DeserializeOwned>(args: &str) -> String {
        parsed::<A>(args).map(|_| ()).unwrap_err()
    }

    #[test]
    fn misfits_name_the_argument_and_no_value() {
        for (misfit, expected) in [
            (misfit::<()>("[1]"), "takes 0 arguments, 1 given"),
            (misfit::<(i64, i64)>("[1]"), "takes 2 arguments, 1 given"),
            (misfit::<String>("[]"), "takes 1 argument, 0 given"),
            (
                misfit::<(i64, i64)>(r#"[1,"secret"]"#),
                "argument 2: expected i64",
            ),
            (misfit::<(u8,)>("[300]"), "argument 1: expected u8"),
            (
                misfit::<(Vec<Colour>,)>(r#"[["blue","secret"]]"#),
                "argument 1: expected `red` or `blue`",
            ),
            (misfit::<Account>("[{}]"), "argument 1: missing field `id`"),
        ] {
            assert_eq!(misfit, expected);
        }
        let misfit = misfit::<(String,)>(r#"["\ud800"]"#);
        assert!(misfit.starts_with("argument 1: "), "{misfit}");
    }
}
