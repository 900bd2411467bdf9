//! The default driver (to be written).
