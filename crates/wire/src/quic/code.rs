//! The application's error codes on the wire.

use quinn::{Connection, ConnectionError, VarInt};

use crate::link::LinkError;

/// Why a stream was reset or stopped, or a connection closed. The numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The end of the link, or of a stream nobody needs any more. Zero, as it is QUIC's own default.
    Closed = 0,
    /// The upstream no longer wants the answers.
    Cancelled = 1,
    /// The agent is going away.
    Draining = 2,
    /// The peer sent what it must not.
    Protocol = 3,
    /// Nothing was heard from the agent.
    Silent = 4,
}

impl Code {
    const ALL: [Self; 5] = [
        Self::Closed,
        Self::Cancelled,
        Self::Draining,
        Self::Protocol,
        Self::Silent,
    ];

    pub fn from_wire(code: VarInt) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| *known as u64 == code.into_inner())
    }

    pub fn to_wire(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Cancelled => "cancelled",
            Self::Draining => "draining",
            Self::Protocol => "protocol",
            Self::Silent => "silent",
        }
    }
}

/// Closes a connection that has not ended yet. quinn would forget why an ended one did.
pub(super) fn close(connection: &Connection, code: Code) {
    if connection.close_reason().is_none() {
        connection.close(code.to_wire(), b"");
    }
}

/// The link's error for a connection that has ended.
pub(super) fn lost(error: &ConnectionError) -> LinkError {
    match error {
        ConnectionError::LocallyClosed => LinkError::Closed,
        ConnectionError::ApplicationClosed(close) => {
            let name = Code::from_wire(close.error_code).map_or("unknown code", Code::name);
            LinkError::Lost(format!("closed by the peer: {name}"))
        }
        // A stateless reset: whoever has the address now does not know the connection.
        ConnectionError::Reset => LinkError::Lost("the peer has restarted".into()),
        ConnectionError::TimedOut => LinkError::Lost("no packet arrived for too long".into()),
        other => LinkError::Lost(other.to_string()),
    }
}
