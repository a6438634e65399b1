//! `forebay doctor`: what stands in the way on this machine, and the command that mends each of it.
//!
//! Exit status: 0 nothing failed (warnings allowed), 1 something failed, 2 the words or the file are wrong.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use forebay_dataplane::config::{self, Problems};
use forebay_dataplane::doctor::{self, Finding, Level, Subject, System};
use serde::Serialize;

use super::{Form, Out, write_json};

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// A config file: what it asks for and this machine does not have fails.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    form: Form,
}

/// Does what the words say.
pub fn main(args: &DoctorArgs) -> ExitCode {
    let subject = match &args.config {
        Some(path) => config::load(path).map(|config| Subject::of(&config)),
        None => Subject::ordinary(),
    };
    let findings = match subject {
        Ok(subject) => doctor::examine(&System::this(), &subject),
        Err(problems) => return wrong(&problems, args.form),
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    match write(&findings, args.form, &mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("forebay: standard output: {error}");
            ExitCode::FAILURE
        }
        _ if count(&findings, Level::Fail) > 0 => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// As `forebay check` says it.
fn wrong(problems: &Problems, form: Form) -> ExitCode {
    match serde_json::to_string(problems) {
        Ok(text) if form.json => println!("{text}"),
        _ => eprintln!("{problems}"),
    }
    ExitCode::from(2)
}

#[derive(Serialize)]
struct Report<'a> {
    failed: usize,
    warnings: usize,
    findings: &'a [Finding],
}

fn count(findings: &[Finding], level: Level) -> usize {
    findings.iter().filter(|finding| finding.level == level).count()
}

fn write(findings: &[Finding], form: Form, out: &mut Out<'_>) -> io::Result<()> {
    let (failed, warnings) = (count(findings, Level::Fail), count(findings, Level::Warn));
    if form.json {
        return write_json(out, &Report { failed, warnings, findings });
    }
    let title = |finding: &Finding| match &finding.object {
        Some(object) => format!("{} {object}", finding.name),
        None => finding.name.to_owned(),
    };
    // Longer ones shift their own line only.
    let width = findings.iter().map(|finding| title(finding).chars().count()).max().unwrap_or(0).min(36);
    for finding in findings {
        writeln!(out, "{:<4}  {:<width$}  {}", finding.level, title(finding), finding.value)?;
        if let Some(remedy) = &finding.remedy {
            writeln!(out, "      -> {remedy}")?;
        }
    }
    let fine = findings.len() - failed - warnings;
    writeln!(out, "{failed} failed, {warnings} warnings, {fine} fine")
}
