//! `--watch`: shows something again whenever it changes.

use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::commands::status::Output;
use crate::failure::{Failure, Result};
use crate::terminal::{self, Event, Screen};

/// How often it is looked at: soon enough for people, and a few calls a second for the leader.
const LOOK: Duration = Duration::from_secs(1);
/// How long the control plane may be away meanwhile: many elections long.
const SILENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Watch {
    /// Shows it again whenever it changes, until it is interrupted: in place on a terminal, else one block or JSON object
    /// after the other.
    #[arg(long, short)]
    watch: bool,
}

/// Shows what `look` gives, once or for as long as the user wants.
pub(crate) async fn show<T: Serialize, F: Future<Output = Result<T>>>(
    Watch { watch }: Watch,
    output: Output,
    mut look: impl FnMut() -> F,
    render: impl Fn(&T) -> String,
) -> Result {
    let first = look().await?;
    if !watch {
        let text = match output {
            Output::Table => render(&first),
            Output::Json => serde_json::to_string_pretty(&first).context("cannot write JSON")? + "\n",
        };
        return Ok(terminal::print(&text)?);
    }
    let screen = match output {
        Output::Table => Screen::take()?,
        Output::Json => None,
    };
    let view = View { output, render };
    match screen {
        Some(screen) => redraw(screen, first, look, view).await,
        None => list(first, look, view).await,
    }
}

/// How a value looks.
struct View<R> {
    output: Output,
    render: R,
}

impl<R> View<R> {
    /// The text of a value, and what tells it from one before it.
    fn of<T: Serialize>(&self, value: &T) -> Result<(String, Value)>
    where
        R: Fn(&T) -> String,
    {
        match self.output {
            Output::Table => {
                let text = (self.render)(value);
                let key = Value::String(text.clone());
                Ok((text, key))
            }
            Output::Json => {
                let value = serde_json::to_value(value).context("cannot write JSON")?;
                Ok((format!("{value}\n"), without_ages(value)))
            }
        }
    }
}

/// A value without what changes with time alone.
fn without_ages(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(key, _)| key != "silent_ms");
            Value::Object(kept.map(|(key, value)| (key, without_ages(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_ages).collect()),
        other => other,
    }
}

/// One block or object after the other, for a file or another program.
async fn list<T: Serialize, F: Future<Output = Result<T>>>(
    first: T,
    look: impl FnMut() -> F,
    view: View<impl Fn(&T) -> String>,
) -> Result {
    let mut looks = Looks::new(look);
    let (mut text, mut shown) = view.of(&first)?;
    loop {
        if !terminal::print_while_read(&text)? {
            return Ok(());
        }
        loop {
            sleep(LOOK).await;
            let Some(value) = looks.next().await? else {
                continue;
            };
            let (next, key) = view.of(&value)?;
            if key != shown {
                shown = key;
                // Blocks of tables have blank lines in them, so a line of its own says where the next one begins.
                text = match view.output {
                    Output::Table => format!("---\n{next}"),
                    Output::Json => next,
                };
                break;
            }
        }
    }
}

/// In place, on a terminal.
async fn redraw<T: Serialize, F: Future<Output = Result<T>>>(
    mut screen: Screen,
    first: T,
    look: impl FnMut() -> F,
    view: View<impl Fn(&T) -> String>,
) -> Result {
    let mut looks = Looks::new(look);
    let mut shown = view.of(&first)?.0;
    screen.show(&shown);
    loop {
        let next = async {
            sleep(LOOK).await;
            looks.next().await
        };
        let mut next = std::pin::pin!(next);
        let looked = loop {
            tokio::select! {
                looked = &mut next => break looked,
                event = screen.event() => if let Event::Interrupted(code) = event {
                    screen.leave()?;
                    return Err(Failure::interrupted(code));
                },
            }
        };
        match looked {
            Ok(Some(value)) => {
                shown = view.of(&value)?.0;
                screen.show(&shown);
            }
            Ok(None) => screen.show(&format!("the control plane does not answer\n{shown}")),
            Err(error) => {
                screen.leave()?;
                return Err(error);
            }
        }
    }
}

/// Looks through changes of the control plane's leader.
struct Looks<L> {
    look: L,
    heard: Instant,
}

impl<L, T, F> Looks<L>
where
    L: FnMut() -> F,
    F: Future<Output = Result<T>>,
{
    fn new(look: L) -> Self {
        Self {
            look,
            heard: Instant::now(),
        }
    }

    /// `None` where the control plane does not answer, for as long as it may.
    async fn next(&mut self) -> Result<Option<T>> {
        match (self.look)().await {
            Ok(value) => {
                self.heard = Instant::now();
                Ok(Some(value))
            }
            Err(failure) if failure.is_unreachable() && self.heard.elapsed() < SILENCE => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use mosec_wire::control::ControlError;
    use serde_json::json;

    use super::*;

    #[test]
    fn time_alone_is_no_change() {
        let at = |silent: u64, state: &str| {
            without_ages(json!({"nodes": [{"silent_ms": silent, "health": state}]}))
        };
        assert_eq!(at(1, "up"), at(2, "up"));
        assert_ne!(at(1, "up"), at(1, "down"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_control_plane_may_be_away_for_a_while() {
        let unavailable = || ControlError::Unavailable {
            endpoints: "a:1".into(),
            attempts: 1,
            last: "gone".into(),
        };
        let mut looks = Looks::new(|| async { Err::<(), _>(Failure::from(unavailable())) });
        assert!(looks.next().await.unwrap().is_none());
        sleep(SILENCE).await;
        assert!(looks.next().await.unwrap_err().is_unreachable());
        let mut looks = Looks::new(|| async { Err::<(), _>(Failure::usage("no")) });
        assert!(looks.next().await.is_err());
    }
}
