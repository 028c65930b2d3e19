//! How a command fails: what is printed, and the exit code.

use std::fmt;

use mosec_wire::control::ControlError;

use crate::terminal;

/// Exit codes other than 0. Usage errors found by the argument parser have the same 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Failed = 1,
    Usage = 2,
    /// No control plane is known, or none answers.
    Unreachable = 3,
}

/// An error on its way to the user.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    error: anyhow::Error,
    hint: Option<String>,
    /// The user has ended it, with this code. There is nothing to tell.
    interrupted: Option<u8>,
}

const UNREACHABLE_HINT: &str = "is it running, and does the identity belong to its cluster?";

pub(crate) type Result<T = (), E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit,
            error: error.into(),
            hint: None,
            interrupted: None,
        }
    }

    /// The end that a signal of the user asks for, by its exit code. Nothing is printed.
    pub(crate) fn interrupted(code: u8) -> Self {
        let failure = Self::new(Exit::Failed, anyhow::anyhow!("interrupted"));
        Self {
            interrupted: Some(code),
            ..failure
        }
    }

    /// Whether no control plane answers.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.exit == Exit::Unreachable
    }

    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, anyhow::anyhow!("{message}"))
    }

    /// Adds what may help. The first hint stays: it is nearer to the cause.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Prints the error; its exit code.
    pub(crate) fn report(&self) -> u8 {
        if let Some(code) = self.interrupted {
            return code;
        }
        let (start, end) = if terminal::stderr_has_colours() {
            ("\x1b[1;31m", "\x1b[0m")
        } else {
            ("", "")
        };
        terminal::print_error(&format!("{start}error:{end} {self}\n"));
        self.exit as u8
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = terminal::printable(&self.error.to_string());
        write!(f, "{last}")?;
        for cause in self.error.chain().skip(1) {
            let text = terminal::printable(&cause.to_string());
            // Some libraries repeat their cause in their own text.
            if !last.contains(&text) {
                write!(f, "\n  because: {}", text.replace('\n', "\n  "))?;
                last = text;
            }
        }
        match (&self.hint, self.exit) {
            (Some(hint), _) => write!(f, "\n  hint: {hint}"),
            (None, Exit::Unreachable) => write!(f, "\n  hint: {UNREACHABLE_HINT}"),
            (None, _) => Ok(()),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let unreachable = error
            .chain()
            .any(|cause| matches!(cause.downcast_ref(), Some(ControlError::Unavailable { .. })));
        let exit = if unreachable {
            Exit::Unreachable
        } else {
            Exit::Failed
        };
        Self {
            exit,
            error,
            hint: None,
            interrupted: None,
        }
    }
}

/// The failure of a call. A refusal with one of these codes is told with a hint at what helps.
pub(crate) fn refused(error: ControlError, codes: &[tonic::Code], hint: &str) -> Failure {
    let helps = matches!(&error, ControlError::Refused { code, .. } if codes.contains(code));
    let failure = Failure::from(error);
    if helps { failure.hint(hint) } else { failure }
}

/// The failure of a call about a pipeline. What is not there is looked for in the status; `hint` is for what is not possible.
pub(crate) fn refused_of_pipeline(error: ControlError, hint: &str) -> Failure {
    let failure = refused(error, &[tonic::Code::FailedPrecondition], hint);
    let is_missing = matches!(
        failure.error.downcast_ref(),
        Some(ControlError::Refused {
            code: tonic::Code::NotFound,
            ..
        })
    );
    match is_missing {
        true => failure.hint("`mosectl status` lists the pipelines with their stages and revisions"),
        false => failure,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn causes_and_hints_follow_the_error() {
        let error = anyhow::anyhow!("no such file")
            .context("cannot read x")
            .context("cannot deploy");
        let failure = Failure::from(error).hint("look for it").hint("or not");
        let text = "cannot deploy\n  because: cannot read x\n  because: no such file\n  hint: look for it";
        assert_eq!(failure.to_string(), text);
        assert_eq!(failure.exit, Exit::Failed);
        assert_eq!(Failure::usage("what?").exit, Exit::Usage);
        assert_eq!(Failure::interrupted(130).report(), 130);
    }

    #[test]
    fn a_silent_control_plane_has_its_own_code() {
        let unavailable = || ControlError::Unavailable {
            endpoints: "a:1".into(),
            attempts: 2,
            last: "refused".into(),
        };
        let wrapped: anyhow::Result<()> = Err(unavailable()).context("cannot deploy");
        assert_eq!(Failure::from(unavailable()).exit, Exit::Unreachable);
        assert!(
            Failure::from(unavailable())
                .to_string()
                .ends_with(UNREACHABLE_HINT)
        );
        assert_eq!(Failure::from(wrapped.unwrap_err()).exit, Exit::Unreachable);
        let refused = ControlError::Refused {
            code: tonic::Code::NotFound,
            message: "no".into(),
        };
        let failure = refused_of_pipeline(refused, "not this");
        assert_eq!(failure.exit, Exit::Failed);
        assert!(
            failure
                .to_string()
                .ends_with("hint: `mosectl status` lists the pipelines with their stages and revisions"),
            "{failure}"
        );
    }
}
