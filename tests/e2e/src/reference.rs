//! Debian's checkpointctl, beside which cryoctl is put.

use anyhow::Context as _;
use cryo_criu_image::Kind;

use crate::images;
use crate::lab::Node;

/// The same archive for checkpointctl 1.3.0, as `NAME.older.tar` in `folder`.
///
/// That version reads the number of pages from the field that CRIU before 4 wrote, and CRIU 4.2
/// writes a zero there: all memory has 0 bytes for it. So the older field gets the number as well;
/// nothing else is changed.
///
/// # Errors
/// When the archive cannot be unpacked, or has no pagemaps.
pub async fn older_archive(node: &Node, archive: &str, folder: &str) -> anyhow::Result<String> {
    let unpacked = format!("{folder}/older");
    let run = async |command: &[&str]| node.exec(command).await?.success().map(drop);
    run(&["mkdir", &unpacked]).await?;
    run(&["tar", "-C", &unpacked, "-xf", archive]).await?;
    let images = node.host(&format!("{unpacked}/checkpoint"));
    let mut pagemaps = 0;
    for entry in std::fs::read_dir(&images).with_context(|| images.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name();
        let kind = Kind::of_file_name(&name.to_string_lossy());
        if !matches!(kind, Some((Kind::Pagemap, _))) {
            continue;
        }
        images::edit(&entry.path(), |messages| {
            for message in messages.iter_mut().skip(1) {
                if let Some(pages) = message.number(5) {
                    *message = std::mem::take(message).with(2, &[pages]);
                }
            }
        })?;
        pagemaps += 1;
    }
    anyhow::ensure!(pagemaps > 0, "no pagemap in {archive}");
    let older = format!("{folder}/older.tar");
    // With the directories as entries: checkpointctl looks for that of the images.
    run(&["tar", "-C", &unpacked, "-cf", &older, "."]).await?;
    run(&["rm", "-r", &unpacked]).await?;
    Ok(older)
}
