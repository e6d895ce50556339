//! `docs/hardware.md`: what was measured, by adapter.
