//! What an operator says of a new token.

use longship_proto::Failure;
use longship_proto::control::v1::{CreateTokenRequest, Role, TokenInfo};

use super::names::dns_label;

/// Seconds.
const DEFAULT_TTL: u32 = 30 * 24 * 3600;
/// A year.
const MAX_TTL: u32 = 366 * 24 * 3600;
/// Characters.
const MAX_NOTE: usize = 256;

/// Checks what is asked for; a token that begins at `now_us`, without its id.
///
/// # Errors
/// `INVALID`, at the first field that is wrong.
pub(crate) fn token(request: CreateTokenRequest, now_us: i64) -> Result<TokenInfo, Failure> {
    let role = request.role();
    match role {
        Role::Viewer | Role::Editor => dns_label("tenant", &request.tenant)?,
        Role::Operator if request.tenant.is_empty() => {}
        Role::Operator => {
            return Err(Failure::invalid(
                "tenant",
                "an operator belongs to no tenant",
            ));
        }
        Role::Unspecified => return Err(Failure::invalid("role", "must be given")),
    }
    let ttl = match request.ttl_seconds {
        0 => DEFAULT_TTL,
        ttl @ 1..=MAX_TTL => ttl,
        ttl => {
            let long = format!("is {ttl}; at most {MAX_TTL} (a year)");
            return Err(Failure::invalid("ttl_seconds", long));
        }
    };
    if request.note.chars().count() > MAX_NOTE || request.note.chars().any(char::is_control) {
        let rule =
            format!("must be at most {MAX_NOTE} characters, none of them control characters");
        return Err(Failure::invalid("note", rule));
    }
    Ok(TokenInfo {
        id: String::new(),
        tenant: request.tenant,
        role: role.into(),
        created_us: now_us,
        expires_us: now_us.saturating_add(i64::from(ttl) * 1_000_000),
        note: request.note,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wrong_field_is_named() {
        let asks = |tenant: &str, role: Role, ttl_seconds, note: &str| CreateTokenRequest {
            tenant: tenant.into(),
            role: role.into(),
            ttl_seconds,
            note: note.into(),
        };
        for (wrong, field) in [
            (asks("red", Role::Unspecified, 0, ""), "role"),
            (asks("", Role::Editor, 0, ""), "tenant"),
            (asks("Red", Role::Viewer, 0, ""), "tenant"),
            (asks("red", Role::Operator, 0, ""), "tenant"),
            (asks("red", Role::Editor, MAX_TTL + 1, ""), "ttl_seconds"),
            (asks("red", Role::Editor, 0, &"a".repeat(257)), "note"),
            (asks("red", Role::Editor, 0, "\u{1b}[2J"), "note"),
        ] {
            assert_eq!(token(wrong, 0).unwrap_err().field, field);
        }
        let unknown = CreateTokenRequest {
            role: 77,
            ..asks("red", Role::Viewer, 0, "")
        };
        assert_eq!(token(unknown, 0).unwrap_err().field, "role");
        let info = token(asks("red", Role::Editor, 0, ""), 5).unwrap();
        assert_eq!(info.expires_us, 5 + 30 * 24 * 3600 * 1_000_000);
    }
}
