//! The start of a command: arguments, logs, exit code.

use std::ffi::OsString;

use clap::Parser;

use crate::{LogFormat, init_logging};

/// Reads a command's arguments, the program's name first.
///
/// Errors: the exit code, after clap has said what is to be said: help and version on standard output, mistakes on
/// standard error.
pub fn parse_args<A: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<A, u8> {
    A::try_parse_from(args).map_err(|error| {
        // Who has closed standard output does not want to read it.
        let _ = error.print();
        u8::try_from(error.exit_code()).unwrap_or(2)
    })
}

/// Runs a daemon's command with these arguments, the program's name first; its exit code.
///
/// `failed`: the log's message for an error that ends it.
pub fn run_daemon<A: Parser>(
    args: impl IntoIterator<Item = OsString>,
    log_level: impl FnOnce(&A) -> &str,
    failed: &str,
    run: impl FnOnce(A) -> anyhow::Result<()>,
) -> u8 {
    let args = match parse_args::<A>(args) {
        Ok(args) => args,
        Err(code) => return code,
    };
    init_logging(log_level(&args), LogFormat::Json);
    match run(args) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "{failed}");
            1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Parser)]
    struct Args {
        #[arg(long)]
        fail: bool,
    }

    fn code(line: &str) -> u8 {
        let args = line.split_whitespace().map(OsString::from);
        run_daemon(
            args,
            |_: &Args| "error",
            "it failed",
            |args: Args| {
                anyhow::ensure!(!args.fail, "as it was told");
                Ok(())
            },
        )
    }

    #[test]
    fn exit_codes() {
        for (line, expected) in [("x", 0), ("x --fail", 1), ("x --other", 2), ("x --help", 0)] {
            assert_eq!(code(line), expected, "{line}");
        }
    }
}
