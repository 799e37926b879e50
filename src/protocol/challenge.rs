//! How two instances prove to each other that they know the cluster's token without sending it.
//!
//! A probe carries a nonce and the prober's proof; the answer carries the proof of the instance. Both proofs name the
//! address that was dialled, which the instance reads from its own socket: a stranger that relays a probe to an instance
//! gets a proof for that instance's address, which is worthless at the stranger's own.

use std::net::SocketAddr;

use crate::{
    name::{BootId, InstanceId, random_word},
    region::Region,
    token::{Proof, Token},
};

/// What one end of a connection proves, besides that it knows the token.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Statement<'a> {
    /// It probes, and asks for a path.
    Asks { path: &'a str },
    /// It is this instance, in this run where it says so, and answers for the path.
    Answers {
        path: &'a str,
        instance: &'a InstanceId,
        region: &'a Region,
        boot: Option<&'a BootId>,
    },
    /// It opens a connection for calls.
    Opens,
    /// It is this instance and accepts the connection; the nonce is its own.
    Accepts {
        nonce: &'a str,
        instance: &'a InstanceId,
        region: &'a Region,
    },
    /// It opened the connection and was sent this nonce: without this second proof, whoever recorded an opening could
    /// replay it.
    Confirms { nonce: &'a str },
}

/// The nonce of a probe or of a connection, and the address that it is for.
#[derive(Clone, Debug)]
pub(crate) struct Challenge {
    pub(crate) nonce: String,
    address: SocketAddr,
}

impl Challenge {
    /// A challenge with a new nonce for the one that answers at `address`.
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            nonce: random_word(),
            address,
        }
    }

    /// The challenge in a request that arrived at `address`; `None` when `nonce` is not 32 hexadecimal digits.
    pub(crate) fn received(nonce: &str, address: SocketAddr) -> Option<Self> {
        let is_nonce = nonce.len() == 32 && nonce.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_nonce.then(|| Self {
            nonce: nonce.to_owned(),
            // A dual-stack socket reports an IPv4 address as an IPv4-mapped IPv6 address; the prober dialled the former.
            address: SocketAddr::new(address.ip().to_canonical(), address.port()),
        })
    }

    /// The proof of what `says`, by one who knows `token`.
    pub(crate) fn prove(&self, token: &Token, says: Statement<'_>) -> Proof {
        token.prove(&self.text(says))
    }

    /// Whether `proof` is from one who knows `token` and says this about this very challenge.
    pub(crate) fn is_proven(&self, token: &Token, says: Statement<'_>, proof: &Proof) -> bool {
        self.prove(token, says) == *proof
    }

    /// One part per line. No part can contain a line break, so different statements are different texts.
    fn text(&self, says: Statement<'_>) -> String {
        let Self {
            nonce: own,
            address,
        } = self;
        match says {
            Statement::Asks { path } => format!("fly-rpc 1 asks\n{path}\n{own}\n{address}"),
            Statement::Answers {
                path,
                instance,
                region,
                boot,
            } => {
                let boot = boot.map(|boot| format!("\n{boot}")).unwrap_or_default();
                format!("fly-rpc 1 answers\n{path}\n{own}\n{address}\n{instance}\n{region}{boot}")
            }
            Statement::Opens => format!("fly-rpc 1 opens\n{own}\n{address}"),
            Statement::Accepts {
                nonce,
                instance,
                region,
            } => format!("fly-rpc 1 accepts\n{own}\n{nonce}\n{address}\n{instance}\n{region}"),
            Statement::Confirms { nonce } => {
                format!("fly-rpc 1 confirms\n{own}\n{nonce}\n{address}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::PROVABLE, *};

    #[test]
    fn a_proof_cannot_be_moved() {
        let token: Token = "t".repeat(32).parse().unwrap();
        let (address, other) = (
            "127.0.0.1:1".parse().unwrap(),
            "127.0.0.2:1".parse().unwrap(),
        );
        let (instance, region) = ("a".parse().unwrap(), "syd".parse().unwrap());
        let (another_instance, another_region) = ("b".parse().unwrap(), "fra".parse().unwrap());
        let (boot, another_boot) = (BootId::random(), BootId::random());
        let asks = |path| Statement::Asks { path };
        let answers = |path, instance, region, boot| Statement::Answers {
            path,
            instance,
            region,
            boot,
        };
        let [path, other_path] = PROVABLE;
        let says = answers(path, &instance, &region, Some(&boot));
        let challenge = Challenge::new(address);
        let at = |address| Challenge::received(&challenge.nonce, address).unwrap();
        let (asked, answered) = (
            challenge.prove(&token, asks(path)),
            challenge.prove(&token, says),
        );
        assert!(at(address).is_proven(&token, asks(path), &asked));
        assert!(challenge.is_proven(&token, says, &answered));

        let another_token: Token = "u".repeat(32).parse().unwrap();
        assert!(!challenge.is_proven(&another_token, says, &answered));
        for another in [
            answers(path, &another_instance, &region, Some(&boot)),
            answers(path, &instance, &another_region, Some(&boot)),
            answers(path, &instance, &region, Some(&another_boot)),
            answers(path, &instance, &region, None),
            answers(other_path, &instance, &region, Some(&boot)),
            asks(path),
        ] {
            assert!(!challenge.is_proven(&token, another, &answered));
        }
        for another in [says, asks(other_path)] {
            assert!(!challenge.is_proven(&token, another, &asked));
        }
        for another in [at(other), Challenge::new(address)] {
            assert!(!another.is_proven(&token, says, &answered));
            assert!(!another.is_proven(&token, asks(path), &asked));
        }
    }

    #[test]
    fn an_address_is_the_same_in_both_families() {
        let nonce = "0".repeat(32);
        let received = |address: &str| Challenge::received(&nonce, address.parse().unwrap());
        assert_eq!(
            received("[::ffff:127.0.0.1]:80")
                .unwrap()
                .text(Statement::Opens),
            received("127.0.0.1:80").unwrap().text(Statement::Opens)
        );
        for nonce in ["0", &"\n".repeat(32)] {
            let address = "127.0.0.1:80".parse().unwrap();
            assert!(Challenge::received(nonce, address).is_none());
        }
    }
}
