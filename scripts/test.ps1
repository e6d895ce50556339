# Checks formatting, lints and documentation, and runs every test, as scripts/test does on other systems. Needs Rust; Windows itself has
# an adapter, WARP.
$ErrorActionPreference = "Stop"
Set-Location (Join-Path $PSScriptRoot "..")

# A native program that fails does not stop PowerShell 5.
function Invoke-Cargo {
    cargo @args
    if ($LASTEXITCODE -ne 0) { throw "cargo $args failed with exit code $LASTEXITCODE" }
}

if (-not (Get-Command cargo -ErrorAction SilentlyContinue)) {
    throw "cargo was not found: install Rust 1.95 or newer from https://rustup.rs"
}
Invoke-Cargo fmt --all --check
Invoke-Cargo clippy --workspace --all-targets --quiet "--" -D warnings
$env:RUSTDOCFLAGS = "-D warnings"
Invoke-Cargo doc --workspace --no-deps --quiet
Invoke-Cargo test --workspace --quiet
