//! Calls about the control plane's own members.

use std::time::Duration;

use super::client::{ControlClient, ControlError};
use super::proto;

/// For one try and all of them. A step asks every member where it stands, and waits twice for a majority.
const STEP_TIMEOUTS: (Duration, Duration) = (Duration::from_secs(12), Duration::from_secs(30));

impl ControlClient {
    /// The members, each asked where it stands. Whichever answers first knows, with a leader or without.
    pub async fn members(&self) -> Result<proto::ListMembersResponse, ControlError> {
        let request = proto::ListMembersRequest {};
        self.call(request, |mut client, request| async move {
            client.list_members(request).await
        })
        .await
    }

    /// Takes the next step to have a member at `address`, `host:port`, that votes. To be repeated until it is done.
    pub async fn add_member(&self, member: u64, address: &str) -> Result<proto::MemberChange, ControlError> {
        let request = proto::AddMemberRequest {
            member,
            address: address.to_owned(),
            by: String::new(),
        };
        self.call_within(STEP_TIMEOUTS, request, |mut client, request| async move {
            client.add_member(request).await
        })
        .await
    }

    /// Takes the next step to be without a member. To be repeated until it is done.
    pub async fn remove_member(&self, member: u64) -> Result<proto::MemberChange, ControlError> {
        let request = proto::RemoveMemberRequest {
            member,
            by: String::new(),
        };
        self.call_within(STEP_TIMEOUTS, request, |mut client, request| async move {
            client.remove_member(request).await
        })
        .await
    }
}
