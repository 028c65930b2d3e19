//! The control plane's members as `mosectl cluster status` gives them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use mosec_wire::control::proto;
use serde::Serialize;

use super::table::{dash, table};
use crate::terminal::printable;
use crate::watch::Watched;

/// The members and what they can bear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct MembersReport {
    pub(crate) cluster: String,
    /// The member that answered.
    answered_by: u64,
    /// The leader, as that one knows it.
    leader: Option<u64>,
    term: u64,
    /// Whether a change of members is half done.
    changing: bool,
    /// How many must agree to a change.
    majority: usize,
    /// How many of those that are there may be lost before none can be made.
    may_be_lost: usize,
    members: Vec<MemberReport>,
    /// What an operator should know.
    notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct MemberReport {
    id: u64,
    address: String,
    /// `leader`, `voter`, or `learner`, which follows only.
    role: &'static str,
    /// `level`; `behind` where it is filled and takes no part in votes; `silent` where it does not answer.
    state: &'static str,
    /// Why it does not answer.
    problem: Option<String>,
    /// Whether it holds the authority's key.
    signs: Option<bool>,
    build: Option<String>,
    last_log: Option<u64>,
    last_applied: Option<u64>,
}

impl Watched for MembersReport {}

impl From<proto::ListMembersResponse> for MembersReport {
    fn from(found: proto::ListMembersResponse) -> Self {
        let members: Vec<_> = found
            .members
            .into_iter()
            .map(|member| MemberReport::new(member, found.leader))
            .collect();
        let voters = members.iter().filter(|member| member.role != "learner");
        let (of, level) = voters.fold((0, 0), |(of, level), voter| {
            (of + 1, level + usize::from(voter.state == "level"))
        });
        let majority = of / 2 + 1;
        let mut report = Self {
            cluster: found.cluster_id,
            answered_by: found.answered_by,
            leader: found.leader,
            term: found.term,
            changing: found.changing,
            majority,
            may_be_lost: usize::saturating_sub(level, majority),
            members,
            notes: Vec::new(),
        };
        report.notes = report.notes(of, level);
        report
    }
}

impl MembersReport {
    fn notes(&self, of: usize, level: usize) -> Vec<String> {
        let mut notes = Vec::new();
        if level < self.majority {
            notes.push(format!(
                "no majority: {level} of {of} members are level, {} must be; what runs goes on, and nothing can be changed",
                self.majority
            ));
        } else if self.leader.is_none() {
            notes.push("no leader is known: an election takes a second or two".to_owned());
        }
        if self.changing {
            notes.push("a change of members is under way".to_owned());
        }
        if of.is_multiple_of(2) {
            notes.push(format!("{of} members bear no more losses than {}", of - 1));
        }
        for member in self.members.iter().filter(|member| member.role == "learner") {
            notes.push(format!(
                "member {id} does not vote yet: `mosectl cluster add {id}={}` goes on",
                member.address,
                id = member.id
            ));
        }
        if self.members.iter().all(|member| member.signs != Some(true)) {
            notes.push(
                "no member that answers holds the authority's key: nobody can join, and no certificate is renewed"
                    .to_owned(),
            );
        }
        let builds: BTreeSet<_> = self
            .members
            .iter()
            .filter_map(|member| member.build.as_deref())
            .collect();
        if builds.len() > 1 {
            let builds: Vec<_> = builds.into_iter().collect();
            notes.push(format!("the members run different builds: {}", builds.join(", ")));
        }
        notes
    }
}

impl MemberReport {
    fn new(member: proto::MemberRecord, leader: Option<u64>) -> Self {
        let report = member.report;
        Self {
            role: match member.voter {
                true if leader == Some(member.id) => "leader",
                true => "voter",
                false => "learner",
            },
            state: match &report {
                Some(report) if report.level => "level",
                Some(_) => "behind",
                None => "silent",
            },
            id: member.id,
            address: member.address,
            problem: Some(member.problem).filter(|problem| !problem.is_empty()),
            last_log: report.as_ref().map(|report| report.last_log),
            last_applied: report.as_ref().map(|report| report.last_applied),
            signs: report.as_ref().map(|report| report.signs),
            build: report.map(|report| report.build),
        }
    }
}

/// As a table with the notes below it.
pub(crate) fn render(report: &MembersReport) -> String {
    let leader = report
        .leader
        .map_or_else(|| "none".to_owned(), |id| id.to_string());
    let mut text = format!(
        "cluster {}  leader {leader}  term {}  majority {}  may be lost {}\n\n",
        report.cluster, report.term, report.majority, report.may_be_lost
    );
    let mut table = table(&[
        "MEMBER", "ROLE", "STATE", "SIGNS", "BUILD", "LOG", "APPLIED", "ADDRESS", "PROBLEM",
    ]);
    let number = |number: Option<u64>| number.map_or_else(dash, |number| number.to_string());
    for member in &report.members {
        table.add_row([
            member.id.to_string(),
            member.role.to_owned(),
            member.state.to_owned(),
            member
                .signs
                .map_or_else(dash, |signs| if signs { "yes" } else { "no" }.to_owned()),
            member.build.clone().map_or_else(dash, |build| printable(&build)),
            number(member.last_log),
            number(member.last_applied),
            member.address.clone(),
            member.problem.as_deref().map_or_else(dash, printable),
        ]);
    }
    let _ = writeln!(text, "{}", table.trim_fmt());
    if !report.notes.is_empty() {
        text.push('\n');
    }
    for note in &report.notes {
        let _ = writeln!(text, "{note}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, voter: bool, level: Option<bool>) -> proto::MemberRecord {
        let report = level.map(|level| proto::MemberReport {
            build: "0.1.0".into(),
            level,
            signs: id < 3,
            last_log: 9,
            last_applied: 8,
        });
        proto::MemberRecord {
            id,
            address: format!("host-{id}:7400"),
            voter,
            problem: report
                .as_ref()
                .map_or_else(|| "connection refused".into(), |_| String::new()),
            report,
        }
    }

    fn report(leader: Option<u64>, members: Vec<proto::MemberRecord>) -> MembersReport {
        MembersReport::from(proto::ListMembersResponse {
            cluster_id: "prod".into(),
            answered_by: 1,
            leader,
            term: 4,
            members,
            changing: false,
            next: 5,
        })
    }

    #[test]
    fn what_may_be_lost_is_counted_among_those_that_are_there() {
        let voter = |id, level| member(id, true, level);
        let three = report(
            Some(1),
            vec![voter(1, Some(true)), voter(2, Some(true)), voter(3, Some(true))],
        );
        assert_eq!((three.majority, three.may_be_lost, three.notes.len()), (2, 1, 0));
        let two = report(
            Some(1),
            vec![voter(1, Some(true)), voter(2, Some(true)), voter(3, None)],
        );
        assert_eq!((two.majority, two.may_be_lost), (2, 0));
        let one = report(
            None,
            vec![voter(1, Some(true)), voter(2, Some(false)), voter(3, None)],
        );
        assert!(
            one.notes[0].starts_with("no majority: 1 of 3 members are level, 2 must be"),
            "{:?}",
            one.notes
        );
        let four = report(
            Some(2),
            vec![
                voter(1, Some(true)),
                voter(2, Some(true)),
                voter(3, Some(true)),
                member(4, false, Some(false)),
            ],
        );
        assert_eq!(
            four.notes,
            ["member 4 does not vote yet: `mosectl cluster add 4=host-4:7400` goes on"]
        );
    }

    #[test]
    fn a_silent_member_says_why() {
        let text = render(&report(
            Some(1),
            vec![member(1, true, Some(true)), member(2, true, None)],
        ));
        let expected = "\
cluster prod  leader 1  term 4  majority 2  may be lost 0

MEMBER  ROLE    STATE   SIGNS  BUILD  LOG  APPLIED  ADDRESS      PROBLEM
1       leader  level   yes    0.1.0  9    8        host-1:7400  -
2       voter   silent  -      -      -    -        host-2:7400  connection refused

no majority: 1 of 2 members are level, 2 must be; what runs goes on, and nothing can be changed
2 members bear no more losses than 1
";
        assert_eq!(text, expected);
    }
}
