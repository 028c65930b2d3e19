//! The `mosectl` command.

fn main() -> std::process::ExitCode {
    mosectl::cli::main(std::env::args_os()).into()
}
