//! The `mosec-control-plane` command.

fn main() -> std::process::ExitCode {
    mosec_control_plane::cli::main(std::env::args_os()).into()
}
