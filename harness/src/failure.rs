//! How a command fails: by what the user gave, before anything ran, or by what happened later.

/// How a command failed.
pub enum Failure {
    /// The user's input: exit status 2, nothing was run.
    Input(anyhow::Error),
    /// Anything later: exit status 1.
    Run(anyhow::Error),
    /// Reported by rank 0, in another process, with this exit status.
    Reported(u8),
}

impl Failure {
    pub fn status(&self) -> u8 {
        match self {
            Self::Input(_) => 2,
            Self::Run(_) => 1,
            Self::Reported(status) => *status,
        }
    }
}

/// Marks errors by when they happened.
pub trait OrFail<T> {
    /// An error in what the user gave.
    fn or_input(self) -> Result<T, Failure>;
    /// An error while running.
    fn or_run(self) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrFail<T> for Result<T, E> {
    fn or_input(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::Input(error.into()))
    }

    fn or_run(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::Run(error.into()))
    }
}
