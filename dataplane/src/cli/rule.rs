//! `forebay rule`: loading, deleting and showing rules.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use forebay_api::client::{self, Client};
use forebay_api::rule_json;
use forebay_api::v1::{DeleteRulesRequest, GetRuleRequest, ListRulesRequest, LoadRulesResponse, RuleStatus};
use serde::Serialize;

use super::failure::Failure;
use super::table::{Table, left, right};
use super::{Form, Out, change, load, rule_text, write_json};

#[derive(Debug, Subcommand)]
pub enum RuleCommand {
    /// Load rules from JSON lines, all or none.
    Load {
        /// The file; - for standard input.
        file: PathBuf,
        /// Check all, change nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        form: Form,
    },
    /// Stream changes from JSON lines, {"put":{…}} or {"delete":"ID"}, each a transaction of its own.
    Change {
        /// The file; - for standard input.
        file: PathBuf,
        #[command(flatten)]
        form: Form,
    },
    /// Add one rule, or replace the rule of its id.
    Add {
        /// The rule as a JSON object.
        json_object: String,
        #[command(flatten)]
        form: Form,
    },
    /// Delete rules, all or none.
    Delete {
        /// Their ids.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        #[command(flatten)]
        form: Form,
    },
    /// Show the rules with their counters.
    List {
        /// Only the rules of this port.
        #[arg(long, value_name = "PORT")]
        port: Option<String>,
        #[command(flatten)]
        form: Form,
    },
    /// Show one rule with its counters.
    Show {
        /// Its id.
        id: String,
        #[command(flatten)]
        form: Form,
    },
}

pub async fn execute(socket: &Path, command: RuleCommand, out: &mut Out<'_>) -> Result<(), Failure> {
    match command {
        RuleCommand::Load { file, dry_run, form } => {
            let client = client::connect(socket).await?;
            let loaded = load::load_file(client, &file, dry_run).await?;
            write_loaded(&loaded, dry_run, form, out)
        }
        RuleCommand::Change { file, form } => {
            change::stream_file(client::connect(socket).await?, &file, form, out).await
        }
        RuleCommand::Add { json_object, form } => {
            // Wrong words are wrong whether or not a daemon runs.
            let rule = rule_json::parse_rule(&json_object)?;
            let client = client::connect(socket).await?;
            let loaded = load::load_rules(client, vec![rule], false).await?;
            write_loaded(&loaded, false, form, out)
        }
        RuleCommand::Delete { ids, form } => {
            let mut client = client::connect(socket).await?;
            let deleted = client.rules.delete(DeleteRulesRequest { ids }).await?.into_inner().deleted;
            if form.json {
                write_json(out, &Deleted { deleted })?;
            } else {
                writeln!(out, "{deleted} deleted")?;
            }
            Ok(())
        }
        RuleCommand::List { port, form } => {
            list(client::connect(socket).await?, port.unwrap_or_default(), form, out).await
        }
        RuleCommand::Show { id, form } => {
            let mut client = client::connect(socket).await?;
            let status = client.rules.get(GetRuleRequest { id }).await?.into_inner();
            write_rule(&status, form, out)
        }
    }
}

#[derive(Serialize)]
struct Loaded {
    changed: u64,
    unchanged: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
}

#[derive(Serialize)]
struct Deleted {
    deleted: u64,
}

fn write_loaded(
    loaded: &LoadRulesResponse,
    dry_run: bool,
    form: Form,
    out: &mut Out<'_>,
) -> Result<(), Failure> {
    let LoadRulesResponse { changed, unchanged } = *loaded;
    if form.json {
        write_json(out, &Loaded { changed, unchanged, dry_run })?;
    } else if dry_run {
        writeln!(out, "{changed} would change, {unchanged} unchanged")?;
    } else {
        writeln!(out, "{changed} changed, {unchanged} unchanged")?;
    }
    Ok(())
}

/// Writes the rules while they arrive.
async fn list(mut client: Client, port: String, form: Form, out: &mut Out<'_>) -> Result<(), Failure> {
    let mut rules = client.rules.list(ListRulesRequest { port }).await?.into_inner();
    let mut table = Table::new([
        left("ID"),
        left("FROM"),
        right("PRIORITY"),
        left("MATCH"),
        left("ACTION"),
        right("PACKETS"),
        right("BYTES"),
    ]);
    while let Some(status) = rules.message().await? {
        if form.json {
            writeln!(out, "{}", rule_json::status_to_json(&status))?;
        } else {
            table.row(out, row(&status)?)?;
        }
    }
    if !form.json {
        table.finish(out)?;
    }
    Ok(())
}

fn row(status: &RuleStatus) -> Result<[String; 7], Failure> {
    let rule = status.rule.as_ref().ok_or(Failure::Incomplete("rule"))?;
    Ok([
        rule.id.clone(),
        rule_text::origin(rule),
        rule.priority.to_string(),
        rule_text::matching(rule.r#match.as_ref()),
        rule_text::action(rule.action.as_ref()),
        status.packets.to_string(),
        status.bytes.to_string(),
    ])
}

fn write_rule(status: &RuleStatus, form: Form, out: &mut Out<'_>) -> Result<(), Failure> {
    if form.json {
        writeln!(out, "{}", rule_json::status_to_json(status))?;
        return Ok(());
    }
    let [id, from, priority, matching, action, packets, bytes] = row(status)?;
    writeln!(out, "id        {id}\nfrom      {from}\npriority  {priority}\nmatch     {matching}")?;
    writeln!(out, "action    {action}\npackets   {packets}\nbytes     {bytes}")?;
    Ok(())
}
