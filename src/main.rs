//! The program `paragon`: the library's command line with the arguments of this process.

fn main() -> std::process::ExitCode {
    paragon::program(std::env::args_os().collect()).into()
}
