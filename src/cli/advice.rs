//! What to do about a problem, for people: one line for each code and what was asked.

use std::borrow::Cow;

use crate::problem::{Code, Executed};

/// What a request was asked with, as far as the advice depends on it.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    pub(super) with_token: bool,
    pub(super) again: Again,
    /// The known function whose name is most like the unknown one.
    pub(super) meant: Option<String>,
}

/// Whether a call may be sent again after it may have run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Again {
    #[default]
    Unsaid,
    Idempotent,
    Keyed,
}

/// What to do next about a problem of `code`.
pub(super) fn next(code: Code, executed: Executed, asked: &Asked) -> Cow<'static, str> {
    let advice = match code {
        Code::InvalidJson
        | Code::InvalidRequest
        | Code::BodyTooLarge
        | Code::TargetTooLong
        | Code::HeadersTooLarge => "correct the request; nothing ran",
        Code::InvalidRegion | Code::RegionUnknown => {
            "correct the region; `fly-rpc regions` lists those that are known"
        }
        Code::InstanceUnknown => "`fly-rpc regions` lists the instances of each region",
        Code::FunctionUnknown => match &asked.meant {
            Some(meant) => {
                let advice = format!("did you mean {meant}? `fly-rpc functions` lists them all");
                return advice.into();
            }
            None => "`fly-rpc functions` lists the functions of the instance asked",
        },
        Code::InvalidArguments => "correct the arguments; nothing ran",
        Code::Unauthenticated if asked.with_token => {
            "the instance does not know the token in FLY_RPC_TOKEN; its RPC_CLIENT_TOKENS lists those that it knows"
        }
        Code::Unauthenticated => {
            "set FLY_RPC_TOKEN to a client's token, one of RPC_CLIENT_TOKENS of the instance"
        }
        Code::Forbidden => "ask whoever gave out the token to allow it",
        Code::NotFound
        | Code::MethodNotAllowed
        | Code::UnsupportedMediaType
        | Code::WrongRegion
        | Code::LoopDetected => "is the URL that of a fly-rpc instance of this release?",
        Code::Replay => {
            "nothing ran: the instance is not behind Fly Proxy; set its RPC_ROUTE to proxy or auto"
        }
        Code::IdempotencyMismatch => "use another key for another call",
        Code::FunctionFailed => "it ran: what to do about its error, its documents say",
        Code::ResultNotKept => "it ran: its result is not kept for a repeat",
        Code::FunctionPanicked => "it ran: the log of the instance has the cause",
        Code::Internal => "a bug of ours: report the request id, and what the log says about it",
        Code::Overloaded if executed == Executed::Maybe => {
            "it may have run: send it again with the same key in a moment"
        }
        Code::PeerUnreachable
        | Code::RegionUnavailable
        | Code::FunctionUnavailable
        | Code::DiscoveryPending
        | Code::Draining
        | Code::Overloaded => "nothing ran: call again in a moment",
        Code::DeadlineExceeded if executed == Executed::No => {
            "nothing ran: call again, with a longer --timeout"
        }
        Code::PeerLost | Code::FunctionLost | Code::DeadlineExceeded => match asked.again {
            Again::Unsaid => {
                "it may have run: call again only if it may run twice, then with --idempotent"
            }
            Again::Idempotent => "it may have run: it may run twice, so call again",
            Again::Keyed => "it may have run: call again with the same --idempotency-key",
        },
    };
    advice.into()
}
