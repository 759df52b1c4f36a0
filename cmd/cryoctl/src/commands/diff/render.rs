//! The report that people read: boxes one below the other.

use std::fmt::Write as _;

use cryo_checkpoint::inspect::ProcessNode;

use super::{Changes, Diff, Differences, Process, Socket};
use crate::text::printable;
use crate::tree::Tree;

/// Inner width of the box at the top.
const HEAD: usize = 64;
/// Width of the values in it.
const VALUE: usize = 51;
/// Inner width of the other boxes.
const BOX: usize = 62;
/// Inner width of that of the sockets.
const WIDE: usize = 71;
/// Longest path and command line of a row.
const PATH: usize = 38;
const CMDLINE: usize = 55;

pub(super) fn render(diff: &Diff, all: &Differences, tree: Option<&ProcessNode>) -> String {
    let mut text = String::new();
    head(&mut text, all);
    memory(&mut text, all);
    processes(&mut text, diff, &all.process_changes, tree);
    if let Some(files) = &all.file_changes {
        boxed(&mut text, "File Descriptor Changes", BOX, |text| {
            let unchanged = diff.show_unchanged.then_some(&files.unchanged);
            let groups = [
                ("Added", '+', Some(&files.added)),
                ("Removed", '-', Some(&files.removed)),
                ("Unchanged", '=', unchanged),
            ];
            for (label, mark, rows) in groups {
                let Some(rows) = rows.filter(|rows| !rows.is_empty()) else {
                    continue;
                };
                line(text, &format!("{label}:"));
                for file in rows {
                    let path = shortened(&file.path, PATH);
                    let row = format!("  {mark} PID {:<5} {:<8} {path}", file.pid, file.r#type);
                    line(text, &row);
                }
            }
        });
    }
    if let Some(sockets) = &all.socket_changes {
        boxed(&mut text, "Socket Changes", WIDE, |text| {
            self::sockets(text, sockets, diff.show_unchanged);
        });
    }
    text.push_str("Summary:\n");
    for line in all.summary.lines() {
        text.push_str(&printable(line));
        text.push('\n');
    }
    text
}

fn head(text: &mut String, all: &Differences) {
    let edge = "═".repeat(HEAD);
    // Writing to a string does not fail.
    let _ = writeln!(text, "╔{edge}╗");
    let _ = writeln!(text, "║ {:<width$} ║", "Checkpoint Diff", width = HEAD - 2);
    let _ = writeln!(text, "╠{edge}╣");
    for (label, value) in [
        ("Container:", &all.container_name),
        ("Image:", &all.image),
        ("ID:", &all.container_id),
    ] {
        let value = shortened(value, VALUE);
        let _ = writeln!(text, "║ {label:<10} {value:<VALUE$} ║");
    }
    let _ = writeln!(text, "╚{edge}╝\n");
    for (name, about) in [("A", &all.checkpoint_a), ("B", &all.checkpoint_b)] {
        let _ = writeln!(text, "Checkpoint {name}:");
        let _ = writeln!(text, "  Created: {}", printable(&about.created));
        let _ = writeln!(text, "  Size:    {} bytes\n", about.total_size);
    }
}

fn memory(text: &mut String, all: &Differences) {
    boxed(text, "Memory Changes", BOX, |text| {
        let megabytes = all.memory_changes.size_change_mb;
        line(
            text,
            &match all.memory_changes.size_change_bytes {
                1.. => format!("↑ Increased by {megabytes:.2} MB"),
                0 => "= No change".to_owned(),
                _ => format!("↓ Decreased by {:.2} MB", -megabytes),
            },
        );
    });
}

fn processes(text: &mut String, diff: &Diff, all: &Changes<Process>, tree: Option<&ProcessNode>) {
    boxed(text, "Process Tree", BOX, |text| {
        let rows = |text: &mut String, label: &str, mark: char, rows: &[Process]| {
            if !rows.is_empty() {
                line(text, &format!("{label}:"));
            }
            for process in rows {
                let command = printable(&process.command);
                line(text, &format!("  {mark} PID {:<5} {command}", process.pid));
                if mark == '+' && !process.cmdline.is_empty() {
                    let cmdline = shortened(&process.cmdline, CMDLINE);
                    line(text, &format!("            {cmdline}"));
                }
            }
        };
        match tree.filter(|_| diff.show_unchanged) {
            Some(root) => {
                let mut whole = Tree::new("Process tree");
                whole.add(marked(root, all));
                for row in whole.render().lines() {
                    line(text, row);
                }
                rows(text, "Removed", '-', &all.removed);
            }
            None if all.added.is_empty() && all.removed.is_empty() && all.modified.is_empty() => {
                line(text, "= No change");
            }
            None => {
                rows(text, "Added", '+', &all.added);
                rows(text, "Removed", '-', &all.removed);
                rows(text, "Modified", '~', &all.modified);
            }
        }
    });
}

fn marked(node: &ProcessNode, all: &Changes<Process>) -> Tree {
    // Each is sorted by pid.
    let is_in = |rows: &[Process]| rows.binary_search_by_key(&node.pid, |row| row.pid).is_ok();
    let mark = match () {
        () if is_in(&all.added) => '+',
        () if is_in(&all.modified) => '~',
        () => '=',
    };
    let label = match node.cmdline.as_str() {
        "" => &node.command,
        cmdline => cmdline,
    };
    let mut tree = Tree::tagged(&format!("{mark} PID {}", node.pid), &printable(label));
    for child in &node.children {
        tree.add(marked(child, all));
    }
    tree
}

fn sockets(text: &mut String, all: &Changes<Socket>, unchanged: bool) {
    let unchanged = unchanged.then_some(&all.unchanged);
    let groups = [
        ('+', Some(&all.added)),
        ('-', Some(&all.removed)),
        ('=', unchanged),
    ];
    let rows: Vec<_> = groups
        .into_iter()
        .filter_map(|(mark, rows)| Some(rows?.iter().map(move |row| (mark, row))))
        .flatten()
        .collect();
    if !rows.is_empty() {
        let [pid, proto, state, local] = ["PID", "PROTO", "STATE", "LOCAL"];
        line(
            text,
            &format!("    {pid:<5} {proto:<5} {state:<12} {local:<21} PEER"),
        );
    }
    for (mark, socket) in rows {
        let [state, local, peer] = columns(socket);
        let protocol = match socket.r#type.as_str() {
            "UNIX" => "UNIX",
            _ => &socket.protocol,
        };
        let row = format!(
            " {mark}  {:<5} {protocol:<5} {state:<12} {:<21} {peer}",
            socket.pid,
            printable(&local)
        );
        line(text, &row);
    }
}

/// State, own end and other end.
fn columns(socket: &Socket) -> [String; 3] {
    let none = || "-".to_owned();
    if socket.source.is_empty() {
        let local = match socket.address.as_str() {
            "" => "@",
            address => address,
        };
        return [none(), local.to_owned(), none()];
    }
    let peer = match socket.dst_port {
        0 => none(),
        port => format!("{}:{port}", socket.dest),
    };
    let state = match socket.state.as_str() {
        "" => none(),
        state => state.to_owned(),
    };
    [
        state,
        format!("{}:{}", socket.source, socket.src_port),
        peer,
    ]
}

/// A box that is open to the right.
fn boxed(text: &mut String, title: &str, width: usize, content: impl FnOnce(&mut String)) {
    let rest = "─".repeat(width.saturating_sub(title.chars().count() + 3));
    let _ = writeln!(text, "┌─ {title} {rest}┐");
    content(text);
    let _ = writeln!(text, "└{}┘", "─".repeat(width));
}

fn line(text: &mut String, line: &str) {
    text.push_str("│ ");
    text.push_str(line);
    text.push('\n');
}

fn shortened(text: &str, limit: usize) -> String {
    let text = printable(text);
    if text.chars().count() <= limit {
        return text.into_owned();
    }
    let cut: String = text.chars().take(limit.saturating_sub(3)).collect();
    format!("{cut}...")
}
