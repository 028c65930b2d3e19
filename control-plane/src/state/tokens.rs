//! Join tokens: rights to become a part of the cluster, bounded in time and in number of uses.
//!
//! Only a hash of each secret is here. Uses are commands of the log, so that two joins at two members cannot both take
//! the last use, whoever leads. Time comes with the command: the clock of the member that leads.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use mosec_types::NodeId;
use mosec_wire::tls::{PeerIdentity, Role};
use serde::{Deserialize, Serialize};

use super::command::{Origin, Refusal};
use super::model::Model;

/// Most tokens at once, ended ones that are still remembered among them.
pub const MAX_TOKENS: usize = 256;
/// Most uses of one token: a rack's worth of hosts, and a bound on what the state takes.
pub const MAX_USES: u32 = 256;
/// Most names that joined; beyond it, only tokens for a certain name are good.
pub const MAX_NAMES: usize = 16_384;
/// How long a token that has ended is remembered, so that who comes late hears why: a week.
const REMEMBERED_MS: u64 = 7 * 24 * 60 * 60 * 1000;

/// Role and name of a certificate, as the log has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Peer(pub PeerIdentity);

/// A token as it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    pub id: String,
    pub secret_hash: String,
    /// Role of those that join with it, by name.
    pub role: String,
    /// The one name it is for, also if that is taken. Any free name where absent.
    pub name: Option<NodeId>,
    pub expires_at_unix_ms: u64,
    pub uses: u32,
}

/// A try to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub id: String,
    pub secret_hash: String,
    /// Roles that the joiner can be, by name; empty for any.
    pub roles: Vec<String>,
    /// The name it wants; the token's own where absent.
    pub name: Option<NodeId>,
    /// The name where neither says one.
    #[serde(default)]
    pub fallback: Option<NodeId>,
    /// Hash of its key.
    pub key: String,
}

/// A token and what has become of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    #[serde(flatten)]
    pub new: NewToken,
    pub created: Origin,
    /// Names and keys that have joined, oldest first.
    #[serde(default)]
    pub used_by: Vec<(Peer, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Origin>,
}

/// All tokens, and the names that are taken.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tokens {
    by_id: BTreeMap<String, Arc<Token>>,
    /// `<role>/<name>`; all people share one space of names, so that the audit trail is not ambiguous.
    taken: Arc<BTreeSet<String>>,
}

/// Why a token does not let somebody in. Reads on from `token ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum TokenProblem {
    #[error("is not known to this cluster")]
    Unknown,
    #[error("has another secret")]
    WrongSecret,
    #[error("was revoked by {by:?}")]
    Revoked { by: String },
    #[error("expired {ago_s} s ago")]
    Expired { ago_s: u64 },
    #[error("is used up: {last} was the last of {uses} to join with it")]
    UsedUp { uses: u32, last: String },
    #[error("is for the role {role}, expected one for {expected}")]
    WrongRole { role: String, expected: String },
    #[error("is for the name {name}, not for {found}")]
    WrongName { name: NodeId, found: NodeId },
    #[error("is for any name, and none is given")]
    NoName,
    #[error("is for names that are free, and {0} is taken: a token with --name lets it join anew")]
    NameTaken(String),
    #[error("finds no room for another name: {MAX_NAMES} have joined")]
    TooManyNames,
    #[error("cannot be made: there are {MAX_TOKENS} already")]
    TooMany,
    #[error("exists already")]
    Exists,
    #[error("is for {0:?}, which is no role")]
    NoRole(String),
}

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenState {
    Open,
    UsedUp,
    Expired,
    Revoked,
}

impl TokenState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::UsedUp => "used up",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

impl Token {
    pub fn state(&self, now_unix_ms: u64) -> TokenState {
        let uses = usize::try_from(self.new.uses).unwrap_or(usize::MAX);
        if self.revoked.is_some() {
            TokenState::Revoked
        } else if self.used_by.len() >= uses {
            TokenState::UsedUp
        } else if now_unix_ms >= self.new.expires_at_unix_ms {
            TokenState::Expired
        } else {
            TokenState::Open
        }
    }

    /// Whom `usage` lets in, if it does; whether the name is free is another question.
    fn admits(&self, usage: &Usage, now_unix_ms: u64) -> Result<(Peer, bool), TokenProblem> {
        if self.new.secret_hash != usage.secret_hash {
            return Err(TokenProblem::WrongSecret);
        }
        if let Some(by) = &self.revoked {
            return Err(TokenProblem::Revoked { by: by.by.clone() });
        }
        let ago_s = now_unix_ms.checked_sub(self.new.expires_at_unix_ms);
        if let Some(ago_ms) = ago_s {
            return Err(TokenProblem::Expired { ago_s: ago_ms / 1000 });
        }
        // An answer that was lost is given again, to the holder of the same key alone.
        if let Some((peer, _)) = self.used_by.iter().find(|(_, key)| *key == usage.key) {
            return Ok((peer.clone(), true));
        }
        if self.state(now_unix_ms) == TokenState::UsedUp {
            let last = self.used_by.last().map(|(peer, _)| peer.0.to_string());
            return Err(TokenProblem::UsedUp {
                uses: self.new.uses,
                last: last.unwrap_or_default(),
            });
        }
        let role = self.new.role.parse::<Role>();
        let role = role.map_err(|_| TokenProblem::NoRole(self.new.role.clone()))?;
        if !usage.roles.is_empty() && !usage.roles.contains(&self.new.role) {
            return Err(TokenProblem::WrongRole {
                role: self.new.role.clone(),
                expected: usage.roles.join(" or "),
            });
        }
        let name = match (&self.new.name, usage.name.as_ref()) {
            (Some(name), Some(found)) if name != found => {
                return Err(TokenProblem::WrongName {
                    name: name.clone(),
                    found: found.clone(),
                });
            }
            (Some(name), _) | (None, Some(name)) => name.clone(),
            (None, None) => usage.fallback.clone().ok_or(TokenProblem::NoName)?,
        };
        Ok((Peer(PeerIdentity { role, name }), false))
    }
}

impl Tokens {
    /// In the order of their ends.
    pub fn list(&self) -> Vec<&Token> {
        let mut tokens: Vec<_> = self.by_id.values().map(|token| &**token).collect();
        tokens.sort_by_key(|token| token.new.expires_at_unix_ms);
        tokens
    }

    pub(super) fn create(&mut self, token: NewToken, origin: Origin) -> Result<(), TokenRefusal> {
        let refused = |problem| TokenRefusal(token.id.clone(), problem);
        let now = origin.at_unix_ms;
        self.by_id
            .retain(|_, known| known.new.expires_at_unix_ms.saturating_add(REMEMBERED_MS) > now);
        if token.role.parse::<Role>().is_err() {
            return Err(refused(TokenProblem::NoRole(token.role.clone())));
        }
        match self.by_id.get(&token.id) {
            // Asked for twice, as the first answer was lost.
            Some(known) if known.new.secret_hash == token.secret_hash => return Ok(()),
            Some(_) => return Err(refused(TokenProblem::Exists)),
            None if self.by_id.len() >= MAX_TOKENS => return Err(refused(TokenProblem::TooMany)),
            None => {}
        }
        let made = Token {
            new: token,
            created: origin,
            used_by: Vec::new(),
            revoked: None,
        };
        self.by_id.insert(made.new.id.clone(), Arc::new(made));
        Ok(())
    }

    pub(super) fn revoke(&mut self, id: &str, origin: Origin) -> Result<(), TokenRefusal> {
        let token = self.by_id.get_mut(id);
        let token = token.ok_or_else(|| TokenRefusal(id.to_owned(), TokenProblem::Unknown))?;
        // Who was first stays.
        if token.revoked.is_none() {
            Arc::make_mut(token).revoked = Some(origin);
        }
        Ok(())
    }
}

/// Whom a usage would let in; nothing changes. `true`: it has been let in before.
pub fn check(model: &Model, usage: &Usage, now_unix_ms: u64) -> Result<(Peer, bool), TokenRefusal> {
    let refused = |problem| TokenRefusal(usage.id.clone(), problem);
    let tokens = &model.tokens;
    let token = tokens
        .by_id
        .get(&usage.id)
        .ok_or_else(|| refused(TokenProblem::Unknown))?;
    let (peer, again) = token.admits(usage, now_unix_ms).map_err(refused)?;
    if !again {
        let is_node = peer.0.role == Role::Agent && model.nodes.contains_key(&peer.0.name);
        let is_taken = is_node || tokens.taken.contains(&place(&peer));
        if token.new.name.is_none() && is_taken {
            return Err(refused(TokenProblem::NameTaken(peer.0.name.to_string())));
        }
        if tokens.taken.len() >= MAX_NAMES && token.new.name.is_none() {
            return Err(refused(TokenProblem::TooManyNames));
        }
    }
    Ok((peer, again))
}

/// Takes one use.
pub(super) fn join(model: &mut Model, usage: &Usage, now_unix_ms: u64) -> Result<Peer, TokenRefusal> {
    let (peer, again) = check(model, usage, now_unix_ms)?;
    if !again {
        let tokens = &mut model.tokens;
        if let Some(token) = tokens.by_id.get_mut(&usage.id) {
            let user = (peer.clone(), usage.key.clone());
            Arc::make_mut(token).used_by.push(user);
        }
        if tokens.taken.len() < MAX_NAMES {
            Arc::make_mut(&mut tokens.taken).insert(place(&peer));
        }
    }
    Ok(peer)
}

/// What no two may have.
fn place(Peer(peer): &Peer) -> String {
    if peer.role.is_person() {
        format!("person/{}", peer.name)
    } else {
        peer.to_string()
    }
}

/// A problem of a token, by its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRefusal(pub String, pub TokenProblem);

impl From<TokenRefusal> for Refusal {
    fn from(TokenRefusal(id, problem): TokenRefusal) -> Self {
        Self::Token { id, problem }
    }
}

impl fmt::Display for NewToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, role, uses) = (&self.id, &self.role, self.uses);
        write!(f, "token {id} (role: {role}, ")?;
        if let Some(name) = &self.name {
            write!(f, "name: {name}, ")?;
        }
        write!(f, "uses: {uses})")
    }
}

impl From<Peer> for String {
    fn from(Peer(peer): Peer) -> Self {
        peer.to_string()
    }
}

impl TryFrom<String> for Peer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|error: mosec_wire::tls::TlsError| error.to_string())
    }
}

#[cfg(test)]
#[path = "tokens_tests.rs"]
mod tests;
