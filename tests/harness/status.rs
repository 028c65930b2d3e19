//! What `mosectl status --output json` says.
