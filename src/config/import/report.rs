//! The report of an import: how many values were honoured and how many have no effect here, which
//! were not honoured and why (those that decide the trained network first), and the other trainer's
//! defaults that were taken. Depends on `import` and `text`. Its length is bounded, however long the
//! file is.

use super::super::yaml::{Data, Node};
use super::Imported;
use super::effect::decides_the_network;
use crate::support::text::{brief, one_line};
use std::fmt::Write;

/// Most ignored values that the report lists; a usual option file has some hundred in all.
const MOST_LINES: usize = 1000;

/// Keys that `paragon shard --config` takes, so that a training need not.
const FOLDERS: [&str; 2] = ["datasets.train.dataroot_gt", "datasets.train.dataroot_lq"];

/// A value of the file in one short line.
pub fn shown(node: &Node) -> String {
    fn write(node: &Node, out: &mut String) {
        // `brief` cuts the line anyway: a huge value is not written out first
        if out.len() > 1000 {
            return;
        }
        match &node.data {
            Data::Null => out.push('~'),
            Data::Scalar(text) => out.push_str(text),
            Data::List(list) => {
                out.push('[');
                for (i, node) in list.iter().enumerate() {
                    out.push_str(if i > 0 { ", " } else { "" });
                    write(node, out);
                }
                out.push(']');
            }
            Data::Map(entries) => {
                out.push('{');
                for (i, (key, node)) in entries.iter().enumerate() {
                    let _ = write!(out, "{}{key}: ", if i > 0 { ", " } else { "" });
                    write(node, out);
                }
                out.push('}');
            }
        }
    }
    let mut out = String::new();
    write(node, &mut out);
    brief(out)
}

impl Imported {
    /// The whole report for the user: what was ignored and why, and which defaults were taken.
    pub fn report(&self, file: &str) -> String {
        self.report_of(file, true)
    }

    /// The report without the ignored values that do not decide the trained network, which are
    /// counted.
    pub fn short_report(&self, file: &str) -> String {
        self.report_of(file, false)
    }

    fn report_of(&self, file: &str, all: bool) -> String {
        let folders = self.ignored.iter();
        let folders = folders.filter(|(path, ..)| FOLDERS.contains(&path.as_str()));
        let left = self.ignored.len() - folders.count();
        let mut out = format!(
            "{file} is a traiNNer-redux option file: {} values honoured, {} without effect here, {left} not honoured",
            self.honoured.len(),
            self.without_effect.len()
        );
        if let Some(sign) = &self.on_the_fly {
            self.degradation_line(&mut out, sign);
        }
        let (folders, ignored): (Vec<_>, Vec<_>) = self
            .ignored
            .iter()
            .partition(|(path, ..)| FOLDERS.contains(&path.as_str()));
        if !folders.is_empty() {
            let _ = write!(
                out,
                "\n  the folders of images ({}) are taken by `paragon shard --config {}`; training reads the set that it makes",
                folders
                    .iter()
                    .map(|(path, ..)| path.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
                one_line(file)
            );
        }
        let (first, rest): (Vec<_>, Vec<_>) = ignored
            .into_iter()
            .partition(|(path, ..)| all || decides_the_network(path));
        for (path, value, reason) in first.iter().take(MOST_LINES) {
            let _ = write!(
                out,
                "\n  not honoured: {}: {value}\n      {}",
                one_line(path),
                one_line(reason)
            );
        }
        if first.len() > MOST_LINES {
            let _ = write!(
                out,
                "\n  and {} more values that are not honoured",
                first.len() - MOST_LINES
            );
        }
        if !rest.is_empty() {
            let _ = write!(
                out,
                "\n  not honoured either: {} value{} for speed, logs and validation, which do not change the trained network \
                 (`paragon config import {}` lists all)",
                rest.len(),
                if rest.len() == 1 { "" } else { "s" },
                one_line(file)
            );
        }
        for (path, value) in &self.assumed {
            let _ = write!(
                out,
                "\n  not in the file: {path} is {value}, that trainer's default"
            );
        }
        out
    }

    /// The line about a recipe that makes its LQ while it trains; `sign` is the entry that shows it.
    fn degradation_line(&self, out: &mut String, sign: &str) {
        let made = self.recipe.as_ref().is_some_and(|r| r.text.is_some());
        let _ = write!(
            out,
            "\n  this recipe degrades on the fly ({}): {}",
            one_line(sign),
            if made {
                "its degradation is a recipe of paragon (data.degrade, --degrade), apart from the values that are listed below"
            } else {
                "no degradation recipe could be made of it, and the LQ of the shards is trained on"
            }
        );
    }
}
