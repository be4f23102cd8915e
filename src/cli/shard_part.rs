//! The part of the work that one of several machines does: `--part I/N`, or `--part auto` from the
//! variables that batch schedulers and launchers of several processes set. Depends on the table of
//! launchers; reads the environment only through the function that it is given.

use anyhow::{Result, bail, ensure};
use paragon::ranks::LauncherKind;

/// Most parts of one set.
const MAX_PARTS: u32 = 100_000;

/// The value of `--part`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartFlag {
    /// Part I of N, counted from 1.
    Given(u32, u32),
    /// From the environment; the number of parts if the flag states it.
    Auto(Option<u32>),
}

/// A part, counted from 1, and the sentence that says where it comes from.
#[derive(Debug, PartialEq, Eq)]
pub struct AutoPart {
    pub part: (u32, u32),
    pub origin: String,
}

/// Reads `3/8`, `auto` or `auto/8`.
///
/// # Errors
/// Another text, or numbers out of range.
pub fn parse_part(text: &str) -> Result<PartFlag, String> {
    let wrong = || {
        format!(
            "`{text}` is no part; write 1/8 to 8/8 for eight parts (at most {MAX_PARTS}), or auto or auto/8 in an array \
             job or under an MPI launcher"
        )
    };
    let count = |text: &str| {
        let count = text.trim().parse().ok();
        count.filter(|n| (1..=MAX_PARTS).contains(n))
    };
    let (part, parts) = match text.split_once('/') {
        Some((part, parts)) => (part.trim(), Some(count(parts).ok_or_else(wrong)?)),
        None => (text.trim(), None),
    };
    match (part, parts) {
        ("auto", parts) => Ok(PartFlag::Auto(parts)),
        (part, Some(parts)) => match count(part).filter(|part| *part <= parts) {
            Some(part) => Ok(PartFlag::Given(part, parts)),
            None => Err(wrong()),
        },
        _ => Err(wrong()),
    }
}

/// One scheduler or launcher: the variables by which it numbers its tasks.
struct Source {
    name: &'static str,
    /// The number of this task.
    index: &'static str,
    /// The number of the first task: a variable, or a number where there is none.
    first: Result<&'static str, u64>,
    /// The distance of the numbers, if a variable states it.
    step: Option<&'static str>,
    count: Count,
    /// A value of `index` outside of arrays.
    outside: &'static str,
}

/// How a source states the number of its tasks.
enum Count {
    /// By this variable.
    Of(&'static str),
    /// By this variable, the number of the last task.
    Last(&'static str),
    /// By the first variable, which must agree with the second, the number of the last task.
    Both(&'static str, &'static str),
    /// Not at all.
    Unstated,
}

/// Job arrays. PBS and LSF do not state the first number, so their arrays must begin at 1.
const ARRAYS: [Source; 6] = [
    Source {
        name: "a Slurm array",
        index: "SLURM_ARRAY_TASK_ID",
        first: Ok("SLURM_ARRAY_TASK_MIN"),
        step: Some("SLURM_ARRAY_TASK_STEP"),
        count: Count::Both("SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MAX"),
        outside: "",
    },
    Source {
        name: "a PBS array",
        index: "PBS_ARRAY_INDEX",
        first: Err(1),
        step: None,
        count: Count::Unstated,
        outside: "",
    },
    Source {
        name: "an LSF array",
        index: "LSB_JOBINDEX",
        first: Err(1),
        step: None,
        count: Count::Last("LSB_JOBINDEX_END"),
        outside: "0",
    },
    Source {
        name: "a Grid Engine array",
        index: "SGE_TASK_ID",
        first: Ok("SGE_TASK_FIRST"),
        step: Some("SGE_TASK_STEPSIZE"),
        count: Count::Last("SGE_TASK_LAST"),
        outside: "undefined",
    },
    Source {
        name: "an AWS Batch array",
        index: "AWS_BATCH_JOB_ARRAY_INDEX",
        first: Err(0),
        step: None,
        count: Count::Of("AWS_BATCH_JOB_ARRAY_SIZE"),
        outside: "",
    },
    Source {
        name: "an indexed Kubernetes job",
        index: "JOB_COMPLETION_INDEX",
        first: Err(0),
        step: None,
        count: Count::Unstated,
        outside: "",
    },
];

/// Launchers of several processes.
const LAUNCHERS: [Source; 3] = [
    launcher("Open MPI", LauncherKind::OpenMpi),
    launcher("MPI", LauncherKind::Pmi),
    launcher("the launcher", LauncherKind::Torchrun),
];

/// The tasks of `srun`. Processes that another launcher starts inherit these variables from the batch
/// script, so they count only without one.
const SRUN: [Source; 1] = [launcher("srun", LauncherKind::Slurm)];

const fn launcher(name: &'static str, kind: LauncherKind) -> Source {
    let variables = kind.variables();
    Source {
        name,
        index: variables.rank,
        first: Err(0),
        step: None,
        count: match variables.tasks {
            Some(variable) => Count::Of(variable),
            None => Count::Unstated,
        },
        outside: "",
    }
}

/// What a source says: the position of the task from 0 on, and the number of tasks.
struct Position {
    source: &'static Source,
    value: String,
    at: u64,
    count: Option<u64>,
}

/// Reads variables that may be unset; an empty one counts as unset.
struct Environment<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name)
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty())
    }

    fn number(&self, name: &str) -> Result<Option<u64>> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        match text.parse::<u32>() {
            Ok(number) => Ok(Some(number.into())),
            Err(_) => bail!(
                "--part auto: {name} is `{text}`; expected a whole number. Unset it, or give --part I/N"
            ),
        }
    }

    fn required(&self, name: &str, of: &Source) -> Result<u64> {
        let number = self.number(name)?;
        number.ok_or_else(|| {
            anyhow::anyhow!(
                "--part auto: {} is set and {name} is not, so the number of this task in {} is unknown; give --part I/N",
                of.index,
                of.name
            )
        })
    }
}

impl Source {
    fn position(&'static self, environment: &Environment) -> Result<Option<Position>> {
        let Some(value) = environment
            .text(self.index)
            .filter(|text| text != self.outside)
        else {
            return Ok(None);
        };
        let index = environment.required(self.index, self)?;
        let first = match self.first {
            Ok(name) => environment.required(name, self)?,
            Err(number) => number,
        };
        let step = match self.step {
            Some(name) => environment.number(name)?.unwrap_or(1),
            None => 1,
        };
        ensure!(
            step > 0 && index >= first && (index - first).is_multiple_of(step),
            "--part auto: {} is {index}, which is no number of {} that begins at {first} in steps of {step}{}",
            self.index,
            self.name,
            if self.first.is_err() {
                "; number its tasks so, or give --part I/N"
            } else {
                "; give --part I/N"
            }
        );
        let steps_to = |last: u64| last.checked_sub(first).map(|span| span / step + 1);
        let count = match self.count {
            Count::Of(name) => Some(environment.required(name, self)?),
            Count::Last(name) => Some(steps_to(environment.required(name, self)?).unwrap_or(0)),
            Count::Both(name, last) => {
                let count = environment.required(name, self)?;
                let last = environment.number(last)?;
                ensure!(
                    last.is_none_or(|last| steps_to(last) == Some(count)),
                    "--part auto: the numbers of {} have gaps: {count} tasks from {first} to {} in steps of {step}; use \
                     one range, or give --part I/N",
                    self.name,
                    last.unwrap_or_default()
                );
                Some(count)
            }
            Count::Unstated => None,
        };
        Ok(Some(Position {
            source: self,
            value,
            at: (index - first) / step,
            count,
        }))
    }
}

impl Position {
    /// The variable and its value.
    fn variable(&self) -> String {
        format!("{}={}", self.source.index, self.value)
    }
}

/// The part of this task, by the first kind of sources that is set: arrays, launchers, `srun`.
/// `variable` reads a variable, `parts` is the number that the flag states.
///
/// # Errors
/// No source is set, sources disagree, a variable is malformed, or the number of parts is unknown or
/// another one. The message names the variables.
pub fn auto_part(
    parts: Option<u32>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<AutoPart> {
    let environment = Environment(variable);
    let array = agreed(&ARRAYS, &environment)?;
    let launched = match agreed(&LAUNCHERS, &environment)? {
        Some(launched) => Some(launched),
        None => agreed(&SRUN, &environment)?,
    };
    let found = match (array, launched) {
        (Some(array), Some(launched)) if launched.count != Some(1) => bail!(
            "--part auto: {} ({}) and {} ({}) are both set, so it is not clear which of them numbers the parts; unset \
             one, or give --part I/N",
            array.variable(),
            array.source.name,
            launched.variable(),
            launched.source.name
        ),
        (Some(found), _) | (None, Some(found)) => found,
        (None, None) => bail!(nothing_set()),
    };
    let (variable, source) = (found.variable(), found.source.name);
    let count = match (found.count, parts) {
        (None, None) => bail!(
            "--part auto: {variable} is set, but {source} does not state the number of its tasks; give it, as in --part \
             auto/8"
        ),
        (Some(count), Some(parts)) if count != u64::from(parts) => bail!(
            "--part auto/{parts}: {source} ({variable}) states {count} as the number of tasks; give --part I/{parts}"
        ),
        (count, parts) => count.unwrap_or_else(|| parts.unwrap_or_default().into()),
    };
    ensure!(
        found.at < count,
        "--part auto: {variable} would be part {} of {count} of {source}; give --part I/N",
        found.at + 1
    );
    ensure!(
        count <= MAX_PARTS.into(),
        "--part auto: {source} has {count} tasks ({variable}); a set has at most {MAX_PARTS} parts"
    );
    let part = (found.at as u32 + 1, count as u32);
    let origin = format!("part {}/{}, from {variable} of {source}", part.0, part.1);
    Ok(AutoPart { part, origin })
}

/// The message where no source is set.
fn nothing_set() -> String {
    let all = ARRAYS.iter().chain(&LAUNCHERS).chain(&SRUN);
    let names: Vec<&str> = all.map(|source| source.index).collect();
    format!(
        "--part auto: this is neither a task of an array job nor started by an MPI launcher: none of {} is set; give \
         --part I/N",
        names.join(", ")
    )
}

/// What the sources that are set say, if they say the same.
fn agreed(sources: &'static [Source], environment: &Environment) -> Result<Option<Position>> {
    let mut first: Option<Position> = None;
    for source in sources {
        let Some(next) = source.position(environment)? else {
            continue;
        };
        match &first {
            Some(first) => ensure!(
                (first.at, first.count) == (next.at, next.count),
                "--part auto: {} ({}) and {} ({}) are both set and disagree; unset one, or give --part I/N",
                first.variable(),
                first.source.name,
                next.variable(),
                source.name
            ),
            None => first = Some(next),
        }
    }
    Ok(first)
}

#[cfg(test)]
mod tests;
