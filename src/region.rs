//! A region; where a call is asked to run: `syd`, `primary`, `any`, or a list of these, the preferred one first; and where a
//! fan-out is: `all`, or a list.
//! Regions are labels; no list of them is kept anywhere, because Fly adds and removes regions.

use std::{fmt, str::FromStr};

use crate::name::{InvalidName, word};

/// What stands where a call is asked to run.
const RULE: &str = "\"primary\", \"any\", or 1 to 32 characters of [a-z0-9-], not starting with '-', and not \"all\" or \
    \"each\" (to run on every instance, POST /each/all)";

const PRIMARY: &str = "primary";
const ANY: &str = "any";
const ALL: &str = "all";
/// Words that stand for other regions, or for all; no region has one of these names.
const RESERVED: [&str; 4] = [PRIMARY, ANY, ALL, "each"];

/// How many items a list may have: one for each attempt of a call.
const MAX_TARGETS: usize = 3;
/// How many regions a fan-out may name; of more, `all` is shorter.
const MAX_REGIONS: usize = 32;

word! {
    /// A region such as `syd`: `^[a-z0-9][a-z0-9-]{0,31}$`, except `primary`, `any`, `all` and `each`, which stand for
    /// others.
    pub Region, "a region",
    "1 to 32 characters of [a-z0-9-], not starting with '-', and not \"primary\", \"any\", \"all\" or \"each\"",
    |text| {
        (1..=32).contains(&text.len())
            && !text.starts_with('-')
            && !RESERVED.contains(&text)
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Target {
    /// The region that `PRIMARY_REGION` names at the instance which receives the call.
    Primary,
    /// The region that answers nearest and serves the function.
    Any,
    Region(Region),
}

impl Target {
    /// The region meant, where `primary` is the primary region; `None` for any.
    pub(crate) fn region<'a>(&'a self, primary: &'a Region) -> Option<&'a Region> {
        match self {
            Self::Primary => Some(primary),
            Self::Any => None,
            Self::Region(region) => Some(region),
        }
    }
}

impl FromStr for Target {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            PRIMARY => Ok(Self::Primary),
            ANY => Ok(Self::Any),
            // The rule of a region alone would leave out "primary" and "any", which may stand here.
            region => region
                .parse()
                .map(Self::Region)
                .map_err(|_| InvalidName::new("a region", RULE)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primary => f.write_str(PRIMARY),
            Self::Any => f.write_str(ANY),
            Self::Region(region) => region.fmt(f),
        }
    }
}

/// Where a call is asked to run: one to three targets, the preferred one first; one that is named twice counts once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Targets {
    pub(crate) items: Vec<Target>,
    /// The regions that `any` may stand for; every one when `None`.
    pub(crate) within: Option<Vec<Region>>,
}

impl Targets {
    /// The only region meant, where it is clear without a choice.
    pub(crate) fn only<'a>(&'a self, primary: &'a Region) -> Option<&'a Region> {
        match self.items.as_slice() {
            [only] => only.region(primary),
            _ => None,
        }
    }

    /// The first region that is named.
    pub(crate) fn first<'a>(&'a self, primary: &'a Region) -> Option<&'a Region> {
        self.named(primary).next()
    }

    pub(crate) fn named<'a>(&'a self, primary: &'a Region) -> impl Iterator<Item = &'a Region> {
        self.items.iter().filter_map(|item| item.region(primary))
    }

    pub(crate) fn has_any(&self) -> bool {
        self.items.contains(&Target::Any)
    }

    pub(crate) fn any_may_be(&self, region: &Region) -> bool {
        let within = self.within.as_ref();
        within.is_none_or(|regions| regions.contains(region))
    }
}

impl FromStr for Targets {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let too_many = InvalidName::new("a list of regions", "one to three items");
        let items = distinct(text, MAX_TARGETS, too_many)?;
        Ok(Self {
            items,
            within: None,
        })
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(&self.items, f)
    }
}

/// In which regions a fan-out runs: in all, or in up to 32 that are named.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Regions {
    /// In every one in which there is an instance.
    All,
    /// In these, none of which is `any`.
    Named(Vec<Target>),
}

impl Regions {
    pub(crate) fn named<'a>(&'a self, primary: &'a Region) -> impl Iterator<Item = &'a Region> {
        let items = match self {
            Self::All => &[],
            Self::Named(items) => items.as_slice(),
        };
        items.iter().filter_map(|item| item.region(primary))
    }
}

impl FromStr for Regions {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == ALL {
            return Ok(Self::All);
        }
        let too_many = InvalidName::new("a fan-out", "in one to 32 regions, or in all");
        let items = distinct(text, MAX_REGIONS, too_many)?;
        if items.contains(&Target::Any) {
            let rule = "a region or \"primary\"; \"any\" does not say which region";
            return Err(InvalidName::new("each item of a fan-out", rule));
        }
        Ok(Self::Named(items))
    }
}

impl fmt::Display for Regions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str(ALL),
            Self::Named(items) => list(items, f),
        }
    }
}

/// The targets in a list of at most `most`, each once. To name one twice is not an error, because no pattern in the OpenAPI
/// document can forbid it.
fn distinct(text: &str, most: usize, too_many: InvalidName) -> Result<Vec<Target>, InvalidName> {
    let mut targets = Vec::with_capacity(1);
    for (number, target) in text.split(',').enumerate() {
        let target = target.parse()?;
        if number == most {
            return Err(too_many);
        }
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    Ok(targets)
}

fn list(items: &[Target], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let items: Vec<_> = items.iter().map(Target::to_string).collect();
    f.write_str(&items.join(","))
}
