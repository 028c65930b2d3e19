//! `--watch`: shows something again whenever it changes.

use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
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
pub(crate) async fn show<T: Watched, F: Future<Output = Result<T>>>(
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

/// What is watched: two looks at it differ only where something has changed.
pub(crate) trait Watched: Serialize + Clone {
    /// The same without what changes with time alone, as how long ago something was heard of. Most have nothing of that.
    #[must_use]
    fn ageless(&self) -> Self {
        self.clone()
    }
}

impl<T: Watched> Watched for Vec<T> {
    fn ageless(&self) -> Self {
        self.iter().map(T::ageless).collect()
    }
}

/// How a value looks.
struct View<R> {
    output: Output,
    render: R,
}

impl<R> View<R> {
    fn of<T: Serialize>(&self, value: &T) -> Result<String>
    where
        R: Fn(&T) -> String,
    {
        match self.output {
            Output::Table => Ok((self.render)(value)),
            Output::Json => {
                let text = serde_json::to_string(value).context("cannot write JSON")?;
                Ok(text + "\n")
            }
        }
    }
}

/// One block or object after the other, for a file or another program.
async fn list<T: Watched, F: Future<Output = Result<T>>>(
    first: T,
    look: impl FnMut() -> F,
    view: View<impl Fn(&T) -> String>,
) -> Result {
    let mut looks = Looks::new(look);
    let (mut text, mut shown) = (view.of(&first)?, view.of(&first.ageless())?);
    loop {
        if !terminal::print_while_read(&text)? {
            return Ok(());
        }
        loop {
            sleep(LOOK).await;
            let Some(value) = looks.next().await? else {
                continue;
            };
            let ageless = view.of(&value.ageless())?;
            if ageless != shown {
                shown = ageless;
                let next = view.of(&value)?;
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
    let mut shown = view.of(&first)?;
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
                shown = view.of(&value)?;
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

    use super::*;
    use crate::report::Report;
    use crate::report::tests::response;

    #[test]
    fn time_alone_is_no_change() {
        let now = Report::try_from(response()).unwrap();
        let at = |change: fn(&mut Report)| {
            let mut later = now.clone();
            change(&mut later);
            later.ageless()
        };
        for output in [Output::Table, Output::Json] {
            let render = crate::report::table::render;
            let view = View { output, render };
            let shown = view.of(&now.ageless()).unwrap();
            let later = at(|report| report.nodes[0].silent_ms = Some(900));
            assert_eq!(view.of(&later).unwrap(), shown);
            let changed = at(|report| report.nodes[0].health = "down");
            assert_ne!(view.of(&changed).unwrap(), shown);
            // That nothing has been heard yet is no age.
            let unheard = at(|report| report.nodes[0].silent_ms = None);
            assert_ne!(view.of(&unheard).unwrap(), shown);
        }
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
