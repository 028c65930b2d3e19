//! Tokens, the identities that they are exchanged for, and their renewal.

use std::path::Path;
use std::time::{Duration, SystemTime};

use mosec_control_plane::{Authority, DEFAULT_CERT_TTL};
use mosec_wire::control::{
    ControlClient, JoinError, JoinTarget, TokenSpec, identity_in, identity_in_telling, proto,
};
use mosec_wire::tls::{ClusterCa, Fingerprint, Identity, JoinToken, LiveIdentity, Role, Validity};

use crate::harness::{Cluster, eventually};

/// A cluster of three in which the given members sign.
async fn cluster(signers: &[u64]) -> Cluster {
    let ca = ClusterCa::create().unwrap();
    let copy = ClusterCa::from_pem(ca.ca_pem(), &ca.key_pem()).unwrap();
    let authority = Authority::new(copy, DEFAULT_CERT_TTL);
    Cluster::start_with(3, Some(ca), |config| {
        config.authority = signers.contains(&config.member).then(|| authority.clone());
    })
    .await
}

fn spec(role: Role) -> TokenSpec {
    TokenSpec {
        role,
        name: None,
        ttl: Duration::from_secs(60),
        uses: 1,
    }
}

async fn create(cluster: &Cluster, client: &ControlClient, spec: TokenSpec) -> JoinToken {
    let ca = cluster.ca.as_ref().unwrap();
    let token = JoinToken::draw(Fingerprint::of_pem(ca.ca_pem()).unwrap());
    client.create_token(&token, &spec).await.unwrap();
    token
}

async fn join(
    cluster: &Cluster,
    members: &[u64],
    dir: &Path,
    token: &JoinToken,
    name: Option<&str>,
) -> Result<Identity, JoinError> {
    let addresses: Vec<_> = members
        .iter()
        .map(|&member| cluster.address(member).to_string())
        .collect();
    let target = JoinTarget {
        dir,
        control_plane: &addresses,
        roles: &[Role::Agent],
        name,
        fallback_name: None,
    };
    identity_in(&target, Some(&token.to_string())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_exchanged_for_an_identity_at_any_member() {
    let cluster = cluster(&[2]).await;
    let client = cluster.client(&[1, 2, 3]);
    let dir = tempfile::tempdir().unwrap();
    for member in [1, 2, 3] {
        let token = create(&cluster, &client, spec(Role::Agent)).await;
        let (name, home) = (format!("node-{member}"), dir.path().join(member.to_string()));
        let identity = join(&cluster, &[member], &home, &token, Some(&name))
            .await
            .unwrap();
        assert_eq!(identity.peer().to_string(), format!("agent/{name}"));
        // It is good for what agents do, at any member.
        let request = proto::RegisterNodeRequest {
            id: name.clone(),
            incarnation: 1,
            address: "a:1".into(),
            ..Default::default()
        };
        let mut service = cluster.service(member, Some(&identity));
        service.register_node(request).await.unwrap();

        let trail = client.audit(Some(1)).await.unwrap();
        let (by, action) = (trail[0].by.as_str(), trail[0].action.as_str());
        assert_eq!(
            (by, action),
            (
                &*format!("agent/{name}"),
                &*format!("join with token {}", token.id())
            )
        );

        // At the next start the token does not matter.
        let again = join(&cluster, &[member], &home, &token, None).await.unwrap();
        assert_eq!(again, identity);
        // Whoever finds it later has nothing.
        let stolen = dir.path().join(format!("thief-{member}"));
        let error = join(&cluster, &[member], &stolen, &token, Some("thief"))
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the control plane refused: token {} is used up: agent/{name} was the last of 1 to join with it",
                token.id()
            )
        );
        // The answer was lost, and the process asks again with the key that it kept.
        std::fs::remove_file(home.join("cert.pem")).unwrap();
        let repeated = join(&cluster, &[member], &home, &token, Some(&name))
            .await
            .unwrap();
        assert_eq!(repeated.key_pem(), identity.key_pem());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_join_at_once_one_is_let_in_whoever_leads() {
    let mut cluster = cluster(&[1, 2, 3]).await;
    let client = cluster.client(&[1, 2, 3]);
    let dir = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let token = create(&cluster, &client, spec(Role::Agent)).await;
        let tries = (0..6_u64).map(|number| {
            let home = dir.path().join(format!("{round}-{number}"));
            let (cluster, token) = (&cluster, &token);
            async move {
                let name = format!("node-{round}-{number}");
                join(cluster, &[number % 3 + 1], &home, token, Some(&name)).await
            }
        });
        let results = futures_util::future::join_all(tries).await;
        let joined = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(joined, 1, "{results:?}");
    }
    // What was used under one leader is used under the next.
    let token = create(&cluster, &client, spec(Role::Agent)).await;
    let leader = cluster.leader().await;
    join(
        &cluster,
        &[leader],
        &dir.path().join("first"),
        &token,
        Some("first"),
    )
    .await
    .unwrap();
    cluster.stop(leader).await;
    let rest = cluster.members();
    let error = join(
        &cluster,
        &rest,
        &dir.path().join("second"),
        &token,
        Some("second"),
    )
    .await
    .unwrap_err();
    assert!(
        error.to_string().contains("is used up: agent/first was"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_good_says_why() {
    let cluster = cluster(&[1]).await;
    let client = cluster.client(&[1, 2, 3]);
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let refused = async |token: &JoinToken, name: Option<&str>, expected: &str| {
        let error = join(&cluster, &[1, 2, 3], &home, token, name).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&format!("refused: token {} {expected}", token.id())),
            "{text}"
        );
    };
    let revoked = create(&cluster, &client, spec(Role::Agent)).await;
    client.revoke_token(revoked.id()).await.unwrap();
    refused(&revoked, Some("a"), "was revoked by \"test\"").await;
    let gateway = create(&cluster, &client, spec(Role::Gateway)).await;
    refused(
        &gateway,
        Some("a"),
        "is for the role gateway, expected one for agent",
    )
    .await;
    let nameless = create(&cluster, &client, spec(Role::Agent)).await;
    refused(&nameless, None, "is for any name, and none is given").await;
    let ca = cluster.ca.as_ref().unwrap();
    let unknown = JoinToken::draw(Fingerprint::of_pem(ca.ca_pem()).unwrap());
    refused(&unknown, Some("a"), "is not known to this cluster").await;
    let text = nameless
        .to_string()
        .replace(&nameless.secret(), &unknown.secret());
    refused(&text.parse().unwrap(), Some("a"), "has another secret").await;
    let short = TokenSpec {
        ttl: Duration::from_millis(1),
        ..spec(Role::Agent)
    };
    let short = create(&cluster, &client, short).await;
    let states = async || {
        let tokens = client.tokens().await.unwrap();
        tokens.into_iter().find(|token| token.id == short.id())
    };
    let expired = || async { states().await.filter(|token| token.state == "expired") };
    eventually("the end of the token", expired).await;
    refused(&short, Some("a"), "expired 0 s ago").await;

    // All of it is in the trail, with who did it. What was refused to strangers before it got into the log is not.
    let trail = client.audit(None).await.unwrap();
    let actions: Vec<_> = trail.iter().map(|record| record.action.as_str()).collect();
    assert!(
        actions.contains(&format!("revoke token {}", revoked.id()).as_str()),
        "{actions:?}"
    );
    assert!(
        trail
            .iter()
            .all(|record| record.by == "test" && record.refusal.is_empty())
    );
    assert_eq!(client.audit(Some(2)).await.unwrap(), trail[trail.len() - 2..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_has_expired_is_replaced_for_a_token() {
    let cluster = cluster(&[1]).await;
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let past = Validity {
        not_before: now - Duration::from_secs(60),
        not_after: now - Duration::from_secs(1),
    };
    let ca = cluster.ca.as_ref().unwrap();
    let expired = ca.issue_for(Role::Agent, "a", past).unwrap();
    expired.save(dir.path()).unwrap();
    let target = JoinTarget {
        dir: dir.path(),
        control_plane: &[cluster.address(1).to_string()],
        roles: &[Role::Agent],
        name: None,
        fallback_name: None,
    };
    let error = identity_in(&target, None).await.unwrap_err().to_string();
    assert!(
        error.ends_with("has expired, and there is no token to join anew with"),
        "{error}"
    );
    let named = TokenSpec {
        name: Some("a".into()),
        ..spec(Role::Agent)
    };
    let token = create(&cluster, &cluster.client(&[1, 2, 3]), named).await;
    let identity = identity_in(&target, Some(&token.to_string())).await.unwrap();
    assert_eq!(identity.peer(), expired.peer());
    assert!(identity.validity().not_after > now);
}

/// The cause is what a member says of those that sign, and who waits hears it while the tries go on.
#[tokio::test(flavor = "multi_thread")]
async fn who_joins_is_told_why_nobody_signs() {
    let mut cluster = cluster(&[1]).await;
    let token = create(&cluster, &cluster.client(&[1, 2, 3]), spec(Role::Agent)).await;
    cluster.stop(1).await;
    let dir = tempfile::tempdir().unwrap();
    let target = JoinTarget {
        dir: dir.path(),
        control_plane: &[cluster.address(1).to_string(), cluster.address(2).to_string()],
        roles: &[Role::Agent],
        name: Some("a"),
        fallback_name: None,
    };
    let (heard, mut told) = tokio::sync::mpsc::unbounded_channel();
    let mut tell = |text: &str| heard.send(text.to_owned()).unwrap();
    let token = token.to_string();
    let said = async {
        let mut said = vec![told.recv().await.unwrap()];
        while !said
            .last()
            .unwrap()
            .contains("says: no member that can be reached holds")
        {
            said.push(told.recv().await.unwrap());
        }
        said
    };
    tokio::select! {
        joined = identity_in_telling(&target, Some(&token), &mut tell) => panic!("ended: {joined:?}"),
        said = said => {
            let asking = format!("asking {}, {} for a certificate", cluster.address(1), cluster.address(2));
            assert_eq!(said[0], asking);
            let last = said.last().unwrap();
            assert!(last.starts_with("no certificate yet, trying for up to 60s: "), "{last}");
            assert!(last.contains(&format!("member 1 at {}", cluster.address(1))), "{last}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_authoritys_key_nobody_joins() {
    let cluster = cluster(&[]).await;
    let client = cluster.client(&[1, 2, 3]);
    let token = create(&cluster, &client, spec(Role::Agent)).await;
    let dir = tempfile::tempdir().unwrap();
    let error = join(&cluster, &[1, 2, 3], dir.path(), &token, Some("a"))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the control plane refused: no member of the control plane holds the authority's key: start one with --ca DIR"
    );
    // No use was taken.
    assert!(client.tokens().await.unwrap()[0].used_by.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_for_the_same_peer_with_a_new_key() {
    let cluster = cluster(&[3]).await;
    let dir = tempfile::tempdir().unwrap();
    let issued = cluster.ca.as_ref().unwrap().issue(Role::Viewer, "vera").unwrap();
    let live = LiveIdentity::from(issued.clone());
    for member in [1, 2, 3] {
        let mut config = mosec_wire::control::ClientConfig::live(
            vec![cluster.address(member).to_string()],
            Some(live.clone()),
        );
        config.call_timeout = crate::harness::PATIENCE;
        let client = ControlClient::new(config).unwrap();
        let before = live.current();
        client.renew_now(&live, dir.path()).await.unwrap();
        let now = live.current();
        assert_eq!(now.peer(), issued.peer());
        assert_ne!(now.key_pem(), before.key_pem());
        assert_eq!(Identity::load(dir.path()).unwrap(), *now);
        // The client goes on with it.
        client.status().await.unwrap();
    }
}
