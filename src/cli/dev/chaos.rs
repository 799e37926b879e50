//! What may be done to a running cluster, a line on stdin each: so that anybody can watch what happens then.

use std::{fmt::Write, str::FromStr};

use tokio::sync::mpsc;

/// Something to do to the cluster.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Command {
    /// Ends an instance at once, as a crash does.
    Kill(String),
    /// Lets an instance hang: it keeps its sockets, and does nothing.
    Stop(String),
    /// Lets a stopped instance go on.
    Resume(String),
    /// Lets an instance finish what it does and end, as a deploy does.
    Drain(String),
    /// Starts an instance again that has ended.
    Start(String),
    /// Takes the DNS server down.
    DnsDown,
    /// Brings the DNS server up again.
    DnsUp,
}

const HELP: [(&str, &str); 7] = [
    ("kill NAME", "ends an instance at once, as a crash does"),
    (
        "stop NAME",
        "lets it hang: it keeps its sockets, and does nothing",
    ),
    ("resume NAME", "lets a stopped instance go on"),
    (
        "drain NAME",
        "lets it finish what it does and end, as a deploy does",
    ),
    ("start NAME", "starts it again"),
    ("dns down", "takes the DNS server down"),
    ("dns up", "brings it up again"),
];

/// The commands, a line each.
pub(super) fn help() -> String {
    let mut help = "Type, while it runs:".to_owned();
    for (command, does) in HELP {
        // Writing to a String cannot fail.
        let _ = write!(help, "\n  {command:<12} {does}");
    }
    help
}

impl FromStr for Command {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<_> = line.split_whitespace().collect();
        Ok(match words[..] {
            ["kill", name] => Self::Kill(name.to_owned()),
            ["stop", name] => Self::Stop(name.to_owned()),
            ["resume", name] => Self::Resume(name.to_owned()),
            ["drain", name] => Self::Drain(name.to_owned()),
            ["start", name] => Self::Start(name.to_owned()),
            ["dns", "down"] => Self::DnsDown,
            ["dns", "up"] => Self::DnsUp,
            _ => return Err(help()),
        })
    }
}

/// The lines of stdin. In a thread of its own, because a read of stdin cannot be cancelled.
pub(super) fn lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_told_is_read() {
        for (command, _) in HELP {
            command.parse::<Command>().unwrap();
        }
        assert_eq!(
            " kill  syd-1 ".parse(),
            Ok(Command::Kill("syd-1".to_owned()))
        );
        for wrong in ["", "kill", "kill a b", "dns", "dns sideways", "help"] {
            assert_eq!(wrong.parse::<Command>(), Err(help()), "{wrong}");
        }
    }
}
