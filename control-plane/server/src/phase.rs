//! The states of a pod, and which may follow which.

use longship_proto::control::v1::Phase;

/// Whether a card's report may move a pod from one phase to another.
///
/// A pod only goes forward: `Scheduled → Preparing → Starting → Running →
/// Succeeded | Failed`, or through `Stopping`, and from anywhere to `Released`. Steps
/// may be left out. While it is being run it may begin again (its card has started its
/// sandbox anew), but what has ended stays ended: its CPU and memory are others' by
/// then, and there is nothing left to stop.
#[must_use]
pub(crate) fn may_follow(now: Phase, next: Phase) -> bool {
    use Phase::{
        Failed, Pending, Preparing, Released, Running, Scheduled, Starting, Stopping, Succeeded,
        Unknown, Unspecified,
    };
    match (now, next) {
        (_, Unspecified | Pending | Unknown) | (Unspecified | Pending | Released, _) => false,
        (Scheduled | Unknown, Scheduled) => true,
        (_, Scheduled) => false,
        (Scheduled | Preparing | Starting | Running | Unknown, _) | (_, Released) => true,
        (Succeeded | Failed | Stopping, _) => now == next,
    }
}

/// Whether the pod has ended by itself. Its card has given its sandbox back by then,
/// so its CPU and memory are free again; its address and its logs stay.
#[must_use]
pub(crate) fn is_over(phase: Phase) -> bool {
    matches!(phase, Phase::Succeeded | Phase::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Phase; 11] = [
        Phase::Unspecified,
        Phase::Pending,
        Phase::Scheduled,
        Phase::Preparing,
        Phase::Starting,
        Phase::Running,
        Phase::Succeeded,
        Phase::Failed,
        Phase::Stopping,
        Phase::Released,
        Phase::Unknown,
    ];

    #[test]
    fn what_has_ended_stays_ended() {
        for over in [Phase::Succeeded, Phase::Failed] {
            let next = ALL.into_iter().filter(|next| may_follow(over, *next));
            let next: Vec<Phase> = next.collect();
            assert_eq!(next, [over, Phase::Released]);
        }
        assert!(
            !ALL.into_iter()
                .any(|next| may_follow(Phase::Released, next))
        );
        let next = ALL
            .into_iter()
            .filter(|next| may_follow(Phase::Stopping, *next));
        assert_eq!(next.collect::<Vec<_>>(), [Phase::Stopping, Phase::Released]);
    }

    #[test]
    fn a_card_can_neither_unschedule_nor_run_what_it_was_not_given() {
        for now in ALL {
            assert!(!may_follow(now, Phase::Pending));
            assert!(!may_follow(now, Phase::Unspecified));
            assert!(!may_follow(Phase::Pending, now));
            let given = matches!(now, Phase::Scheduled | Phase::Unknown);
            assert_eq!(may_follow(now, Phase::Scheduled), given);
        }
    }

    #[test]
    fn the_way_of_an_ordinary_pod_is_legal() {
        let way = [
            Phase::Scheduled,
            Phase::Preparing,
            Phase::Starting,
            Phase::Running,
            Phase::Stopping,
            Phase::Released,
        ];
        assert!(way.windows(2).all(|pair| may_follow(pair[0], pair[1])));
    }
}
