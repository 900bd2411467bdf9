//! The program: runs the command line and turns its outcome into an exit code.

use std::process::ExitCode;

use dlmalloc::GlobalDlmalloc;

#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    kafka_llm_processor::cli::main()
}
