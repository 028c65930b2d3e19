//! The `mosec-node-agent` command.

fn main() -> std::process::ExitCode {
    mosec_node_agent::cli::main(std::env::args_os()).into()
}
