//! llama_pc: pre-trains Llama models with PC layers on any GPU.

fn main() -> std::process::ExitCode {
    llama_pc::main()
}
