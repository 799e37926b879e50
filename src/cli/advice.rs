//! What to do about a problem, for people: one line for each code.

use crate::problem::{Code, Executed};

/// What to do next about a problem of `code`.
pub(super) fn next(code: Code, executed: Executed) -> &'static str {
    match code {
        Code::InvalidJson | Code::InvalidRequest | Code::BodyTooLarge | Code::HeadersTooLarge => {
            "correct the request; nothing ran"
        }
        Code::InvalidRegion | Code::RegionUnknown => {
            "correct the region; `fly-rpc regions` lists those that are known"
        }
        Code::InstanceUnknown => "`fly-rpc regions` lists the instances of each region",
        Code::FunctionUnknown => "`fly-rpc functions` lists the functions of the instance asked",
        Code::InvalidArguments => "correct the arguments; nothing ran",
        Code::Unauthenticated => "the instance wants a client's token",
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
        Code::FunctionFailed => "it ran: what to do about its error is the function's affair",
        Code::FunctionPanicked => "it ran: the log of the instance has the cause",
        Code::Internal => "a bug of ours: tell us the request id, and what the log says about it",
        Code::PeerUnreachable
        | Code::RegionUnavailable
        | Code::DiscoveryPending
        | Code::Draining
        | Code::Overloaded => "nothing ran: call again in a moment",
        Code::DeadlineExceeded if executed == Executed::No => {
            "nothing ran: call again, with a longer --timeout"
        }
        Code::PeerLost | Code::DeadlineExceeded => {
            "it may have run: call again only if it may run twice, then with --idempotent"
        }
    }
}
