//! Trees as checkpointctl prints them.

/// A line and what hangs below it.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    label: String,
    branches: Vec<Tree>,
}

impl Tree {
    pub(crate) fn new(label: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            branches: Vec::new(),
        }
    }

    /// Adds a line.
    pub(crate) fn line(&mut self, label: impl Into<String>) {
        self.add(Self::new(label));
    }

    /// A line with its kind in brackets before it.
    pub(crate) fn tagged(tag: &str, label: &str) -> Self {
        Self::new(format!("[{tag}]  {label}"))
    }

    /// Adds a branch.
    pub(crate) fn add(&mut self, branch: Self) {
        self.branches.push(branch);
    }

    /// Adds a branch that has something below it.
    pub(crate) fn add_full(&mut self, branch: Self) {
        if !branch.branches.is_empty() {
            self.add(branch);
        }
    }

    /// The tree, each line ended.
    pub(crate) fn render(&self) -> String {
        let mut text = format!("{}\n", self.label);
        let mut stack = self.below("");
        while let Some((prefix, last, branch)) = stack.pop() {
            text.push_str(&prefix);
            text.push_str(if last { "└── " } else { "├── " });
            text.push_str(&branch.label);
            text.push('\n');
            let below = format!("{prefix}{}", if last { "    " } else { "│   " });
            stack.extend(branch.below(&below));
        }
        text
    }

    /// The branches from the last to the first, with what stands before them and whether they
    /// are the last.
    fn below(&self, prefix: &str) -> Vec<(String, bool, &Self)> {
        let reversed = self.branches.iter().rev().enumerate();
        reversed
            .map(|(behind, branch)| (prefix.to_owned(), behind == 0, branch))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_branches() {
        let mut inner = Tree::tagged("1", "sh");
        inner.line("a");
        inner.line("b");
        let mut tree = Tree::new("root");
        tree.add(inner);
        tree.add_full(Tree::new("nothing below"));
        tree.line("last");
        assert_eq!(
            tree.render(),
            "root\n├── [1]  sh\n│   ├── a\n│   └── b\n└── last\n"
        );
    }
}
