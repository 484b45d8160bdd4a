//! A small disk that a test fills and frees.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A file system of a few megabytes; gone when dropped. Only root may mount one.
#[derive(Debug)]
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// An empty one of this many megabytes.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn mount(megabytes: u32) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let size = format!("size={megabytes}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "keysweep"]).arg(folder.path()));
        Self { folder }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves no byte free.
    ///
    /// # Panics
    /// When it cannot be written to.
    pub fn fill(&self) {
        let mut ballast = std::fs::File::create(self.folder.path().join("ballast")).expect("a file");
        while ballast.write(&[0; 4_096]).is_ok_and(|length| length > 0) {}
    }

    /// Gives back what filled it.
    ///
    /// # Panics
    /// When nothing did.
    pub fn free(&self) {
        std::fs::remove_file(self.folder.path().join("ballast")).expect("it was full");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whatever still has a file open there goes on with it.
        let _: std::io::Result<_> = Command::new("umount").arg("--lazy").arg(self.folder.path()).status();
    }
}

fn run(command: &mut Command) {
    assert!(command.status().is_ok_and(|status| status.success()), "{command:?}");
}
