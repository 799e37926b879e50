//! How two instances prove to each other that they know the cluster's secret before either is sent it.
//!
//! A probe carries a nonce and the asker's proof; the answer carries the proof of the instance asked. Both name the
//! address that was dialled, which the instance asked knows by its own socket: a stranger who passes a probe on to an
//! instance gets a proof for that instance's address, and nobody takes it for the stranger's.

use std::net::SocketAddr;

use crate::{
    name::{BootId, InstanceId},
    region::Region,
    token::{Proof, Token},
};

/// The header of a probe's nonce.
pub(crate) const NONCE: &str = "rpc-nonce";
/// The header of a proof, in probe and answer.
pub(crate) const PROOF: &str = "rpc-proof";

/// Where an instance says who it is.
pub(crate) const REGION: &str = "/internal/region";
/// Where an instance says which functions it has.
pub(crate) const FUNCTIONS: &str = "/internal/functions";
/// What may be asked for with a proof instead of the token.
pub(crate) const PATHS: [&str; 2] = [REGION, FUNCTIONS];

/// Who says that it answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who<'a> {
    /// The instance.
    pub instance: &'a InstanceId,
    /// Its region.
    pub region: &'a Region,
    /// Which run of it; `None` when it names none.
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
    pub(crate) fn fresh(address: SocketAddr) -> Self {
        Self {
            nonce: fresh_nonce(),
            address,
        }
    }

    /// The challenge of a probe with this nonce that arrived at `address`; `None` for what is no nonce.
    pub(crate) fn received(nonce: &str, address: SocketAddr) -> Option<Self> {
        let is_nonce = nonce.len() == 32 && nonce.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_nonce.then(|| Self {
            nonce: nonce.to_owned(),
            // A socket that takes IPv4 and IPv6 tells the one as the other.
            address: SocketAddr::new(address.ip().to_canonical(), address.port()),
        })
    }

    /// The nonce.
    pub(crate) fn nonce(&self) -> &str {
        &self.nonce
    }

    /// The proof of who asks for `path`.
    pub(crate) fn ask(&self, token: &Token, path: &str) -> Proof {
        token.prove(&self.question(path))
    }

    /// Whether the `proof` of who asks for `path` shows that it knows `token`.
    pub(crate) fn is_asked(&self, token: &Token, path: &str, proof: &Proof) -> bool {
        token.is_proven(&self.question(path), proof)
    }

    /// The proof of `who`, which was asked for `path`.
    pub(crate) fn answer(&self, token: &Token, path: &str, who: Who<'_>) -> Proof {
        token.prove(&self.reply(path, who))
    }

    /// Whether `proof` shows that `who` knows `token` and answers for `path` at the address itself.
    pub(crate) fn is_answered(
        &self,
        token: &Token,
        path: &str,
        who: Who<'_>,
        proof: &Proof,
    ) -> bool {
        token.is_proven(&self.reply(path, who), proof)
    }

    /// The proof of an instance that asks for a connection for calls.
    pub(crate) fn open(&self, token: &Token) -> Proof {
        token.prove(&self.opening())
    }

    /// Whether `proof` is that of an instance which asks for a connection and knows `token`.
    pub(crate) fn is_opened(&self, token: &Token, proof: &Proof) -> bool {
        token.is_proven(&self.opening(), proof)
    }

    /// The proof of `instance` in `region`, which takes calls on the connection; `nonce` is its own.
    pub(crate) fn accept(
        &self,
        token: &Token,
        nonce: &str,
        instance: &InstanceId,
        region: &Region,
    ) -> Proof {
        token.prove(&self.acceptance(nonce, instance, region))
    }

    /// Whether `proof` shows that `instance` in `region` knows `token` and is at the other end of this connection.
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

    /// The asker's last proof, over the nonce of the instance asked too: without it, whoever saw an opening could send it
    /// again.
    pub(crate) fn confirm(&self, token: &Token, nonce: &str) -> Proof {
        token.prove(&self.confirmation(nonce))
    }

    /// Whether `proof` confirms this challenge and `nonce`.
    pub(crate) fn is_confirmed(&self, token: &Token, nonce: &str, proof: &Proof) -> bool {
        token.is_proven(&self.confirmation(nonce), proof)
    }

    // No part of a statement can hold a line break, so no two statements are the same text.
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

/// A number that was never used before.
pub(crate) fn fresh_nonce() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let (region_path, other_path) = (PATHS[0], PATHS[1]);
        let asked = Challenge::fresh(address);
        let proof = asked.answer(&token, region_path, who);
        let at = |address| Challenge::received(asked.nonce(), address).unwrap();
        let asks = asked.ask(&token, region_path);
        assert!(at(address).is_asked(&token, region_path, &asks));
        assert!(asked.is_answered(&token, region_path, who, &proof));

        let another: Token = "u".repeat(32).parse().unwrap();
        let (instance, region, boot) = (
            "b".parse().unwrap(),
            "fra".parse().unwrap(),
            BootId::random(),
        );
        assert!(!asked.is_answered(&another, region_path, who, &proof));
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
            assert!(!asked.is_answered(&token, region_path, another, &proof));
        }
        assert!(!at(other).is_answered(&token, region_path, who, &proof));
        assert!(!Challenge::fresh(address).is_answered(&token, region_path, who, &proof));
        assert!(!asked.is_answered(&token, region_path, who, &asks));
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
