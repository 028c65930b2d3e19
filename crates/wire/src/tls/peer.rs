//! What a certificate says about its owner.

use std::fmt;
use std::str::FromStr;

use mosec_types::NodeId;
use rustls_pki_types::{CertificateDer, ServerName};

use super::TlsError;

/// What a process or a person is in the cluster, hence what it may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Gateway,
    Agent,
    ControlPlane,
    /// Changes everything, who may come in among it.
    Admin,
    /// Changes what runs.
    Deployer,
    /// Looks.
    Viewer,
}

/// What admins were called before there were other people; their certificates are good until they expire.
const FORMER_ADMIN: &str = "operator";

impl Role {
    pub const ALL: [Self; 6] = [
        Self::Gateway,
        Self::Agent,
        Self::ControlPlane,
        Self::Admin,
        Self::Deployer,
        Self::Viewer,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Agent => "agent",
            Self::ControlPlane => "control-plane",
            Self::Admin => "admin",
            Self::Deployer => "deployer",
            Self::Viewer => "viewer",
        }
    }

    /// Whether people have this role, not processes.
    pub fn is_person(self) -> bool {
        matches!(self, Self::Admin | Self::Deployer | Self::Viewer)
    }

    /// The DNS name in every certificate of this role: what a client checks a server of this role against.
    pub fn dns_name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway.mosec",
            Self::Agent => "agent.mosec",
            Self::ControlPlane => "control-plane.mosec",
            Self::Admin => "admin.mosec",
            Self::Deployer => "deployer.mosec",
            Self::Viewer => "viewer.mosec",
        }
    }

    /// [`Role::dns_name`] as rustls wants it.
    pub fn server_name(self) -> ServerName<'static> {
        ServerName::try_from(self.dns_name()).expect("the names above are valid DNS names")
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a text is not a role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown role {0:?}: expected gateway, agent, control-plane, admin, deployer or viewer")]
pub struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        if text == FORMER_ADMIN {
            return Ok(Self::Admin);
        }
        Self::ALL
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or_else(|| UnknownRole(text.to_owned()))
    }
}

/// Role and name of a certificate's owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    pub role: Role,
    /// Unique among the processes of its role; an agent's is its node's.
    pub name: NodeId,
}

impl PeerIdentity {
    /// Reads role and name from a certificate.
    ///
    /// Does not verify the certificate: that is TLS's part, before or after.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let parsed = webpki::EndEntityCert::try_from(certificate)
            .map_err(|error| TlsError::unusable("certificate", error))?;
        // Two names would leave it to the reader which one counts.
        let mut names = parsed.valid_uri_names().filter(|uri| uri.starts_with(SCHEME));
        match (names.next(), names.next()) {
            (Some(uri), None) => Self::from_uri(uri),
            (None, _) => Err(TlsError::NoPeer(format!("it has no name {SCHEME}<role>/<name>"))),
            (Some(_), Some(_)) => Err(TlsError::NoPeer("it has several names".into())),
        }
    }

    /// The URI that stands for this identity in its certificate.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}/{}", self.role, self.name)
    }

    fn from_uri(uri: &str) -> Result<Self, TlsError> {
        let parts = uri.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/'));
        let (role, name) = parts.ok_or_else(|| TlsError::NoPeer(format!("{uri:?} has no role and name")))?;
        let role = role
            .parse()
            .map_err(|error| TlsError::NoPeer(format!("{uri:?}: {error}")))?;
        Ok(Self {
            role,
            name: NodeId::new(name)?,
        })
    }
}

const SCHEME: &str = "mosec://";

/// From `<role>/<name>`, as it is displayed.
impl FromStr for PeerIdentity {
    type Err = TlsError;

    fn from_str(text: &str) -> Result<Self, TlsError> {
        Self::from_uri(&format!("{SCHEME}{text}"))
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.role, self.name)
    }
}
