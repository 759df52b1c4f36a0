//! `cryoctl show`.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use cryo_checkpoint::inspect::{Inspection, Wanted};

use super::inspect::note_version;
use crate::choice::Choice;
use crate::failure::Failure;
use crate::table::Table;
use crate::text::{bytes, printable};

/// Show an overview of checkpoints.
///
/// One row for each container: of an archive of a pod, several. Memory pages are not read.
#[derive(Debug, Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Show {
    /// Checkpoints, in any form.
    #[arg(required = true, value_name = "CHECKPOINT")]
    checkpoints: Vec<PathBuf>,

    #[command(flatten)]
    choice: Choice,
}

const COLUMNS: [&str; 8] = [
    "Container",
    "Image",
    "ID",
    "Runtime",
    "Created",
    "Engine",
    "CHKPT Size",
    "Root Fs Diff Size",
];

impl Show {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut text = String::new();
        let mut found = Vec::new();
        for path in &self.checkpoints {
            for source in self.choice.checkpoints(path)? {
                note_version(&source)?;
                found.push((path, Inspection::of(&source, Wanted::default())?));
            }
        }
        let mut columns = COLUMNS.to_vec();
        if let [(path, only)] = found.as_slice() {
            let path = path.display().to_string();
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "\nDisplaying container checkpoint data from {}\n",
                printable(&path)
            );
            if only.checkpoint_size.root_fs_diff_size == 0 {
                columns.pop();
            }
        }
        let rows: Vec<_> = found.iter().map(|(_, one)| row(one)).collect();
        let mut table = Table::new(&columns);
        for row in &rows {
            table.fit(row.iter().map(String::as_str));
        }
        text.push_str(&table.head());
        for row in &rows {
            text.push_str(&table.row(row.iter().take(columns.len()).map(String::as_str)));
        }
        io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}

fn row(one: &Inspection) -> [String; 8] {
    let size = &one.checkpoint_size;
    [
        printable(&one.container_name).into_owned(),
        printable(&one.image).into_owned(),
        printable(&one.id.chars().take(12).collect::<String>()).into_owned(),
        printable(&one.runtime).into_owned(),
        printable(&one.created).into_owned(),
        one.engine.to_owned(),
        bytes(size.total_size),
        bytes(size.root_fs_diff_size),
    ]
}
