//! The `paragon` command: parse, run, print the error chain, set the exit code (0 ok, 1 the work
//! failed, 2 usage).

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
