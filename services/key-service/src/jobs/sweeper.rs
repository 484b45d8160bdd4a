//! Sweeper.
