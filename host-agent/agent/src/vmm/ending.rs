//! Why a VMM has ended.

use longship_framed::vmm as wire;
use longship_framed::vmm::exited::Cause;

use crate::process::Ending;

/// Whether the guest itself ended it, and what happened.
pub(super) fn reason(
    exited: Option<wire::Exited>,
    ending: Option<Ending>,
    out_of_memory: bool,
    log: &str,
) -> (bool, String) {
    if let Some(exited) = exited {
        return match exited.cause() {
            Cause::GuestReset => (true, or(exited.message, "the guest powered off")),
            Cause::GuestFault => (false, or(exited.message, "the guest faulted")),
            Cause::Internal | Cause::Unspecified => (false, or(exited.message, "the VMM gave up")),
        };
    }
    if out_of_memory {
        let message = "the kernel ended the VMM: the sandbox's memory limit was used up";
        return (false, message.to_owned());
    }
    let message = match ending {
        Some(Ending::Code(code)) => format!("the VMM exited with code {code}"),
        Some(Ending::Signal(signal)) => format!("the VMM was ended by signal {signal}"),
        None => "the VMM did not end".to_owned(),
    };
    match log.lines().rfind(|line| !line.trim().is_empty()) {
        Some(line) => (false, format!("{message}: {}", line.trim())),
        None => (false, message),
    }
}

fn or(message: String, default: &str) -> String {
    if message.is_empty() {
        default.to_owned()
    } else {
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(cause: Cause, message: &str) -> Option<wire::Exited> {
        Some(wire::Exited {
            cause: cause.into(),
            message: message.into(),
        })
    }

    #[test]
    fn the_guests_own_end_is_told_from_all_others() {
        let code = Some(Ending::Code(0));
        assert_eq!(
            reason(exited(Cause::GuestReset, ""), code, false, ""),
            (true, "the guest powered off".into())
        );
        assert_eq!(
            reason(
                exited(Cause::GuestFault, "triple fault"),
                code,
                false,
                "noise"
            ),
            (false, "triple fault".into())
        );
        assert_eq!(
            reason(
                None,
                Some(Ending::Signal(11)),
                false,
                "first\nlast words\n\n"
            ),
            (false, "the VMM was ended by signal 11: last words".into())
        );
        let (by_guest, message) = reason(None, Some(Ending::Signal(9)), true, "");
        assert!(!by_guest && message.contains("memory limit"), "{message}");
    }
}
