//! The subcommands, one file each.

pub mod demo; // everything embedded, an outage on stage, the books at the end
