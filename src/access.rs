//! Who may ask what: the cluster's tokens, and clients with their names, tokens and limits.
//! Decides by the token that a request presents; `http` refuses the request.

use std::{str::FromStr, sync::Arc};

use crate::{
    name::{FunctionName, InvalidName, KeyOwner, Name, word},
    region::Region,
    token::{PresentedToken, Token},
};

word! {
    /// A client of the public routes, as logs name it: 1 to 64 characters of `[A-Za-z0-9._-]`.
    pub ClientName, "a client's name", "1 to 64 characters of [A-Za-z0-9._-]",
    |text| (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Who may ask an instance what.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The cluster's secret: the first is sent to peers, all are accepted from them; empty for none.
    pub cluster: Vec<Token>,
    /// Who may call the public routes; empty for everybody.
    pub clients: Vec<Arc<Client>>,
    /// Whether everybody may call the public routes although other machines reach them.
    pub allow_anonymous: bool,
}

impl Access {
    /// Whether a request with this token may use the routes for instances.
    pub(crate) fn is_instance(&self, presented: Option<&PresentedToken>) -> bool {
        self.cluster.is_empty()
            || presented.is_some_and(|presented| presented.position(&self.cluster).is_some())
    }

    /// The client whose token this is.
    pub(crate) fn caller(&self, presented: Option<&PresentedToken>) -> Option<Caller> {
        // Without client tokens, an instance starts only on loopback or with RPC_ALLOW_ANONYMOUS; a token means nothing
        // there.
        if self.clients.is_empty() {
            return Some(Caller(None));
        }
        let place = presented?.position(self.clients.iter().map(|client| &client.token))?;
        Some(Caller(self.clients.get(place).cloned()))
    }
}

/// A client of the public routes: `name:token`, with `:regions=syd|iad` and `:functions=String.*|Notes.create` where it
/// is limited to them.
#[derive(Clone, Debug)]
pub struct Client {
    /// What logs call it.
    pub name: ClientName,
    /// Its token.
    pub token: Token,
    /// The regions that it may call; all when `None`.
    pub regions: Option<Vec<Region>>,
    /// The functions that it may call; all when `None`.
    pub functions: Option<Vec<FunctionPattern>>,
}

impl FromStr for Client {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        const RULE: InvalidName = InvalidName::new(
            "a client",
            "name:token, then :regions=a|b and :functions=Module.function|Module.* where it is limited",
        );
        let mut parts = text.split(':');
        let (Some(name), Some(token)) = (parts.next(), parts.next()) else {
            return Err(RULE);
        };
        let mut client = Self {
            name: name.parse()?,
            token: token.parse()?,
            regions: None,
            functions: None,
        };
        for part in parts {
            match part.split_once('=') {
                Some(("regions", list)) if client.regions.is_none() => {
                    client.regions = Some(parse_all(list)?);
                }
                Some(("functions", list)) if client.functions.is_none() => {
                    client.functions = Some(parse_all(list)?);
                }
                _ => return Err(RULE),
            }
        }
        Ok(client)
    }
}

fn parse_all<T: FromStr>(list: &str) -> Result<Vec<T>, T::Err> {
    list.split('|').map(str::parse).collect()
}

/// One function, `Module.function`, or all of a module, `Module.*`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct FunctionPattern {
    module: Name,
    function: Option<Name>,
}

impl FunctionPattern {
    fn matches(&self, name: &FunctionName) -> bool {
        self.module == name.module
            && self
                .function
                .as_ref()
                .is_none_or(|function| *function == name.function)
    }
}

impl FromStr for FunctionPattern {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let rule = InvalidName::new(
            "a function",
            "Module.function, or Module.* for all of a module",
        );
        let (module, function) = text.rsplit_once('.').ok_or(rule)?;
        // A `*` in the module would match no module, although it looks as if it matched every one.
        if module.contains('*') {
            return Err(rule);
        }
        Ok(Self {
            module: module.parse().map_err(|_| rule)?,
            function: match function {
                "*" => None,
                function => Some(function.parse().map_err(|_| rule)?),
            },
        })
    }
}

/// Who makes a request of the public routes: a client, or anybody where there are no client tokens.
#[derive(Clone, Debug)]
pub(crate) struct Caller(Option<Arc<Client>>);

impl Caller {
    /// The client's name; `None` for anybody.
    pub(crate) fn name(&self) -> Option<&str> {
        Some(self.0.as_ref()?.name.as_str())
    }

    /// The owner of its idempotency keys; `None` without a client.
    pub(crate) fn key_owner(&self) -> Option<KeyOwner> {
        let client = self.0.as_ref()?;
        // Every client's name is a valid owner: the rule for owners allows more.
        client.name.as_str().parse().ok()
    }

    /// The regions that it may call; `None` for all.
    pub(crate) fn regions(&self) -> Option<&[Region]> {
        self.0.as_ref()?.regions.as_deref()
    }

    /// Whether it may call every function in every region.
    pub(crate) fn is_unlimited(&self) -> bool {
        self.regions().is_none() && self.functions().is_none()
    }

    pub(crate) fn may_call_in(&self, region: &Region) -> bool {
        self.regions()
            .is_none_or(|regions| regions.contains(region))
    }

    /// The functions that it may call; all when `None`.
    pub(crate) fn functions(&self) -> Option<&[FunctionPattern]> {
        self.0.as_ref()?.functions.as_deref()
    }

    pub(crate) fn may_call(&self, function: &FunctionName) -> bool {
        let functions = self.functions();
        functions.is_none_or(|patterns| patterns.iter().any(|pattern| pattern.matches(function)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn client(limits: &str) -> Result<Caller, InvalidName> {
        format!("shop:{TOKEN}{limits}")
            .parse()
            .map(|client: Client| Caller(Some(Arc::new(client))))
    }

    fn function(module: &str, function: &str) -> FunctionName {
        FunctionName::new(module, function).unwrap()
    }

    #[test]
    fn limits_allow_what_they_name_and_nothing_else() {
        let caller = client(":regions=syd|iad:functions=Fly.RPC.*|Notes.create").unwrap();
        let regions =
            ["syd", "iad", "fra"].map(|region| caller.may_call_in(&region.parse().unwrap()));
        assert_eq!(regions, [true, true, false]);
        let functions = [
            ("Fly.RPC", "my_region"),
            ("Notes", "create"),
            ("Notes", "creates"),
            ("Notes", "delete"),
            ("Fly", "RPC"),
            ("fly.rpc", "my_region"),
        ];
        let allowed = functions.map(|(module, name)| caller.may_call(&function(module, name)));
        assert_eq!(allowed, [true, true, false, false, false, false]);
    }

    #[test]
    fn what_is_no_limit_is_refused_without_the_token() {
        let limits = ": :regions :regions= :regions=SYD :regions=syd:regions=iad :functions=String :functions=.x \
                      :functions=*.* :functions=*.upcase :functions=Str*.* :function=String.*";
        for limits in limits.split(' ') {
            let refused = client(limits).unwrap_err().to_string();
            assert!(!refused.contains(TOKEN), "{refused}");
        }
        let (nameless, spaced) = (format!(":{TOKEN}"), format!("a b:{TOKEN}"));
        for text in ["shop", "", "shop:short", &nameless, &spaced] {
            assert!(text.parse::<Client>().is_err(), "{text}");
        }
    }
}
