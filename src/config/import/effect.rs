//! Which values of another trainer's file have no effect here, so that the list of ignored values
//! does not name them. Depends on the tables of `theirs`.

use super::super::scalar::{boolean, whole};
use super::super::theirs::{DEPENDENT, NOT_THE_NETWORK, WITHOUT_EFFECT};
use super::super::yaml::{Data, Node};
use super::Imported;
use super::report::shown;

/// The value of a key of the file as text; `~` where it is missing or has no value.
fn text_at(root: &Node, path: &str) -> String {
    let found = path
        .split('.')
        .try_fold(root, |node, part| node.get(part))
        .or_else(|| root.get(path));
    found.map_or_else(|| "~".to_string(), shown)
}

/// Whether two texts are one value: numbers and switches by their meaning, names in any case.
pub(super) fn is_same(written: &str, value: &str) -> bool {
    let same_switch = boolean(written)
        .zip(boolean(value))
        .is_some_and(|(a, b)| a == b);
    let same_number = whole(written)
        .zip(whole(value))
        .is_some_and(|(a, b)| a == b);
    same_switch || same_number || written.eq_ignore_ascii_case(value)
}

/// Whether a path is that of a key: indices (`train.losses[2].reduction`) are left out, and `*`
/// stands for any name.
fn is_path_of(path: &str, key: &str) -> bool {
    let name = |part: &str| part.split('[').next().unwrap_or_default().to_string();
    let mut names = path.split('.').map(name);
    key.split('.')
        .all(|part| names.next().is_some_and(|n| part == "*" || n == part))
        && names.next().is_none()
}

fn is_below(path: &str, start: &str) -> bool {
    path.strip_prefix(start)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Whether a key that is ignored may have decided the trained network in their program.
pub(super) fn decides_the_network(path: &str) -> bool {
    !NOT_THE_NETWORK.iter().any(|start| is_below(path, start))
}

impl Imported {
    /// Moves what has no effect from the ignored values to their own list, and sorts the rest. The
    /// other keys that decide it may come later in the file than the key itself, so this comes last.
    pub(super) fn take_out_what_has_no_effect(&mut self, root: &Node) {
        let has_no_effect = |path: &str, value: &str| {
            let values = WITHOUT_EFFECT
                .iter()
                .filter(|(key, _)| is_path_of(path, key));
            let mut values = values.flat_map(|(_, values)| *values);
            let mut dependent = DEPENDENT.iter();
            // a key without a value is as good as none
            value == "~"
                || values.any(|same| *same == "*" || is_same(value, same))
                || dependent.any(|(start, other, state)| {
                    is_below(path, start) && is_same(&text_at(root, other), state)
                })
        };
        let ignored = std::mem::take(&mut self.ignored);
        for (path, value, reason) in ignored {
            if has_no_effect(&path, &value) {
                self.without_effect.push((path, value));
            } else {
                self.ignored.push((path, value, reason));
            }
        }
        // what decides the network first; the order within the two kinds stays that of the file
        self.ignored
            .sort_by_key(|(path, ..)| !decides_the_network(path));
    }
}

/// The value of a scalar; `None` for anything else.
pub(super) fn scalar(node: &Node) -> Option<&str> {
    match &node.data {
        Data::Scalar(text) => Some(text),
        _ => None,
    }
}
