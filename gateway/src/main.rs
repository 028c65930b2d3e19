//! The `mosec-gateway` command.

fn main() -> std::process::ExitCode {
    mosec_gateway::cli::main(std::env::args_os()).into()
}
