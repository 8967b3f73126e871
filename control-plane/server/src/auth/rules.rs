//! Which calls are for whom.

use longship_proto::control::v1::Role;

use super::caller::Who;

/// Whom a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Whoever reaches the server, known or not.
    Everybody,
    /// Who may read.
    Viewer,
    /// Who may change what is a tenant's.
    Editor,
    /// Who may see all tenants.
    Operator,
    /// Cards only.
    Card,
}

impl Rule {
    pub(super) fn allows(self, who: &Who) -> bool {
        match (self, who) {
            (Self::Everybody, _) | (_, Who::Anybody) => true,
            (Self::Card, who) => matches!(who, Who::Card { .. }),
            (_, Who::Card { .. }) => false,
            (_, Who::Operator) => true,
            (Self::Viewer, Who::Client { .. }) => true,
            (Self::Editor, Who::Client { role, .. }) => *role == Role::Editor,
            (Self::Operator, Who::Client { .. }) => false,
        }
    }

    /// As in `only editors may do this`.
    pub(super) fn whom(self) -> &'static str {
        match self {
            Self::Everybody | Self::Viewer => "a tenant's clients and operators",
            Self::Editor => "a tenant's editors and operators",
            Self::Operator => "operators",
            Self::Card => "cards",
        }
    }
}

/// The rule for a call's path, `/SERVICE/METHOD`. What has none is for nobody.
pub(crate) fn rule(path: &str) -> Option<Rule> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    match service {
        "grpc.health.v1.Health" => match method {
            "Check" | "Watch" => Some(Rule::Everybody),
            _ => None,
        },
        "grpc.reflection.v1.ServerReflection" => match method {
            "ServerReflectionInfo" => Some(Rule::Viewer),
            _ => None,
        },
        service => {
            let service = service.strip_prefix("longship.control.v1.")?;
            Some(match (service, method) {
                ("Pods", "GetPod" | "ListPods" | "WatchPods") => Rule::Viewer,
                ("Pods", "CreatePod" | "CreatePods" | "PatchPod" | "DeletePod") => Rule::Editor,
                // Exec is among what it opens.
                ("Pods", "GetPodAccess") => Rule::Editor,
                ("Inventory", "ListFlavors" | "ListZones") => Rule::Viewer,
                (
                    "Inventory",
                    "ListHosts" | "CordonHost" | "UncordonHost" | "DrainHost" | "RemoveHost",
                ) => Rule::Operator,
                // A tenant's own.
                ("Tenants", "GetTenant" | "ListTenants") => Rule::Viewer,
                ("Tenants", "PutTenant" | "DeleteTenant") => Rule::Operator,
                ("Tenants", "CreateToken" | "ListTokens" | "RevokeToken") => Rule::Operator,
                ("Networks", "ListVpcs") => Rule::Viewer,
                ("Networks", "CreateVpc" | "DeleteVpc" | "CreateSubnet" | "DeleteSubnet") => {
                    Rule::Editor
                }
                ("Capacity", "ListReservations") => Rule::Viewer,
                ("Capacity", "CreateReservation" | "DeleteReservation") => Rule::Editor,
                ("ImageCaches", "ListImageCaches") => Rule::Viewer,
                ("ImageCaches", "PutImageCache" | "DeleteImageCache") => Rule::Editor,
                ("Cards", "Attach") => Rule::Card,
                _ => return None,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_rule_is_for_nobody() {
        for path in [
            "",
            "/",
            "/longship.control.v1.Pods",
            "/longship.control.v1.Pods/",
            "/longship.control.v1.Pods/getpod",
            "//longship.control.v1.Pods/GetPod",
            "/longship.control.v1.Pods/GetPod/",
            "/longship.card.v1.CardAdmin/ListHeld",
        ] {
            assert_eq!(rule(path), None, "{path}");
        }
        assert_eq!(rule("/longship.control.v1.Pods/GetPod"), Some(Rule::Viewer));
    }

    #[test]
    fn each_role_may_what_the_lesser_one_may_and_cards_only_their_own() {
        let client = |role| Who::Client {
            tenant: "red".into(),
            role,
        };
        let card = Who::Card {
            host: "host-1".into(),
        };
        let rules = [Rule::Viewer, Rule::Editor, Rule::Operator, Rule::Card];
        for (who, allowed) in [
            (client(Role::Viewer), [true, false, false, false]),
            (client(Role::Editor), [true, true, false, false]),
            (Who::Operator, [true, true, true, false]),
            (card, [false, false, false, true]),
            (Who::Anybody, [true; 4]),
        ] {
            assert_eq!(rules.map(|rule| rule.allows(&who)), allowed, "{who:?}");
        }
    }
}
