//! A process holds secrets in its memory while it uses them; that memory is for itself alone.

/// Keeps this process's memory from everybody else but root: the system writes no core file of it, and no other process of its user may
/// read it, by `/proc` or as a debugger. On Linux; elsewhere the installation has to see to it. To be called before any secret is read.
///
/// # Errors
/// When the system refuses.
pub fn keep_private() -> anyhow::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use anyhow::Context;
        use nix::sys::{prctl, resource};

        resource::setrlimit(resource::Resource::RLIMIT_CORE, 0, 0).context("cannot forbid core files")?;
        // The limit does not hold where the system hands its core files to a program; this does.
        prctl::set_dumpable(false).context("cannot keep memory from other processes")?;
    }
    Ok(())
}
