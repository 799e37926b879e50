//! A region, and the target that a path names: a region, or whichever region is the primary.
//! Regions are labels; no list of them is kept anywhere, because Fly adds and removes regions.

use std::str::FromStr;

use crate::name::{InvalidName, word};

const PRIMARY: &str = "primary";

word! {
    /// A region such as `syd`: `^[a-z0-9][a-z0-9-]{0,31}$`, never `primary`, which stands for another.
    pub Region, "a region", "1 to 32 characters of [a-z0-9-], not starting with '-', and not \"primary\"",
    |text| {
        (1..=32).contains(&text.len())
            && !text.starts_with('-')
            && text != PRIMARY
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    }
}

/// Where a call is asked to run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Target {
    /// The region that `PRIMARY_REGION` names at the instance which receives the call.
    Primary,
    /// This region.
    Region(Region),
}

impl Target {
    /// The region meant, where `primary` is the primary region.
    pub(crate) fn region<'a>(&'a self, primary: &'a Region) -> &'a Region {
        match self {
            Self::Primary => primary,
            Self::Region(region) => region,
        }
    }
}

impl FromStr for Target {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            PRIMARY => Ok(Self::Primary),
            region => region.parse().map(Self::Region),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_follow_the_rule_and_are_never_folded() {
        for good in ["syd", "local", "a", "0", "us-east-1", &"r".repeat(32)] {
            assert_eq!(good.parse::<Region>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "IAD",
            " iad",
            "-iad",
            "a/b",
            "a%2Fb",
            "é",
            "primary",
            &"r".repeat(33),
        ] {
            bad.parse::<Region>().unwrap_err();
        }
    }

    #[test]
    fn primary_is_a_target_that_resolves_to_the_primary_region() {
        let iad: Region = "iad".parse().unwrap();
        let syd: Region = "syd".parse().unwrap();
        assert_eq!("primary".parse::<Target>().unwrap().region(&iad), &iad);
        assert_eq!("syd".parse::<Target>().unwrap().region(&iad), &syd);
    }
}
