//! `mosectl token`: who may join the cluster.

use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use mosec_control_plane::cli::parse_lifetime;
use mosec_types::NodeId;
use mosec_wire::control::TokenSpec;
use mosec_wire::tls::{Fingerprint, JoinToken, Role};

use super::status::Output;
use crate::connect::{Connection, connect, connect_to_change};
use crate::failure::Result;
use crate::report::history::date;
use crate::report::tokens::{self, TokenReport};
use crate::terminal;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Makes a token and prints it, this once. Who has it may join.
    #[command(after_long_help = "\
Examples:
  mosectl token create --role agent --uses 8 --ttl 2h
  mosectl token create --role viewer --name ann")]
    Create {
        /// What it lets its user be: gateway, agent or control-plane; admin, deployer or viewer.
        #[arg(long, value_parser = |text: &str| text.parse::<Role>())]
        role: Role,
        /// The one name it is for, also if that is taken already. Any free name where absent.
        #[arg(long, value_parser = |text: &str| NodeId::new(text))]
        name: Option<NodeId>,
        /// How long it is good, as 7d, 12h, 30m or 60s: up to 30 days.
        #[arg(long, default_value = "1h", value_parser = parse_lifetime)]
        ttl: Duration,
        /// How many may join with it.
        #[arg(long, default_value_t = 1)]
        uses: u32,
        #[command(flatten)]
        connection: Connection,
    },
    /// Lists the tokens, those that ended within the last week among them.
    List {
        #[arg(long, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        connection: Connection,
    },
    /// Ends a token. Who has joined with it stays.
    Revoke {
        /// The token's id, or the token.
        token: String,
        #[command(flatten)]
        connection: Connection,
    },
}

pub(crate) async fn run(args: Args) -> Result {
    match args.action {
        Action::Create {
            role,
            name,
            ttl,
            uses,
            connection,
        } => {
            let cluster = connect_to_change(&connection)?;
            // The secret is made here, and the control plane hears a hash of it.
            let token = JoinToken::draw(Fingerprint::of_pem(&cluster.ca_pem)?);
            let spec = TokenSpec {
                role,
                name: name.map(|name| name.to_string()),
                ttl,
                uses,
            };
            let until = cluster.client.create_token(&token, &spec).await?;
            let (until, id) = (date(until), token.id());
            terminal::print_error(&format!("token {id} for {role}, good until {until}\n"));
            Ok(terminal::print(&format!("{token}\n"))?)
        }
        Action::List { output, connection } => {
            let found = connect(&connection)?.client.tokens().await?;
            let found: Vec<_> = found.into_iter().map(TokenReport::from).collect();
            let text = match output {
                Output::Table => tokens::render(&found),
                Output::Json => serde_json::to_string_pretty(&found).context("cannot write JSON")? + "\n",
            };
            Ok(terminal::print(&text)?)
        }
        Action::Revoke { token, connection } => {
            let id = token
                .parse::<JoinToken>()
                .map_or(token, |token| token.id().to_owned());
            connect_to_change(&connection)?.client.revoke_token(&id).await?;
            Ok(terminal::print(&format!("revoked token {id}\n"))?)
        }
    }
}
