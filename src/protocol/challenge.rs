//! How two instances prove to each other that they know the cluster's token without sending it.
//!
//! A probe carries a nonce and the prober's proof; the answer carries the proof of the instance. Both proofs name the
//! address that was dialled, which the instance reads from its own socket: a stranger that relays a probe to an instance
//! gets a proof for that instance's address, which is worthless at the stranger's own.

use std::net::SocketAddr;

use crate::{
    name::{BootId, InstanceId},
    region::Region,
    token::{Proof, Token},
};

/// The instance that answers a challenge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who<'a> {
    /// Its id.
    pub instance: &'a InstanceId,
    /// Its region.
    pub region: &'a Region,
    /// Its run; `None` when it does not say.
    pub boot: Option<&'a BootId>,
}

/// One probe's nonce and the address it is for.
#[derive(Clone, Debug)]
pub(crate) struct Challenge {
    nonce: String,
    address: SocketAddr,
}

impl Challenge {
    /// A challenge with a new nonce for whoever answers at `address`.
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            nonce: new_nonce(),
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

    /// The nonce.
    pub(crate) fn nonce(&self) -> &str {
        &self.nonce
    }

    /// The prober's proof for a request for `path`.
    pub(crate) fn ask(&self, token: &Token, path: &str) -> Proof {
        token.prove(&self.question(path))
    }

    /// Whether `proof` is from a prober that knows `token` and asks for `path`.
    pub(crate) fn is_asked(&self, token: &Token, path: &str, proof: &Proof) -> bool {
        token.is_proven(&self.question(path), proof)
    }

    /// The proof of `who` for its answer to a request for `path`.
    pub(crate) fn answer(&self, token: &Token, path: &str, who: Who<'_>) -> Proof {
        token.prove(&self.reply(path, who))
    }

    /// Whether `proof` is from `who`, which knows `token` and answered for `path` at this very address.
    pub(crate) fn is_answered(
        &self,
        token: &Token,
        path: &str,
        who: Who<'_>,
        proof: &Proof,
    ) -> bool {
        token.is_proven(&self.reply(path, who), proof)
    }

    /// The proof of an instance that opens a connection for calls.
    pub(crate) fn open(&self, token: &Token) -> Proof {
        token.prove(&self.opening())
    }

    /// Whether `proof` is from an instance that knows `token` and opens a connection.
    pub(crate) fn is_opened(&self, token: &Token, proof: &Proof) -> bool {
        token.is_proven(&self.opening(), proof)
    }

    /// The proof of `instance` in `region`, which accepts the connection; `nonce` is its own.
    pub(crate) fn accept(
        &self,
        token: &Token,
        nonce: &str,
        instance: &InstanceId,
        region: &Region,
    ) -> Proof {
        token.prove(&self.acceptance(nonce, instance, region))
    }

    /// Whether `proof` is from `instance` in `region`, which knows `token` and is at the other end of this connection.
    pub(crate) fn is_accepted(
        &self,
        token: &Token,
        nonce: &str,
        instance: &InstanceId,
        region: &Region,
        proof: &Proof,
    ) -> bool {
        token.is_proven(&self.acceptance(nonce, instance, region), proof)
    }

    /// The opening instance's second proof, which covers the nonce of the other end too: without it, whoever recorded an
    /// opening could replay it.
    pub(crate) fn confirm(&self, token: &Token, nonce: &str) -> Proof {
        token.prove(&self.confirmation(nonce))
    }

    /// Whether `proof` confirms this challenge and `nonce`.
    pub(crate) fn is_confirmed(&self, token: &Token, nonce: &str, proof: &Proof) -> bool {
        token.is_proven(&self.confirmation(nonce), proof)
    }

    // What is proven is a text of one part per line. No part can contain a line break, so different statements are
    // different texts.
    fn opening(&self) -> String {
        format!("fly-rpc 1 opens\n{}\n{}", self.nonce, self.address)
    }

    fn acceptance(&self, answer: &str, instance: &InstanceId, region: &Region) -> String {
        let Self { nonce, address } = self;
        format!("fly-rpc 1 accepts\n{nonce}\n{answer}\n{address}\n{instance}\n{region}")
    }

    fn confirmation(&self, answer: &str) -> String {
        let Self { nonce, address } = self;
        format!("fly-rpc 1 confirms\n{nonce}\n{answer}\n{address}")
    }

    fn question(&self, path: &str) -> String {
        let Self { nonce, address } = self;
        format!("fly-rpc 1 asks\n{path}\n{nonce}\n{address}")
    }

    fn reply(&self, path: &str, who: Who<'_>) -> String {
        let Self { nonce, address } = self;
        let Who {
            instance,
            region,
            boot,
        } = who;
        let boot = boot.map(|boot| format!("\n{boot}")).unwrap_or_default();
        format!("fly-rpc 1 answers\n{path}\n{nonce}\n{address}\n{instance}\n{region}{boot}")
    }
}

/// A random nonce of 128 bits.
pub(crate) fn new_nonce() -> String {
    format!("{:032x}", rand::random::<u128>())
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
        let boot = BootId::random();
        let who = Who {
            instance: &instance,
            region: &region,
            boot: Some(&boot),
        };
        let (region_path, other_path) = (PROVABLE[0], PROVABLE[1]);
        let challenge = Challenge::new(address);
        let proof = challenge.answer(&token, region_path, who);
        let at = |address| Challenge::received(challenge.nonce(), address).unwrap();
        let asks = challenge.ask(&token, region_path);
        assert!(at(address).is_asked(&token, region_path, &asks));
        assert!(challenge.is_answered(&token, region_path, who, &proof));

        let another: Token = "u".repeat(32).parse().unwrap();
        let (instance, region, boot) = (
            "b".parse().unwrap(),
            "fra".parse().unwrap(),
            BootId::random(),
        );
        assert!(!challenge.is_answered(&another, region_path, who, &proof));
        for another in [
            Who {
                instance: &instance,
                ..who
            },
            Who {
                region: &region,
                ..who
            },
            Who {
                boot: Some(&boot),
                ..who
            },
            Who { boot: None, ..who },
        ] {
            assert!(!challenge.is_answered(&token, region_path, another, &proof));
        }
        assert!(!at(other).is_answered(&token, region_path, who, &proof));
        assert!(!Challenge::new(address).is_answered(&token, region_path, who, &proof));
        assert!(!challenge.is_answered(&token, region_path, who, &asks));
        assert!(!at(other).is_asked(&token, region_path, &asks));
        assert!(!at(address).is_asked(&token, other_path, &asks));
        assert!(!at(address).is_answered(&token, other_path, who, &proof));
    }

    #[test]
    fn an_address_is_the_same_in_both_families() {
        let nonce = "0".repeat(32);
        let received = |address: &str| Challenge::received(&nonce, address.parse().unwrap());
        assert_eq!(
            received("[::ffff:127.0.0.1]:80").unwrap().question("/"),
            received("127.0.0.1:80").unwrap().question("/")
        );
        for nonce in ["0", &"\n".repeat(32)] {
            let address = "127.0.0.1:80".parse().unwrap();
            assert!(Challenge::received(nonce, address).is_none());
        }
    }
}
