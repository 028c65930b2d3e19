//! Tokens: whom they let in, and whom not.

use super::*;
use crate::fixtures::{model, node_id, up};
use crate::state::{Command, Reply, apply};

const MINUTE: u64 = 60_000;

fn origin(at_unix_ms: u64) -> Origin {
    Origin {
        by: "ada".into(),
        at_unix_ms,
    }
}

fn token(edit: impl FnOnce(&mut NewToken)) -> NewToken {
    let mut token = NewToken {
        id: "t".into(),
        secret_hash: "hash".into(),
        role: "agent".into(),
        name: None,
        expires_at_unix_ms: 60 * MINUTE,
        uses: 1,
    };
    edit(&mut token);
    token
}

fn usage(name: &str, key: &str) -> Usage {
    Usage {
        id: "t".into(),
        secret_hash: "hash".into(),
        roles: vec!["agent".into()],
        name: Some(node_id(name)),
        fallback: None,
        key: key.into(),
    }
}

fn with(edit: impl FnOnce(&mut NewToken)) -> Model {
    let mut state = model(1, [], vec![]);
    let create = Command::CreateToken {
        token: Box::new(token(edit)),
        origin: origin(0),
    };
    assert_eq!(apply(&mut state, 2, create.into()), Reply::Done { version: 1 });
    state
}

fn join_at(state: &mut Model, usage: Usage, at_unix_ms: u64) -> Result<String, TokenProblem> {
    let command = Command::UseToken {
        usage: Box::new(usage),
        origin: origin(at_unix_ms),
    };
    match apply(state, 3, command.into()) {
        Reply::Joined { peer } => Ok(peer.0.to_string()),
        Reply::Refused(Refusal::Token { id, problem }) => {
            assert_eq!(id, "t");
            Err(problem)
        }
        other => panic!("{other:?}"),
    }
}

fn revoke(state: &mut Model) {
    let revoke = Command::RevokeToken {
        id: "t".into(),
        origin: origin(1),
    };
    apply(state, 3, revoke.into());
}

#[test]
fn a_token_lets_in_as_many_as_it_has_uses() {
    let mut state = with(|token| token.uses = 2);
    assert_eq!(
        join_at(&mut state, usage("a", "k1"), MINUTE),
        Ok("agent/a".into())
    );
    // The answer was lost: the same key asks again.
    assert_eq!(
        join_at(&mut state, usage("a", "k1"), MINUTE),
        Ok("agent/a".into())
    );
    assert_eq!(
        join_at(&mut state, usage("b", "k2"), MINUTE),
        Ok("agent/b".into())
    );
    let used_up = TokenProblem::UsedUp {
        uses: 2,
        last: "agent/b".into(),
    };
    assert_eq!(
        join_at(&mut state, usage("c", "k3"), MINUTE),
        Err(used_up.clone())
    );
    assert_eq!(
        used_up.to_string(),
        "is used up: agent/b was the last of 2 to join with it"
    );
    assert_eq!(
        join_at(&mut state, usage("b", "k2"), MINUTE),
        Ok("agent/b".into())
    );
    assert_eq!(state.version, 1, "no topology has changed");
}

#[test]
fn each_problem_is_told_apart() {
    use TokenProblem as P;
    let taken = |mut state: Model| {
        join_at(&mut state, usage("a", "k0"), 0).unwrap();
        state
    };
    let revoked = |mut state: Model| {
        revoke(&mut state);
        state
    };
    let mut other_secret = usage("a", "k");
    other_secret.secret_hash = "x".into();
    let mut other_id = with(|_| {});
    other_id.tokens.by_id.clear();
    let mut gateway = usage("a", "k");
    gateway.roles = vec!["gateway".into(), "viewer".into()];
    let mut nameless = usage("a", "k");
    nameless.name = None;
    let mut registered = with(|_| {});
    registered.nodes.insert(node_id("a"), up("a"));
    let wrong_role = P::WrongRole {
        role: "agent".into(),
        expected: "gateway or viewer".into(),
    };
    let wrong_name = P::WrongName {
        name: node_id("b"),
        found: node_id("a"),
    };
    let cases = [
        (other_id, usage("a", "k"), 0, P::Unknown),
        (with(|_| {}), other_secret, 0, P::WrongSecret),
        (
            revoked(with(|_| {})),
            usage("a", "k"),
            0,
            P::Revoked { by: "ada".into() },
        ),
        (
            with(|_| {}),
            usage("a", "k"),
            60 * MINUTE,
            P::Expired { ago_s: 0 },
        ),
        (
            with(|_| {}),
            usage("a", "k"),
            61 * MINUTE,
            P::Expired { ago_s: 60 },
        ),
        (with(|_| {}), gateway, 0, wrong_role),
        (
            with(|token| token.name = Some(node_id("b"))),
            usage("a", "k"),
            0,
            wrong_name,
        ),
        (with(|_| {}), nameless.clone(), 0, P::NoName),
        (
            taken(with(|token| token.uses = 2)),
            usage("a", "k"),
            0,
            P::NameTaken("a".into()),
        ),
        (registered, usage("a", "k"), 0, P::NameTaken("a".into())),
    ];
    for (mut state, usage, at, problem) in cases {
        let before = state.tokens.clone();
        assert_eq!(join_at(&mut state, usage, at), Err(problem.clone()));
        assert_eq!(state.tokens, before, "{problem:?} takes no use");
    }
    // A token for one name needs none to be said, and lets it join anew.
    let mut state = with(|token| (token.name, token.uses) = (Some(node_id("a")), 2));
    assert_eq!(join_at(&mut state, nameless.clone(), 0), Ok("agent/a".into()));
    nameless.fallback = Some(node_id("host"));
    nameless.key = "after a reinstallation".into();
    assert_eq!(join_at(&mut state, nameless.clone(), 0), Ok("agent/a".into()));
    let mut state = with(|_| {});
    assert_eq!(join_at(&mut state, nameless, 0), Ok("agent/host".into()));
}

#[test]
fn people_share_one_space_of_names() {
    let mut state = with(|token| (token.role, token.uses) = ("viewer".into(), 2));
    let mut eve = usage("eve", "k1");
    eve.roles.clear();
    assert_eq!(join_at(&mut state, eve.clone(), 0), Ok("viewer/eve".into()));
    let admin = token(|token| (token.id, token.role) = ("u".into(), "admin".into()));
    state.tokens.create(admin, origin(0)).unwrap();
    (eve.id, eve.key) = ("u".into(), "k2".into());
    assert_eq!(
        check(&state, &eve, 0).unwrap_err().1,
        TokenProblem::NameTaken("eve".into())
    );
}

#[test]
fn tokens_are_made_once_bounded_and_forgotten_a_week_after_their_end() {
    let mut state = with(|_| {});
    let mut create = |id: &str, hash: &str, at| {
        let new = token(|token| (token.id, token.secret_hash) = (id.into(), hash.into()));
        state.tokens.create(new, origin(at)).map_err(|refusal| refusal.1)
    };
    assert_eq!(create("t", "hash", 0), Ok(()));
    assert_eq!(create("t", "other", 0), Err(TokenProblem::Exists));
    for number in 1..MAX_TOKENS {
        assert_eq!(create(&number.to_string(), "h", 0), Ok(()));
    }
    assert_eq!(create("more", "h", 0), Err(TokenProblem::TooMany));
    let week = 7 * 24 * 60 * MINUTE;
    assert_eq!(create("more", "h", week), Err(TokenProblem::TooMany));
    assert_eq!(create("more", "h", week + 60 * MINUTE), Ok(()));
    assert_eq!(state.tokens.list().len(), 1);
    let king = token(|token| (token.id, token.role) = ("k".into(), "king".into()));
    let refused = state.tokens.create(king, origin(0)).unwrap_err();
    assert_eq!(refused.1, TokenProblem::NoRole("king".into()));
}

#[test]
fn a_revoked_token_stays_revoked_and_has_its_state_and_its_encoding() {
    let mut state = with(|token| token.name = Some(node_id("a")));
    let state_at = |state: &Model, at| state.tokens.list()[0].state(at);
    assert_eq!(state_at(&state, 0), TokenState::Open);
    assert_eq!(state_at(&state, 60 * MINUTE), TokenState::Expired);
    join_at(&mut state, usage("a", "k"), 0).unwrap();
    assert_eq!(state_at(&state, 60 * MINUTE), TokenState::UsedUp);
    revoke(&mut state);
    assert_eq!(state_at(&state, 0), TokenState::Revoked);
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<Model>(&json).unwrap(), state);
    let unknown = state.tokens.revoke("x", origin(0)).unwrap_err();
    assert_eq!(unknown.1, TokenProblem::Unknown);
}
