//! Calls of people: who did what, and who may join.

use std::time::Duration;

use super::client::{ControlClient, ControlError};
use super::proto;
use crate::tls::{JoinToken, Role};

/// What a join token is for.
#[derive(Debug, Clone)]
pub struct TokenSpec {
    /// Role of those that join with it.
    pub role: Role,
    /// The one name it is for. Any that is free where absent.
    pub name: Option<String>,
    pub ttl: Duration,
    pub uses: u32,
}

impl ControlClient {
    /// What people have changed, oldest first; at most the newest `limit`, where there is one.
    pub async fn audit(&self, limit: Option<u32>) -> Result<Vec<proto::AuditRecord>, ControlError> {
        let request = proto::AuditRequest {
            limit: limit.unwrap_or(0),
        };
        let reply = self.call(request, |mut client, request| async move {
            client.audit(request).await
        });
        Ok(reply.await?.records)
    }

    /// Registers a token that the caller has drawn; gives its end in milliseconds since 1970. Repeats are harmless.
    pub async fn create_token(&self, token: &JoinToken, spec: &TokenSpec) -> Result<u64, ControlError> {
        let request = proto::CreateTokenRequest {
            id: token.id().to_owned(),
            secret_hash: token.secret_hash(),
            role: spec.role.name().to_owned(),
            name: spec.name.clone().unwrap_or_default(),
            ttl_ms: u64::try_from(spec.ttl.as_millis()).unwrap_or(u64::MAX),
            uses: spec.uses,
            by: String::new(),
        };
        let reply = self.call(request, |mut client, request| async move {
            client.create_token(request).await
        });
        Ok(reply.await?.expires_at_unix_ms)
    }

    /// The tokens there are, in the order of their ends.
    pub async fn tokens(&self) -> Result<Vec<proto::TokenRecord>, ControlError> {
        let request = proto::ListTokensRequest {};
        let reply = self.call(request, |mut client, request| async move {
            client.list_tokens(request).await
        });
        Ok(reply.await?.tokens)
    }

    /// Ends a token.
    pub async fn revoke_token(&self, id: &str) -> Result<(), ControlError> {
        let request = proto::RevokeTokenRequest {
            id: id.to_owned(),
            by: String::new(),
        };
        self.call(request, |mut client, request| async move {
            client.revoke_token(request).await
        })
        .await?;
        Ok(())
    }
}
