//! The simulated vLLM answers as vLLM 0.32 does. What is expected here was read from a running vLLM 0.32.0.

#[path = "sandbox_vllm/client.rs"]
mod client;
#[path = "sandbox_vllm/faults.rs"]
mod faults;
#[path = "sandbox_vllm/load.rs"]
mod load;
#[path = "sandbox_vllm/shapes.rs"]
mod shapes;
