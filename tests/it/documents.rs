//! Checks the documents: every relative link leads to a file and its anchor to a heading, every
//! repository path in backticks exists, and the program accepts every `paragon` command and flag
//! that a document shows. Depends on the files of the repository and on the program's `--help`;
//! uses no network.

use crate::markdown_common::Document;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// The documents whose links are checked.
const DOCUMENTS: [&str; 8] = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "kernels/README.md",
    "kernels/ptx/RESOURCES.md",
    "shards/FORMAT.md",
    "tests/data/README.md",
];

/// Folders at the root of the repository. A path in backticks is checked if it begins with one.
const FOLDERS: [&str; 10] = [
    ".ci/",
    ".github/",
    "benches/",
    "docs/",
    "examples/",
    "fuzz/",
    "kernels/",
    "scripts/",
    "src/",
    "tests/",
];

/// Endings of source files. A path in backticks with such an ending is checked, from the root of
/// the repository, from `src` (documents write `backend/cuda/lower.rs`) or from the document's
/// folder.
const SOURCES: [&str; 6] = [".rs", ".cu", ".cuh", ".py", ".md", ".toml"];

/// Flags of other programs that the documents name.
const FOREIGN_FLAGS: [&str; 21] = [
    "--all-targets",
    "--bench",
    "--exact",
    "--ignored",
    "--lib",
    "--locked",
    "--manifest-path",
    "--map-by",
    "--master-addr",
    "--master-port",
    "--max-restarts",
    "--mca",
    "--mpi",
    "--nnodes",
    "--nocapture",
    "--node-rank",
    "--release",
    "--signal",
    "--target",
    "--test",
    "--virtual-local-rank",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A path relative to the repository: `.` and `..` resolved, `/` between the parts. `None`: it
/// leads out of the repository.
fn resolved(path: &Path) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::ParentDir => {
                parts.pop()?;
            }
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(parts.join("/"))
}

fn all_documents() -> Vec<Document> {
    let mut paths: Vec<String> = DOCUMENTS.iter().map(ToString::to_string).collect();
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            paths.push(format!("docs/{name}"));
        }
    }
    paths.sort();
    paths.iter().map(|path| Document::read(path)).collect()
}

/// The broken links of `documents`, one line each.
fn broken_links(documents: &[Document]) -> Vec<String> {
    let anchors: BTreeMap<&str, BTreeSet<String>> = documents
        .iter()
        .map(|d| (d.path.as_str(), d.anchors()))
        .collect();
    let mut broken = Vec::new();
    for document in documents {
        for (at, target) in document.links() {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => Some(document.path.clone()),
                file => {
                    let folder = Path::new(&document.path).parent().unwrap();
                    resolved(&folder.join(file))
                }
            };
            let place = document.place(at);
            let Some(path) = path.filter(|path| root().join(path).exists()) else {
                broken.push(format!("{place}: {target}: there is no such file"));
                continue;
            };
            if anchor.is_empty() {
                continue;
            }
            match anchors.get(path.as_str()) {
                Some(known) if known.contains(anchor) => {}
                Some(_) => broken.push(format!("{place}: {target}: no heading has this anchor")),
                None => broken.push(format!(
                    "{place}: {target}: {path} is not among the documents"
                )),
            }
        }
    }
    broken
}

/// Whether a part of a path is a placeholder: `VERSION`, `NAME`, `*.ptx`, `<name>`.
fn is_placeholder(part: &str) -> bool {
    part.contains(['*', '<', '{'])
        || (part.len() > 1 && part.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
}

/// Whether a path exists, from the root of the repository, from `src` or from the document's
/// folder. Parts from the first placeholder on are not checked.
fn exists(path: &str, document: &Document) -> bool {
    let mut known = PathBuf::new();
    for part in path.split('/') {
        if is_placeholder(part) {
            break;
        }
        known.push(part);
    }
    let folder = Path::new(&document.path).parent().unwrap();
    [Path::new(""), Path::new("src"), folder]
        .iter()
        .any(|start| root().join(start).join(&known).exists())
}

/// Repository paths in the code of `documents` that do not exist.
fn missing_paths(documents: &[Document]) -> Vec<String> {
    let mut missing = Vec::new();
    for document in documents {
        for (at, code) in document.code() {
            for word in code.split(|c: char| c.is_whitespace() || "\"'();,=".contains(c)) {
                let path = word.trim_end_matches([':', '.']);
                // A line number after the path is not part of it.
                let path = match path.rsplit_once(':') {
                    Some((path, line)) if line.chars().all(|c| c.is_ascii_digit()) => path,
                    _ => path,
                };
                let of_repository = FOLDERS.iter().any(|folder| path.starts_with(folder))
                    || (path.contains('/')
                        && !path.starts_with(['.', '/', '~'])
                        && !path.contains("://")
                        && SOURCES.iter().any(|ending| path.ends_with(ending)));
                if of_repository && !exists(path, document) {
                    missing.push(format!("{}: there is no {path}", document.place(at)));
                }
            }
        }
    }
    missing
}

fn help(command: &[&str]) -> Option<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_paragon"))
        .args(command)
        .arg("--help")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    output.status.success().then_some(text)
}

/// The long flags in a text.
fn flags(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'));
    words
        .filter(|word| word.len() > 3 && word.starts_with("--"))
        .filter(|word| !word.starts_with("---"))
        .map(str::to_string)
        .collect()
}

/// The help texts of the commands, each read when it is first needed.
#[derive(Default)]
struct Helps(BTreeMap<Vec<String>, Option<String>>);

impl Helps {
    fn of(&mut self, command: &[&str]) -> Option<&str> {
        let key = command.iter().map(ToString::to_string).collect();
        let text = self.0.entry(key).or_insert_with(|| help(command));
        text.as_deref()
    }

    /// The names of a command's subcommands.
    fn subcommands(&mut self, command: &[&str]) -> Vec<String> {
        let text = self.of(command).unwrap_or_default();
        let list = text
            .split_once("\nCommands:\n")
            .map_or("", |(_, list)| list);
        let entries = list.lines().take_while(|line| line.starts_with("  "));
        entries
            .filter(|line| !line.starts_with("   "))
            .filter_map(|line| line.split_whitespace().next())
            .filter(|name| *name != "help")
            .map(str::to_string)
            .collect()
    }

    /// Every flag of every command.
    fn all_flags(&mut self) -> BTreeSet<String> {
        let mut all = flags(self.of(&[]).unwrap());
        for command in self.subcommands(&[]) {
            all.extend(flags(self.of(&[&command]).unwrap()));
            for sub in self.subcommands(&[&command]) {
                all.extend(flags(self.of(&[&command, &sub]).unwrap()));
            }
        }
        all
    }
}

/// What is wrong with one command line, such as `paragon shards info|verify DIR --json`.
fn wrong_command(line: &str, helps: &mut Helps) -> Option<String> {
    let line = line.split(" #").next().unwrap().replace('\\', "");
    let mut words = line.split_whitespace().skip(1);
    let name = words.next().filter(|word| !word.starts_with('-'))?;
    if is_placeholder(name) {
        return None;
    }
    if helps.of(&[name]).is_none() {
        return Some(format!("there is no command `paragon {name}`"));
    }
    let mut commands = vec![vec![name]];
    if !helps.subcommands(&[name]).is_empty() {
        let subs = words.next().filter(|word| !word.starts_with('-'));
        let subs = subs.filter(|word| !is_placeholder(word))?;
        commands = subs.split('|').map(|sub| vec![name, sub]).collect();
    }
    // The text after a `;`, `&` or `|` belongs to another program.
    let own = words.take_while(|word| ![";", "&&", "||", "|", "&"].contains(word));
    let asked = flags(&own.collect::<Vec<_>>().join(" "));
    for command in commands {
        let Some(text) = helps.of(&command) else {
            return Some(format!(
                "there is no command `paragon {}`",
                command.join(" ")
            ));
        };
        let known = flags(text);
        if let Some(flag) = asked.iter().find(|flag| !known.contains(*flag)) {
            return Some(format!("`paragon {}` has no {flag}", command.join(" ")));
        }
    }
    None
}

/// Commands and flags in the code of `documents` that the program does not accept.
fn wrong_commands(documents: &[Document]) -> Vec<String> {
    let mut helps = Helps::default();
    let mut known = helps.all_flags();
    known.extend(FOREIGN_FLAGS.iter().map(ToString::to_string));
    for entry in fs::read_dir(root().join("scripts")).unwrap() {
        let path = entry.unwrap().path();
        // folders hold parts of a script, and Python's `__pycache__`
        if path.is_file() {
            known.extend(flags(&fs::read_to_string(path).unwrap()));
        }
    }
    let mut wrong = Vec::new();
    for document in documents {
        for (at, code) in document.code() {
            let place = document.place(at);
            if code.starts_with("paragon ") {
                let problem = wrong_command(&code.replace('\n', " "), &mut helps);
                wrong.extend(problem.map(|problem| format!("{place}: {problem}")));
            } else if code.starts_with("--") {
                let unknown = flags(code).into_iter().filter(|flag| !known.contains(flag));
                wrong.extend(unknown.map(|flag| format!("{place}: no command has {flag}")));
            }
        }
    }
    wrong
}

fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn links_and_anchors_lead_somewhere() {
    assert_none(&broken_links(&all_documents()));
}

#[test]
fn repository_paths_exist() {
    assert_none(&missing_paths(&all_documents()));
}

#[test]
fn commands_and_flags_are_those_of_the_program() {
    // CHANGELOG.md names flags as each version had them
    let mut documents = all_documents();
    documents.retain(|document| document.path != "CHANGELOG.md");
    assert_none(&wrong_commands(&documents));
}

#[test]
fn every_problem_is_found() {
    let text = "# One `two` & three\n\n## Again\n\n## Again\n\n\
        [ok](#one-two--three) [ok](#again-1) [ok](shards/FORMAT.md) `[no link](x.md)`\n\
        [a](none.md) [b](#again-2) [c](../outside.md) [d](shards/FORMAT.md#none)\n\n\
        `src/none.rs:7`, `tests/data/VERSION/x`, `plan/none.rs`, `a/b.png`, and\n`scripts/none\n--x`\n\n\
        ```sh\nparagon nonesuch\nparagon train --nonesuch 1   # --not-this\n[no link](y.md)\n```\n\
        `paragon shards info\\|verify DIR`, `paragon shards nonesuch`, `--shards X --none-such`\n";
    let document = || {
        vec![
            Document::new("README.md", text),
            Document::read("shards/FORMAT.md"),
        ]
    };
    let found = |problems: Vec<String>, expected: &[&str]| {
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.contains(expected), "{problem}: {expected}");
        }
    };
    found(
        broken_links(&document()),
        &[
            "README.md:8: none.md",
            "#again-2: no heading",
            "../outside.md: there is no such file",
            "shards/FORMAT.md#none: no heading",
        ],
    );
    found(
        missing_paths(&document()[..1]),
        &[
            "README.md:10: there is no src/none.rs",
            "plan/none.rs",
            "scripts/none",
        ],
    );
    found(
        wrong_commands(&document()[..1]),
        &[
            "`paragon shards nonesuch`",
            "no command has --none-such",
            "README.md:15: there is no command `paragon nonesuch`",
            "`paragon train` has no --nonesuch",
        ],
    );
}
